"""From noise to latents: one loop for every solver, with guidance and refinement as objects it is given.

The network's prediction becomes x0 first; guidance and refinement work on x0; the solver (from diffusers) takes x0 and
makes the next latents.

Letters: B batch, C channels, V views, H W latent pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from models.diffusion import DiffusionDDIM
from pipelines.conditioner import Conditions
from pipelines.guidance import ClassifierFreeGuidance
from pipelines.known_views import KnownViews
from utils.errors import ConfigError
from utils.registry import SAMPLERS

Network = Callable[..., Tensor]
SOLVERS = ("ddim", "dpmsolver++", "unipc")


class Refiner(Protocol):
    """Replaces x0 at some steps, e.g. by renders of a reconstruction (3D-aware sampling)."""

    # Whether guidance mixes the branches first, so that there is one x0 to refine; else each branch is refined.
    after_guidance: bool

    def steps(self, num_steps: int) -> set[int]:
        """Indices of the steps, out of num_steps, at which to refine."""

    def __call__(self, x0_BCVHW: Tensor, step: int) -> Tensor:
        """Another x0 of the same shape."""


@SAMPLERS.register(name="DDIM")
@SAMPLERS.register(name="DPMSolver++", solver="dpmsolver++", spacing="trailing", num_steps=20)
@SAMPLERS.register(name="UniPC", solver="unipc", spacing="trailing", num_steps=20)
class Sampler:
    """Denoise with a diffusers scheduler. DDIM with 50 steps is how the published models are sampled."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Options.

        Attributes:
            solver: ddim, dpmsolver++ or unipc; normally set by the type's name.
            num_steps: calls of the network (each with both guidance branches).
            eta: stochasticity of DDIM, 0 is deterministic.
            spacing: leading (published: 981, 961, ..., 1), trailing (starts at pure noise) or linspace.
        """

        solver: str = "ddim"
        num_steps: int = 50
        eta: float = 0.0
        spacing: str = "leading"

        def __post_init__(self) -> None:
            if not 1 <= self.num_steps <= 1000:
                raise ConfigError(f"sampler.num_steps must lie in [1, 1000], got {self.num_steps}")
            for name, valid in {"solver": SOLVERS, "spacing": ("leading", "trailing", "linspace")}.items():
                if getattr(self, name) not in valid:
                    raise ConfigError(f"sampler.{name}={getattr(self, name)} is unknown; valid: {', '.join(valid)}")
            if self.eta and self.solver != "ddim":
                raise ConfigError(f"sampler.eta={self.eta} belongs to DDIM; set it to 0 for {self.solver}")

    def __init__(self, config: Config) -> None:
        self.config = config

    def scheduler(self, diffusion: DiffusionDDIM) -> Any:
        """A fresh diffusers scheduler that takes x0 and knows the timesteps of this run."""
        betas = diffusion.betas.clone()
        alpha_bar = diffusion.alpha_bar
        if alpha_bar[-1] < 2**-24 and self.config.solver != "ddim":
            # Multistep solvers work with log(signal / noise): the terminal signal must not be exactly zero.
            betas[-1] = 1 - 2**-24 / alpha_bar[-2]
        scheduler = make_solver(
            self.config.solver,
            num_train_timesteps=diffusion.num_timesteps,
            trained_betas=betas.tolist(),
            prediction_type="sample",
            timestep_spacing=self.config.spacing,
            steps_offset=1 if self.config.spacing == "leading" else 0,
        )
        scheduler.set_timesteps(self.config.num_steps)
        return scheduler

    @torch.no_grad()
    def __call__(
        self,
        network: Network,
        noise_BCVHW: Tensor,
        conditions: Conditions,
        *,
        diffusion: DiffusionDDIM,
        guidance: ClassifierFreeGuidance,
        refiner: Refiner | None = None,
        known_views: KnownViews | None = None,
        generators: list[torch.Generator] | None = None,
        on_step: Callable[[], None] | None = None,
    ) -> Tensor:
        """Sample latents.

        Args:
            network: maps (latents, timesteps, **conditions) to a prediction.
            noise_BCVHW: float32 start.
            conditions: of both guidance branches.
            diffusion: says what the prediction means.
            guidance: mixes the two x0.
            refiner: replaces x0 at its steps, in each branch before they are mixed (as published) or after.
            known_views: holds given views by replacing their x0 at every step, after guidance.
            generators: one per sample, for eta > 0.
            on_step: called after every call of the network.

        Returns:
            latents_BCVHW float32.
        """
        start = self._start(noise_BCVHW, diffusion, generators)
        (end,) = self._run([start], network, conditions, diffusion, guidance, refiner, known_views, on_step)
        return known_views.shown(end.x_t) if known_views else end.x_t

    @torch.no_grad()
    def both(
        self,
        network: Network,
        noise_BCVHW: Tensor,
        conditions: Conditions,
        *,
        diffusion: DiffusionDDIM,
        guidance: ClassifierFreeGuidance,
        refiner: Refiner,
        known_views: KnownViews | None = None,
        generators: list[torch.Generator] | None = None,
        on_step: Callable[[], None] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Without and with the refiner, to the bit as in two calls, at the cost of one until the first refinement.

        `generators` end where the refined run leaves them. Other arguments as of a call.
        """
        start = self._start(noise_BCVHW, diffusion, generators)
        start.refined = False  # until it forks
        ends = self._run([start], network, conditions, diffusion, guidance, refiner, known_views, on_step)
        ends = [known_views.shown(end.x_t) if known_views else end.x_t for end in ends]
        return ends[0], ends[-1]

    def num_calls(self, *, refiner_steps: set[int], both: bool) -> int:
        """How often the network is called for one result, or for both."""
        shared = min(refiner_steps) + 1 if both and refiner_steps else self.config.num_steps
        return 2 * self.config.num_steps - shared

    def _start(self, noise_BCVHW: Tensor, diffusion: DiffusionDDIM, generators: Any) -> _Trajectory:
        scheduler = self.scheduler(diffusion)
        return _Trajectory(scheduler, noise_BCVHW * float(scheduler.init_noise_sigma), generators)

    def _run(
        self,
        tracks: list[_Trajectory],
        network: Network,
        conditions: Conditions,
        diffusion: DiffusionDDIM,
        guidance: ClassifierFreeGuidance,
        refiner: Refiner | None,
        known_views: KnownViews | None,
        on_step: Callable[[], None] | None,
    ) -> list[_Trajectory]:
        refine_at = refiner.steps(self.config.num_steps) if refiner else set()
        for step, t in enumerate(tracks[0].scheduler.timesteps.tolist()):
            forks = step in refine_at and not any(track.refined for track in tracks)
            for index, track in enumerate(list(tracks)):
                x_t = known_views.shown(track.x_t) if known_views else track.x_t
                branches = predict_x0(network, x_t, t, conditions, diffusion=diffusion, guidance=guidance)
                if known_views:
                    branches = [known_views.shown(x0) for x0 in branches]
                if forks:
                    tracks[index:] = [track.copy(), track]
                    self._step(tracks[0], _mixed(branches, guidance), t, known_views)
                    track.refined = True
                if track.refined and step in refine_at:
                    x0 = _refined(branches, guidance, refiner, step)
                else:
                    x0 = _mixed(branches, guidance)
                self._step(track, x0, t, known_views)
                if on_step:
                    on_step()
        return tracks

    def _step(self, track: _Trajectory, x0: Tensor, t: int, known_views: KnownViews | None) -> None:
        x_t, scheduler = track.x_t, track.scheduler
        if known_views:
            x0 = known_views(x0)
        if self.config.eta == 0:
            track.x_t = scheduler.step(x0, t, x_t).prev_sample
            return
        noise = torch.stack([torch.randn(x_t.shape[1:], generator=generator) for generator in track.generators])
        track.x_t = scheduler.step(x0, t, x_t, eta=self.config.eta, variance_noise=noise.to(x_t)).prev_sample


@dataclass
class _Trajectory:
    """Where one run of the loop stands.

    Attributes:
        scheduler: with the x0 that it remembers.
        x_t: latents.
        generators: of the samples.
        refined: whether the refiner acts on it.
    """

    scheduler: Any
    x_t: Tensor
    generators: list[torch.Generator] | None
    refined: bool = True

    def copy(self) -> _Trajectory:
        """One that goes on by itself."""
        generators = None
        if self.generators is not None:
            generators = [torch.Generator(one.device) for one in self.generators]
            for copied, one in zip(generators, self.generators, strict=True):
                copied.set_state(one.get_state())
        return _Trajectory(copy.deepcopy(self.scheduler), self.x_t, generators, self.refined)


def _mixed(branches: list[Tensor], guidance: ClassifierFreeGuidance) -> Tensor:
    return guidance(*branches) if len(branches) == 2 else branches[0]


def _refined(branches: list[Tensor], guidance: ClassifierFreeGuidance, refiner: Refiner, step: int) -> Tensor:
    if refiner.after_guidance:
        return refiner(_mixed(branches, guidance), step)
    return _mixed([refiner(x0, step) for x0 in branches], guidance)


def predict_x0(
    network: Network,
    x_t: Tensor,
    t: int,
    conditions: Conditions,
    *,
    diffusion: DiffusionDDIM,
    guidance: ClassifierFreeGuidance,
) -> list[Tensor]:
    """x0 of the conditional and, if guidance needs it, of the unconditional branch, in one call of the network."""
    copies = 2 if guidance.needs_unconditional else 1
    t_B = torch.full((copies * len(x_t),), t, device=x_t.device, dtype=torch.long)
    x_both = torch.cat([x_t] * copies)
    arguments = conditions.both if copies == 2 else conditions.conditional
    prediction = network(x_both, t_B, **arguments).float()
    return list(diffusion.to_x0(prediction, x_both, t_B).chunk(copies))


def make_solver(name: str, **options: Any) -> Any:
    """The diffusers scheduler of a solver; importing diffusers takes seconds, so it waits until here."""
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler

    if name == "ddim":
        # As published, the last step goes to the alpha of timestep 0, not to 1.
        return DDIMScheduler(clip_sample=False, set_alpha_to_one=False, **options)
    if name == "dpmsolver++":
        return DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", solver_order=2, **options)
    assert name == "unipc"
    return UniPCMultistepScheduler(predict_x0=True, solver_order=2, **options)
