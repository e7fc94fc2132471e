"""Orbits kept in memory as bytes, on the device if they fit. Small models train faster than files can be read.

Letters: N orbits, V views, B batch, C channels, H W pixels.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from datasets.base import OrbitData
from datasets.orbits.zoom import scale_from_id, zoom
from utils.errors import DataError
from utils.images import over_background

log = logging.getLogger(__name__)

ZOOM_CHUNK = 512  # number of images that are scaled at once; limits memory
MEMORY_SHARE = 0.6  # maximum fraction of the device's free memory for data; the rest is for training


@dataclass(frozen=True, kw_only=True)
class OrbitPixels:
    """Orbits in memory.

    Attributes:
        rgba_NVHW4: uint8 with straight alpha.
        c2w_NV44: cameras.
        object_ids: N names.
        prompts: the captions of each orbit.
        attributes: N records of known attributes of the objects; empty records if unknown.
        background: grey value behind the objects.
        device: device of the batches; the images may stay on the CPU.
        scale_N: factors for scaling the images; None: no scaling.
    """

    rgba_NVHW4: Tensor
    c2w_NV44: Tensor
    object_ids: Sequence[str]
    prompts: Sequence[Sequence[str]]
    attributes: Sequence[Mapping[str, Any]]
    background: float
    device: torch.device
    scale_N: Tensor | None = None

    def __len__(self) -> int:
        return self.num_orbits

    @property
    def num_orbits(self) -> int:
        """N, the number of orbits."""
        return len(self.rgba_NVHW4)

    @property
    def num_views(self) -> int:
        """V, the number of views per orbit."""
        return self.rgba_NVHW4.shape[1]

    def views(self, orbits_B: Tensor, views_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return images over the background and their masks, on the device.

        Args:
            orbits_B: indices of the orbits.
            views_B: index of one view of each orbit; default: all views.

        Returns:
            (..., 3, H, W) and (..., 1, H, W), float32 in [0, 1]; the leading shape is B, or B V.
        """
        return composite(self.rgba(orbits_B, views_B), self.background)

    def rgba(self, orbits_B: Tensor, views_B: Tensor | None = None) -> Tensor:
        """Return bytes (..., H, W, 4) on the device; both indices may have any shape, but it must be the same."""
        source = self.rgba_NVHW4.device
        index = (orbits_B.to(source),) if views_B is None else (orbits_B.to(source), views_B.to(source))
        rgba_HW4 = self.rgba_NVHW4[index].to(self.device, non_blocking=True)
        if self.scale_N is None:
            return rgba_HW4
        leading = rgba_HW4.shape[:-3]
        scales = self.scale_N.to(self.device)[orbits_B.to(self.device)]
        scales = scales.view(*orbits_B.shape, *[1] * (len(leading) - orbits_B.dim())).expand(leading)
        parts = zip(rgba_HW4.flatten(0, -4).split(ZOOM_CHUNK), scales.flatten().split(ZOOM_CHUNK), strict=True)
        return torch.cat([zoom(*part) for part in parts]).unflatten(0, leading)


def composite(rgba_HW4: Tensor, background: float | Tensor) -> tuple[Tensor, Tensor]:
    """Convert straight-alpha bytes (..., H, W, 4) to images (..., 3, H, W) and masks (..., 1, H, W), in [0, 1].

    Args:
        background: grey value, or colours with a shape that broadcasts to the images.
    """
    rgba = rgba_HW4.movedim(-1, -3).float() / 255
    rgb, alpha = rgba[..., :3, :, :], rgba[..., 3:, :, :]
    return over_background(rgb, alpha, background), alpha


def load_orbits(dataset: OrbitData, *, device: torch.device) -> OrbitPixels:
    """Load a data set of packed orbits into memory.

    Raises:
        DataError: the data set reads single files, is empty, or its images do not have the required size.
    """
    if not dataset.in_memory:
        raise DataError(f"vid_dataset.type={type(dataset).__name__} reads single files; use PackedOrbits for this task")
    if not len(dataset):
        raise DataError("vid_dataset contains no orbits; check vid_dataset.data_dir_list")
    shape = (len(dataset), *dataset.stored(0)[0].shape)
    if list(shape[2:4]) != list(dataset.config.resolution)[::-1]:
        raise DataError(
            f"vid_dataset.resolution={list(dataset.config.resolution)}, but the packed images are "
            f"{shape[3]} x {shape[2]}; set this size, or pack the images again"
        )
    rgba_NVHW4 = torch.empty(shape, dtype=torch.uint8, device=_roomy_device(shape, device))
    c2w_NV44 = torch.empty(*shape[:2], 4, 4)
    for number in range(len(dataset)):
        rgba_VHW4, c2w_V44, _ = dataset.stored(number)
        rgba_NVHW4[number] = torch.from_numpy(rgba_VHW4)
        c2w_NV44[number] = torch.from_numpy(c2w_V44)
    log.info("%d orbits of %d views, %.2f GB on %s", *shape[:2], rgba_NVHW4.nbytes / 1e9, rgba_NVHW4.device)
    return OrbitPixels(
        rgba_NVHW4=rgba_NVHW4,
        c2w_NV44=c2w_NV44,
        object_ids=list(dataset.object_ids),
        prompts=[dataset.prompts(number) for number in range(len(dataset))],
        attributes=list(dataset.attributes) or [{}] * len(dataset),
        background=float(dataset.config.background),
        device=device,
        scale_N=torch.tensor([scale_from_id(name, dataset.config.scale_range) for name in dataset.object_ids])
        if dataset.config.scale_range
        else None,
    )


def _roomy_device(shape: tuple[int, ...], device: torch.device) -> torch.device:
    """Return the device if bytes of this shape leave enough memory for training, else the CPU."""
    if device.type == "cuda" and math.prod(shape) < MEMORY_SHARE * torch.cuda.mem_get_info(device)[0]:
        return device
    return torch.device("cpu")
