"""Schedulers of diffusers, which compute the next latents from x0, and the timesteps of a run.

Letters: T timesteps of the schedule, S steps of a run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from models.diffusion import DiffusionDDIM
from utils.errors import ConfigError

SPACINGS = ("leading", "trailing", "linspace", "angle")
SOLVERS: dict[str, Callable[..., Any]] = {}  # filled by `solver_named`


def solver_named(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: register a function that makes a diffusers scheduler from the options common to all schedulers."""

    def collect(make: Callable[..., Any]) -> Callable[..., Any]:
        SOLVERS[name] = make
        return make

    return collect


def make_scheduler(diffusion: DiffusionDDIM, *, solver: str, num_steps: int, spacing: str, warp: float) -> Any:
    """Make a scheduler that takes x0, with the timesteps of a run; for the options see pipelines.sampling.sampler.

    Raises:
        ConfigError: a timestep would be used twice, as some solvers do when all timesteps are steps.
    """
    betas = diffusion.betas.clone()
    alpha_bar = diffusion.alpha_bar
    if alpha_bar[-1] < 2**-24 and solver != "ddim":
        # Multistep solvers use log(signal / noise), so the signal at the last timestep must not be exactly zero.
        betas[-1] = 1 - 2**-24 / alpha_bar[-2]
    angle = spacing == "angle"
    # As published, leading timesteps begin at 1. With as many steps as timesteps, this would be one too many; the
    # multistep solvers of diffusers count one step more.
    most_steps = diffusion.num_timesteps - (0 if solver == "ddim" else 1)
    offset = 1 if spacing == "leading" and num_steps < most_steps else 0
    scheduler = SOLVERS[solver](
        num_train_timesteps=diffusion.num_timesteps,
        trained_betas=betas.tolist(),
        prediction_type="sample",
        timestep_spacing="trailing" if angle else spacing,
        steps_offset=offset,
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


@solver_named("dpmsolver++")
def dpmsolver(**options: Any) -> Any:
    """DPM-Solver++ of second order (arXiv:2211.01095)."""
    from diffusers import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", solver_order=2, **options)


@solver_named("unipc")
def unipc(**options: Any) -> Any:
    """UniPC of second order (arXiv:2302.04867)."""
    from diffusers import UniPCMultistepScheduler

    return UniPCMultistepScheduler(predict_x0=True, solver_order=2, **options)


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
