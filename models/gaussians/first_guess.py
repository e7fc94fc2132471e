"""Where the Gaussians of the dense head begin, and what the comparison of the views tells the network.

Each cell of pixels has one Gaussian. It begins where the cell's ray enters the visual hull, or a little behind, where
the nearest other views show the same colour (models.gaussians.agreement). Views that disagree with the others are left
out.

Letters: B batch, I input views, C channels, H W pixels, h w coarse cells, N cells, D depths of a ray, S places of the
sweep, R rays of a view, F views of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from models.gaussians.agreement import Agreement, agreement, object_masks, unlikeness
from utils.cameras import BALL_RADIUS

FINE_CELL, COARSE_CELL = 2, 4  # sides in pixels of the square that has one Gaussian
# Where all views agree, Gaussians begin nearly opaque; cells of the background begin invisible.
FIRST_OPACITY, OPACITY_RANGE = 1.5, (-7.0, 2.0)
# A point is in the hull if the share of the views that show the object there is at least this fraction of the usual one
# (the median over rays of the largest share), give or take SHARE_WIDTH. A few wrong views lower the usual one.
HULL_SHARE, SHARE_WIDTH = 0.97, 1 / 60
# The largest shares of a view's rays, relative to the usual one: with this mean or less, the view's Gaussians are left
# out; above the second number all stay.
WRONG_VIEW, RIGHT_VIEW = 0.9, 0.95
# Places of the sweep behind the entry into the hull, as fractions of the ball's radius.
SWEEP = (-0.05, -0.01, 0.03, 0.07, 0.12, 0.17, 0.23, 0.3)
UNLIKE_WIDTH = 0.02  # a difference of colour that makes a place less likely by a factor of e
SWEEP_PRIOR = 4.0  # of the logarithm per radius: places near the entry are more likely
MIN_CHORD = 0.25  # half of the shortest range of depths, as a fraction of the ball's radius


@dataclass(frozen=True, kw_only=True)
class FirstGuess:
    """Where Gaussians begin; each belongs to the pixels of a cell.

    Attributes:
        colors_BN3: colour of the object in the middle of the cell.
        rays_BN6: mean Plücker ray of the object in the cell.
        depths_BN1: place between the bounds of the ball, in (-1, 1).
        opacities_BN1: as a logit.
    """

    colors_BN3: Tensor
    rays_BN6: Tensor
    depths_BN1: Tensor
    opacities_BN1: Tensor


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What a comparison of the views gives the network.

    Attributes:
        first: where the Gaussians begin.
        evidence_BIhwC: numbers of each coarse cell's ray: shares at all depths, differences of colour in the sweep, and
            the places of the entry and of the first guess.
    """

    first: FirstGuess
    evidence_BIhwC: Tensor


@torch.no_grad()
def compared(
    pixels_BI9HW: Tensor,
    poses_BI44: Tensor,
    *,
    grid: int,
    depths: int,
    cell: int,
    fov_deg: float,
    background: float,
) -> Compared:
    """Compare the views along the rays of cells.

    Args:
        pixels_BI9HW: RGB in [0, 1], and the Plücker ray of each pixel.
        poses_BI44: camera to world with OpenGL axes.
        grid: voxels along a side of the grid in which views are compared.
        depths: points on a ray at which this grid is read.
        cell: side in pixels of the square that has one Gaussian.
        fov_deg: horizontal field of view of the views.
        background: grey value of the plain background of the views.
    """
    masks_BI1HW = object_masks(pixels_BI9HW[:, :, :3].flatten(0, 1), background).unflatten(0, pixels_BI9HW.shape[:2])
    shares = agreement(masks_BI1HW, poses_BI44, fov_deg=fov_deg, grid=grid)
    pixels_BI10HW = torch.cat([masks_BI1HW, pixels_BI9HW], dim=2)
    first, evidence_BNC = first_guess(pixels_BI10HW, COARSE_CELL, shares, depths, poses_BI44, fov_deg=fov_deg)
    if cell != COARSE_CELL:
        first, _ = first_guess(pixels_BI10HW, cell, shares, depths, poses_BI44, fov_deg=fov_deg)
    (h, w), num_views = (side // COARSE_CELL for side in pixels_BI9HW.shape[-2:]), pixels_BI9HW.shape[1]
    return Compared(
        first=first, evidence_BIhwC=rearrange(evidence_BNC, "b (i h w) c -> b i h w c", i=num_views, h=h, w=w)
    )


@dataclass(frozen=True, kw_only=True)
class Cells:
    """What a view shows in squares of pixels.

    Attributes:
        covered_BN1: mean mask.
        colors_BN3: mean colour of the object's part; of the background's where there is no object.
        middle_BN3: colour of the middle 2 x 2 pixels, where they are on the object, else as `colors_BN3`.
        rays_BN6: mean Plücker ray of the object's part.
    """

    covered_BN1: Tensor
    colors_BN3: Tensor
    middle_BN3: Tensor
    rays_BN6: Tensor


def cells_of(pixels_BI10HW: Tensor, side: int) -> Cells:
    """Take means over squares of pixels.

    Args:
        pixels_BI10HW: mask, colour and Plücker ray of each pixel.
        side: 2 or 4.
    """

    def listed(values_FCHW: Tensor) -> Tensor:
        return rearrange(values_FCHW, "(b i) c h w -> b (i h w) c", b=len(pixels_BI10HW))

    mask_F1HW, values_F9HW = pixels_BI10HW.flatten(0, 1).split([1, 9], dim=1)
    weights_F1HW = mask_F1HW + 1e-3  # a cell of the background has the mean of its pixels
    means = functional.avg_pool2d(values_F9HW * weights_F1HW, side) / functional.avg_pool2d(weights_F1HW, side)
    edge = side // 2 - 1
    inner_F4HW = torch.cat([mask_F1HW, values_F9HW[:, :3]], dim=1)[..., edge:, edge:]
    inner_BN4 = listed(functional.avg_pool2d(inner_F4HW, 2, stride=side))
    colors_BN3, rays_BN6 = listed(means).split([3, 6], dim=-1)
    return Cells(
        covered_BN1=listed(functional.avg_pool2d(mask_F1HW, side)),
        colors_BN3=colors_BN3,
        middle_BN3=torch.where(inner_BN4[..., :1] > 0.9, inner_BN4[..., 1:], colors_BN3),
        rays_BN6=rays_BN6,
    )


def first_guess(
    pixels_BI10HW: Tensor, cell: int, grid: Agreement, depths: int, poses_BI44: Tensor, *, fov_deg: float
) -> tuple[FirstGuess, Tensor]:
    """Put a Gaussian where its ray enters the hull, or a little behind, where other views show the same colour.

    Args:
        pixels_BI10HW: mask, colour and Plücker ray of each pixel.

    Returns:
        the Gaussians' beginnings, and evidence_BNC of `Compared`.
    """
    cells, num_views = cells_of(pixels_BI10HW, cell), poses_BI44.shape[1]
    closest_BN3, direction_BN3, half_BN1 = chords(cells.rays_BN6)

    def points(places_BND: Tensor) -> Tensor:
        return closest_BN3[:, :, None] + (half_BN1 * places_BND)[..., None] * direction_BN3[:, :, None]

    steps_D = depth_steps(depths, half_BN1)
    shares_BND = grid.along(points(steps_D.expand(*half_BN1.shape[:2], -1)))
    usual_B11, trust_BN1 = usual_share(shares_BND, cells.covered_BN1, num_views)
    inside_BND = torch.sigmoid((shares_BND - HULL_SHARE * usual_B11) / SHARE_WIDTH)
    free_BND = functional.pad((1 - inside_BND).cumprod(dim=-1)[..., :-1], (1, 0), value=1.0)
    entered_BND = inside_BND * free_BND
    met_BN1 = entered_BND.sum(-1, keepdim=True)
    entry_BN1 = peak(entered_BND, steps_D)

    sweep_S = half_BN1.new_tensor(SWEEP)
    swept_BNS = entry_BN1 + sweep_S * BALL_RADIUS / half_BN1
    points_BNS3 = points(swept_BNS)
    inside_BNS = torch.sigmoid((grid.along(points_BNS3) - HULL_SHARE * usual_B11) / SHARE_WIDTH)
    unlike_BIRS, near_BI = unlikeness(
        blurred(pixels_BI10HW, cell),
        points_BNS3.unflatten(1, (num_views, -1)),
        cells.colors_BN3.unflatten(1, (num_views, -1)),
        poses_BI44,
        fov_deg=fov_deg,
    )
    unlike_BNS = (unlike_BIRS * near_BI[..., None, None]).flatten(1, 2)
    logits_BNS = -unlike_BNS / UNLIKE_WIDTH - SWEEP_PRIOR * sweep_S.clamp_min(0) + torch.log(inside_BNS + 1e-4)
    depths_BN1 = peak(logits_BNS.softmax(dim=-1), swept_BNS)
    solid_BN1 = cells.covered_BN1 * (0.1 + 0.9 * met_BN1) * trust_BN1
    first = FirstGuess(
        colors_BN3=cells.middle_BN3,
        rays_BN6=cells.rays_BN6,
        depths_BN1=depths_BN1,
        opacities_BN1=FIRST_OPACITY + solid_BN1.clamp(1e-4, 0.999).logit().clamp(*OPACITY_RANGE),
    )
    return first, torch.cat([2 * shares_BND - 1, 4 * unlike_BNS, entry_BN1, depths_BN1], dim=-1)


def usual_share(shares_BND: Tensor, covered_BN1: Tensor, num_views: int) -> tuple[Tensor, Tensor]:
    """The largest share of a ray of the object, as the median over all rays, and how far each view can be trusted.

    The rays of a wrong view do not meet the hull of the others.

    Returns:
        usual_B11 in (0, 1], and trust_BN1 in [0, 1], which is the same for all rays of a view.
    """
    largest_BN = shares_BND.amax(dim=-1)
    covered_BN = covered_BN1[..., 0] > 0.5
    median_B1 = largest_BN.masked_fill(~covered_BN, torch.nan).nanmedian(dim=1, keepdim=True).values
    usual_B1 = median_B1.nan_to_num(1.0).clamp_min(1e-3)
    part_BIR = ((largest_BN / usual_B1).clamp_max(1) * covered_BN).unflatten(1, (num_views, -1))
    number_BI = covered_BN.unflatten(1, (num_views, -1)).sum(-1)
    part_BI = torch.where(number_BI > 0, part_BIR.sum(-1) / number_BI.clamp_min(1), 1.0)
    trust_BI = ((part_BI - WRONG_VIEW) / (RIGHT_VIEW - WRONG_VIEW)).clamp(0, 1)
    return usual_B1[..., None], trust_BI.repeat_interleave(part_BIR.shape[-1], dim=1)[..., None]


def blurred(pixels_BI10HW: Tensor, side: int) -> Tensor:
    """Colours (B, I, 3, H, W), blurred as those of cells are: means over squares of the object's pixels around each."""
    mask_F1HW, colors_F3HW = pixels_BI10HW[:, :, :4].flatten(0, 1).split([1, 3], dim=1)
    weights_F1HW = mask_F1HW + 1e-3
    pad = (side // 2,) * 4
    # Means over squares of an even side lie between pixels, and those of four of them on pixels.
    sums, weights = (
        functional.avg_pool2d(
            functional.avg_pool2d(functional.pad(values, pad, mode="replicate"), side, stride=1), 2, stride=1
        )
        for values in (colors_F3HW * weights_F1HW, weights_F1HW)
    )
    return (sums / weights).unflatten(0, pixels_BI10HW.shape[:2])


def peak(weights_BND: Tensor, places_BND: Tensor) -> Tensor:
    """The mean place (B, N, 1) around the largest weight: of it and of its two neighbours."""
    best_BN1 = weights_BND.argmax(dim=-1, keepdim=True)
    steps_D = torch.arange(weights_BND.shape[-1], device=weights_BND.device)
    near_BND = weights_BND * ((steps_D - best_BN1).abs() <= 1)
    return (near_BND * places_BND).sum(-1, keepdim=True) / near_BND.sum(-1, keepdim=True).clamp_min(1e-6)


def depth_steps(number: int, like: Tensor) -> Tensor:
    """Places of the samples of a ray between the bounds of the ball: (D,) in (-1, 1)."""
    return (torch.arange(number, dtype=like.dtype, device=like.device) + 0.5) * (2 / number) - 1


def chords(rays_BN6: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The part of rays inside the ball: closest_BN3 to the origin, direction_BN3, and half of its length (B, N, 1).

    Rays that miss the ball, or nearly, get a short part.
    """
    moment_BN3, direction_BN3 = rays_BN6.split(3, dim=-1)
    direction_BN3 = functional.normalize(direction_BN3, dim=-1)
    closest_BN3 = torch.linalg.cross(direction_BN3, moment_BN3)
    square_BN1 = BALL_RADIUS**2 - closest_BN3.square().sum(-1, keepdim=True)
    return closest_BN3, direction_BN3, square_BN1.clamp_min((MIN_CHORD * BALL_RADIUS) ** 2).sqrt()
