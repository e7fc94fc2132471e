"""The 3D files of one object, all from its Gaussians. What cannot be made is said; the rest is still written."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from models.gaussian_files import write_ply, write_splat
from models.gaussians import Gaussians
from utils.asset_options import AssetOptions
from utils.errors import DataError

log = logging.getLogger(__name__)

PLY_FILE, SPLAT_FILE = "gaussians.ply", "gaussians.splat"


def write_assets(
    folder: Path, gaussians: Gaussians, *, options: AssetOptions, c2w_44: Tensor, fov_deg: float
) -> dict[str, dict[str, Any]]:
    """Write the files that the options ask for; rendering happens on the device of the Gaussians.

    Args:
        folder: gets the files.
        gaussians: one scene, in the world of utils.cameras.
        c2w_44: the camera of the first view.
        fov_deg: field of view.

    Returns:
        For each file, what it took and what it holds (seconds, bytes and more), or {"error": why there is none}.
    """
    makers: dict[str, Callable[[Path], dict[str, Any]]] = {}
    if options.ply:
        makers[PLY_FILE] = lambda path: _written(write_ply(path, gaussians))
    if options.splat:
        makers[SPLAT_FILE] = lambda path: _written(write_splat(path, gaussians))
    return {name: _made(folder / name, make) for name, make in makers.items()}


def _written(_: None) -> dict[str, Any]:
    return {}


def _made(path: Path, make: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Make one file; a file that cannot be made is reported in one line."""
    started = time.perf_counter()
    try:
        facts = make(path)
    except DataError as err:
        log.warning("no %s: %s", path.name, err)
        return {"error": str(err)}
    return {"bytes": path.stat().st_size, "seconds": round(time.perf_counter() - started, 2), **facts}
