"""The meshes that a command works on: files, folders of files, and lists with captions and attributes."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.meshes.loading import UP_BY_SUFFIX
from utils.errors import ConfigError, DataError, first_line

# Meshes that a user may expect to be read from a folder.
OTHER_MESHES = {".fbx", ".dae", ".blend", ".usd", ".usda", ".usdc", ".usdz", ".3ds", ".3mf", ".max", ".vrm", ".wrl"}


@dataclass(frozen=True)
class MeshFile:
    """A mesh, and the folder below which its textures may lie."""

    path: Path
    root: Path


def collect_meshes(paths: list[Path]) -> dict[str, MeshFile]:
    """Collect mesh files by name; for a folder, all mesh files in it and in its subfolders, without hidden ones.

    Raises:
        DataError: there is no mesh, or two files have the same name.
    """
    files: list[MeshFile] = []
    for path in paths:
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if not p.name.startswith(".") and not p.is_dir())
            files += [MeshFile(p, path) for p in found if p.suffix.lower() in UP_BY_SUFFIX]
            others = Counter(p.suffix.lower() for p in found if p.suffix.lower() in OTHER_MESHES)
            if others:
                listed = ", ".join(f"{number} {suffix}" for suffix, number in sorted(others.items()))
                print(f"warning: {path}: {listed} are not read; export them as .glb", file=sys.stderr)
        else:
            files.append(MeshFile(path, path.parent))
    if not files:
        raise DataError(f"no mesh ({', '.join(UP_BY_SUFFIX)}) in {', '.join(map(str, paths))}; name mesh files")
    named: dict[str, MeshFile] = {}
    for file in files:
        before = named.setdefault(file.path.stem, file)
        if os.path.abspath(before.path) != os.path.abspath(file.path):
            raise DataError(f"{before.path} and {file.path} would be written to one folder; rename one of them")
    return named


def read_list(path: Path, where: list[str]) -> dict[str, dict[str, Any]]:
    """Read the lines of a list for which every KEY=VALUE of `where` is true, by the names of the meshes.

    Raises:
        ConfigError: a condition has no `=`.
        DataError: the file is missing, or a line is not a JSON object with a `file`.
    """
    bad = [text for text in where if "=" not in text]
    if bad:
        raise ConfigError(f"--where {' '.join(bad)} must be KEY=VALUE, for example split=train")
    if not path.is_file():
        raise DataError(f"--list={path}: no such file; correct the path")
    conditions = [text.split("=", 1) for text in where]
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise DataError(f"--list={path}: cannot be read as UTF-8 text ({first_line(err)}); save it as UTF-8") from err
    known = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name = Path(row["file"]).stem
        except (ValueError, KeyError, TypeError, RecursionError) as err:
            raise DataError(
                f"--list={path}: line {number} is not a JSON object with a `file` ({first_line(err)}); correct it"
            ) from err
        if all(_written(row.get(key)) == value for key, value in conditions):
            known[name] = row
    return known


def _written(value: Any) -> str:
    """Write a value as in JSON, but without quotes."""
    return value if isinstance(value, str) else json.dumps(value)
