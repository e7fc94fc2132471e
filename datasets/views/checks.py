"""Finds cameras that cannot be right, before a fit would fail on them without a reason.

Letters: V views, H W pixels, N points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from datasets.orbits.check import FAINT
from datasets.views.posed_views import NO_PARALLAX, PosedViews, closest_point
from utils.cameras import CONVENTIONS, from_convention, to_convention
from utils.errors import DataError

SAME_PLACE = 1e-5  # of the largest distance between cameras
# Below this spread of the optical axes, where they meet says little, because cameras do not aim exactly.
RELIABLE_DEG = 10.0
# If fewer cameras look away, they are wrong and not the convention, unless another convention fits better.
AWAY_SHARE = 0.5
# Cameras of a good fit miss their common point by at most this share of their distance; a fit is better by this much.
AIM_SHARE, CLEAR = 0.5, 0.02
# Share of the other masks in which the best point of a ray through a mask lies, mean over rays. It is 1 for exact
# cameras and masks.
COHERENT, INCOHERENT, BETTER = 0.9, 0.75, 0.1
RAY_VIEWS, RAY_PIXELS, RAY_DEPTHS = 4, 64, 160


def check_cameras(c2w_V44: Tensor, *, path: str, names: Sequence[str], convention: str) -> None:
    """Check cameras without their pictures.

    Args:
        c2w_V44: OpenCV axes, float64.
        path: the file, for messages.
        names: of the views.
        convention: the key of utils.cameras.CONVENTIONS from which they were converted.

    Raises:
        DataError: there is one view, two are the same, all are in one place, one looks away from the object, or the
            cameras have another convention. The message names the file, the view and the remedy.
    """
    if len(c2w_V44) < 2:
        raise DataError(f"{path}: has one view, which shows no depth; give two or more views from different sides")
    centers_V3 = c2w_V44[:, :3, 3]
    between_VV = torch.cdist(centers_V3, centers_V3)
    reach = float(between_VV.max())
    in_one_place = reach <= SAME_PLACE * max(float(centers_V3.norm(dim=1).max()), 1e-9)
    point_3 = aim_point(c2w_V44)
    away: list[str] = []
    if point_3 is not None and _spread_deg(c2w_V44) >= RELIABLE_DEG:
        depths_V = _depths(point_3, c2w_V44)
        away = [name for name, depth in zip(names, depths_V.tolist(), strict=True) if depth <= 0]
    if away or in_one_place:
        misfits = {name: _misfit(_read_as(c2w_V44, convention, name)) for name in CONVENTIONS if name != convention}
        best = min(misfits, key=lambda name: misfits[name])
        mostly = in_one_place or len(away) >= AWAY_SHARE * len(names)
        if misfits[best] <= AIM_SHARE and (mostly or misfits[best] < _misfit(c2w_V44, behind=True) - CLEAR):
            raise DataError(f"{path}: {_looks_like(convention, best)}")
    if in_one_place:
        raise DataError(
            f"{path}: all {len(c2w_V44)} cameras are at {_shown(centers_V3[0])}, a scene with a scale of zero; correct "
            "the shifts of the cameras"
        )
    turned_VV = (c2w_V44[:, None, :3, :3] - c2w_V44[None, :, :3, :3]).abs().amax(dim=(2, 3))
    same_VV = ((between_VV <= SAME_PLACE * reach) & (turned_VV <= SAME_PLACE)).triu(diagonal=1)
    if same_VV.any():
        first, second = same_VV.nonzero()[0].tolist()
        raise DataError(f"{path}: {names[first]} and {names[second]} have the same camera; remove one of them")
    if away:
        raise DataError(
            f"{path}: {len(away)} of {len(c2w_V44)} cameras look away from the object (first {away[0]}); correct their "
            "matrices or remove these views"
        )


def check_masks(views: PosedViews, *, path: str, convention: str) -> None:
    """Check that the masks show one object from several sides.

    Raises:
        DataError: a mask is empty, the views have no parallax, or the masks do not meet, for example because the
            cameras have another convention.
    """
    for name, mask_1HW in zip(views.names, views.masks_V1HW, strict=True):
        if float(mask_1HW.max()) <= FAINT:
            raise DataError(f"{path}: {name} shows no object, its mask is empty; remove this view or correct its mask")
    c2w_V44 = views.c2w_V44.double()
    if closest_point(c2w_V44[:, :3, 3], views.object_directions()) is None:
        raise DataError(f"{path}: {NO_PARALLAX.format(num_views=len(views))}")
    found = coherence(c2w_V44, views)
    if found >= COHERENT:
        return
    others = {name: coherence(_read_as(c2w_V44, convention, name), views) for name in CONVENTIONS if name != convention}
    best = max(others, key=lambda name: others[name])
    if others[best] >= max(COHERENT, found + BETTER):
        raise DataError(f"{path}: {_looks_like(convention, best)}")
    if found < INCOHERENT:
        raise DataError(
            f"{path}: the masks do not show one object: what is in one mask is in {found:.0%} of the others at best; "
            "check that cameras, pictures and masks belong together"
        )


def _looks_like(convention: str, other: str) -> str:
    return (
        f"read as {CONVENTIONS[convention]}, the cameras do not look at the object; the file looks like "
        f"{CONVENTIONS[other]}; convert it with tools/convert_cameras.py --from {other}"
    )


def _read_as(c2w_V44: Tensor, convention: str, other: str) -> Tensor:
    """The same file read in another convention."""
    return from_convention(to_convention(c2w_V44, convention), other)


def aim_point(c2w_V44: Tensor) -> Tensor | None:
    """The point that is closest to the optical axes: (3,) float64; None if the axes are nearly parallel."""
    return closest_point(c2w_V44[:, :3, 3].double(), c2w_V44[:, :3, 2].double())


def _depths(point_3: Tensor, c2w_V44: Tensor) -> Tensor:
    """Distance of a point from each camera along its axis: (V,)."""
    return ((point_3 - c2w_V44[:, :3, 3]) * c2w_V44[:, :3, 2]).sum(dim=1)


def _spread_deg(c2w_V44: Tensor) -> float:
    """Root mean square angle of the optical axes to their common direction."""
    axes_V3 = c2w_V44[:, :3, 2]
    across_33 = torch.eye(3, dtype=torch.float64) - axes_V3.T @ axes_V3 / len(axes_V3)
    return math.degrees(math.asin(math.sqrt(float(torch.linalg.eigvalsh(across_33)[0].clamp(0, 1)))))


def _misfit(c2w_V44: Tensor, *, behind: bool = False) -> float:
    """By how much of their distance cameras miss their common point; infinity if it is not in front of all of them.

    Args:
        behind: it may also lie behind cameras.
    """
    point_3 = aim_point(c2w_V44)
    if point_3 is None or _spread_deg(c2w_V44) < RELIABLE_DEG:
        return math.inf
    depths_V = _depths(point_3, c2w_V44)
    # Cameras that turn on the spot meet where they are.
    nearest = 0.01 * float(torch.cdist(c2w_V44[:, :3, 3], c2w_V44[:, :3, 3]).max())
    if not behind and bool((depths_V <= nearest).any()):
        return math.inf
    beside_V = (point_3 - c2w_V44[:, :3, 3] - depths_V[:, None] * c2w_V44[:, :3, 2]).norm(dim=1)
    return float((beside_V / depths_V.abs()).square().mean().sqrt())


def coherence(c2w_V44: Tensor, views: PosedViews) -> float:
    """How well the masks agree on an object: every ray through a mask must meet a point that lies in all others.

    Returns:
        The largest share of the other masks in which a point of a ray lies, mean over rays through a few masks.
    """
    centers_V3 = c2w_V44[:, :3, 3]
    reach = float(torch.cdist(centers_V3, centers_V3).max())
    if not reach:
        return 0.0
    depths_D = reach * torch.logspace(-1.3, 1.7, RAY_DEPTHS, dtype=torch.float64)
    inside_V1HW = views.masks_V1HW > 0.5 * views.masks_V1HW.amax(dim=(2, 3), keepdim=True)
    points, own = [], []
    for view in np.unique(np.linspace(0, len(views) - 1, RAY_VIEWS).round().astype(int)):
        pixels_N2 = inside_V1HW[view, 0].nonzero().flip(1).double() + 0.5
        pixels_N2 = pixels_N2[torch.linspace(0, len(pixels_N2) - 1, min(RAY_PIXELS, len(pixels_N2))).round().long()]
        pixels_N3 = torch.cat([pixels_N2, torch.ones(len(pixels_N2), 1, dtype=torch.float64)], dim=1)
        rays_N3 = pixels_N3 @ torch.linalg.inv(views.K_V33[view].double()).T @ c2w_V44[view, :3, :3].T
        points.append(centers_V3[view] + rays_N3[:, None] * depths_D[:, None])
        own += [view] * len(rays_N3)
    points_ND3 = torch.cat(points).float()  # a pixel needs no more digits
    # Pixels beside a mask count too, because cameras and masks are not exact.
    wide_V1HW = torch.nn.functional.max_pool2d(inside_V1HW.float(), 3, stride=1, padding=1) > 0
    height, width = views.size
    votes_ND = torch.zeros(points_ND3.shape[:2])
    for view, (c2w_44, K_33) in enumerate(zip(c2w_V44.float(), views.K_V33, strict=True)):
        camera_ND3 = (points_ND3 - c2w_44[:3, 3]) @ c2w_44[:3, :3]
        x_ND, y_ND = ((camera_ND3 @ K_33.T)[..., :2] / camera_ND3[..., 2:].clamp_min(1e-9)).floor().unbind(dim=2)
        front_ND = (camera_ND3[..., 2] > 0) & (torch.tensor(own) != view)[:, None]
        seen_ND = front_ND & (x_ND >= 0) & (x_ND < width) & (y_ND >= 0) & (y_ND < height)
        votes_ND[seen_ND] += wide_V1HW[view, 0, y_ND[seen_ND].long(), x_ND[seen_ND].long()]
        inside_HW = inside_V1HW[view, 0]
        if inside_HW[[0, -1]].any() or inside_HW[:, [0, -1]].any():  # the object goes on outside of the picture
            votes_ND[front_ND & ~seen_ND] += 1
    return float(votes_ND.amax(dim=1).mean()) / (len(views) - 1)


def check_pictures(files: Sequence[tuple[str, str]], *, path: str) -> None:
    """Check that no picture is used twice.

    Args:
        files: the name and the picture of each view.

    Raises:
        DataError: two views have the same picture.
    """
    names: dict[str, str] = {}
    for name, file in files:
        if file in names:
            raise DataError(f"{path}: {names[file]} and {name} have the same picture; remove one of them")
        names[file] = name


def _shown(point_3: Tensor) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in point_3.tolist()) + ")"
