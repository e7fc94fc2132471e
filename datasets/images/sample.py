"""Make a training sample from one image.

Letters: C channels, H W pixels.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from datasets.orbits.layout import decoded
from datasets.orbits.sample import write_prompt
from utils.errors import ConfigError, DataError
from utils.object_image import DECODER_ERRORS, check_memory


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Options of every data set of images.

    Attributes:
        data_list: list files or shards, see the class of the data set.
        data_dir_list: the folder of each entry of data_list.
        resolution: [width, height].
        max_words: longer captions are cut to this number of words.
        caption_suffix: appended to captions; empty by default, because these images are not renders of objects.
    """

    data_list: list[str] = field(default_factory=list)
    data_dir_list: list[str] = field(default_factory=list)
    resolution: list[int] = field(default_factory=lambda: [256, 256])
    max_words: int = 1000
    caption_suffix: str = ""

    def __post_init__(self) -> None:
        if len(self.resolution) != 2 or min(self.resolution) < 1:
            raise ConfigError(f"resolution must be [width, height] in pixels, got {list(self.resolution)}")
        if not self.data_list or len(self.data_list) != len(self.data_dir_list):
            raise ConfigError(
                f"data_list has {len(self.data_list)} entries and data_dir_list {len(self.data_dir_list)}; "
                "both need the same number of entries, at least 1"
            )
        if self.max_words < 1:
            raise ConfigError(f"max_words must be >= 1, got {self.max_words}")


def image_sample(raw: bytes, caption: str, *, name: str, options: ImageOptions) -> dict[str, Any]:
    """Decode an image, scale it until it covers the resolution, and crop its centre.

    Returns:
        `views_VCHW`: (1, 3, H, W) float32 in [0, 1]; `caption`, with the suffix; `object_id`.

    Raises:
        DataError: the image cannot be decoded, or the caption is empty.
    """
    if not caption.strip():
        raise DataError(f"image {name} has no caption; add one, or remove the image from the list")
    _check_size(raw, name=name)
    image_HW3 = decoded(np.frombuffer(raw, dtype=np.uint8), cv2.IMREAD_COLOR_RGB) if raw else None
    if image_HW3 is None:
        raise DataError(
            f"image {name} {'cannot be decoded' if raw else 'has zero bytes'}; "
            "replace the file, or remove it from the list"
        )
    cut_HW3 = cover(image_HW3, tuple(options.resolution)).astype(np.float32) / 255.0
    return {
        "views_VCHW": torch.from_numpy(np.ascontiguousarray(cut_HW3.transpose(2, 0, 1)))[None],
        "caption": write_prompt(caption, suffix=options.caption_suffix, max_words=options.max_words),
        "object_id": name,
    }


def _check_size(raw: bytes, *, name: str) -> None:
    """Check the number of pixels before they are unpacked; what Pillow cannot read is left to OpenCV."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            check_memory(Image.open(io.BytesIO(raw)), path=name)
    except (DataError, Image.DecompressionBombError) as err:
        raise DataError(f"image {name} cannot be decoded ({err}); make it smaller, or remove it from the list") from err
    except DECODER_ERRORS:
        pass


def cover(image_HW3: np.ndarray, resolution: tuple[int, int]) -> np.ndarray:
    """Scale an image until it covers (width, height), and crop its centre."""
    width, height = resolution
    old_height, old_width = image_HW3.shape[:2]
    scale = max(width / old_width, height / old_height)
    size = (max(width, round(old_width * scale)), max(height, round(old_height * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    scaled_HW3 = cv2.resize(image_HW3, size, interpolation=method)
    top, left = (size[1] - height) // 2, (size[0] - width) // 2
    return scaled_HW3[top : top + height, left : left + width]
