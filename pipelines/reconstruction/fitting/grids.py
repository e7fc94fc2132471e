"""Grids over the box of the hull, from coarse to fine, that are read at points by trilinear interpolation.

Letters: N points, C channels, X Y Z voxels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from pipelines.reconstruction.fitting.hull import Hull


class FeatureGrids(nn.Module):
    """Dense grids of several resolutions; a point's features are those of all grids.

    Args:
        hull: gives the box.
        resolutions: voxels along the longest side of each grid.
        channels: features per grid.
        scale: standard deviation of the initial values.
    """

    def __init__(self, hull: Hull, *, resolutions: Sequence[int], channels: int, scale: float) -> None:
        super().__init__()
        self.low_3, self.high_3 = hull.low_3, hull.high_3
        self.levels = nn.ParameterList(
            [
                nn.Parameter(scale * torch.randn(1, channels, *shape, device=hull.low_3.device))
                for shape in (grid_shape(hull, resolution) for resolution in resolutions)
            ]
        )
        self.num_features = channels * len(resolutions)

    def forward(self, points_N3: Tensor) -> Tensor:
        """Return the features at points: (N, channels of all grids)."""
        places_N3 = 2 * (points_N3 - self.low_3) / (self.high_3 - self.low_3) - 1
        return torch.cat([read(level, places_N3) for level in self.levels], dim=-1)

    def roughness(self) -> Tensor:
        """Return the mean squared difference of neighbouring voxels, summed over the grids."""
        return torch.stack([difference(level) for level in self.levels]).sum()


def grid_shape(hull: Hull, resolution: int) -> tuple[int, int, int]:
    """Return the number of voxels along x, y and z of a grid over the hull's box."""
    sides = (hull.high_3 - hull.low_3).tolist()
    x, y, z = (max(4, round(resolution * side / max(sides))) for side in sides)
    return x, y, z


def read(grid_1CXYZ: Tensor, places_N3: Tensor) -> Tensor:
    """Read a grid at places in [-1, 1]: (N, C).

    On a CPU, grid_sample uses one thread per image of a batch, so that the points are split into a batch.
    """
    parts = 1 if places_N3.is_cuda else min(torch.get_num_threads(), max(1, len(places_N3) // 1024))
    missing = -len(places_N3) % parts
    places_N3 = places_N3.flip(-1)
    places = (functional.pad(places_N3, (0, 0, 0, missing)) if missing else places_N3).view(parts, -1, 1, 1, 3)
    found = functional.grid_sample(
        grid_1CXYZ.expand(parts, -1, -1, -1, -1), places, padding_mode="border", align_corners=True
    )
    return found.flatten(2).movedim(1, -1).reshape(-1, grid_1CXYZ.shape[1])[: len(places_N3)]


def difference(grid_1CXYZ: Tensor) -> Tensor:
    """Return the mean squared difference of neighbouring voxels."""
    return sum(grid_1CXYZ.diff(dim=dim).square().mean() for dim in (2, 3, 4))
