"""Objects made of Gaussians whose true shape and colours are known."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models.gaussians.scene import Gaussians
from utils.settings.assets import AssetOptions

# Small enough for tests, large enough to look right.
SMALL = {
    "grid": 48, "mesh_views": 16, "mesh_view_size": 96, "faces": 1500, "texture": 256,
    "turntable_frames": 4, "turntable_size": 48,
}  # fmt: skip
SMALL_OPTIONS = AssetOptions(**SMALL)


def directions(num: int) -> Tensor:
    """Unit vectors spread evenly over the sphere: (N, 3)."""
    number_N = torch.arange(num, dtype=torch.float64)
    z_N = 1 - 2 * (number_N + 0.5) / num
    angle_N = math.pi * (3 - math.sqrt(5)) * number_N
    ring_N = (1 - z_N**2).sqrt()
    return torch.stack([ring_N * angle_N.cos(), ring_N * angle_N.sin(), z_N], dim=-1)


def direction_colors(directions_N3: Tensor) -> Tensor:
    """Red grows along x, green along y, blue along z: (N, 3) in [0, 1]."""
    return 0.5 + 0.4 * directions_N3


def ball(num: int = 1500, *, radius: float = 0.4, center: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Gaussians:
    """A sphere of flat Gaussians that lie in its surface, coloured by direction."""
    direction_N3 = directions(num)
    size = 1.1 * radius * math.sqrt(4 / num)
    half_N3 = direction_N3 + torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)  # the axis of half a turn, z to d
    axes_N3 = torch.nn.functional.normalize(half_N3, dim=-1)
    return Gaussians(
        means_BN3=(radius * direction_N3 + torch.tensor(center, dtype=torch.float64)).float()[None],
        opacities_BN1=torch.full((1, num, 1), 0.95),
        scales_BN3=torch.tensor([size, size, 0.15 * size]).expand(1, num, 3).clone(),
        quats_BN4=torch.cat([torch.zeros(num, 1), axes_N3.float()], dim=1)[None],
        colors_BN3=direction_colors(direction_N3).float()[None],
    )


def fog(num: int = 3000, *, radius: float = 0.35, size: float = 0.02, opacity: float = 0.4) -> Gaussians:
    """A ball filled with round Gaussians that let light through, as a head's do."""
    share_N = (torch.arange(num, dtype=torch.float64) * (math.sqrt(5) - 1) / 2) % 1
    return Gaussians(
        means_BN3=(radius * share_N[:, None] ** (1 / 3) * directions(num)).float()[None],
        opacities_BN1=torch.full((1, num, 1), opacity),
        scales_BN3=torch.full((1, num, 3), size),
        quats_BN4=torch.tensor([1.0, 0, 0, 0]).expand(1, num, 4).clone(),
        colors_BN3=torch.full((1, num, 3), 0.5),
    )


def join(*parts: Gaussians) -> Gaussians:
    """One scene of all Gaussians."""
    names = ("means_BN3", "opacities_BN1", "scales_BN3", "quats_BN4", "colors_BN3")
    return Gaussians(**{name: torch.cat([getattr(part, name) for part in parts], dim=1) for name in names})


def transparent(num: int = 50) -> Gaussians:
    """Gaussians that nobody sees."""
    ghosts = ball(num)
    return Gaussians(**{**vars(ghosts), "opacities_BN1": torch.full((1, num, 1), 1e-4)})
