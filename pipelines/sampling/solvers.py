"""The diffusers scheduler that takes x0 to the next latents, and the timesteps that it goes through.

Letters: T timesteps of the schedule, S steps of a run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from models.diffusion import DiffusionDDIM

SPACINGS = ("leading", "trailing", "linspace", "angle")
SOLVERS: dict[str, Callable[..., Any]] = {}  # what `solver_named` has collected


def solver_named(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate what makes a diffusers scheduler out of the options that all of them take."""

    def collect(make: Callable[..., Any]) -> Callable[..., Any]:
        SOLVERS[name] = make
        return make

    return collect


def make_scheduler(diffusion: DiffusionDDIM, *, solver: str, num_steps: int, spacing: str, warp: float) -> Any:
    """A fresh scheduler that takes x0 and knows the timesteps of a run; options as of pipelines.sampling.sampler."""
    betas = diffusion.betas.clone()
    alpha_bar = diffusion.alpha_bar
    if alpha_bar[-1] < 2**-24 and solver != "ddim":
        # Multistep solvers work with log(signal / noise): the terminal signal must not be exactly zero.
        betas[-1] = 1 - 2**-24 / alpha_bar[-2]
    angle = spacing == "angle"
    scheduler = SOLVERS[solver](
        num_train_timesteps=diffusion.num_timesteps,
        trained_betas=betas.tolist(),
        prediction_type="sample",
        timestep_spacing="trailing" if angle else spacing,
        steps_offset=1 if spacing == "leading" else 0,
    )
    scheduler.set_timesteps(num_steps)
    if angle:
        alpha_bar = scheduler.alphas_cumprod
        t_S = angle_timesteps(alpha_bar, num_steps, warp=warp)
        sigmas_S = (1 / alpha_bar[t_S] - 1).sqrt()
        scheduler.timesteps, scheduler.sigmas = t_S, torch.cat([sigmas_S, scheduler.sigmas[-1:]]).float()
    return scheduler


@solver_named("ddim")
def ddim(**options: Any) -> Any:
    """As published, the last step goes to the alpha of timestep 0, not to 1."""
    from diffusers import DDIMScheduler  # takes seconds, so it waits until here

    return DDIMScheduler(clip_sample=False, set_alpha_to_one=False, **options)


@solver_named("dpmsolver++")
def dpmsolver(**options: Any) -> Any:
    """Second order (arXiv:2211.01095)."""
    from diffusers import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", solver_order=2, **options)


@solver_named("unipc")
def unipc(**options: Any) -> Any:
    """Second order (arXiv:2302.04867)."""
    from diffusers import UniPCMultistepScheduler

    return UniPCMultistepScheduler(predict_x0=True, solver_order=2, **options)


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
