"""Guidance: how the conditional and the unconditional x0 become one."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ClassifierFreeGuidance:
    """Move from the unconditional towards the conditional x0 and past it (arXiv:2207.12598).

    Attributes:
        scale: 1 is the conditional prediction itself.
    """

    scale: float

    @property
    def needs_unconditional(self) -> bool:
        """Whether the second branch is needed at all."""
        return self.scale != 1.0

    def __call__(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        return unconditional + self.scale * (conditional - unconditional)
