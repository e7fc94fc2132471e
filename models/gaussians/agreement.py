"""Where on their rays views agree: what other views show at a point.

A point inside the object is on the object in every view: the fraction of views in which this is so, on a coarse grid,
says where the surface cannot be (the visual hull, Laurentini 1994). Where the nearest other views show the same colour
at a point, the surface may be there (a plane sweep, Collins 1996).

Letters: B batch, I input views, F views of a batch, H W pixels, G voxels along a side of the grid, P points, R rays,
S samples of a ray, M sides of a mask.
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
# The nearest views are compared by colour. Up to 30 degrees away they count fully, from 60 degrees on not at all.
NEAREST_VIEWS, BEST_VIEWS = 4, 2
NEAR_COSINE, FAR_COSINE = 0.866, 0.5


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """In how many views the object is at points of space.

    Attributes:
        shares_B1GGG: fraction of the views that show the object there; axes z, y, x over the cube around the object's
            ball.
    """

    shares_B1GGG: Tensor

    def along(self, points_BRS3: Tensor) -> Tensor:
        """Interpolate at points in the world: (B, R, S)."""
        grid = (points_BRS3 / BALL_RADIUS)[:, None]
        return functional.grid_sample(self.shares_B1GGG, grid, align_corners=False)[:, 0, 0]


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


def agreement(masks_BI1HW: Tensor, poses_BI44: Tensor, *, fov_deg: float, grid: int) -> Agreement:
    """Look up every voxel in every view.

    Args:
        masks_BI1HW: coverage of the object.
        poses_BI44: camera to world with OpenGL axes.
        grid: G.
    """
    (B, num_views), place = masks_BI1HW.shape[:2], {"dtype": torch.float32, "device": masks_BI1HW.device}
    axis_G = BALL_RADIUS * ((torch.arange(grid, **place) + 0.5) * (2 / grid) - 1)
    z, y, x = torch.meshgrid(axis_G, axis_G, axis_G, indexing="ij")
    points_1P3 = torch.stack([x, y, z], dim=-1).reshape(1, -1, 3)
    aspect = masks_BI1HW.shape[-2] / masks_BI1HW.shape[-1]
    sums_B1P = torch.zeros(B, 1, points_1P3.shape[1], **place)
    for view in range(num_views):
        places_BP2 = seen_at(points_1P3, poses_BI44[:, view], fov_deg=fov_deg, aspect=aspect)
        found_B1P1 = functional.grid_sample(
            masks_BI1HW[:, view].float(), places_BP2[:, :, None], padding_mode="border", align_corners=False
        )
        sums_B1P += found_B1P1[..., 0]
    return Agreement(shares_B1GGG=(sums_B1P / num_views).reshape(B, 1, grid, grid, grid))


def seen_at(points_BP3: Tensor, poses_B44: Tensor, *, fov_deg: float, aspect: float) -> Tensor:
    """Where cameras see points: x and y, from -1 to 1 over the picture (B, P, 2).

    Args:
        poses_B44: camera to world with OpenGL axes.
        aspect: height of the picture, divided by its width.
    """
    x_B3, y_B3, z_B3, centre_B3 = opencv_to_opengl(poses_B44.float())[:, :3].unbind(-1)
    relative_BP3 = points_BP3 - centre_B3[:, None]
    # Sums instead of a matrix product, because training may reduce the precision of products.
    depth_BP = (relative_BP3 * z_B3[:, None]).sum(-1).clamp_min(1e-3)
    across_BP, down_BP = ((relative_BP3 * axis_B3[:, None]).sum(-1) / depth_BP for axis_B3 in (x_B3, y_B3))
    half_width = math.tan(math.radians(fov_deg) / 2)
    return torch.stack([across_BP / half_width, down_BP / (half_width * aspect)], dim=-1)


def unlikeness(
    pictures_BI3HW: Tensor, points_BIRS3: Tensor, colors_BIR3: Tensor, poses_BI44: Tensor, *, fov_deg: float
) -> tuple[Tensor, Tensor]:
    """Compare the colour of rays with what the nearest other views show at points on them.

    A point of the surface may be hidden in some views, so only the most similar of the nearest ones count.

    Args:
        pictures_BI3HW: RGB in [0, 1], as blurred as the colours are.
        points_BIRS3: points on the rays of each view.
        colors_BIR3: colours of the rays.
        poses_BI44: camera to world with OpenGL axes.

    Returns:
        unlike_BIRS, the mean difference of a colour in [0, 1], and trust_BI in [0, 1]: 0 for a view without near ones.
    """
    B, num_views, num_rays, num_samples = points_BIRS3.shape[:4]
    towards_BI3 = functional.normalize(poses_BI44[..., :3, 3], dim=-1)
    cosines_BII = (towards_BI3[:, :, None] * towards_BI3[:, None]).sum(-1)
    cosines_BII = cosines_BII - 9 * torch.eye(num_views, device=cosines_BII.device)
    number = min(NEAREST_VIEWS, num_views - 1)
    if number == 0:
        return points_BIRS3.new_zeros(points_BIRS3.shape[:-1]), points_BIRS3.new_zeros(B, num_views)
    nearest = cosines_BII.topk(number, dim=-1)
    row_B1, aspect = (
        torch.arange(B, device=cosines_BII.device)[:, None],
        pictures_BI3HW.shape[-2] / pictures_BI3HW.shape[-1],
    )
    points_FP3 = points_BIRS3.flatten(0, 1).flatten(1, 2)
    found = []
    for index_BI in nearest.indices.unbind(-1):
        poses_F44 = poses_BI44[row_B1, index_BI].flatten(0, 1)
        places_FP2 = seen_at(points_FP3, poses_F44, fov_deg=fov_deg, aspect=aspect)
        other_F3HW = pictures_BI3HW[row_B1, index_BI].flatten(0, 1)
        colors_F3P = functional.grid_sample(
            other_F3HW, places_FP2[:, None], padding_mode="border", align_corners=False
        )[:, :, 0]
        colors_BI3RS = colors_F3P.reshape(B, num_views, 3, num_rays, num_samples)
        found.append((colors_BI3RS - colors_BIR3.transpose(2, 3)[..., None]).abs().mean(2))
    best = min(BEST_VIEWS, number)
    unlike_BIRS = torch.stack(found).topk(best, dim=0, largest=False).values.mean(0)
    cosine_BI = nearest.values[..., :best].mean(-1)
    return unlike_BIRS, ((cosine_BI - FAR_COSINE) / (NEAR_COSINE - FAR_COSINE)).clamp(0, 1)
