"""Augmentations that give true views the flaws of generated views, so that the head becomes robust to them.

Letters: B batch, I input views, C channels, H W pixels.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from models.gaussians.scene import rotation_formula
from models.gaussians.splatting import multiply
from pipelines.training.objectives.head_loss import LossConfig
from utils.errors import ConfigError

MOST_DAMAGED = 3
MAX_SHIFT = 0.1  # of a wrong view, as a fraction of the image size
BLUR = 6  # a blurred view has pixels of this size
CELLS = 6  # number of independent values along each side of the smooth distortion field


@dataclass(frozen=True, kw_only=True)
class FlawConfig(LossConfig):
    """Options of a training whose input views get flaws; an objective adds its own. Shares have names with `p_`.

    Attributes:
        p_distort: fraction of samples with distorted views (except the first).
        distortion: size of the distortion, as a fraction of the image size.
        p_jitter: fraction of samples with rotated cameras (except the first).
        jitter_deg: standard deviation of the rotation angle about each axis, in degrees.
        p_autoencoded: fraction of steps in which the views are encoded and decoded by the autoencoder.
    """

    lambda_lpips: float = 0.0
    p_distort: float = 0.5
    distortion: float = 0.01
    p_jitter: float = 0.5
    jitter_deg: float = 2.0
    p_autoencoded: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("distortion", "jitter_deg"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in (field.name for field in dataclasses.fields(self) if field.name.startswith("p_")):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must lie in [0, 1], got {getattr(self, name)}")


def disturb_views(views_BICHW: Tensor, *, fraction: float, strength: float, generator: torch.Generator) -> Tensor:
    """Distort each input view in another way, so that views are inconsistent (arXiv:2402.05054, section 3.4).

    The first view does not change, because it defines the frame of the object.

    Args:
        fraction: fraction of samples with distortion.
        strength: largest typical shift, as a fraction of the image size.
    """
    B, num_views, _, H, W = views_BICHW.shape
    device = views_BICHW.device
    field = torch.randn(B * num_views, 2, CELLS, CELLS, generator=generator, device=device)
    field = functional.interpolate(field, size=(H, W), mode="bicubic", align_corners=True)
    size_BI = torch.rand(B, num_views, generator=generator, device=device) * _chosen(B, num_views, fraction, generator)
    shift = 2 * strength * size_BI.view(-1, 1, 1, 1) * field.permute(0, 2, 3, 1)  # the grid spans 2 units
    grid_HW2 = pixel_centres(H, W, device=device)
    bent = functional.grid_sample(
        views_BICHW.flatten(0, 1), grid_HW2 + shift, padding_mode="border", align_corners=False
    )
    return bent.view_as(views_BICHW)


def jitter_poses(poses_BI44: Tensor, *, fraction: float, angle_deg: float, generator: torch.Generator) -> Tensor:
    """Rotate input cameras slightly around the object, about random axes; the first camera does not change.

    Args:
        fraction: fraction of samples with rotated cameras.
        angle_deg: standard deviation of the angle about each axis.
    """
    B, num_views = poses_BI44.shape[:2]
    device = poses_BI44.device
    half_BI3 = math.radians(angle_deg / 2) * torch.randn(B, num_views, 3, generator=generator, device=device)
    half_BI3 = half_BI3 * _chosen(B, num_views, fraction, generator)[..., None]
    quats_BI4 = functional.normalize(torch.cat([torch.ones_like(half_BI3[..., :1]), half_BI3.tan()], dim=-1), dim=-1)
    turned_BI34 = multiply(rotation_formula(quats_BI4), poses_BI44[..., :3, :])
    return torch.cat([turned_BI34, poses_BI44[..., 3:, :]], dim=-2)


def recolor_views(views_BICHW: Tensor, *, strength: float, background: float, generator: torch.Generator) -> Tensor:
    """Multiply each view's red, green and blue by own factors; a plain background keeps its colour.

    Args:
        strength: standard deviation of the factors.
        background: grey value of the background.
    """
    factors = 1 + strength * torch.randn(*views_BICHW.shape[:3], 1, 1, generator=generator, device=views_BICHW.device)
    return (background + (views_BICHW - background) * factors).clamp(0, 1)


def damage_views(views_BICHW: Tensor, *, fraction: float, background: float, generator: torch.Generator) -> Tensor:
    """Replace a few views of some samples by wrong ones: of another object, shifted, recoloured or blurred.

    At most three views of a sample, and at most a quarter of them, are wrong.

    Args:
        fraction: fraction of samples with wrong views.
        background: grey value of the background.
    """
    B, num_views, _, H, W = views_BICHW.shape
    most = min(MOST_DAMAGED, num_views // 4)
    if not most:
        return views_BICHW
    device = generator.device
    rank_BI = torch.rand(B, num_views, generator=generator, device=device).argsort(dim=1).argsort(dim=1)
    number_B1 = torch.randint(1, most + 1, (B, 1), generator=generator, device=device)
    number_B1 = number_B1 * (torch.rand(B, 1, generator=generator, device=device) < fraction)
    kind_BI = torch.randint(4, (B, num_views), generator=generator, device=device)
    kind_BI = torch.where(rank_BI < number_B1, kind_BI, -1)
    shift_BI2 = 2 * MAX_SHIFT * torch.rand(B, num_views, 2, generator=generator, device=device) - MAX_SHIFT
    flat_FCHW = views_BICHW.flatten(0, 1) - background
    # the grid spans 2 units
    grid = pixel_centres(H, W, device=device) + 2 * shift_BI2.flatten(0, 1)[:, None, None]
    shifted = functional.grid_sample(flat_FCHW, grid, align_corners=False).view_as(views_BICHW) + background
    side = (max(1, H // BLUR), max(1, W // BLUR))
    small = functional.interpolate(views_BICHW.flatten(0, 1), size=side, mode="area")
    blurred = functional.interpolate(small, size=(H, W), mode="bilinear").view_as(views_BICHW)
    recolored = recolor_views(views_BICHW, strength=0.3, background=background, generator=generator)
    for kind, wrong_BICHW in enumerate((views_BICHW.roll(1, dims=0), shifted, recolored, blurred)):
        views_BICHW = torch.where((kind_BI == kind)[..., None, None, None], wrong_BICHW, views_BICHW)
    return views_BICHW


def pixel_centres(height: int, width: int, *, device: torch.device) -> Tensor:
    """Places of the pixels for `grid_sample`, (H, W, 2): x then y, from -1 to 1.

    torch's `affine_grid` would compute them in bfloat16 under autocast, wrong by half a pixel.
    """
    row_H, column_W = ((2 * torch.arange(side, device=device) + 1) / side - 1 for side in (height, width))
    y_HW, x_HW = torch.meshgrid(row_H, column_W, indexing="ij")
    return torch.stack([x_HW, y_HW], dim=-1)


def _chosen(B: int, num_views: int, fraction: float, generator: torch.Generator) -> Tensor:
    """Return (B, I): 1 for views to change, else 0; the first view of a sample is always 0."""
    device = generator.device
    chosen_B1 = (torch.rand(B, 1, generator=generator, device=device) < fraction).float()
    later_I = torch.ones(num_views, device=device)
    later_I[0] = 0
    return chosen_B1 * later_I
