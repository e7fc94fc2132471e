"""Fit a radiance field to the views of an object (arXiv:2003.08934), on dense grids instead of a large network.

Letters: M samples.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from datasets.views.posed_views import PosedViews
from pipelines.reconstruction.fitting.grids import FeatureGrids
from pipelines.reconstruction.fitting.hull import Hull
from pipelines.reconstruction.fitting.rays import RayField, RayFieldConfig, Samples, Shaded
from utils.errors import ConfigError
from utils.registry import FITS

DENSITY_SCALE = 100.0  # density of a softplus of one, in 1 / world units
DENSITY_SHIFT = -3.0  # a new field is thin fog


@FITS.register(name="nerf")
class RadianceField(RayField):
    """Density and colour from dense grids and a small network."""

    @dataclass(frozen=True, kw_only=True)
    class Config(RayFieldConfig):
        """Options of the field, in addition to those of all fields.

        resolutions: voxels along the longest side of each grid.
        channels: features per grid.
        hidden: width of the network.
        grid_rate: initial learning rate of the grids.
        network_rate: initial learning rate of the network.
        roughness_penalty: weight of the squared differences of neighbouring voxels.
        """

        # More rays cost a GPU little, and more steps much: its time goes into starting operations.
        num_steps: int = 400
        rays_per_step: int = 3072
        resolutions: list[int] = field(default_factory=lambda: [12, 32, 96])
        channels: int = 4
        hidden: int = 32
        grid_rate: float = 0.2
        network_rate: float = 2e-2
        roughness_penalty: float = 1e-3

        def __post_init__(self) -> None:
            super().__post_init__()
            if not self.resolutions or not all(4 <= size <= 512 for size in self.resolutions):
                raise ConfigError(f"resolutions must lie in [4, 512], got {list(self.resolutions)}")
            if min(self.channels, self.hidden) < 1:
                raise ConfigError(f"channels and hidden must be at least 1, got {self.channels} and {self.hidden}")

    config: Config

    def __init__(self, config: Config, *, views: PosedViews | None, hull: Hull) -> None:
        super().__init__(config, views=views, hull=hull)
        self.grids = FeatureGrids(hull, resolutions=config.resolutions, channels=config.channels, scale=0.1)
        self.network = nn.Sequential(
            nn.Linear(self.grids.num_features, config.hidden), nn.ReLU(), nn.Linear(config.hidden, 4)
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [
            {"params": list(self.grids.parameters()), "lr": self.config.grid_rate},
            {"params": list(self.network.parameters()), "lr": self.config.network_rate},
        ]

    def shade(self, samples: Samples, step: int) -> Shaded:
        raw_M4 = self.network(self.grids(samples.points_M3))
        alphas_M = 1 - torch.exp(-density(raw_M4[:, 0]) * samples.widths_M)
        penalty = torch.zeros((), device=raw_M4.device)
        if self.config.roughness_penalty and torch.is_grad_enabled() and step % 4 == 0:
            penalty = 4 * self.config.roughness_penalty * self.grids.roughness()
        return Shaded(alphas_M, raw_M4[:, 1:].sigmoid(), penalty)

    @torch.no_grad()
    def occupancy_at(self, points_M3: Tensor, step: int) -> Tensor:
        return 1 - torch.exp(-density(self.network(self.grids(points_M3))[:, 0]) * self.hull.voxel)


def density(raw_M: Tensor) -> Tensor:
    """Return the density, in 1 / world units."""
    return DENSITY_SCALE * functional.softplus(raw_M + DENSITY_SHIFT)
