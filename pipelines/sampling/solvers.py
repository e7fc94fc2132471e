"""Schedulers of diffusers, which compute the next latents from x0, and the timesteps of a run.

Letters: T timesteps of the schedule, S steps of a run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.diffusion import DiffusionProcess
from utils.errors import ConfigError

SPACINGS = ("leading", "trailing", "linspace", "angle")


@dataclass(frozen=True, kw_only=True)
class Solver:
    """A kind of scheduler.

    Attributes:
        make: makes a diffusers scheduler that takes x0, from the options common to all schedulers.
        of_betas: whether it solves a Gaussian diffusion with a schedule of betas.
        of_flow: whether it solves flow matching.
    """

    make: Callable[..., Any]
    of_betas: bool
    of_flow: bool


SOLVERS: dict[str, Solver] = {}  # filled by `solver_named`


def solver_named(
    name: str, *, of_betas: bool = True, of_flow: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: register a function that makes a diffusers scheduler; for the arguments see `Solver`."""

    def collect(make: Callable[..., Any]) -> Callable[..., Any]:
        SOLVERS[name] = Solver(make=make, of_betas=of_betas, of_flow=of_flow)
        return make

    return collect


def make_scheduler(diffusion: DiffusionProcess, *, solver: str, num_steps: int, spacing: str, warp: float) -> Any:
    """Make a scheduler that takes x0, with the timesteps of a run; for the options see pipelines.sampling.sampler.

    Raises:
        ConfigError: the solver is not for this process, or a timestep would be used twice, as some solvers do when all
            timesteps are steps.
    """
    check_solver(diffusion, solver=solver, spacing=spacing)
    if diffusion.is_flow:
        return flow_scheduler(diffusion, solver=solver, num_steps=num_steps)
    return beta_scheduler(diffusion, solver=solver, num_steps=num_steps, spacing=spacing, warp=warp)


def check_solver(diffusion: DiffusionProcess, *, solver: str, spacing: str) -> None:
    """Check that a solver and a spacing of the timesteps are for a process.

    Raises:
        ConfigError: they are not.
    """
    fitting = [name for name, one in SOLVERS.items() if (one.of_flow if diffusion.is_flow else one.of_betas)]
    if solver not in fitting:
        raise ConfigError(
            f"sampler.solver={solver} does not solve Diffusion.type={type(diffusion).__name__}; use a sampler of "
            f"{', '.join(fitting)}, for instance sampler.type=UniPC"
        )
    if diffusion.is_flow and spacing != "trailing":
        raise ConfigError(f"sampler.spacing={spacing} is not for flow matching; use sampler.spacing=trailing")


def flow_scheduler(diffusion: DiffusionProcess, *, solver: str, num_steps: int) -> Any:
    """Make a scheduler for flow matching: even steps of sigma from 1 to 0, shifted."""
    scheduler = SOLVERS[solver].make(prediction_type="sample", use_flow_sigmas=True, **diffusion.scheduler_options())
    scheduler.set_timesteps(num_steps)
    # Diffusers rounds the timesteps to integers; the network and x0 need those of the sigmas.
    scheduler.timesteps = scheduler.sigmas[:-1] * diffusion.num_timesteps
    return scheduler


def beta_scheduler(diffusion: DiffusionProcess, *, solver: str, num_steps: int, spacing: str, warp: float) -> Any:
    """Make a scheduler for a schedule of betas; for arguments and errors see `make_scheduler`."""
    options = diffusion.scheduler_options()
    alpha_bar = (1 - torch.tensor(options["trained_betas"], dtype=torch.float64)).cumprod(0)
    if alpha_bar[-1] < 2**-24 and solver != "ddim":
        # Multistep solvers use log(signal / noise), so the signal at the last timestep must not be exactly zero.
        options["trained_betas"][-1] = float(1 - 2**-24 / alpha_bar[-2])
    angle = spacing == "angle"
    # As published, leading timesteps begin at 1. With as many steps as timesteps, this would be one too many; the
    # multistep solvers of diffusers count one step more.
    most_steps = diffusion.num_timesteps - (0 if solver == "ddim" else 1)
    offset = 1 if spacing == "leading" and num_steps < most_steps else 0
    scheduler = SOLVERS[solver].make(
        prediction_type="sample", timestep_spacing="trailing" if angle else spacing, steps_offset=offset, **options
    )
    scheduler.set_timesteps(num_steps)
    if (scheduler.timesteps.diff() >= 0).any():
        raise ConfigError(
            f"sampler.spacing={spacing} uses timesteps twice with sampler.num_steps={num_steps}; use "
            "sampler.spacing=trailing, or fewer steps"
        )
    if angle:
        alpha_bar = scheduler.alphas_cumprod
        t_S = angle_timesteps(alpha_bar, num_steps, warp=warp)
        sigmas_S = (1 / alpha_bar[t_S] - 1).sqrt()
        scheduler.timesteps, scheduler.sigmas = t_S, torch.cat([sigmas_S, scheduler.sigmas[-1:]]).float()
    return scheduler


@solver_named("ddim")
def ddim(**options: Any) -> Any:
    """DDIM as published: the last step ends at the alpha of timestep 0, not at 1."""
    from diffusers import DDIMScheduler  # imported here, because the import takes seconds

    return DDIMScheduler(clip_sample=False, set_alpha_to_one=False, **options)


@solver_named("dpmsolver++", of_flow=True)
def dpmsolver(**options: Any) -> Any:
    """DPM-Solver++ of second order (arXiv:2211.01095)."""
    from diffusers import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", solver_order=2, **options)


@solver_named("unipc", of_flow=True)
def unipc(**options: Any) -> Any:
    """UniPC of second order (arXiv:2302.04867)."""
    from diffusers import UniPCMultistepScheduler

    return UniPCMultistepScheduler(predict_x0=True, solver_order=2, **options)


@solver_named("euler", of_betas=False, of_flow=True)
def euler(*, num_train_timesteps: int, flow_shift: float, prediction_type: str, use_flow_sigmas: bool) -> Any:
    """Euler steps of flow matching."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    class TakesX0(FlowMatchEulerDiscreteScheduler):
        """Converts x0 to the velocity that diffusers' scheduler takes."""

        init_noise_sigma = 1.0

        def step(self, x0: Tensor, t: float, x_t: Tensor) -> Any:
            if self.step_index is None:
                self._init_step_index(t)
            return super().step((x_t - x0) / self.sigmas[self.step_index], t, x_t)

        def set_timesteps(self, num_steps: int) -> None:
            # the sigmas before the shift; without them diffusers ends at a sigma that is shifted twice
            super().set_timesteps(sigmas=torch.linspace(1, 1 / num_steps, num_steps).tolist())

    assert prediction_type == "sample"
    assert use_flow_sigmas
    return TakesX0(num_train_timesteps=num_train_timesteps, shift=flow_shift)


def angle_timesteps(alpha_bar_T: Tensor, num_steps: int, *, warp: float) -> Tensor:
    """Return timesteps whose angles arctan(noise / signal) follow a power law, (num_steps,), from pure noise down.

    With guidance, x0 changes fastest near pure noise: for the small text model, the change per angle is there about a
    hundred times as large as in the second half. Steps of equal length in time are too coarse there, for any order of
    the solver.

    Args:
        alpha_bar_T: alpha_bar of the schedule.
        warp: the power; 1 is even spacing, larger values are denser near pure noise.
    """
    angle_T = alpha_bar_T.double().sqrt().acos()
    share_S = (torch.arange(num_steps, dtype=torch.float64) / num_steps) ** warp
    wanted_S = angle_T[-1] - (angle_T[-1] - angle_T[0]) * share_S
    t_S = (angle_T[None] - wanted_S[:, None]).abs().argmin(dim=1)
    for index in range(1, num_steps):  # strictly decreasing, with enough timesteps left for the remaining steps
        t_S[index] = max(min(int(t_S[index]), int(t_S[index - 1]) - 1), num_steps - 1 - index)
    return t_S
