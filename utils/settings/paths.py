"""Paths in settings: `~` is the home folder; a relative path starts at the working directory.

A file that is to be read and is not there is looked for at the same place in the repository, or in the installed
package, so that shipped weights and lists are found from every working directory.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

# The folder that has configs/ and data/: the repository, or the installed package.
ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
# Settings that name files to read, at any level; a list of them holds several.
INPUTS = (
    "test_model", "test_list_path", "images", "image", "path", "pretrained", "resume_checkpoint", "data_list",
    "data_dir_list", "caption_dir", "resume",
)  # fmt: skip
OUTPUTS = ("log_dir", "cache_dir")


def found_path(path: str) -> str:
    """Return the path with `~` expanded; one that is missing here and exists in the repository becomes that one."""
    path = os.path.expanduser(path)
    if not path or os.path.isabs(path) or os.path.exists(path):
        return path
    shipped = os.path.join(ROOT, path)
    return os.path.normpath(shipped) if os.path.exists(shipped) else path


def found_config(name: str) -> str:
    """Return the path of a configuration: a file here, else one of the project, by its path or its name.

    The name is that of `config_names`, with or without `.yaml`. What is found nowhere is returned as it is.
    """
    path = found_path(name)
    if os.path.isfile(path) or not name or os.path.isabs(path):
        return path
    own = CONFIGS / f"{name.removesuffix('.yaml')}.yaml"
    return str(own) if own.is_file() else path


def config_names() -> list[str]:
    """List the names of the project's own configurations, for example `mini/real_infer`."""
    files = CONFIGS.rglob("*.yaml")
    return sorted(file.relative_to(CONFIGS).with_suffix("").as_posix() for file in files if file.stem != "base")


def with_found_paths(values: Any, *, moved: list[str]) -> Any:
    """Return settings with all paths in them found.

    Args:
        moved: gets the paths that were found in the repository.
    """
    if isinstance(values, list):
        return [with_found_paths(value, moved=moved) for value in values]
    if not isinstance(values, dict):
        return values
    result = {}
    for key, value in values.items():
        if key in INPUTS and isinstance(value, str | list):
            result[key] = _found(value, moved) if isinstance(value, str) else [_found(one, moved) for one in value]
        elif key in OUTPUTS and isinstance(value, str):
            result[key] = os.path.expanduser(value)
        else:
            result[key] = with_found_paths(value, moved=moved)
    return result


def _found(value: Any, moved: list[str]) -> Any:
    if not isinstance(value, str):
        return value
    found = found_path(value)
    if os.path.isabs(found) and found != os.path.expanduser(value):
        moved.append(value)
    return found
