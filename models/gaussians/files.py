"""Files of Gaussians: `.ply`, `.splat`, `.spz` and `.glb`, a module each. The content decides which one a file is."""

from __future__ import annotations

import gzip
from pathlib import Path

from models.gaussians.gltf import read_gltf, write_gltf
from models.gaussians.ply import read_ply, write_ply
from models.gaussians.scene import Gaussians
from models.gaussians.splat import read_splat, splat_bytes, write_splat
from models.gaussians.spz import MAGIC, read_spz, write_spz
from utils.errors import DataError, first_line

__all__ = [
    "read_gaussians", "read_gltf", "read_ply", "read_splat", "read_spz", "splat_bytes", "write_gltf", "write_ply",
    "write_splat", "write_spz",
]  # fmt: skip
GZIP, GLTF = b"\x1f\x8b", b"glTF"


def read_gaussians(path: str | Path) -> Gaussians:
    """Read a file of any format: a batch of one scene, in the world of utils.cameras.

    Raises:
        DataError: the file is none of these, or broken.
    """
    path = Path(path)
    try:
        start = b""
        if path.is_file():
            with path.open("rb") as file:
                start = file.read(4)
        if start[:3] == b"ply":
            return read_ply(path)
        if (start[:2] == GZIP and _is_spz(path)) or start == MAGIC:
            return read_spz(path)
        if start == GLTF:
            return read_gltf(path)
        by_suffix = {".splat": read_splat, ".spz": read_spz, ".glb": read_gltf, ".gltf": read_gltf}
        return by_suffix.get(path.suffix.lower(), read_ply)(path)
    except (OSError, MemoryError) as err:
        raise DataError(f"{path}: cannot be read ({first_line(err)}); copy it again") from err


def _is_spz(path: Path) -> bool:
    """Whether gzip contains Gaussians: a `.splat` may begin with any two bytes."""
    try:
        with gzip.open(path) as file:
            return file.read(len(MAGIC)) == MAGIC
    except (OSError, EOFError):
        return False
