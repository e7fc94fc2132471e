"""Pictures and videos on disk. Images are float tensors in [0, 1] until here.

Letters: V views, C channels, H W pixels.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TypeVar

import imageio.v3 as iio
import numpy as np
import torch
from imageio_ffmpeg import count_frames_and_secs
from PIL import Image
from torch import Tensor

from utils.errors import DataError, WriteError
from utils.files import atomic_path

# Constant quality (0 is lossless, 23 the default); on orbits this preset is three times as fast as the default one, for
# 0.2 dB at the same size.
CODEC = {
    "codec": "libx264",
    "pixelformat": "yuv420p",
    "quality": None,
    "macro_block_size": 1,  # keep the size
    "ffmpeg_log_level": "quiet",
    "output_params": ["-crf", "10", "-preset", "veryfast"],
}
# Otherwise imageio starts ffmpeg by a fork of this process, which takes long where much memory is mapped, as for a GPU.
os.environ.setdefault("IMAGEIO_FFMPEG_NO_PREVENT_SIGINT", "1")


def to_uint8(images_CHW: Tensor) -> np.ndarray:
    """(..., C, H, W) in [0, 1] to (..., H, W, C) uint8, rounded."""
    scaled = images_CHW.detach().float().clamp(0, 1).mul(255).round().to(torch.uint8)
    return scaled.movedim(-3, -1).cpu().numpy()


def save_png(path: str | Path, image_CHW: Tensor) -> None:
    """Write one image, whole or not at all."""
    content = io.BytesIO()  # Pillow's own writing does not tell why it failed
    Image.fromarray(to_uint8(image_CHW)).save(content, format="PNG")
    with atomic_path(path) as part:
        part.write_bytes(content.getbuffer())


def save_video(path: str | Path, views_VCHW: Tensor, *, fps: int) -> None:
    """Write views as an H.264 `.mp4` that players loop cleanly, whole or not at all.

    Raises:
        DataError: height or width is odd, which the codec cannot take.
        WriteError: the file cannot be written.
    """
    num_views, _, height, width = views_VCHW.shape
    if height % 2 or width % 2:
        raise DataError(f"{path} cannot be written: the codec needs even sizes, but views are {width} x {height}")
    with atomic_path(path) as part:
        try:
            iio.imwrite(part, to_uint8(views_VCHW), plugin="FFMPEG", fps=fps, **CODEC)
            # imageio does not look at how ffmpeg ended
            num_written = count_frames_and_secs(str(part))[0]
        except (OSError, RuntimeError) as err:
            raise WriteError(f"{path} cannot be written: ffmpeg failed; check the space on the disk") from err
        if num_written != num_views:
            raise WriteError(
                f"{path} cannot be written: it holds {num_written} of {num_views} views; check the space on the disk"
            )


def contact_sheet(views_VCHW: Tensor, *, columns: int = 6, gap: int = 2) -> Tensor:
    """Views in reading order on white: (3, rows·(H+gap)-gap, columns·(W+gap)-gap)."""
    from torchvision.utils import make_grid  # takes a second

    views = list(views_VCHW.detach().float().cpu())
    views += [torch.ones_like(views[0])] if len(views) == 1 else []  # a single one would come back without its frame
    sheet = make_grid(views, nrow=min(columns, len(views_VCHW)), padding=gap, pad_value=1.0)
    H, W = views_VCHW.shape[-2:]
    rows, columns = -(-len(views_VCHW) // columns), min(columns, len(views_VCHW))
    return sheet[:, gap : gap + rows * (H + gap) - gap, gap : gap + columns * (W + gap) - gap]


Pixels = TypeVar("Pixels", Tensor, np.ndarray)


def over_background(rgb: Pixels, alpha: Pixels, background: float | Pixels) -> Pixels:
    """Straight-alpha colours over a background: a grey, or colours of a shape that broadcasts."""
    return rgb * alpha + background * (1 - alpha)


def psnr_db(squared_error: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of images in [0, 1] with these mean squared errors; inf where they are 0."""
    return -10 * squared_error.log10()
