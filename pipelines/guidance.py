"""Guidance: how the conditional and the unconditional x0 become one, and where on the way."""

from __future__ import annotations

from dataclasses import dataclass

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
