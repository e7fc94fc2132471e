"""From noise to latents: one loop for every solver.

What a step needs (network, conditions, guidance, refinement) is a `Denoising`; it gives x0, and the solver (from
diffusers) takes x0 and makes the next latents.

Letters: B batch, C channels, V views, H W latent pixels.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.diffusion import DiffusionDDIM
from models.unet import DeepFeatures
from pipelines.denoising import Denoising
from utils.errors import ConfigError
from utils.registry import SAMPLERS

SPACINGS = ("leading", "trailing", "linspace", "angle")
SOLVERS = ("ddim", "dpmsolver++", "unipc")


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
            spacing: leading (published: 981, 961, ..., 1), trailing (starts at pure noise), linspace; or
                for multistep solvers angle: see `angle_timesteps`.
            warp: of `angle` spacing; 1 is even, more is denser at the noisy end.
            reuse_steps: the inner part of the network runs at every so manieth step; in between, what it gave is taken
                again (arXiv:2312.00858). 1: at every step.
            reuse_outer: blocks at either end of the network that run at every step.
        """

        solver: str = "ddim"
        num_steps: int = 50
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
                raise ConfigError(f"sampler.eta={self.eta} belongs to DDIM; set it to 0 for {self.solver}")
            for name in ("reuse_steps", "reuse_outer"):
                if getattr(self, name) < 1:
                    raise ConfigError(f"sampler.{name} must be at least 1, got {getattr(self, name)}")
            if self.spacing == "angle" and self.solver == "ddim":
                raise ConfigError("sampler.spacing=angle is for DPMSolver++ and UniPC; use trailing for DDIM")
            if self.warp <= 0:
                raise ConfigError(f"sampler.warp must be positive, got {self.warp}")

    def __init__(self, config: Config) -> None:
        self.config = config

    def scheduler(self, diffusion: DiffusionDDIM) -> Any:
        """A fresh diffusers scheduler that takes x0 and knows the timesteps of this run."""
        betas = diffusion.betas.clone()
        alpha_bar = diffusion.alpha_bar
        if alpha_bar[-1] < 2**-24 and self.config.solver != "ddim":
            # Multistep solvers work with log(signal / noise): the terminal signal must not be exactly zero.
            betas[-1] = 1 - 2**-24 / alpha_bar[-2]
        angle = self.config.spacing == "angle"
        scheduler = make_solver(
            self.config.solver,
            num_train_timesteps=diffusion.num_timesteps,
            trained_betas=betas.tolist(),
            prediction_type="sample",
            timestep_spacing="trailing" if angle else self.config.spacing,
            steps_offset=1 if self.config.spacing == "leading" else 0,
        )
        scheduler.set_timesteps(self.config.num_steps)
        if angle:
            alpha_bar = scheduler.alphas_cumprod
            t_S = angle_timesteps(alpha_bar, self.config.num_steps, warp=self.config.warp)
            sigmas_S = (1 / alpha_bar[t_S] - 1).sqrt()
            scheduler.timesteps, scheduler.sigmas = t_S, torch.cat([sigmas_S, scheduler.sigmas[-1:]]).float()
        return scheduler

    @torch.no_grad()
    def __call__(self, noise_BCVHW: Tensor, run: Denoising) -> Tensor:
        """Sample latents.

        Args:
            noise_BCVHW: float32 start.
            run: what to sample with.

        Returns:
            latents_BCVHW float32.
        """
        (end,) = self._run(self._start(noise_BCVHW, run), run)
        return run.shown(end.x_t)

    @torch.no_grad()
    def both(self, noise_BCVHW: Tensor, run: Denoising) -> tuple[Tensor, Tensor]:
        """Without and with the refiner, to the bit as in two calls, at the cost of one until the first refinement.

        The generators of the run end where the refined result leaves them. Arguments as of a call.
        """
        start = self._start(noise_BCVHW, run)
        start.refined = False  # until it forks
        ends = self._run(start, run)
        return run.shown(ends[0].x_t), run.shown(ends[-1].x_t)

    def num_calls(self, *, refiner_steps: set[int], both: bool) -> int:
        """How often the network is called for one result, or for both."""
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
        """What the network may take again, or is to remember."""
        if self.config.reuse_steps == 1:
            return {}
        if step % self.config.reuse_steps == 0 or track.deep_is_guided != guided:
            track.deep, track.deep_is_guided = DeepFeatures(num_outer=self.config.reuse_outer), guided
        return {"deep": track.deep}

    def _step(self, track: _Trajectory, x0: Tensor, t: int) -> None:
        x_t, scheduler = track.x_t, track.scheduler
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
        deep: what the inner part of the network gave last.
        deep_is_guided: whether with both branches of guidance.
    """

    scheduler: Any
    x_t: Tensor
    generators: list[torch.Generator] | None
    refined: bool = True
    deep: DeepFeatures | None = None
    deep_is_guided: bool | None = None

    def copy(self) -> _Trajectory:
        """One that goes on by itself."""
        generators = None
        if self.generators is not None:
            generators = [torch.Generator(one.device) for one in self.generators]
            for copied, one in zip(generators, self.generators, strict=True):
                copied.set_state(one.get_state())
        return dataclasses.replace(self, scheduler=copy.deepcopy(self.scheduler), generators=generators)


def angle_timesteps(alpha_bar_T: Tensor, num_steps: int, *, warp: float) -> Tensor:
    """Timesteps whose angles arctan(noise / signal) are spaced as powers, (num_steps,), decreasing from pure noise.

    Guided, x0 turns fastest near pure noise: that of the small text model begins about a hundred times as fast, per
    angle, as it goes in the last half. Steps that are even in time miss that, whatever the order of the solver.

    Args:
        alpha_bar_T: of the schedule.
        warp: the power; 1 is even, more is denser near pure noise.
    """
    angle_T = alpha_bar_T.double().sqrt().acos()
    share_S = (torch.arange(num_steps, dtype=torch.float64) / num_steps) ** warp
    wanted_S = angle_T[-1] - (angle_T[-1] - angle_T[0]) * share_S
    t_S = (angle_T[None] - wanted_S[:, None]).abs().argmin(dim=1)
    for index in range(1, num_steps):  # no timestep twice, and as many below as are still to come
        t_S[index] = max(min(int(t_S[index]), int(t_S[index - 1]) - 1), num_steps - 1 - index)
    return t_S


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
