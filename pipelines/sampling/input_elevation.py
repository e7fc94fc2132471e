"""Estimates the elevation of input pictures, for `input_elevation_deg: auto`.

The picture is view 0 of its orbit, so the orbit gets the elevation of the picture. The estimate is computed in float32
on the CPU, so that a run that is started again on another machine finds the same cameras and keeps its samples.

Letters: B batch, V views, H W pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.elevation import ElevationNetwork
from utils.errors import ConfigError, DataError
from utils.object_image import input_view
from utils.settings.run import RunConfig

DECIMALS = 1  # of an estimate in degrees; its error is far larger


def check_estimator(cfg: RunConfig) -> None:
    """Check, before anything is loaded, that the elevation of a picture can be estimated.

    Raises:
        ConfigError, DataError: there is no network or no weight file for it, or each view has its own camera.
    """
    if cfg.cameras.views:
        raise ConfigError(
            "input_elevation_deg=auto sets the elevation of a whole orbit, but cameras.views has its own cameras; set "
            "input_elevation_deg=null, or remove cameras.views"
        )
    if not cfg.elevation or not cfg.elevation.pretrained:
        raise ConfigError(
            "input_elevation_deg=auto needs weights in elevation.pretrained; train them with "
            "configs/mini/elevation.yaml, or set input_elevation_deg=null and cameras.elevation_deg to the angle"
        )
    if not issubclass(cfg.elevation.cls, ElevationNetwork):
        raise ConfigError(f"elevation.type={cfg.elevation.type} estimates no elevation; use ElevationNetwork")
    if not Path(cfg.elevation.pretrained).is_file():
        raise DataError(
            f"elevation.pretrained={cfg.elevation.pretrained}: no such file; train it with "
            "configs/mini/elevation.yaml, or set input_elevation_deg=null and cameras.elevation_deg to the angle"
        )


def load_estimator(cfg: RunConfig) -> ElevationNetwork:
    """Build and load the network, on the CPU.

    Raises:
        ConfigError, DataError: see `check_estimator`; or the file does not fit.
    """
    check_estimator(cfg)
    return cfg.elevation.build().eval()


def estimate_elevations(
    network: ElevationNetwork, images: Sequence[str | Path | Tensor], **preparation: Any
) -> list[float]:
    """Estimate the elevation of each picture in degrees above the horizon.

    Args:
        images: files, or (3, H, W) in [0, 1] over white.
        preparation: options of `utils.object_image.input_view`, see `preparation_of`.

    Raises:
        DataError: a file cannot be used.
    """
    size = network.config.size
    options = {"resolution": (size, size), **preparation}
    views = [_resized(image, size) if isinstance(image, Tensor) else input_view(image, **options) for image in images]
    return [round(float(network.estimate(view_3HW[None])), DECIMALS) for view_3HW in views]


def preparation_of(cfg: RunConfig) -> dict[str, Any]:
    """Return the options of `utils.object_image.input_view` that a run uses for all its pictures."""
    names = ("recenter", "object_share", "remove_background")
    return {name: getattr(cfg, name) for name in names}


def _resized(image_3HW: Tensor, size: int) -> Tensor:
    image_13HW = image_3HW[None].float().cpu()
    if image_13HW.shape[-2:] == (size, size):
        return image_13HW[0]
    return torch.nn.functional.interpolate(image_13HW, size=(size, size), mode="bilinear", antialias=True)[0].clamp(
        0, 1
    )


def cameras_at_elevation(cfg: RunConfig, elevation_deg: float) -> Tensor:
    """Return the cameras of the configuration at another elevation: (V, 4, 4)."""
    return dataclasses.replace(cfg.cameras, elevation_deg=elevation_deg).c2w()
