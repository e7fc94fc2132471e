"""Write the 3D files of one object from its Gaussians.

If the object has no such file, for example no surface, this is reported and the others are written. If the disk cannot
take a file, the command ends, so that a later run makes all of them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from models.gaussians.files import write_gltf, write_ply, write_splat, write_spz
from models.gaussians.rendering import Rendering, render
from models.gaussians.scene import Gaussians
from pipelines.assets import (
    GLTF_FILE,
    MESH_FILE,
    PLY_FILE,
    SPLAT_FILE,
    SPZ_FILE,
    TURNTABLE_FILE,
    VIEWER_FILE,
)
from pipelines.assets.mesh import write_glb
from pipelines.assets.turntable import save_turntable, turntable_frames
from pipelines.assets.viewer import write_viewer
from utils.cameras import camera_distance
from utils.errors import DataError, WriteError
from utils.settings.assets import AssetOptions

log = logging.getLogger(__name__)


def write_assets(
    folder: Path,
    gaussians: Gaussians,
    *,
    options: AssetOptions,
    c2w_44: Tensor,
    fov_deg: float,
    title: str,
    rasterizer: str = "auto",
    on_file: Callable[[str], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Write the files that are set in the options; rendering uses the device of the Gaussians.

    Args:
        folder: output folder.
        gaussians: one scene, in the world frame of utils.cameras.
        c2w_44: camera of the first view; the viewer starts there, and the turntable has the same distance.
        fov_deg: field of view.
        title: name of the object in the viewer.
        rasterizer: see models.gaussians.rendering.
        on_file: called with the name of each file before it is made, except the turntable; an error that it raises
            ends the call.

    Returns:
        For each file: its size in bytes, its time in seconds and other facts, or {"error": the reason, "permanent":
        true} if the object has no such file. Files are made at the same time, so their times do not add up.

    Raises:
        WriteError: a file cannot be written, for example because the disk is full.
    """
    distance = float(camera_distance(c2w_44))

    def plain(write: Callable[[Path, Gaussians], None]) -> Callable[[Path], dict[str, Any]]:
        return lambda path: write(path, gaussians) or {}

    def draw(c2w_V44: Tensor, K_33: Tensor, size: tuple[int, int], background: float) -> Rendering:
        return render(gaussians, c2w_V44[None], K_33, size=size, background=background, backend=rasterizer)

    def frames() -> Tensor:
        device = gaussians.means_BN3.device
        return turntable_frames(draw, options, distance=distance, fov_deg=fov_deg, device=device)

    def viewer(path: Path) -> dict[str, Any]:
        write_viewer(path, gaussians, c2w_44=c2w_44, fov_deg=fov_deg, background=options.background, title=title)
        return {}

    makers = {
        PLY_FILE: (options.ply, lambda path: plain(write_ply)(path) | {"gaussians": gaussians.means_BN3.shape[1]}),
        SPLAT_FILE: (options.splat, plain(write_splat)),
        SPZ_FILE: (options.spz, plain(write_spz)),
        GLTF_FILE: (options.gltf, plain(write_gltf)),
        VIEWER_FILE: (options.html, viewer),
        MESH_FILE: (options.glb, lambda path: write_glb(path, gaussians, options, rasterizer=rasterizer)),
    }
    makers = {name: make for name, (wanted, make) in makers.items() if wanted}
    try:
        gaussians.check_values(name="the Gaussians")
    except DataError as err:  # otherwise each file would fail in another way, or contain invalid values
        return {name: _not_made(name, err) for name in (*makers, *([TURNTABLE_FILE] if options.turntable else []))}
    video = _Video(folder / TURNTABLE_FILE, frames, options) if options.turntable else None
    # The mesh takes longest, and only it draws; threads make the others, and ffmpeg encodes in its own process.
    facts: dict[str, dict[str, Any]] = {}
    with ThreadPoolExecutor() as pool:
        waiting = {TURNTABLE_FILE: pool.submit(video.make)} if video else {}
        for name, make in makers.items():
            if on_file:
                on_file(name)
            if name == MESH_FILE:
                facts[name] = made(folder / name, make)
            else:
                waiting[name] = pool.submit(made, folder / name, make)
        facts |= {name: one.result() for name, one in waiting.items()}
    return {name: facts[name] for name in (*makers, *waiting)}


class _Video:
    """The turntable. Its frames are rendered at once, since renders in two threads would disturb each other."""

    def __init__(self, path: Path, frames: Callable[[], Tensor], options: AssetOptions) -> None:
        started = time.perf_counter()
        self.path, self.options, self.frames_V3HW = path, options, frames()
        self.render_seconds = round(time.perf_counter() - started, 2)

    def make(self) -> dict[str, Any]:
        facts = made(self.path, lambda path: save_turntable(path, self.frames_V3HW, self.options))
        return {"render_seconds": self.render_seconds, **facts}


def made(path: Path, make: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Make one file; if the object has none, report the reason in one line."""
    started = time.perf_counter()
    try:
        facts = make(path)
    except WriteError:
        raise
    except DataError as err:
        return _not_made(path.name, err)
    return {"bytes": path.stat().st_size, "seconds": round(time.perf_counter() - started, 2), **facts}


def _not_made(name: str, err: DataError) -> dict[str, Any]:
    log.warning("%s was not written: %s", name, err)
    return {"error": str(err), "permanent": True}
