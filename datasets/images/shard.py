"""What lies where in a webdataset shard of images.

A shard is a tar file; what belongs to a sample has one name and the suffixes `.jpg`, `.txt` (caption) and `.json`.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

Keeps = Callable[[Mapping[str, Any]], bool]

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
TAR_END = 1024  # a whole tar file ends in so many zero bytes


@dataclass(frozen=True, kw_only=True)
class TarImage:
    """Where an image lies in its shard."""

    name: str
    caption: str
    offset: int
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class Shard:
    """What a shard has to give.

    Attributes:
        images: those that pass the filters, in order.
        num_left_out: by the filters.
        problems: a line for each broken sample, and for a shard that is cut off.
    """

    file: Path
    images: list[TarImage] = field(default_factory=list)
    num_left_out: int = 0
    problems: list[str] = field(default_factory=list)


def expanded(pattern: str) -> list[str]:
    """`{00000..00002}.tar` to three names; the numbers keep their width."""
    found = RANGE.search(pattern)
    if not found:
        return [pattern]
    first, last = found.groups()
    names = (f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1))
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [name for number in names for name in expanded(f"{before}{number}{after}")]


def read_shard(file: Path, *, keeps: Keeps) -> Shard:
    """What a shard holds and what is wrong with it. Of one that is cut off, what comes before the cut counts.

    Args:
        keeps: whether an image passes the filters, by what its `.json` says.
    """
    shard, left_out = Shard(file=file), 0
    try:
        with tarfile.open(file, "r:") as tar:
            for name, parts in _samples(tar):
                image, problem = _image_of(tar, name, parts, keeps)
                if problem:
                    shard.problems.append(f"image {file}/{name}: {problem}")
                elif image:
                    shard.images.append(image)
                else:
                    left_out += 1
        with file.open("rb") as raw:
            raw.seek(-TAR_END, 2)
            cut = bool(raw.read().strip(b"\0"))
    except (tarfile.TarError, OSError):
        cut = True
    if cut:
        num = len(shard.images) + left_out
        shard.problems.append(f"{file}: the shard is cut off after {num} images; download it again")
    return Shard(file=file, images=shard.images, num_left_out=left_out, problems=shard.problems)


def _samples(tar: tarfile.TarFile) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """Files that follow each other and have one name, by suffix."""
    present, parts = None, {}
    for member in tar:
        if not member.isfile():
            continue
        path = PurePosixPath(member.name)
        stem, _, suffix = path.name.partition(".")
        name = str(path.with_name(stem))
        if name != present and parts:
            yield present, parts
            parts = {}
        present, parts[suffix.lower()] = name, member
    if parts:
        yield present, parts


def _image_of(
    tar: tarfile.TarFile, name: str, parts: dict[str, tarfile.TarInfo], keeps: Keeps
) -> tuple[TarImage | None, str]:
    """The image, or None when a filter leaves it out, or what is wrong with it."""
    image = next((parts[suffix] for suffix in IMAGE_SUFFIXES if suffix in parts), None)
    if image is None:
        return None, "no picture"
    if not image.size:
        return None, "zero bytes"
    try:
        facts = json.loads(tar.extractfile(parts["json"]).read()) if "json" in parts else {}
        if not isinstance(facts, dict):
            raise ValueError("the .json holds no object")
        caption = tar.extractfile(parts["txt"]).read().decode("utf-8") if "txt" in parts else ""
        passes = keeps(facts)
    except (ValueError, TypeError) as err:  # a TypeError where a limit meets something that is no number
        return None, f"caption or facts cannot be read ({err})"
    if not passes:
        return None, "" if facts else "no .json, which the filters ask for"
    if not caption.strip():
        return None, "no caption"
    return TarImage(name=name, caption=caption, offset=image.offset_data, num_bytes=image.size), ""
