"""Reads the contents of a webdataset shard of images.

A shard is a tar file. The files of a sample have one name and the suffixes `.jpg`, `.txt` (caption) and `.json`.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from utils.errors import DataError
from utils.files import decode_text, parse_json

Keeps = Callable[[Mapping[str, Any]], bool]

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
RANGE = re.compile(r"\{(\d{1,18})\.\.(\d{1,18})\}")
MAX_SHARDS = 1_000_000
TAR_END = 1024  # a complete tar file ends in this number of zero bytes


@dataclass(frozen=True, kw_only=True)
class TarImage:
    """Position of an image in its shard, and its caption."""

    name: str
    caption: str
    offset: int
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class Shard:
    """The usable images of a shard.

    Attributes:
        images: the images that pass the filters, in order.
        num_left_out: number of images that the filters leave out.
        problems: one message for each broken sample, and one if the shard is truncated.
    """

    file: Path
    images: list[TarImage] = field(default_factory=list)
    num_left_out: int = 0
    problems: list[str] = field(default_factory=list)


def expanded(pattern: str) -> list[str]:
    """The names that a pattern stands for: `{00000..00002}.tar` gives three names; the numbers keep their width.

    Raises:
        DataError: a range is empty, or there are too many names.
    """
    found = RANGE.search(pattern)
    if not found:
        return [pattern]
    first, last = found.groups()
    if not 0 <= int(last) - int(first) < MAX_SHARDS:
        raise DataError(
            f"img_dataset.data_list={pattern}: the range {found[0]} is empty or too long; write the smaller number "
            f"first, and at most {MAX_SHARDS} numbers"
        )
    names = (f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1))
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [name for number in names for name in expanded(f"{before}{number}{after}")]


def read_shard(file: Path, *, keeps: Keeps) -> Shard:
    """Read the contents of a shard and find broken samples. Of a truncated shard, the samples before the cut count.

    Args:
        keeps: whether an image with this `.json` passes the filters.
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
        shard.problems.append(f"{file}: the shard is truncated after {num} images; download it again")
    return Shard(file=file, images=shard.images, num_left_out=left_out, problems=shard.problems)


def _samples(tar: tarfile.TarFile) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """The samples of a tar file: consecutive files of one name, by suffix."""
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
    """(image, None), (None, None) if a filter leaves it out, or (None, message) if it is broken."""
    image = next((parts[suffix] for suffix in IMAGE_SUFFIXES if suffix in parts), None)
    if image is None:
        return None, "no picture"
    if not image.size:
        return None, "zero bytes"
    try:
        facts = parse_json(_text_of(tar, parts["json"]), name="the .json file", kind=dict) if "json" in parts else {}
        caption = _text_of(tar, parts["txt"]) if "txt" in parts else ""
        passes = keeps(facts)
    except DataError as err:
        return None, f"caption or .json cannot be read ({err})"
    except (TypeError, ArithmeticError) as err:
        return None, f"a value in the .json file is not a usable number ({err})"
    if not passes:
        return None, "" if facts else "the .json file is missing, which the filters need"
    if not caption.strip():
        return None, "no caption"
    return TarImage(name=name, caption=caption, offset=image.offset_data, num_bytes=image.size), ""


def _text_of(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    return decode_text(tar.extractfile(member).read(), name=PurePosixPath(member.name).name)
