"""Views of the object that are given, held while the others are sampled.

Letters: B batch, C channels, V views, K known views, H W latent pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.sampling.conditioner import Conditions
from utils.errors import ConfigError

AZIMUTH_TOLERANCE_DEG = 0.5


@dataclass(frozen=True, kw_only=True)
class KnownViews:
    """Puts the known latents in place of x0 at every step.

    A solver that takes one and the same x0 at every step moves along the straight line from its noise to that x0: the
    known views stay on their trajectory, and the others attend to them there, as noisy as they are themselves. To a
    network that was trained so (`objective.p_known`) they are shown clean instead.

    Attributes:
        views: K places in the orbit.
        latents_BCKHW: scaled latents of those views.
        clean: the network sees them without noise, and they come out as they are.
    """

    views: tuple[int, ...]
    latents_BCKHW: Tensor
    clean: bool = False

    @classmethod
    def of(cls, given: Mapping[int, Conditions], *, clean: bool = False) -> KnownViews:
        """The inputs of these conditions, at their places in the orbit."""
        latents = [conditions.conditional["local_image"][:, :, :1].float() for conditions in given.values()]
        return cls(views=tuple(given), latents_BCKHW=torch.cat(latents, dim=2), clean=clean)

    def __call__(self, x0_BCVHW: Tensor) -> Tensor:
        """x0 with the known views in their places."""
        held_BCVHW = x0_BCVHW.clone()
        held_BCVHW[:, :, list(self.views)] = self.latents_BCKHW.to(x0_BCVHW)
        return held_BCVHW

    def shown(self, x_t_BCVHW: Tensor) -> Tensor:
        """The latents as the network meets them."""
        return self(x_t_BCVHW) if self.clean else x_t_BCVHW


def relative_azimuths(c2w_V44: Tensor) -> Tensor:
    """Azimuth of each camera from that of view 0, degrees, counter-clockwise seen from above, in (-360, 360)."""
    angle_V = torch.atan2(c2w_V44[:, 1, 3], c2w_V44[:, 0, 3]).double()
    return torch.rad2deg(angle_V - angle_V[0])


def view_at(c2w_V44: Tensor, azimuth_deg: float, *, where: str) -> int:
    """The view of an orbit at an azimuth.

    Args:
        azimuth_deg: relative to view 0, counter-clockwise seen from above, any multiple of a turn more or less.
        where: the setting, for the message.

    Raises:
        ConfigError: no view has this azimuth.
    """
    relative_V = relative_azimuths(c2w_V44)
    off_V = ((relative_V - azimuth_deg + 180) % 360 - 180).abs()
    if not math.isfinite(azimuth_deg) or float(off_V.min()) > AZIMUTH_TOLERANCE_DEG:
        angles = ", ".join(f"{angle % 360:g}" for angle in relative_V.round(decimals=2).tolist())
        raise ConfigError(
            f"{where}={azimuth_deg:g}: no view of the orbit has this azimuth; views are at {angles} degrees"
        )
    return int(off_V.argmin())
