"""Augmentations that give true views the flaws of generated views, so that the head becomes robust to them.

Letters: B batch, I input views, C channels, H W pixels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from models.gaussians.scene import rotation_formula
from models.gaussians.splatting import multiply

CELLS = 6  # number of independent values along each side of the smooth distortion field


def disturb_views(views_BICHW: Tensor, *, fraction: float, strength: float, generator: torch.Generator) -> Tensor:
    """Distort each input view in another way, so that views are inconsistent (arXiv:2402.05054, section 3.4).

    The first view does not change, because it defines the frame of the object.

    Args:
        fraction: fraction of samples with distortion.
        strength: largest typical shift, as a fraction of the image size.
    """
    B, num_views, C, H, W = views_BICHW.shape
    device = views_BICHW.device
    field = torch.randn(B * num_views, 2, CELLS, CELLS, generator=generator, device=device)
    field = functional.interpolate(field, size=(H, W), mode="bicubic", align_corners=True)
    size_BI = torch.rand(B, num_views, generator=generator, device=device) * _chosen(B, num_views, fraction, generator)
    shift = 2 * strength * size_BI.view(-1, 1, 1, 1) * field.permute(0, 2, 3, 1)  # the grid spans 2 units
    identity = torch.eye(2, 3, device=device).expand(B * num_views, 2, 3)
    grid = functional.affine_grid(identity, [B * num_views, C, H, W], align_corners=False)
    bent = functional.grid_sample(views_BICHW.flatten(0, 1), grid + shift, padding_mode="border", align_corners=False)
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


def _chosen(B: int, num_views: int, fraction: float, generator: torch.Generator) -> Tensor:
    """Return (B, I): 1 for views to change, else 0; the first view of a sample is always 0."""
    device = generator.device
    chosen_B1 = (torch.rand(B, 1, generator=generator, device=device) < fraction).float()
    later_I = torch.ones(num_views, device=device)
    later_I[0] = 0
    return chosen_B1 * later_I
