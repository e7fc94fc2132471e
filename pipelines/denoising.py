"""One step of sampling: from latents to x0, with guidance and refinement as objects that it is given.

Letters: B batch, C channels, V views, H W latent pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Generator, Tensor

from models.diffusion import DiffusionDDIM
from pipelines.conditioner import Conditions
from pipelines.guidance import ClassifierFreeGuidance
from pipelines.known_views import KnownViews
from utils.stopwatch import Stopwatch

Network = Callable[..., Tensor]


class Refiner(Protocol):
    """Replaces x0 at some steps, e.g. by renders of a reconstruction (3D-aware sampling)."""

    # Whether guidance mixes the branches first, so that there is one x0 to refine; else each branch is refined.
    after_guidance: bool

    def steps(self, num_steps: int) -> set[int]:
        """Indices of the steps, out of num_steps, at which to refine."""

    def __call__(self, x0_BCVHW: Tensor, step: int) -> Tensor:
        """Another x0 of the same shape."""


@dataclass(frozen=True, kw_only=True)
class Denoising:
    """What a run of the sampler works with.

    Attributes:
        network: maps (latents, timesteps, **conditions) to a prediction.
        conditions: of both guidance branches.
        diffusion: says what the prediction means.
        guidance: mixes the two x0.
        refiner: replaces x0 at its steps, in each branch before they are mixed (as published) or after.
        known_views: holds given views by replacing their x0 at every step, after guidance.
        generators: one per sample, for eta > 0.
        on_step: called after every call of the network.
        stopwatch: counts what the refiner takes, as `refine`.
    """

    network: Network
    conditions: Conditions
    diffusion: DiffusionDDIM
    guidance: ClassifierFreeGuidance
    refiner: Refiner | None = None
    known_views: KnownViews | None = None
    generators: list[Generator] | None = None
    on_step: Callable[[], None] | None = None
    stopwatch: Stopwatch = field(default_factory=lambda: Stopwatch(torch.device("cpu")))

    def predict_x0(self, x_t: Tensor, t: int, *, guided: bool, **more: Any) -> list[Tensor]:
        """x0 of the conditional and, where guidance acts, of the unconditional branch, in one call of the network.

        Args:
            more: arguments of the network besides the conditions.
        """
        copies = 2 if guided else 1
        x_both = torch.cat([self.shown(x_t)] * copies)
        t_B = torch.full((len(x_both),), t, device=x_t.device, dtype=torch.long)
        arguments = self.conditions.both if guided else self.conditions.conditional
        prediction = self.network(x_both, t_B, **arguments, **more).float()
        return [self.shown(x0) for x0 in self.diffusion.to_x0(prediction, x_both, t_B).chunk(copies)]

    def shown(self, latents: Tensor) -> Tensor:
        """Latents with those views in their places that are given clean."""
        return self.known_views.shown(latents) if self.known_views else latents

    def mixed(self, branches: list[Tensor]) -> Tensor:
        """One x0, with the known views in their places."""
        return self._held(self._guided(branches))

    def refined(self, branches: list[Tensor], step: int) -> Tensor:
        """As `mixed`, by way of the refiner."""
        with self.stopwatch.part("refine"):
            if self.refiner.after_guidance:
                return self._held(self.refiner(self._guided(branches), step))
            return self.mixed([self.refiner(x0, step) for x0 in branches])

    def _guided(self, branches: list[Tensor]) -> Tensor:
        return self.guidance(*branches) if len(branches) == 2 else branches[0]

    def _held(self, x0: Tensor) -> Tensor:
        return self.known_views(x0) if self.known_views else x0
