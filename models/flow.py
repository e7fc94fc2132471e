"""Flow matching: latents and noise are mixed along a straight line (arXiv:2210.02747, 2209.03003).

Letters: B batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.diffusion import DiffusionProcess, RandomRows
from utils.errors import ConfigError
from utils.registry import DIFFUSION


@DIFFUSION.register
class FlowMatching(DiffusionProcess):
    """x_t = (1 - sigma) x0 + sigma noise with sigma = t / T; the network predicts the velocity, noise - x0."""

    is_flow = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """
        Attributes:
            num_timesteps: T. Timesteps are fractions of it, not only integers.
            shift: moves the sigmas of training and sampling towards noise, sigma -> shift sigma / (1 + (shift - 1)
                sigma) (arXiv:2403.03206, eq. 23). Many or large views share information and need more of it; 1: none.
            noise_strength: strength of the offset noise in training.
        """

        num_timesteps: int = 1000
        shift: float = 3.0
        noise_strength: float = 0.0

        def __post_init__(self) -> None:
            if not 2 <= self.num_timesteps <= 10**6:
                raise ConfigError(f"Diffusion.num_timesteps must lie in [2, 1000000], got {self.num_timesteps}")
            if not 0.01 <= self.shift <= 100:
                raise ConfigError(f"Diffusion.shift must lie in [0.01, 100], got {self.shift:g}")

    def __init__(self, config: Config) -> None:
        self.config, self.num_timesteps, self.noise_strength = config, config.num_timesteps, config.noise_strength

    def scheduler_options(self) -> dict[str, Any]:
        return {"num_train_timesteps": self.num_timesteps, "flow_shift": self.config.shift}

    def draw_timesteps(self, rows: RandomRows, batch_size: int) -> Tensor:
        sigma_B = rows.rand(batch_size)
        shift = self.config.shift
        return self.num_timesteps * shift * sigma_B / (1 + (shift - 1) * sigma_B)

    def _sigma(self, t_B: Tensor, like: Tensor) -> Tensor:
        """Return sigma in float32, in a shape that multiplies `like`."""
        return (t_B.to(torch.float32) / self.num_timesteps).view(-1, *[1] * (like.dim() - 1))

    def add_noise(self, x0: Tensor, noise: Tensor, t_B: Tensor) -> Tensor:
        sigma = self._sigma(t_B, x0).to(x0.dtype)
        return (1 - sigma) * x0 + sigma * noise

    def training_target(self, x0: Tensor, noise: Tensor, t_B: Tensor) -> Tensor:
        return noise - x0

    def to_x0(self, prediction: Tensor, x_t: Tensor, t_B: Tensor) -> Tensor:
        return x_t - self._sigma(t_B, x_t).to(x_t.dtype) * prediction
