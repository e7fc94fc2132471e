"""Where on their rays views agree: a coarse grid of what all views show at a point, read along the rays of pixels.

A point inside the object is on the object in every view. The fraction of views in which this is so, and the colours
that they show, tell a network where on a ray the surface may lie (the visual hull, Laurentini 1994, and a plane sweep,
Collins 1996, both without occlusion). All of it is one pass over the voxels for each view, whose number is free.

Letters: B batch, I input views, H W pixels, G voxels along a side of the grid, R rays, S samples of a ray, M sides of a
mask.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from utils.cameras import BALL_RADIUS, opencv_to_opengl

# A pixel is on the object if its colour differs from the background by this much; between these numbers it is partly.
UNLIKE_LOW, UNLIKE_HIGH = 0.02, 0.06
FLOOD_SIZE, FLOOD_STEPS = 64, 96  # the background is what one reaches from the border, on masks of this size


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What views show at points of space.

    Attributes:
        values_B4GGG: fraction of the views that show the object there, and their mean colour times this fraction; axes
            z, y, x over the cube around the object's ball.
    """

    values_B4GGG: Tensor

    def along(self, points_BRS3: Tensor) -> Tensor:
        """Interpolate at points in the world: (B, R, S, 4)."""
        grid = (points_BRS3 / BALL_RADIUS)[:, None]
        found_B41RS = functional.grid_sample(self.values_B4GGG, grid, align_corners=False)
        return found_B41RS[:, :, 0].permute(0, 2, 3, 1)


def object_masks(views_F3HW: Tensor, background: float) -> Tensor:
    """Coverage of the object in pictures over a plain background: (F, 1, H, W) in [0, 1].

    Parts of the colour of the background that cannot be reached from the border belong to the object.
    """
    unlike_F1HW = (views_F3HW - background).abs().amax(dim=1, keepdim=True)
    mask_F1HW = ((unlike_F1HW - UNLIKE_LOW) / (UNLIKE_HIGH - UNLIKE_LOW)).clamp(0, 1)
    size = (min(FLOOD_SIZE, views_F3HW.shape[-2]), min(FLOOD_SIZE, views_F3HW.shape[-1]))
    free_F1MM = (functional.adaptive_max_pool2d(mask_F1HW, size) < 0.5).to(mask_F1HW)
    # One pixel more on each side is free, and the flood starts there.
    free_F1MM = functional.pad(free_F1MM, (1, 1, 1, 1), value=1.0)
    reached_F1MM = torch.zeros_like(free_F1MM)
    reached_F1MM[..., 0, :] = 1.0
    for _ in range(FLOOD_STEPS):
        reached_F1MM = functional.max_pool2d(reached_F1MM, 3, stride=1, padding=1) * free_F1MM
    near_F1MM = functional.max_pool2d(reached_F1MM, 3, stride=1, padding=1)[..., 1:-1, 1:-1]
    near_F1HW = functional.interpolate(near_F1MM, size=views_F3HW.shape[-2:], mode="nearest")
    return torch.where(near_F1HW > 0, mask_F1HW, torch.ones_like(mask_F1HW))


def agreement(views_BI3HW: Tensor, masks_BI1HW: Tensor, poses_BI44: Tensor, *, fov_deg: float, grid: int) -> Agreement:
    """Look up every voxel in every view.

    Args:
        views_BI3HW: RGB in [0, 1].
        masks_BI1HW: coverage of the object.
        poses_BI44: camera to world with OpenGL axes.
        grid: G.
    """
    B, num_views = views_BI3HW.shape[:2]
    place = {"dtype": torch.float32, "device": views_BI3HW.device}
    axis_G = BALL_RADIUS * ((torch.arange(grid, **place) + 0.5) * (2 / grid) - 1)
    z, y, x = torch.meshgrid(axis_G, axis_G, axis_G, indexing="ij")
    points_P3 = torch.stack([x, y, z], dim=-1).reshape(-1, 3)
    c2w_BI44 = opencv_to_opengl(poses_BI44.float())
    half_width = math.tan(math.radians(fov_deg) / 2)
    half_height = half_width * views_BI3HW.shape[-2] / views_BI3HW.shape[-1]
    seen_BI4HW = torch.cat([masks_BI1HW, views_BI3HW * masks_BI1HW], dim=2).float()
    sums_B4P = torch.zeros(B, 4, len(points_P3), **place)
    for view in range(num_views):
        x_B3, y_B3, z_B3, centre_B3 = c2w_BI44[:, view, :3].unbind(-1)
        relative_BP3 = points_P3 - centre_B3[:, None]
        # Sums instead of a matrix product, because training may reduce the precision of products.
        depth_BP = (relative_BP3 * z_B3[:, None]).sum(-1).clamp_min(1e-3)
        across_BP, down_BP = ((relative_BP3 * axis_B3[:, None]).sum(-1) / depth_BP for axis_B3 in (x_B3, y_B3))
        places_BP2 = torch.stack([across_BP / half_width, down_BP / half_height], dim=-1)
        found_B4P1 = functional.grid_sample(
            seen_BI4HW[:, view], places_BP2[:, :, None], padding_mode="border", align_corners=False
        )
        sums_B4P += found_B4P1[..., 0]
    return Agreement(values_B4GGG=(sums_B4P / num_views).reshape(B, 4, grid, grid, grid))
