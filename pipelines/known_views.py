"""Views of the object that are given: held while the others are sampled, and each in turn what they are made from.

Letters: B batch, C channels, V views, K known views, H W latent pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.conditioner import Conditions
from utils.cameras import camera_distance
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


@dataclass(frozen=True, kw_only=True)
class EachInTurn:
    """The network, asked once from each known view; nearer views of the orbit follow that view's answer more.

    The network knows its input as view 0 only. On an even circle turning the object is the same as rolling the views
    (so it was trained, with random start views), so every known view can take that place. Answers are predictions for
    the same noisy latents, so mixing them mixes their x0.

    Attributes:
        network: maps (latents, timesteps, **conditions) to a prediction.
        conditions: place in the orbit -> conditions with that view as the input.
        weights_KV: of each known view for each view of the orbit; sums to one over K.
    """

    network: Callable[..., Tensor]
    conditions: Mapping[int, Conditions]
    weights_KV: Tensor

    def __call__(self, x_BCVHW: Tensor, t_B: Tensor, **_of_view_0: Tensor) -> Tensor:
        """The mixed prediction; conditions come from this object."""
        mixed: Tensor | float = 0.0
        for (view, conditions), weight_V in zip(self.conditions.items(), self.weights_KV, strict=True):
            one_branch = len(x_BCVHW) == len(next(iter(conditions.conditional.values())))
            arguments = conditions.conditional if one_branch else conditions.both
            answer = self.network(x_BCVHW.roll(-view, dims=2), t_B, **arguments).roll(view, dims=2)
            mixed = mixed + weight_V.to(answer)[:, None, None] * answer
        return mixed


def weights_by_nearness(c2w_V44: Tensor, views: tuple[int, ...]) -> Tensor:
    """How much each view of an orbit follows each known one, (K, V): by one over the squared angle between them."""
    relative_V = relative_azimuths(c2w_V44)
    apart_KV = (((relative_V - relative_V[list(views), None]) + 180) % 360 - 180).abs()
    weights_KV = 1 / (apart_KV + AZIMUTH_TOLERANCE_DEG) ** 2
    return (weights_KV / weights_KV.sum(dim=0)).float()


def is_even_circle(c2w_V44: Tensor) -> bool:
    """Whether the views stand evenly on one horizontal circle, so that turning the object rolls them."""
    V = len(c2w_V44)
    apart_V = (relative_azimuths(c2w_V44) - torch.arange(V) * 360 / V + 180) % 360 - 180
    heights_V, distances_V = c2w_V44[:, 2, 3], camera_distance(c2w_V44)
    level = float(heights_V.max() - heights_V.min()) < 1e-3 and float(distances_V.max() - distances_V.min()) < 1e-3
    return level and float(apart_V.abs().max()) < AZIMUTH_TOLERANCE_DEG


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
        ConfigError: no view stands there.
    """
    relative_V = relative_azimuths(c2w_V44)
    off_V = ((relative_V - azimuth_deg + 180) % 360 - 180).abs()
    if not math.isfinite(azimuth_deg) or float(off_V.min()) > AZIMUTH_TOLERANCE_DEG:
        angles = ", ".join(f"{angle % 360:g}" for angle in relative_V.round(decimals=2).tolist())
        raise ConfigError(f"{where}={azimuth_deg:g}: no view of the orbit stands there; views are at {angles} degrees")
    return int(off_V.argmin())
