"""Pictures and videos on disk. Images are float tensors in [0, 1] until here.

Letters: V views, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imageio
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from utils.files import atomic_path


def to_uint8(images_CHW: Tensor) -> np.ndarray:
    """(..., C, H, W) in [0, 1] to (..., H, W, C) uint8, rounded."""
    scaled = images_CHW.detach().float().clamp(0, 1).mul(255).round().to(torch.uint8)
    return scaled.movedim(-3, -1).cpu().numpy()


def save_png(path: str | Path, image_CHW: Tensor) -> None:
    """Write one image, whole or not at all."""
    with atomic_path(path) as part:
        Image.fromarray(to_uint8(image_CHW)).save(part)


def save_video(path: str | Path, views_VCHW: Tensor, *, fps: int) -> None:
    """Write views as an H.264 `.mp4` that players loop cleanly, whole or not at all.

    Height and width must be even, as the codec wants.
    """
    with atomic_path(path) as part:
        options = {"fps": fps, "codec": "libx264", "quality": 8, "macro_block_size": 2, "pixelformat": "yuv420p"}
        with imageio.get_writer(part, **options) as writer:
            for frame in to_uint8(views_VCHW):
                writer.append_data(frame)


def save_videos(videos: Mapping[Path, Tensor], *, fps: int) -> None:
    """Write several videos at once, as `save_video` does: each is a process of its own that this one waits for."""
    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(save_video, path, views_VCHW, fps=fps) for path, views_VCHW in videos.items()]
        for one in waiting:
            one.result()


def contact_sheet(views_VCHW: Tensor, *, columns: int = 6, gap: int = 2) -> Tensor:
    """Views in reading order on white: (C, rows·(H+gap)-gap, columns·(W+gap)-gap)."""
    V, C, H, W = views_VCHW.shape
    columns = min(columns, V)
    rows = -(-V // columns)
    sheet = torch.ones(C, rows * (H + gap) - gap, columns * (W + gap) - gap)
    for index, view in enumerate(views_VCHW.detach().float().cpu()):
        top, left = (index // columns) * (H + gap), (index % columns) * (W + gap)
        sheet[:, top : top + H, left : left + W] = view
    return sheet
