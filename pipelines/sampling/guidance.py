"""What happens to x0 between network and solver: guidance mixes both branches into one; a refiner may replace it.

Letters: B batch, C channels, V views, H W latent pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ClassifierFreeGuidance:
    """Move from the unconditional towards the conditional x0 and past it (arXiv:2207.12598).

    Guidance in a part of the way only (arXiv:2404.07724) saves the unconditional branch in the rest: half the work.

    Attributes:
        scale: 1 is the conditional prediction itself.
        between: from which share of the steps on, and up to which; outside, the conditional prediction counts.
    """

    scale: float
    between: tuple[float, float] = (0.0, 1.0)

    def acts_at(self, step: int, num_steps: int) -> bool:
        """Whether a step needs the second branch."""
        start, end = (round(share * num_steps) for share in self.between)
        return self.scale != 1.0 and start <= step < end

    def __call__(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        return unconditional + self.scale * (conditional - unconditional)


class Refiner(Protocol):
    """Replaces x0 at some steps, e.g. by renders of a reconstruction (3D-aware sampling)."""

    # Whether guidance mixes the branches first, so that there is one x0 to refine; else each branch is refined.
    after_guidance: bool

    def steps(self, num_steps: int) -> set[int]:
        """Indices of the steps, out of num_steps, at which to refine."""

    def __call__(self, x0_BCVHW: Tensor, step: int) -> Tensor:
        """Another x0 of the same shape."""
