"""Makes a training sample from the stored views of an orbit.

Letters: V views, C channels, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import torch

from datasets.orbits.zoom import scale_from_id, zoom
from utils.errors import ConfigError
from utils.images import over_background
from utils.prompts import PROMPT_SUFFIX, with_suffix


@dataclass(frozen=True, kw_only=True)
class OrbitOptions:
    """Options of every data set of orbits.

    Attributes:
        data_dir_list: folders of the data.
        resolution: [width, height].
        max_words: longer captions are cut to this number of words.
        num_views: views per sample.
        background: grey in [0, 1] behind the object; published: 128/255 for the text model, 1 for the image model.
        caption_suffix: appended to captions.
        empty_captions: use "" instead of the caption, as in the training of the image model.
        random_start_view: begin at a random view, drawn from torch's generator each time. The images are shifted along
            the orbit and the cameras are not, so the camera at azimuth 0 always belongs to the first image.
        prepare_lgm: add the views as stored to each sample (see datasets.base), as targets for the Gaussian head.
        scale_range: [smallest, largest] factor that scales the pictures of an object about their middle, drawn once
            per object from its id; cameras do not change. Empty: no scaling.
    """

    data_dir_list: list[str] = field(default_factory=list)
    resolution: list[int] = field(default_factory=lambda: [256, 256])
    max_words: int = 1000
    num_views: int = 24
    background: float = 1.0
    caption_suffix: str = PROMPT_SUFFIX
    empty_captions: bool = False
    random_start_view: bool = False
    prepare_lgm: bool = False
    scale_range: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        if len(self.resolution) != 2 or min(self.resolution) < 1:
            raise ConfigError(f"resolution must be [width, height] in pixels, got {list(self.resolution)}")
        if not 0.0 <= self.background <= 1.0:
            raise ConfigError(f"background must lie in [0, 1], 0 black and 1 white, got {self.background}")
        for name in ("num_views", "max_words"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be >= 1, got {getattr(self, name)}")
        ends = list(self.scale_range)
        if ends and (len(ends) != 2 or not 0 < ends[0] <= ends[1] < float("inf")):
            raise ConfigError(f"scale_range must be empty or [smallest, largest], both positive, got {ends}")

    def draw_start_view(self) -> int:
        """Draw the first view of a sample."""
        return int(torch.randint(self.num_views, ())) if self.random_start_view else 0

    def scaled(self, rgba_VHW4: np.ndarray, object_id: str) -> np.ndarray:
        """The pictures of an object, scaled by its factor from `scale_range`; uint8 with straight alpha."""
        if not self.scale_range:
            return rgba_VHW4
        scale_V = torch.full((len(rgba_VHW4),), scale_from_id(object_id, self.scale_range))
        return zoom(torch.from_numpy(np.ascontiguousarray(rgba_VHW4)), scale_V).numpy()


def orbit_sample(
    rgba_VHW4: np.ndarray,
    c2w_V44: np.ndarray,
    *,
    fov_deg: float,
    caption: str,
    object_id: str,
    resolution: tuple[int, int],
    background: float,
    start_view: int = 0,
) -> dict[str, Any]:
    """Composite and resize an orbit.

    Args:
        rgba_VHW4: uint8 sRGB with straight alpha.
        c2w_V44: camera to world.
        fov_deg: field of view of the images.
        caption: the caption, with its suffix.
        object_id: `<dictionary id>/<instance id>`.
        resolution: (width, height) of the result.
        background: grey in [0, 1] behind the object.
        start_view: the view that becomes view 0. Images and masks are shifted along the orbit and cameras are not,
            which is the same as turning the object.

    Returns:
        views_VCHW: float32 in [0, 1]; masks_V1HW: float32 coverage in [0, 1]; c2w_V44: float32; fov_deg; caption;
        object_id.
    """
    rgba_VHW4 = np.roll(rgba_VHW4, -start_view, axis=0)
    alpha_VHW1 = rgba_VHW4[..., 3:].astype(np.float32) / 255.0
    views_VHW3 = over_background(rgba_VHW4[..., :3].astype(np.float32) / 255.0, alpha_VHW1, background)
    return {
        "views_VCHW": _as_tensor(resize_views(views_VHW3, resolution)),
        "masks_V1HW": _as_tensor(resize_views(alpha_VHW1, resolution)),
        "c2w_V44": torch.from_numpy(np.ascontiguousarray(c2w_V44, dtype=np.float32)),
        "fov_deg": float(fov_deg),
        "caption": caption,
        "object_id": object_id,
    }


def resize_views(images_VHWC: np.ndarray, resolution: tuple[int, int]) -> np.ndarray:
    """Resize float32 images to (width, height): area mean to shrink them, bilinear to enlarge them."""
    width, height = resolution
    if images_VHWC.shape[1:3] == (height, width):
        return images_VHWC
    shrinks = width < images_VHWC.shape[2]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized = np.stack([cv2.resize(image, (width, height), interpolation=method) for image in images_VHWC])
    return resized.reshape(len(images_VHWC), height, width, -1)


def write_prompt(caption: str, *, suffix: str, max_words: int) -> str:
    """Cut a caption to its first words, and append the suffix if it is missing."""
    return with_suffix(" ".join(caption.split()[:max_words]), suffix)


def _as_tensor(images_VHWC: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images_VHWC.transpose(0, 3, 1, 2)))
