"""Known views of the object, which are fixed while the other views are sampled.

With packed latents, the V frames are fewer than the views, and only view 0 can be known, which is frame 0.

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
    """Replaces x0 of the known views with their latents at every step.

    If x0 is the same at every step, the solver moves on a straight line from the noise to this x0. The known views
    therefore stay on their trajectory, and the other views attend to them at the same noise level. A network that was
    trained with clean views (`objective.p_known`) receives them without noise instead.

    Attributes:
        views: the K indices of the views.
        latents_BCKHW: scaled latents of these views.
        clean: the network receives them without noise, and they are part of the result unchanged.
    """

    views: tuple[int, ...]
    latents_BCKHW: Tensor
    clean: bool = False

    @classmethod
    def of(cls, given: Mapping[int, Conditions], *, clean: bool = False) -> KnownViews:
        """Take the latents of each view, by the index of the view; they never had the precision of the network."""
        latents = [conditions.latents_BC1HW for conditions in given.values()]
        return cls(views=tuple(given), latents_BCKHW=torch.cat(latents, dim=2), clean=clean)

    def __call__(self, x0_BCVHW: Tensor) -> Tensor:
        """Return x0 with the known views replaced."""
        held_BCVHW = x0_BCVHW.clone()
        held_BCVHW[:, :, list(self.views)] = self.latents_BCKHW.to(x0_BCVHW)
        return held_BCVHW

    def shown(self, x_t_BCVHW: Tensor) -> Tensor:
        """Return the latents that the network receives."""
        return self(x_t_BCVHW) if self.clean else x_t_BCVHW


def relative_azimuths(c2w_V44: Tensor) -> Tensor:
    """Return the azimuth of each camera relative to view 0 in degrees, counter-clockwise from above, in (-360, 360)."""
    angle_V = torch.atan2(c2w_V44[:, 1, 3], c2w_V44[:, 0, 3]).double()
    return torch.rad2deg(angle_V - angle_V[0])


def view_at(c2w_V44: Tensor, azimuth_deg: float, *, where: str) -> int:
    """Return the index of the view at an azimuth.

    Args:
        azimuth_deg: azimuth relative to view 0, counter-clockwise from above, modulo 360.
        where: name of the setting, for the message.

    Raises:
        ConfigError: no view has this azimuth.
    """
    relative_V = relative_azimuths(c2w_V44)
    off_V = ((relative_V - azimuth_deg + 180) % 360 - 180).abs()
    if not math.isfinite(azimuth_deg) or float(off_V.min()) > AZIMUTH_TOLERANCE_DEG:
        angles = ", ".join(f"{angle % 360:g}" for angle in relative_V.round(decimals=2).tolist())
        raise ConfigError(
            f"{where}={azimuth_deg:g}: no view of the orbit has this azimuth; use one of {angles} degrees"
        )
    return int(off_V.argmin())
