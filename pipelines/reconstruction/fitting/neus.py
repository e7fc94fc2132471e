"""Fit a surface to the views of an object: the zero set of signed distances (NeuS, arXiv:2106.10689).

The distances are those of the visual hull plus the sum of dense grids from coarse to fine. Their gradient is a central
difference of the summed grid, so that one lookup gives the distance and the normal, and no second derivative of
`grid_sample` is needed, which PyTorch does not have.

Letters: M samples, X Y Z voxels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as functional
from scipy import ndimage
from torch import Tensor, nn

from datasets.views.posed_views import PosedViews
from pipelines.assets.surface import Volume
from pipelines.reconstruction.fitting.grids import FeatureGrids, grid_shape, read
from pipelines.reconstruction.fitting.hull import Hull
from pipelines.reconstruction.fitting.rays import RayField, RayFieldConfig, Samples, Shaded
from utils.errors import ConfigError
from utils.registry import FITS

SMOOTHED_VOXELS = 1.0  # of the hull's distances, whose steps are those of a grid
NEAR_SURFACE = 3.0  # voxels of the finest grid; penalties of the distances act on points that are this close


@FITS.register(name="neus")
class SurfaceField(RayField):
    """Signed distances and colours on dense grids."""

    @dataclass(frozen=True, kw_only=True)
    class Config(RayFieldConfig):
        """Options of the field, in addition to those of all fields.

        distance_resolutions: voxels along the longest side of the grids that are added to the hull's distances.
        resolutions: the same for the grids of colours.
        channels: colour features per grid.
        hidden: width of the network of colours.
        sharpness: [first, last] inverse width of the surface in 1 / voxels of the finest grid; it grows during the
            fit as a geometric series.
        distance_rate: initial learning rate of the distances, in voxels of the finest grid.
        grid_rate: initial learning rate of the grids of colours.
        network_rate: initial learning rate of the network.
        eikonal_penalty: weight of the squared difference of the gradient's length to 1.
        bending_penalty: weight of the squared second differences of the distances.
        roughness_penalty: weight of the squared differences of neighbouring voxels of the colours.
        """

        num_steps: int = 600
        distance_resolutions: list[int] = field(default_factory=lambda: [24, 48, 96])
        resolutions: list[int] = field(default_factory=lambda: [12, 32, 96])
        channels: int = 4
        hidden: int = 32
        sharpness: list[float] = field(default_factory=lambda: [3.0, 8.0])
        distance_rate: float = 0.1
        grid_rate: float = 0.3
        network_rate: float = 2e-2
        eikonal_penalty: float = 0.02
        bending_penalty: float = 0.02
        roughness_penalty: float = 1e-3

        def __post_init__(self) -> None:
            super().__post_init__()
            for name in ("resolutions", "distance_resolutions"):
                sizes = getattr(self, name)
                if not sizes or not all(4 <= size <= 512 for size in sizes):
                    raise ConfigError(f"{name} must lie in [4, 512], got {list(sizes)}")
            if len(self.sharpness) != 2 or not 0 < self.sharpness[0] <= self.sharpness[1]:
                raise ConfigError(f"sharpness must be [first, last] with 0 < first <= last, got {list(self.sharpness)}")
            if min(self.channels, self.hidden) < 1:
                raise ConfigError(f"channels and hidden must be at least 1, got {self.channels} and {self.hidden}")

    config: Config
    has_volume = True

    def __init__(self, config: Config, *, views: PosedViews | None, hull: Hull) -> None:
        super().__init__(config, views=views, hull=hull)
        finest = grid_shape(hull, max(config.distance_resolutions))
        self.voxel = float((hull.high_3 - hull.low_3).max()) / (max(finest) - 1)
        smooth_XYZ = ndimage.gaussian_filter(hull.distance_XYZ.cpu().numpy(), SMOOTHED_VOXELS)
        start = torch.from_numpy(smooth_XYZ).to(hull.low_3)[None, None] / self.voxel
        self.register_buffer("start_11XYZ", _resized(start, finest))
        self.distances = nn.ParameterList(
            [
                nn.Parameter(torch.zeros(1, 1, *grid_shape(hull, resolution), device=hull.low_3.device))
                for resolution in config.distance_resolutions
            ]
        )
        self.grids = FeatureGrids(hull, resolutions=config.resolutions, channels=config.channels, scale=0.1)
        self.network = nn.Sequential(
            nn.Linear(self.grids.num_features + 3, config.hidden), nn.ReLU(), nn.Linear(config.hidden, 3)
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [
            {"params": list(self.distances.parameters()), "lr": self.config.distance_rate},
            {"params": list(self.grids.parameters()), "lr": self.config.grid_rate},
            {"params": list(self.network.parameters()), "lr": self.config.network_rate},
        ]

    def sharpness_at(self, step: int) -> float:
        """Return the inverse width of the surface at a step, in 1 / voxels."""
        first, last = self.config.sharpness
        return first * (last / first) ** min(1.0, step / self.config.num_steps)

    def distance_grid(self) -> Tensor:
        """Return the signed distances in voxels of the finest grid: (1, 1, X, Y, Z)."""
        shape = self.start_11XYZ.shape[2:]
        return self.start_11XYZ + sum(_resized(level, shape) for level in self.distances)

    def distances_and_normals(self) -> Tensor:
        """Return the distances and their gradient, in voxels: (1, 4, X, Y, Z)."""
        distance = self.distance_grid()
        slopes = [_slope(distance, dim) for dim in (2, 3, 4)]
        return torch.cat([distance, *slopes], dim=1)

    def shade(self, samples: Samples, step: int) -> Shaded:
        field = self.distances_and_normals()
        found_M4 = read(field, self._places(samples.points_M3))
        distance_M, slope_M3 = found_M4[:, 0], found_M4[:, 1:]
        normals_M3 = functional.normalize(slope_M3, dim=-1)
        along_M = -(slope_M3 * samples.directions_M3).sum(-1).clamp_max(0)  # a ray enters where distances fall
        half_M = 0.5 * along_M * samples.widths_M / self.voxel
        sharpness = self.sharpness_at(step)
        before_M = torch.sigmoid(sharpness * (distance_M + half_M))
        after_M = torch.sigmoid(sharpness * (distance_M - half_M))
        alphas_M = ((before_M - after_M) / before_M.clamp_min(1e-5)).clamp(0, 1)
        features = torch.cat([self.grids(samples.points_M3), normals_M3], dim=-1)
        return Shaded(
            alphas_M, self.network(features).sigmoid(), self._penalty(field[:, :1], distance_M, slope_M3, step)
        )

    @torch.no_grad()
    def occupancy_at(self, points_M3: Tensor, step: int) -> Tensor:
        distance_M = read(self.distance_grid(), self._places(points_M3))[:, 0]
        half = 0.5 * self.hull.voxel / self.voxel
        sharpness = self.sharpness_at(step)
        before_M, after_M = (
            torch.sigmoid(sharpness * (distance_M + half)),
            torch.sigmoid(sharpness * (distance_M - half)),
        )
        return ((before_M - after_M) / before_M.clamp_min(1e-5)).clamp(0, 1)

    @torch.no_grad()
    def volume(self, *, grid: int) -> Volume:
        shape = grid_shape(self.hull, grid)
        values = _resized(self.distance_grid(), shape)[0, 0].cpu().numpy()
        voxel = float((self.hull.high_3 - self.hull.low_3).max()) / (max(shape) - 1)
        return Volume(values_XYZ=values, origin_3=self.hull.low_3.cpu().numpy(), voxel=voxel)

    def _places(self, points_M3: Tensor) -> Tensor:
        return 2 * (points_M3 - self.hull.low_3) / (self.hull.high_3 - self.hull.low_3) - 1

    def _penalty(self, distance: Tensor, distance_M: Tensor, slope_M3: Tensor, step: int) -> Tensor:
        """Return the penalties of the whole grid of distances, and of the distances and slopes at samples."""
        config = self.config
        if not torch.is_grad_enabled():
            return torch.zeros((), device=distance_M.device)
        near_M = (distance_M.detach().abs() < NEAR_SURFACE).to(distance_M)
        length_M = (slope_M3.square().sum(-1) + 1e-8).sqrt()
        eikonal = (near_M * (length_M - 1).square()).sum() / near_M.sum().clamp_min(1)
        penalty = config.eikonal_penalty * eikonal
        if config.bending_penalty:
            bends = [distance.diff(n=2, dim=dim).square().mean() for dim in (2, 3, 4)]
            penalty = penalty + config.bending_penalty * sum(bends)
        if config.roughness_penalty and step % 4 == 0:
            penalty = penalty + 4 * config.roughness_penalty * self.grids.roughness()
        return penalty


def _resized(grid_1CXYZ: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tuple(grid_1CXYZ.shape[2:]) == tuple(shape):
        return grid_1CXYZ
    return functional.interpolate(grid_1CXYZ, size=tuple(shape), mode="trilinear", align_corners=True)


def _slope(grid: Tensor, dim: int) -> Tensor:
    """Return the central difference along a dimension; at the border the one-sided difference."""
    size = grid.shape[dim]
    ahead = torch.cat([grid.narrow(dim, 1, size - 1), grid.narrow(dim, size - 1, 1)], dim=dim)
    behind = torch.cat([grid.narrow(dim, 0, 1), grid.narrow(dim, 0, size - 1)], dim=dim)
    steps = torch.full((size,), 2.0, device=grid.device)
    steps[0] = steps[-1] = 1.0
    shape = [1] * grid.ndim
    shape[dim] = size
    return (ahead - behind) / steps.view(shape)
