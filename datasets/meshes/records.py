"""What a rendered object was made of: its mesh and the files that belong to it, so that a change is noticed."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from datasets.meshes.companions import Companions

SOURCE_FILE = "source.json"


def source_record(files: Companions) -> dict[str, Any]:
    """Describe a mesh and what it was read with: size, time and digest of every file, and the names not found."""
    rows = []
    for path in (files.path, *files.read):
        state = path.stat()
        row = {
            "name": _text(os.path.relpath(path, files.path.parent)),
            "bytes": state.st_size,
            "mtime_ns": state.st_mtime_ns,
        }
        rows.append(row | {"sha256": _digest(path)})
    return {"files": rows, "missing": [_text(name) for name in files.missing]}


def is_current(folder: Path, mesh: Path, root: Path, *, made: Path) -> bool:
    """Whether the views in a folder were made of this mesh as it is now.

    Args:
        made: a file of the views; of views without a record, which older versions wrote, only the time is compared.
    """
    path = folder / SOURCE_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        # a mesh that cannot be read is tried, so that the error is reported
        return mesh.is_file() and mesh.stat().st_mtime_ns <= made.stat().st_mtime_ns
    except (OSError, ValueError):
        return False
    return same_source(record, mesh, root)


def same_source(record: Any, mesh: Path, root: Path) -> bool:
    """Whether the files of a record are the same now; the time is enough, otherwise the digest decides."""
    try:
        rows, missing = record["files"], record["missing"]
        if not rows or rows[0]["name"] != mesh.name:
            return False
        for row in rows:
            file = mesh.parent / row["name"]
            state = file.stat()
            if state.st_size != row["bytes"]:
                return False
            if state.st_mtime_ns != row["mtime_ns"] and _digest(file) != row["sha256"]:
                return False
        files = Companions(mesh, root)
        return all(files.find(name) is None for name in missing)
    except (OSError, KeyError, TypeError, AttributeError, IndexError):
        return False


def _text(name: str) -> str:
    """A name that JSON can hold; one with bytes that are no UTF-8 will not be found again, and counts as changed."""
    return name.encode("utf-8", "surrogatepass").decode("utf-8", "backslashreplace")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
