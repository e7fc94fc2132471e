"""A video of Gaussians during one turn of the camera.

Letters: V frames.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch

from models.gaussians.rendering import render
from models.gaussians.scene import Gaussians
from utils.cameras import intrinsics, orbit_cameras
from utils.images import save_video
from utils.settings.assets import AssetOptions

CHUNK_PIXELS = 1 << 20  # number of pixels that are rendered at once; limits memory


def write_turntable(
    path: Path,
    gaussians: Gaussians,
    options: AssetOptions,
    *,
    distance: float,
    fov_deg: float,
    rasterizer: str = "auto",
) -> dict[str, Any]:
    """Write one turn around one scene as `.mp4`, completely or not at all.

    Args:
        distance: distance of the camera to the origin, if the options do not set it.
        fov_deg: field of view of the square frames.
        rasterizer: see models.gaussians.rendering.

    Returns:
        Facts about the file: frames, size, elevation.
    """
    size = options.turntable_size
    c2w_V44 = orbit_cameras(
        num_views=options.turntable_frames,
        elevation_deg=options.turntable_elevation_deg,
        radius=options.turntable_distance or distance,
    )
    K_33 = intrinsics(fov_deg, size)
    draw = functools.partial(render, size=(size, size), background=options.background, backend=rasterizer)
    with torch.no_grad():
        frames = [
            draw(gaussians, chunk[None], K_33).colors_BV3HW[0].cpu()
            for chunk in c2w_V44.split(max(1, CHUNK_PIXELS // size**2))
        ]
    save_video(path, torch.cat(frames), fps=options.turntable_fps)
    return {"frames": len(c2w_V44), "size": size, "elevation_deg": options.turntable_elevation_deg}
