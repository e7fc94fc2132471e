"""Made-up single images with captions, as shards and as a list."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

GOOD = {"pwatermark": 0.1, "punsafe": 0.05, "AESTHETIC_SCORE": 5.5, "width": 48, "height": 40, "similarity": 0.3}


def picture(number: int, *, width: int = 48, height: int = 40) -> bytes:
    """A grey JPEG with a brightness of its own."""
    file = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), 10 + 9 * number % 240, dtype=np.uint8)).save(file, "JPEG")
    return file.getvalue()


def sample(number: int, *, without: str = "", **facts: Any) -> dict[str, bytes]:
    """The three files of one sample; `without` leaves one out."""
    files = {"jpg": picture(number), "txt": f"picture {number}".encode(), "json": json.dumps(GOOD | facts).encode()}
    files.pop(without, None)
    return files


def write_tar(file: Path, samples: dict[str, dict[str, bytes]]) -> Path:
    """A shard of named samples."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for name, files in samples.items():
            for suffix, content in files.items():
                member = tarfile.TarInfo(f"{name}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return file


def write_shards(folder: Path, *, num: int = 3, size: int = 6) -> dict[str, Any]:
    """Whole shards of whole samples; returns the section that reads them."""
    for shard in range(num):
        numbers = range(shard * size, (shard + 1) * size)
        write_tar(folder / f"{shard:05d}.tar", {f"{number:09d}": sample(number) for number in numbers})
    return {
        "type": "LAIONImageDataset",
        "data_list": [f"{{00000..{num - 1:05d}}}.tar"],
        "data_dir_list": [str(folder)],
        "resolution": [32, 32],
    }


def write_list(folder: Path, *, num: int = 6) -> dict[str, Any]:
    """Single files and a list of them; returns the section that reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(num):
        (folder / f"{number}.jpg").write_bytes(picture(number))
    (folder / "list.txt").write_text("".join(f"{number}.jpg|||picture {number}\n" for number in range(num)))
    return {
        "type": "ImageDataset",
        "data_list": [str(folder / "list.txt")],
        "data_dir_list": [str(folder)],
        "resolution": [32, 32],
    }
