"""Files and folders that are written completely or not at all."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from utils.errors import DataError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to `path` if the block ends without an error.

    The temporary name keeps the suffix, because writers choose the format by it. The file gets the permissions of a
    normal new file, because safetensors writes files that other users of a group cannot read.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    mode = _mode_of_new_files(part)
    try:
        yield part
        part.chmod(mode)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _mode_of_new_files(probe: Path) -> int:
    """Permissions of a new file, from an example: reading the umask means changing it, for all threads."""
    probe.unlink(missing_ok=True)
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    return stat.S_IMODE(mode)


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` as indented UTF-8 JSON, completely or not at all."""
    with atomic_path(path) as part:
        part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: str | Path, *, option: str) -> Any:
    """Read JSON.

    Args:
        option: the setting that named the file, for the error message.

    Raises:
        DataError: the file is missing or is not JSON.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{option}={path}: no such file; check the path (it is relative to the working directory)")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as err:  # also not UTF-8, and nested too deeply
        raise DataError(f"{option}={path}: not valid JSON ({err}); correct it or write it again") from err


def writable_folder(path: str | Path, *, option: str) -> Path:
    """Create the folder `path` and check that a file can be written there.

    Raises:
        DataError: the folder cannot be created or written to.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".write_probe.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as err:
        raise DataError(f"{option}={path} cannot be written ({err.strerror}); choose another folder") from err
    return path


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty temporary folder; it replaces `path` if the block ends without an error, else it is deleted."""
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        if path.exists():
            remove_folder(path)
        part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder. It is renamed first, so that a kill never leaves a half-deleted folder under its name."""
    aside = path.with_name(f".{path.name}.old.{os.getpid()}.part")
    path.rename(aside)
    shutil.rmtree(aside)


@contextmanager
def meanwhile(*calls: Callable[[], object]) -> Iterator[None]:
    """Run calls in threads while the block runs; wait for all of them and raise the error of the first that failed."""
    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(call) for call in calls]
        yield
        for one in waiting:
            one.result()
