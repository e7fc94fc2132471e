"""Whole orbits kept in memory as bytes, on the device when they fit: small models train faster than files are read.

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

ZOOM_CHUNK = 512  # images that are scaled at once; bounds memory
MEMORY_SHARE = 0.6  # of the device's free memory that data may take; the rest is for training


@dataclass(frozen=True, kw_only=True)
class OrbitPixels:
    """Orbits in memory.

    Attributes:
        rgba_NVHW4: uint8 with straight alpha.
        c2w_NV44: cameras.
        object_ids: N names.
        captions: N sentences.
        attributes: N records of what is true of the object; empty when unknown.
        background: grey value that is put behind the objects.
        device: where batches go; the images may stay on the CPU.
        scale_N: factors by which the images are scaled on the way; None: they are not.
    """

    rgba_NVHW4: Tensor
    c2w_NV44: Tensor
    object_ids: Sequence[str]
    captions: Sequence[str]
    attributes: Sequence[Mapping[str, Any]]
    background: float
    device: torch.device
    scale_N: Tensor | None = None

    def __len__(self) -> int:
        return self.num_orbits

    @property
    def num_orbits(self) -> int:
        """N."""
        return len(self.rgba_NVHW4)

    @property
    def num_views(self) -> int:
        """V."""
        return self.rgba_NVHW4.shape[1]

    def views(self, orbits_B: Tensor, views_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Images over the background, and their masks, on the device.

        Args:
            orbits_B: which orbits.
            views_B: one view of each; all views when left out.

        Returns:
            (..., 3, H, W) and (..., 1, H, W), float32 in [0, 1]; the leading shape is B, or B V.
        """
        return composite(self.rgba(orbits_B, views_B), self.background)

    def rgba(self, orbits_B: Tensor, views_B: Tensor | None = None) -> Tensor:
        """Bytes (..., H, W, 4) on the device; the two indices may have any shape that they share."""
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
    """Straight-alpha bytes (..., H, W, 4) to images (..., 3, H, W) and masks (..., 1, H, W), in [0, 1].

    Args:
        background: grey value, or colours of a shape that broadcasts to the images.
    """
    rgba = rgba_HW4.movedim(-1, -3).float() / 255
    rgb, alpha = rgba[..., :3, :, :], rgba[..., 3:, :, :]
    return over_background(rgb, alpha, background), alpha


def load_orbits(dataset: OrbitData, *, device: torch.device) -> OrbitPixels:
    """Take a data set of packed orbits into memory.

    Raises:
        DataError: the data set reads single files, is empty, or holds images of another size than was asked for.
    """
    if not dataset.in_memory:
        raise DataError(f"vid_dataset.type={type(dataset).__name__} is read file by file; use PackedOrbits here")
    if not len(dataset):
        raise DataError("vid_dataset holds no orbits")
    shape = (len(dataset), *dataset.stored(0)[0].shape)
    if list(shape[2:4]) != list(dataset.config.resolution)[::-1]:
        raise DataError(
            f"vid_dataset.resolution={list(dataset.config.resolution)}, but the packed images are "
            f"{shape[3]} x {shape[2]}; set that size or pack them again"
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
        captions=[dataset.prompt(number) for number in range(len(dataset))],
        attributes=list(dataset.attributes) or [{}] * len(dataset),
        background=float(dataset.config.background),
        device=device,
        scale_N=torch.tensor([scale_from_id(name, dataset.config.scale_range) for name in dataset.object_ids])
        if dataset.config.scale_range
        else None,
    )


def _roomy_device(shape: tuple[int, ...], device: torch.device) -> torch.device:
    """The device, when bytes of this shape leave it room for training; else the CPU."""
    if device.type == "cuda" and math.prod(shape) < MEMORY_SHARE * torch.cuda.mem_get_info(device)[0]:
        return device
    return torch.device("cpu")
