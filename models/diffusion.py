"""The diffusion process: noise schedule, prediction targets and training loss.

Sampling is in pipelines/sampling/sampler.py; it uses only `to_x0` and the schedule.

Letters: B batch, T timesteps.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Generator, Tensor

from utils.errors import ConfigError
from utils.registry import DIFFUSION


@dataclass(frozen=True, kw_only=True)
class ScheduleParam:
    """Options of the beta schedules; each schedule uses some of them.

    Attributes:
        num_timesteps: T, the number of timesteps.
        init_beta: first beta of linear_sd.
        last_beta: last beta of linear_sd.
        cosine_s: offset of the cosine schedule.
        zero_terminal_snr: rescale the schedule so that the last step is pure noise (arXiv:2305.08891).
    """

    num_timesteps: int = 1000
    init_beta: float = 0.00085
    last_beta: float = 0.012
    cosine_s: float = 0.008
    zero_terminal_snr: bool = False

    def __post_init__(self) -> None:
        where = "Diffusion.schedule_param"
        if not 2 <= self.num_timesteps <= 10**6:
            raise ConfigError(f"{where}.num_timesteps must lie in [2, 1000000], got {self.num_timesteps}")
        if not 0 < self.init_beta <= self.last_beta < 1:
            raise ConfigError(
                f"{where}.init_beta={self.init_beta} and last_beta={self.last_beta} must be fractions with "
                "0 < init_beta <= last_beta < 1"
            )
        if not 0 <= self.cosine_s < 1:
            raise ConfigError(f"{where}.cosine_s must lie in [0, 1), got {self.cosine_s}")


def make_betas(schedule: str, param: ScheduleParam) -> Tensor:
    """Compute the betas of a schedule: (T,) float64.

    Raises:
        ConfigError: the name is unknown.
    """
    T = param.num_timesteps
    if schedule == "linear_sd":
        betas_T = torch.linspace(param.init_beta**0.5, param.last_beta**0.5, T, dtype=torch.float64) ** 2
    elif schedule == "cosine":
        # arXiv:2102.09672, eq. 17; betas are clamped to 0.999.
        u = torch.arange(T + 1, dtype=torch.float64) / T
        alpha_bar = torch.cos((u + param.cosine_s) / (1 + param.cosine_s) * math.pi / 2) ** 2
        betas_T = (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)
    else:
        raise ConfigError(f"Diffusion.schedule={schedule} is unknown; valid: linear_sd, cosine")
    return rescale_to_zero_terminal_snr(betas_T) if param.zero_terminal_snr else betas_T


def rescale_to_zero_terminal_snr(betas_T: Tensor) -> Tensor:
    """Shift and scale sqrt(alpha_bar) so that its end is zero and its start is unchanged (arXiv:2305.08891, alg. 1)."""
    root_T = (1 - betas_T).cumprod(0).sqrt()
    first, last = root_T[0].clone(), root_T[-1].clone()
    alpha_bar_T = ((root_T - last) * first / (first - last)) ** 2
    alpha_T = torch.cat([alpha_bar_T[:1], alpha_bar_T[1:] / alpha_bar_T[:-1]])
    return 1 - alpha_T


class RandomRows(Protocol):
    """Random numbers for the rows of a training batch."""

    def rand(self, *shape: int) -> Tensor:
        """Draw uniform numbers in [0, 1)."""

    def randint(self, high: int, size: int) -> Tensor:
        """Draw `size` integers in [0, high)."""


class DiffusionProcess(ABC):
    """The interface of a process that mixes latents with noise, as sampling and training use it.

    A process is a subclass that is registered in DIFFUSION, with a nested `Config`.

    Attributes:
        num_timesteps: T, number of timesteps; pure noise is near T.
        is_flow: whether x_t is a straight line from x0 to the noise (flow matching). Only some solvers are for it.
        noise_strength: strength of the offset noise in training.
    """

    num_timesteps: int
    is_flow: bool = False
    noise_strength: float = 0.0

    def make_noise(self, like: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Training noise in the shape of `like` (B, C, V, H, W): normal, plus an offset per sample, channel, view."""
        noise = torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)
        if self.noise_strength:
            shape = (*like.shape[:3], 1, 1)
            offset = torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)
            noise = noise + self.noise_strength * offset
        return noise

    def loss(self, prediction: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
        """Mean squared error: the mean per sample, then over the batch.

        Args:
            weights: factors of the squared errors, in a shape that broadcasts to them.
        """
        errors = (prediction.float() - target.float()).square()
        return (errors if weights is None else errors * weights).flatten(1).mean(1).mean()

    def draw_timesteps(self, rows: RandomRows, batch_size: int) -> Tensor:
        """Draw the timesteps of a training batch, (B,)."""
        return rows.randint(self.num_timesteps, batch_size)

    @abstractmethod
    def scheduler_options(self) -> dict[str, Any]:
        """Return the options of a diffusers scheduler that describe this process."""

    @abstractmethod
    def add_noise(self, x0: Tensor, noise: Tensor, t_B: Tensor) -> Tensor:
        """The noisy latents x_t at timestep t."""

    @abstractmethod
    def training_target(self, x0: Tensor, noise: Tensor, t_B: Tensor) -> Tensor:
        """The training target of the network at x_t."""

    @abstractmethod
    def to_x0(self, prediction: Tensor, x_t: Tensor, t_B: Tensor) -> Tensor:
        """Convert a prediction at x_t to x0."""


@DIFFUSION.register
class DiffusionDDIM(DiffusionProcess):
    """A Gaussian diffusion process with epsilon or v prediction."""

    retired_keys = {"ddim_timesteps": "use sampler.num_steps"}

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Published options.

        Attributes:
            schedule: linear_sd or cosine.
            schedule_param: see ScheduleParam.
            mean_type: prediction of the network, eps or v.
            loss_type: only mse.
            var_type: variance of the stochastic sampler; not used by DDIM with eta 0.
            noise_strength: strength of the offset noise in training.
        """

        schedule: str = "linear_sd"
        schedule_param: ScheduleParam = field(default_factory=ScheduleParam)
        mean_type: str = "eps"
        loss_type: str = "mse"
        var_type: str = "fixed_small"
        rescale_timesteps: bool = False
        noise_strength: float = 0.0

        def __post_init__(self) -> None:
            valid = {"schedule": ("linear_sd", "cosine"), "mean_type": ("eps", "v"), "loss_type": ("mse",)}
            valid |= {"var_type": ("fixed_small",), "rescale_timesteps": (False,)}
            for name, values in valid.items():
                if getattr(self, name) not in values:
                    raise ConfigError(f"Diffusion.{name}={getattr(self, name)} is unknown; valid: {values}")

    def __init__(self, config: Config) -> None:
        self.config = config
        self.betas = make_betas(config.schedule, config.schedule_param)
        self.alpha_bar = (1 - self.betas).cumprod(0)
        self.num_timesteps = len(self.betas)
        self.noise_strength = config.noise_strength

    def scheduler_options(self) -> dict[str, Any]:
        return {"num_train_timesteps": self.num_timesteps, "trained_betas": self.betas.tolist()}

    def _signal_and_noise(self, t_B: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(alpha_bar) and sqrt(1 - alpha_bar) at t, in a shape that multiplies `like`."""
        alpha_bar = self.alpha_bar.to(t_B.device)[t_B].view(-1, *[1] * (like.dim() - 1))
        return alpha_bar.sqrt().to(like.dtype), (1 - alpha_bar).sqrt().to(like.dtype)

    def add_noise(self, x0: Tensor, noise: Tensor, t_B: Tensor) -> Tensor:
        signal, sigma = self._signal_and_noise(t_B, x0)
        return signal * x0 + sigma * noise

    def training_target(self, x0: Tensor, noise: Tensor, t_B: Tensor) -> Tensor:
        if self.config.mean_type == "eps":
            return noise
        signal, sigma = self._signal_and_noise(t_B, x0)
        return signal * noise - sigma * x0

    def to_x0(self, prediction: Tensor, x_t: Tensor, t_B: Tensor) -> Tensor:
        signal, sigma = self._signal_and_noise(t_B, x_t)
        if self.config.mean_type == "eps":
            return (x_t - sigma * prediction) / signal
        return signal * x_t - sigma * prediction
