"""Changes to x0 between network and solver: guidance mixes both branches, and a refiner may replace the result.

Letters: B batch, C channels, V views, H W latent pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ClassifierFreeGuidance:
    """Extrapolate from the unconditional x0 to and beyond the conditional x0 (arXiv:2207.12598).

    With guidance in a part of the steps only (arXiv:2404.07724), the other steps need no unconditional branch and cost
    half.

    Attributes:
        scale: guidance scale; 1 is the conditional prediction.
        between: first and last fraction of the steps with guidance; other steps use the conditional prediction.
    """

    scale: float
    between: tuple[float, float] = (0.0, 1.0)

    def acts_at(self, step: int, num_steps: int) -> bool:
        """Whether a step needs the unconditional branch."""
        start, end = (round(share * num_steps) for share in self.between)
        return self.scale != 1.0 and start <= step < end

    def __call__(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        return unconditional + self.scale * (conditional - unconditional)


def guidance_between(
    conditional: Mapping[str, Tensor],
    unconditional: Mapping[str, Tensor],
    *,
    scale: float,
    between: tuple[float, float],
) -> ClassifierFreeGuidance:
    """Make the guidance of a call.

    Without a prompt both branches may be the same, for example those of a model that sees pictures only as known views.
    Guidance then changes nothing but the time, so the second branch is left out, with a warning.

    Args:
        conditional: arguments of the network.
        unconditional: the same names.
        scale: as the user set it.
        between: see `ClassifierFreeGuidance`.
    """
    if scale != 1 and all(torch.equal(value, unconditional[name]) for name, value in conditional.items()):
        log.warning("guide_scale=%s changes nothing without a prompt, and is left out; add a prompt to use it", scale)
        scale = 1.0
    return ClassifierFreeGuidance(scale=scale, between=between)


class Refiner(Protocol):
    """Replaces x0 at some steps, e.g. with the encoded renders of a reconstruction (3D-aware sampling)."""

    # If true, guidance mixes the branches first, and only the result is refined. If false, each branch is refined.
    after_guidance: bool

    def steps(self, num_steps: int) -> set[int]:
        """Return the indices of the steps with refinement, in range(num_steps)."""

    def __call__(self, x0_BCVHW: Tensor, step: int) -> Tensor:
        """Return a new x0 of the same shape."""
