"""Writes pictures and videos. Images are float tensors in [0, 1]; only this module converts them to 8 bits.

Letters: V views, C channels, H W pixels.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import torch
from imageio_ffmpeg import get_ffmpeg_exe
from PIL import Image
from torch import Tensor

from utils.errors import DataError
from utils.files import atomic_path

# Constant quality (0 is lossless, 23 the default); on orbits this preset is three times as fast as the default one
# and loses 0.2 dB at the same size.
CODEC = ("-c:v", "libx264", "-crf", "10", "-preset", "veryfast", "-pix_fmt", "yuv420p")


def to_uint8(images_CHW: Tensor) -> np.ndarray:
    """(..., C, H, W) in [0, 1] to (..., H, W, C) uint8, rounded."""
    scaled = images_CHW.detach().float().clamp(0, 1).mul(255).round().to(torch.uint8)
    return scaled.movedim(-3, -1).cpu().numpy()


def save_png(path: str | Path, image_CHW: Tensor) -> None:
    """Write one image, completely or not at all."""
    with atomic_path(path) as part:
        Image.fromarray(to_uint8(image_CHW)).save(part)


def save_video(path: str | Path, views_VCHW: Tensor, *, fps: int) -> None:
    """Write views as an H.264 `.mp4`, completely or not at all.

    Height and width must be even, because the codec needs it.

    Raises:
        DataError: ffmpeg cannot write it.
    """
    frames_VHWC = to_uint8(views_VCHW)
    size = f"{frames_VHWC.shape[2]}x{frames_VHWC.shape[1]}"
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", str(fps), "-i", "-"]
    with atomic_path(path) as part:
        # All frames at once: imageio's writer forks this process, which takes long beside a GPU, and polls for the end.
        command = [get_ffmpeg_exe(), "-y", "-v", "error", *source, *CODEC, str(part)]
        done = subprocess.run(command, input=frames_VHWC.tobytes(), capture_output=True)
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {done.returncode}"]
            raise DataError(f"{path} cannot be written: ffmpeg: {said[0]}; check the disk and the size of the views")


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
