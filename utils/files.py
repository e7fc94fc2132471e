"""Files and folders that are written completely or not at all, and the one way to read text and JSON."""

from __future__ import annotations

import codecs
import errno
import json
import logging
import os
import re
import shutil
import socket
import stat
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from utils.errors import DataError, WriteError, first_line

log = logging.getLogger(__name__)

FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# safetensors, torch and Pillow raise errors without an errno.
FULL_DISK_TEXT = re.compile(
    r"\(os error (27|28|122)\)|PytorchStreamWriter failed|unexpected pos \d+ vs|encoder error -\d"
)
NAMES_KINDS = {dict: "JSON object", list: "JSON list", object: "JSON value"}
OTHER_ENCODINGS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
# `.<name>.<process>.part<suffix>` is being written; `.<name>.<process>.old` was moved aside for a new version.
LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<process>\d+-\d+-[0-9a-f]{8})\.(?P<kind>part|old)(\.[^.]*)?", re.DOTALL)
LEFTOVER_OF_EARLIER_VERSIONS = re.compile(r"\..+\.(?P<pid>\d+)\.part(\.[^.]*)?", re.DOTALL)
# Whether a process of another machine still runs is unknown. Nobody writes one file for this long.
LONGEST_WRITE_SECONDS = 24 * 3600
MAX_NAME_BYTES = 150  # of a name to which the suffix of a temporary file is added; file systems allow 255

_tidied: set[tuple[int, Path]] = set()
_in_use: set[tuple[int, Path]] = set()


# Text


def read_text(path: str | Path, *, option: str) -> str:
    """Read a text file: UTF-8 with or without byte order mark, any line ends. Lines end with a line feed here.

    Args:
        option: the setting that named the file, for the error message.

    Raises:
        DataError: the file is missing, cannot be read, or has another encoding.
    """
    path = Path(path)
    name = f"{option}={path}"
    try:
        raw = path.read_bytes()
    except FileNotFoundError as err:
        raise DataError(f"{name}: no such file; check the path (it is relative to the working directory)") from err
    except IsADirectoryError as err:
        raise DataError(f"{name} is a folder; name a file in it") from err
    except (OSError, ValueError) as err:  # ValueError: a name that no file can have
        raise DataError(f"{name} cannot be read ({_reason(err)}); check the path and its permissions") from err
    return decode_text(raw, name=name)


def decode_text(raw: bytes, *, name: str) -> str:
    """Decode the content of a text file, see `read_text`.

    Raises:
        DataError: the content is not UTF-8; the message has `name`, the line and the encoding that it may have.
    """
    for mark, encoding in OTHER_ENCODINGS.items():
        if raw.startswith(mark):
            raise DataError(f"{name} is not UTF-8 text but {encoding}; save it as UTF-8")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        line = raw[: err.start].count(b"\n") + 1
        raise DataError(
            f"{name} is not UTF-8 text (byte 0x{raw[err.start]:02x} in line {line}; its encoding may be Windows-1252 "
            "or Latin-1); save it as UTF-8"
        ) from err
    if "\0" in text:
        raise DataError(f"{name} is not UTF-8 text (it has zero bytes; its encoding may be UTF-16); save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: str | Path, *, option: str) -> list[str]:
    """Read the lines of a text file, see `read_text`; byte order marks of joined files are removed too."""
    text = read_text(path, option=option).removesuffix("\n")
    return [line.removeprefix("\ufeff") for line in text.split("\n")] if text else []


def check_text(text: str, *, name: str) -> str:
    """Return a text if it can be written as UTF-8.

    Raises:
        DataError: it cannot, because its bytes were not UTF-8 when the command line or a file name was read.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as err:
        raise DataError(f"{name} {text!a} is not valid UTF-8 (character {err.start + 1}); write it in UTF-8") from err
    return text


# JSON


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` as indented UTF-8 JSON, completely or not at all."""
    with atomic_path(path) as part:
        part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: str | Path, *, option: str, kind: type = object) -> Any:
    """Read JSON.

    Args:
        option: the setting that named the file, for the error message.
        kind: `dict` or `list`, if the file must contain one.

    Raises:
        DataError: the file is missing, is not JSON, or contains something else.
    """
    return parse_json(read_text(path, option=option), name=f"{option}={path}", kind=kind)


def parse_json(text: str, *, name: str, kind: type = object) -> Any:
    """Parse JSON, see `read_json`.

    Raises:
        DataError: the text is not JSON, is nested too deeply, or contains another kind of value or half a character.
    """
    try:
        content = json.loads(text)
        if "\\u" in text:  # an escape may be half of a character, which could not be written again
            json.dumps(content, ensure_ascii=False).encode("utf-8")
    except RecursionError as err:
        raise DataError(f"{name}: not valid JSON (nested too deeply); correct it or write it again") from err
    except ValueError as err:
        raise DataError(f"{name}: not valid JSON ({first_line(err)}); correct it or write it again") from err
    if not isinstance(content, kind):
        raise DataError(
            f"{name} must contain a {NAMES_KINDS[kind]}, but contains {_shown(content)}; correct it or write it again"
        )
    return content


def _shown(content: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(content), "a number")


# Writing


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to `path` if the block ends without an error.

    The temporary name keeps the suffix, because writers choose the format by it. The file gets the permissions of a
    normal new file, because safetensors writes files that other users of a group cannot read.

    Raises:
        WriteError: the disk is full.
    """
    path = Path(path)
    with _room_for(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        tidy(path.parent)
        part = path.with_name(f".{_short(path.stem)}.{_process()}.part{path.suffix}")
        mode = _mode_of_new_files(part)
        try:
            yield part
            part.chmod(mode)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path, *, is_ours: Callable[[Path], bool] | None = None) -> Iterator[Path]:
    """Yield an empty temporary folder; it replaces `path` if the block ends without an error, else it is deleted.

    An older folder `path` is moved aside until the new one has its name, and deleted then. If the process is killed
    between, the next one that writes beside it moves the older folder back.

    Args:
        is_ours: whether a file of an older folder (relative to it) may be deleted; all other files are kept. None: all
            may be deleted.

    Raises:
        WriteError: the disk is full.
    """
    path = Path(path)
    with _room_for(path) as spelled:
        path.parent.mkdir(parents=True, exist_ok=True)
        tidy(path.parent)
        part = path.with_name(f".{path.name}.{_process()}.part")
        spelled[str(part)] = str(path)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        try:
            yield part
            if is_ours is not None and path.is_dir():
                _keep_files(path, part, is_ours)
            _replace_folder(path, part)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _replace_folder(path: Path, part: Path) -> None:
    if not path.exists():
        part.rename(path)
        return
    aside = path.with_name(f".{path.name}.{_process()}.old")
    path.rename(aside)
    try:
        part.rename(path)
    except BaseException:
        aside.rename(path)
        raise
    shutil.rmtree(aside, ignore_errors=True)  # what cannot be deleted now is a leftover that the next run deletes


def _keep_files(old: Path, new: Path, is_ours: Callable[[Path], bool]) -> None:
    """Put the files of `old` that are not ours into `new` too; as links, so that nothing is copied or lost."""
    for file in sorted(old.rglob("*")):
        name = file.relative_to(old)
        if (file.is_dir() and not file.is_symlink()) or is_ours(name):
            continue
        target = new / name
        number = 0
        while os.path.lexists(target):
            number += 1
            target = new / name.with_name(f"{name.stem}.kept{number}{name.suffix}")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file, target, follow_symlinks=False)
        except OSError:  # a file system without links
            shutil.copy2(file, target, follow_symlinks=False)
        log.info("%s was not written by this program and is kept", file)


def remove_folder(path: Path) -> None:
    """Remove a folder. It is renamed first, so that a kill never leaves a half-deleted folder under its name."""
    aside = path.with_name(f".{path.name}.{_process()}.part")
    path.rename(aside)
    shutil.rmtree(aside)


def writable_folder(path: str | Path, *, option: str) -> Path:
    """Create the folder `path` and check that a file can be written there. Leftovers of killed processes are removed.

    Raises:
        DataError: the folder cannot be created or written to.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".write_probe.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except (OSError, ValueError) as err:
        raise DataError(f"{option}={path} cannot be written ({_reason(err)}); choose another folder") from err
    tidy(path)
    return path


@contextmanager
def _room_for(path: Path) -> Iterator[dict[str, str]]:
    """Turn the errors of a full disk into one that names `path`; the dict has names to replace in the message."""
    spelled: dict[str, str] = {}
    try:
        yield spelled
    except WriteError as err:
        text = str(err)
        for temporary, name in spelled.items():
            text = text.replace(temporary, name)
        raise WriteError(text) from err
    except Exception as err:
        if is_full_disk(err):
            raise WriteError(no_room_for(path, err)) from err
        raise


def is_full_disk(err: BaseException) -> bool:
    """Whether an error of a writer means that the disk, the quota or the allowed file size is used up."""
    if isinstance(err, OSError) and err.errno is not None:
        return err.errno in FULL_DISK
    return FULL_DISK_TEXT.search(str(err)) is not None


def no_room_for(path: str | Path, err: BaseException) -> str:
    """The message about a file or folder for which there is no space."""
    return f"{path} cannot be written ({_reason(err)}); free some space, or choose another folder, and run again"


def _reason(err: BaseException) -> str:
    return (isinstance(err, OSError) and err.strerror) or first_line(err)


def _mode_of_new_files(probe: Path) -> int:
    """Permissions of a new file, from an example: reading the umask means changing it, for all threads."""
    probe.unlink(missing_ok=True)
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    return stat.S_IMODE(mode)


def _short(name: str) -> str:
    """A name that stays valid with a suffix; a name that is cut gets a checksum."""
    raw = name.encode("utf-8", "surrogateescape")
    if len(raw) <= MAX_NAME_BYTES:
        return name
    return f"{raw[:MAX_NAME_BYTES].decode('utf-8', 'ignore')}-{zlib.crc32(raw):08x}"


# Leftovers of killed processes, and folders in use


def tidy(folder: Path) -> None:
    """Remove what killed processes left in a folder, once per process; what a process still writes is not touched.

    A folder that was moved aside, and whose new version never got its name, gets its name back.
    """
    key = (os.getpid(), folder.absolute())
    if key in _tidied:
        return
    _tidied.add(key)
    try:
        names = [entry.name for entry in os.scandir(folder) if entry.name.startswith(".")]
    except OSError:
        return
    for name in names:
        found = LEFTOVER.fullmatch(name)
        if found is None:
            found = LEFTOVER_OF_EARLIER_VERSIONS.fullmatch(name)
            if found and not _runs(int(found["pid"])) and _age(folder / name) > LONGEST_WRITE_SECONDS:
                _discard(folder / name)
        elif not _may_run(found["process"], folder / name):
            if found["kind"] == "old" and not (folder / found["name"]).exists():
                (folder / name).rename(folder / found["name"])
                log.info("%s is back: the run that was to replace it was interrupted", folder / found["name"])
            else:
                _discard(folder / name)


def _discard(left: Path) -> None:
    log.info("removing %s, a leftover of an interrupted run", left)
    try:
        shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink(missing_ok=True)
    except OSError as err:
        log.warning("%s cannot be removed (%s); remove it by hand", left, err.strerror)


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0


def _process() -> str:
    """Name this process so that no later one has the same: its number, its start time and its machine."""
    return _process_named(os.getpid())


@cache
def _process_named(pid: int) -> str:
    return f"{pid}-{_start_of(pid) or 0}-{_machine()}"


def _may_run(process: str, left: Path) -> bool:
    pid, start, machine = process.split("-")
    if machine != _machine():
        return _age(left) < LONGEST_WRITE_SECONDS
    now = _start_of(int(pid))
    return _runs(int(pid)) if now is None or start == "0" else now == int(start)


def _start_of(pid: int) -> int | None:
    """When a process started, in ticks since the machine's start; None if unknown, -1 if it has ended."""
    if not os.path.exists("/proc/self/stat"):
        return None
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            state, *numbers = file.read().rpartition(b")")[2].split()
    except OSError:
        return -1
    return -1 if state in (b"Z", b"X") else int(numbers[18])


def _runs(pid: int) -> bool:
    if os.name != "posix":
        return True  # unknown: os.kill would end the process
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


@cache
def _machine() -> str:
    """Eight digits for the machine, or the container with its own numbers of processes."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return f"{zlib.crc32(f'{socket.gethostname()} {space}'.encode('utf-8', 'replace')):08x}"


@contextmanager
def sole_use(folder: Path, *, option: str) -> Iterator[None]:
    """Hold a lock on a folder while the block runs; the lock ends with the process, however that ends.

    It is a record lock: processes that are forked in the block, such as those that read data, do not hold it.

    Raises:
        DataError: another run holds it.
    """
    path = folder / ".in_use"
    own = (os.getpid(), folder.absolute())  # the system does not keep a process from locking a file twice
    file = None if own in _in_use else _locked(path)
    if file is None:
        owner = path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else "unknown"
        raise DataError(
            f"{option}={folder} is used by another run ({owner}); wait until it has ended, or choose another {option}"
        )
    with file:
        try:
            _in_use.add(own)
            with suppress(OSError):  # a full disk; what is written in the block reports it
                file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
                file.flush()
            yield
        finally:
            _in_use.discard(own)
            path.unlink(missing_ok=True)  # before the lock ends


def _locked(path: Path) -> Any:
    """Open and lock a file; None if another process has locked it."""
    try:
        import fcntl
    except ImportError:  # Windows
        return open(os.devnull, "a", encoding="utf-8")
    while True:
        file = path.open("a", encoding="utf-8")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.close()
            return None
        except OSError as err:
            log.warning("%s has no locks (%s); do not start two runs on it at once", path.parent, err.strerror)
            return file
        try:
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                file.truncate(0)
                return file
        except FileNotFoundError:  # the run that held it has just ended and removed it
            pass
        file.close()


@contextmanager
def meanwhile(*calls: Callable[[], object]) -> Iterator[None]:
    """Run calls in threads while the block runs; wait for all of them and raise the error of the first that failed."""
    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(call) for call in calls]
        yield
        for one in waiting:
            one.result()
