"""What the Gaussian head is given: posed views, in the frame and the normalisation that it expects.

Letters: B batch, V views, C channels, H W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.gaussians.lgm import IMAGENET_MEAN, IMAGENET_STD
from utils.cameras import plucker_rays


def head_input(views_BVCHW: Tensor, poses_BV44: Tensor, *, fov_deg: float) -> Tensor:
    """Normalised colours and Plücker rays, (B, V, 9, H, W).

    Args:
        views_BVCHW: RGB in [0, 1], square.
        poses_BV44: camera to world with OpenGL axes in the head's frame (`utils.cameras.head_cameras`).
        fov_deg: field of view of the views.

    Source: arXiv:2402.05054, section 3.2.
    """
    mean, std = (views_BVCHW.new_tensor(value)[:, None, None] for value in (IMAGENET_MEAN, IMAGENET_STD))
    size = views_BVCHW.shape[-1]
    rays_BV6HW = plucker_rays(poses_BV44.flatten(0, 1), fov_deg=fov_deg, size=size).unflatten(0, poses_BV44.shape[:2])
    return torch.cat([(views_BVCHW - mean) / std, rays_BV6HW.to(views_BVCHW)], dim=2)


def evenly_spaced(num_views: int, num_input_views: int) -> list[int]:
    """The views of an orbit that a head sees unless told otherwise: 0, 6, 12, 18 of 24."""
    return [round(index * num_views / num_input_views) for index in range(num_input_views)]
