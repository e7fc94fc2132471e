"""The denoising loop, from noise to latents, for every solver.

In each step, `Denoising` predicts x0 from the latents, with guidance and refinement. A solver of diffusers then
computes the next latents from x0.

Letters: B batch, C channels, V views, H W latent pixels.
"""

from __future__ import annotations

import copy
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor

from models.backbone import DeepFeatures
from models.diffusion import DiffusionProcess
from pipelines.sampling.conditioner import Conditions
from pipelines.sampling.guidance import ClassifierFreeGuidance, Refiner
from pipelines.sampling.known_views import KnownViews
from pipelines.sampling.solvers import SOLVERS, SPACINGS, check_solver, make_scheduler
from utils.errors import ConfigError
from utils.registry import SAMPLERS
from utils.stopwatch import Stopwatch

Network = Callable[..., Tensor]


@dataclass(frozen=True, kw_only=True)
class Denoising:
    """The arguments of a run of the sampler.

    Attributes:
        network: maps (latents, timesteps, **conditions) to a prediction.
        conditions: conditions of both guidance branches.
        diffusion: converts the prediction to x0.
        view_timesteps: give the network a timestep for each view, which is 0 for known views without noise.
        guidance: mixes the x0 of both branches.
        refiner: replaces x0 at some steps, in each branch before guidance (as published) or after it.
        known_views: replaces x0 of the known views at every step, after guidance.
        generators: one per sample, for eta > 0.
        on_step: called after every call of the network.
        on_x0: called at every step with the x0 that the solver receives, for previews; it must not change it.
        stopwatch: measures the time of the refiner as `refine`.
    """

    network: Network
    conditions: Conditions
    diffusion: DiffusionProcess
    guidance: ClassifierFreeGuidance
    view_timesteps: bool = False
    refiner: Refiner | None = None
    known_views: KnownViews | None = None
    generators: list[Generator] | None = None
    on_step: Callable[[], None] | None = None
    on_x0: Callable[[Tensor], None] | None = None
    stopwatch: Stopwatch = field(default_factory=lambda: Stopwatch(torch.device("cpu")))

    def predict_x0(self, x_t: Tensor, t: float, *, guided: bool, **more: Any) -> list[Tensor]:
        """Predict x0 of the conditional branch and, with guidance, of the unconditional one, in one network call.

        Args:
            more: further arguments of the network.
        """
        copies = 2 if guided else 1
        x_both = torch.cat([self.shown(x_t)] * copies)
        dtype = torch.long if isinstance(t, int) else torch.float32
        t_B = torch.full((len(x_both),), t, device=x_t.device, dtype=dtype)
        arguments = self.conditions.both if guided else self.conditions.conditional
        prediction = self.network(x_both, self._network_timesteps(t_B, x_both), **arguments, **more).float()
        return [self.shown(x0) for x0 in self.diffusion.to_x0(prediction, x_both, t_B).chunk(copies)]

    def _network_timesteps(self, t_B: Tensor, x_BCVHW: Tensor) -> Tensor:
        if not self.view_timesteps:
            return t_B
        t_BV = t_B[:, None].repeat(1, x_BCVHW.shape[2])
        if self.known_views and self.known_views.clean:
            t_BV[:, list(self.known_views.views)] = 0
        return t_BV

    def shown(self, latents: Tensor) -> Tensor:
        """Return the latents with the known views replaced, if they are given without noise."""
        return self.known_views.shown(latents) if self.known_views else latents

    def mixed(self, branches: list[Tensor]) -> Tensor:
        """Apply guidance and replace the known views; returns one x0."""
        return self._held(self._guided(branches))

    def refined(self, branches: list[Tensor], step: int) -> Tensor:
        """Do the same as `mixed`, with refinement."""
        with self.stopwatch.part("refine"):
            if self.refiner.after_guidance:
                return self._held(self.refiner(self._guided(branches), step))
            return self.mixed([self.refiner(x0, step) for x0 in branches])

    def _guided(self, branches: list[Tensor]) -> Tensor:
        return self.guidance(*branches) if len(branches) == 2 else branches[0]

    def _held(self, x0: Tensor) -> Tensor:
        x0 = self.known_views(x0) if self.known_views else x0
        if self.on_x0:
            self.on_x0(x0)
        return x0


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """Options of every sampler. A subclass adds its own as fields.

    Attributes:
        num_steps: number of denoising steps; each is one network call with both guidance branches.
    """

    num_steps: int = 50

    @property
    def reuses(self) -> bool:
        """Whether the network must take `deep`, see models.backbone.DeepFeatures."""
        return False


class OrbitSampler(ABC):
    """The interface of a sampler.

    A sampler is a subclass that is registered in SAMPLERS, with a nested `Config`, a subclass of `OrbitSampler.Config`.
    It must have `__call__`; everything else has a default.
    """

    Config = SamplerConfig

    def __init__(self, config: SamplerConfig) -> None:
        self.config = config

    @abstractmethod
    def __call__(self, noise_BCVHW: Tensor, run: Denoising) -> Tensor:
        """Sample latents.

        In each step, call `run.predict_x0` once, then `run.refined` at the steps in `run.refiner.steps(num_steps)` or
        `run.mixed` at the other steps, and at the end `run.on_step`. Return `run.shown` of the last latents.

        Args:
            noise_BCVHW: the noise, float32.
            run: the arguments.

        Returns:
            latents_BCVHW, float32.
        """

    def check(self, diffusion: DiffusionProcess) -> None:
        """Check, before networks are loaded, that the options fit the diffusion process.

        Raises:
            ConfigError: they do not.
        """
        if self.config.num_steps > diffusion.num_timesteps:
            raise ConfigError(
                f"sampler.num_steps={self.config.num_steps} is more than the {diffusion.num_timesteps} timesteps of "
                "Diffusion; use fewer steps"
            )

    def both(self, noise_BCVHW: Tensor, run: Denoising) -> tuple[Tensor, Tensor]:
        """Sample without and with the refiner. Only the refined result advances the generators of the run."""
        plain = dataclasses.replace(run, refiner=None, generators=copies_of(run.generators))
        return self(noise_BCVHW, plain), self(noise_BCVHW, run)

    def num_calls(self, *, refiner_steps: set[int], both: bool) -> int:
        """Return the number of calls of `run.on_step` for one result, or for both."""
        return self.config.num_steps * (2 if both else 1)


@SAMPLERS.register(name="DDIM")
@SAMPLERS.register(name="DPMSolver++", solver="dpmsolver++", spacing="trailing", num_steps=20)
@SAMPLERS.register(name="UniPC", solver="unipc", spacing="trailing", num_steps=20)
@SAMPLERS.register(name="Euler", solver="euler", spacing="trailing", num_steps=20)
class Sampler(OrbitSampler):
    """Denoise with a scheduler of diffusers. The published models are sampled with DDIM and 50 steps."""

    @dataclass(frozen=True, kw_only=True)
    class Config(OrbitSampler.Config):
        """Options.

        Attributes:
            solver: ddim, dpmsolver++, unipc, euler or another solver in pipelines.sampling.solvers; usually set by the
                type. Flow matching needs one of the last three.
            eta: stochasticity of DDIM; 0 is deterministic.
            spacing: leading (published: 981, 961, ..., 1), trailing (starts at pure noise) or linspace; for multistep
                solvers also angle, see pipelines.sampling.solvers.
            warp: power of the `angle` spacing; 1 is even, larger values are denser near pure noise.
            reuse_steps: the inner part of the network runs at every Nth step; the other steps reuse its last output
                (arXiv:2312.00858). 1: it runs at every step.
            reuse_outer: number of blocks at each end of the network that run at every step.
        """

        solver: str = "ddim"
        eta: float = 0.0
        spacing: str = "leading"
        warp: float = 1.5
        reuse_steps: int = 1
        reuse_outer: int = 1

        def __post_init__(self) -> None:
            if not 1 <= self.num_steps <= 1000:
                raise ConfigError(f"sampler.num_steps must lie in [1, 1000], got {self.num_steps}")
            for name, valid in {"solver": SOLVERS, "spacing": SPACINGS}.items():
                if getattr(self, name) not in valid:
                    raise ConfigError(f"sampler.{name}={getattr(self, name)} is unknown; valid: {', '.join(valid)}")
            if self.eta and self.solver != "ddim":
                raise ConfigError(f"sampler.eta={self.eta} is only for DDIM; set sampler.eta=0 for {self.solver}")
            for name in ("reuse_steps", "reuse_outer"):
                if getattr(self, name) < 1:
                    raise ConfigError(f"sampler.{name} must be at least 1, got {getattr(self, name)}")
            if self.spacing == "angle" and self.solver == "ddim":
                raise ConfigError("sampler.spacing=angle is for DPMSolver++ and UniPC; use trailing for DDIM")
            if self.warp <= 0:
                raise ConfigError(f"sampler.warp must be positive, got {self.warp}")

        @property
        def reuses(self) -> bool:
            return self.reuse_steps > 1

    def check(self, diffusion: DiffusionProcess) -> None:
        super().check(diffusion)
        check_solver(diffusion, solver=self.config.solver, spacing=self.config.spacing)
        if self.config.num_steps >= diffusion.num_timesteps - 1:  # only then can timesteps repeat
            self.scheduler(diffusion)

    def scheduler(self, diffusion: DiffusionProcess) -> Any:
        """Make a new diffusers scheduler with the options of this sampler.

        Raises:
            ConfigError: the solver is not for this process, or a timestep would be used twice.
        """
        config = self.config
        return make_scheduler(
            diffusion, solver=config.solver, num_steps=config.num_steps, spacing=config.spacing, warp=config.warp
        )

    @torch.no_grad()
    def __call__(self, noise_BCVHW: Tensor, run: Denoising) -> Tensor:
        (end,) = self._run(self._start(noise_BCVHW, run), run)
        return run.shown(end.x_t)

    @torch.no_grad()
    def both(self, noise_BCVHW: Tensor, run: Denoising) -> tuple[Tensor, Tensor]:
        """Sample without and with the refiner. The results equal those of two calls, bit for bit.

        Both results share the steps before the first refinement. Only the refined result advances the generators of the
        run.
        """
        start = self._start(noise_BCVHW, run)
        start.refined = False  # until the first refinement, where the trajectory is copied
        ends = self._run(start, run)
        return run.shown(ends[0].x_t), run.shown(ends[-1].x_t)

    def num_calls(self, *, refiner_steps: set[int], both: bool) -> int:
        shared = min(refiner_steps) + 1 if both and refiner_steps else self.config.num_steps
        return 2 * self.config.num_steps - shared

    def _start(self, noise_BCVHW: Tensor, run: Denoising) -> _Trajectory:
        scheduler = self.scheduler(run.diffusion)
        return _Trajectory(scheduler, noise_BCVHW * float(scheduler.init_noise_sigma), run.generators)

    def _run(self, start: _Trajectory, run: Denoising) -> list[_Trajectory]:
        num_steps, tracks = self.config.num_steps, [start]
        refine_at = run.refiner.steps(num_steps) if run.refiner else set()
        for step, t in enumerate(start.scheduler.timesteps.tolist()):
            guided = run.guidance.acts_at(step, num_steps)
            forks = step in refine_at and not any(track.refined for track in tracks)
            for index, track in enumerate(list(tracks)):
                branches = run.predict_x0(track.x_t, t, guided=guided, **self._deep(track, step, guided))
                if forks:
                    tracks[index:] = [track.copy(), track]
                    self._step(tracks[0], run.mixed(branches), t)
                    track.refined = True
                refines = track.refined and step in refine_at
                self._step(track, run.refined(branches, step) if refines else run.mixed(branches), t)
                if run.on_step:
                    run.on_step()
        return tracks

    def _deep(self, track: _Trajectory, step: int, guided: bool) -> dict[str, DeepFeatures]:
        """Return the features for the network to reuse, or an empty `DeepFeatures` for it to fill."""
        if self.config.reuse_steps == 1:
            return {}
        if step % self.config.reuse_steps == 0 or track.deep_is_guided != guided:
            track.deep, track.deep_is_guided = DeepFeatures(num_outer=self.config.reuse_outer), guided
        return {"deep": track.deep}

    def _step(self, track: _Trajectory, x0: Tensor, t: float) -> None:
        x_t, scheduler = track.x_t, track.scheduler
        if self.config.eta == 0:
            track.x_t = scheduler.step(x0, t, x_t).prev_sample
            return
        noise = torch.stack([torch.randn(x_t.shape[1:], generator=generator) for generator in track.generators])
        track.x_t = scheduler.step(x0, t, x_t, eta=self.config.eta, variance_noise=noise.to(x_t)).prev_sample


@dataclass
class _Trajectory:
    """The state of one trajectory in the loop.

    Attributes:
        scheduler: the scheduler, which stores earlier x0 of this trajectory.
        x_t: the current latents.
        generators: one per sample.
        refined: whether the refiner applies to this trajectory.
        deep: the last output of the inner part of the network.
        deep_is_guided: whether `deep` contains both guidance branches.
    """

    scheduler: Any
    x_t: Tensor
    generators: list[Generator] | None
    refined: bool = True
    deep: DeepFeatures | None = None
    deep_is_guided: bool | None = None

    def copy(self) -> _Trajectory:
        """Return an independent copy."""
        generators = copies_of(self.generators)
        return dataclasses.replace(self, scheduler=copy.deepcopy(self.scheduler), generators=generators)


def copies_of(generators: list[Generator] | None) -> list[Generator] | None:
    """Copy generators; the copies draw the same numbers as the originals."""
    if generators is None:
        return None
    copies = [Generator(one.device) for one in generators]
    for copied, one in zip(copies, generators, strict=True):
        copied.set_state(one.get_state())
    return copies
