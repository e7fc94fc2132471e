"""A video of an object during one turn of the camera.

Letters: V frames, H W pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.assets.depth_maps import Draw
from utils.cameras import intrinsics, orbit_cameras
from utils.images import save_video
from utils.settings.assets import AssetOptions

CHUNK_PIXELS = 1 << 20  # number of pixels that are rendered at once; limits memory


def write_turntable(
    path: Path, draw: Draw, options: AssetOptions, *, distance: float, fov_deg: float, device: torch.device
) -> dict[str, Any]:
    """Write one turn around an object as `.mp4`, completely or not at all; see `turntable_frames`.

    Returns:
        Facts about the file: frames, size, elevation.
    """
    frames_V3HW = turntable_frames(draw, options, distance=distance, fov_deg=fov_deg, device=device)
    return save_turntable(path, frames_V3HW, options)


@torch.no_grad()
def turntable_frames(
    draw: Draw, options: AssetOptions, *, distance: float, fov_deg: float, device: torch.device
) -> Tensor:
    """Render one turn around an object: (V, 3, H, W) on the CPU.

    Args:
        draw: renders the object, in the world frame of utils.cameras.
        distance: distance of the camera to the origin, if the options do not set it.
        fov_deg: field of view of the square frames.
        device: device of the cameras.
    """
    size = options.turntable_size
    c2w_V44 = orbit_cameras(
        num_views=options.turntable_frames,
        elevation_deg=options.turntable_elevation_deg,
        radius=options.turntable_distance or distance,
    )
    K_33 = intrinsics(fov_deg, size).to(device)
    frames = [
        draw(chunk, K_33, (size, size), options.background).colors_BV3HW[0].cpu()
        for chunk in c2w_V44.to(device).split(max(1, CHUNK_PIXELS // size**2))
    ]
    return torch.cat(frames)


def save_turntable(path: Path, frames_V3HW: Tensor, options: AssetOptions) -> dict[str, Any]:
    """Encode the frames of one turn; returns facts about the file."""
    save_video(path, frames_V3HW, fps=options.turntable_fps)
    return {
        "frames": len(frames_V3HW),
        "size": options.turntable_size,
        "elevation_deg": options.turntable_elevation_deg,
    }
