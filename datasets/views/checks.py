"""Finds cameras that cannot be right, before a fit would fail on them without a reason.

Letters: V views, H W pixels, N points.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from datasets.views.posed_views import LEAST_PARALLAX_DEG, PosedViews, closest_point
from utils.cameras import CONVENTIONS, from_convention, to_convention
from utils.errors import DataError

SAME_PLACE = 1e-5  # of the largest distance between cameras
# Cameras may miss the point that is closest to their axes by this share of their distance.
AIM_SHARE = 0.5
# The best point of a scene lies in almost all masks.
LEAST_VOTES, GOOD_VOTES = 0.75, 0.9
FACING = 0.5  # share of cameras that must have the object in front of them, or their convention is another
RAY_VIEWS, RAY_PIXELS, RAY_DEPTHS = 4, 64, 96


def check_cameras(c2w_V44: Tensor, *, path: str, names: Sequence[str], convention: str) -> None:
    """Check cameras without their pictures.

    Args:
        c2w_V44: OpenCV axes, float64.
        path: the file, for messages.
        names: of the views.
        convention: the key of utils.cameras.CONVENTIONS from which they were converted.

    Raises:
        DataError: there is one view, two are the same, all are in one place or look along one line, one looks away from
            the object, or the cameras have another convention. The message names the file, the view and the remedy.
    """
    if len(c2w_V44) < 2:
        raise DataError(f"{path}: has one view, which shows no depth; give two or more views from different sides")
    point_3 = aim_point(c2w_V44)
    front_V = torch.zeros(len(c2w_V44)) if point_3 is None else _depths(point_3, c2w_V44)
    if point_3 is None or float((front_V > 0).double().mean()) < FACING:
        other = next((name for name in _others(convention) if _fits(_read_as(c2w_V44, convention, name))), None)
        if other is not None:
            raise DataError(f"{path}: {_looks_like(convention, other)}")
    centers_V3 = c2w_V44[:, :3, 3]
    between_VV = torch.cdist(centers_V3, centers_V3)
    reach = float(between_VV.max())
    if reach <= SAME_PLACE * max(float(centers_V3.norm(dim=1).max()), 1e-9):
        raise DataError(
            f"{path}: all {len(c2w_V44)} cameras are at {_shown(centers_V3[0])}, a scene with a scale of zero; correct "
            "the shifts of the cameras"
        )
    turned_VV = (c2w_V44[:, None, :3, :3] - c2w_V44[None, :, :3, :3]).abs().amax(dim=(2, 3))
    same_VV = ((between_VV <= SAME_PLACE * reach) & (turned_VV <= SAME_PLACE)).triu(diagonal=1)
    if same_VV.any():
        first, second = same_VV.nonzero()[0].tolist()
        raise DataError(f"{path}: {names[first]} and {names[second]} have the same camera; remove one of them")
    if point_3 is None:
        raise DataError(
            f"{path}: the {len(c2w_V44)} views look along one line (within {LEAST_PARALLAX_DEG:g} degrees, or from "
            "opposite sides), which shows no depth; add views from other sides"
        )
    away = [names[view] for view in range(len(c2w_V44)) if float(front_V[view]) <= 0]
    if away:
        raise DataError(
            f"{path}: {len(away)} of {len(c2w_V44)} cameras look away from the object (first {away[0]}); correct their "
            "matrices or remove these views"
        )


def check_masks(views: PosedViews, *, path: str, convention: str) -> None:
    """Check that there is a point that lies in the masks of all views.

    Raises:
        DataError: a mask is empty, or the masks do not meet, for example because the cameras have another convention.
    """
    for name, mask_1HW in zip(views.names, views.masks_V1HW, strict=True):
        if float(mask_1HW.max()) < 4 / 255:
            raise DataError(f"{path}: {name} shows no object, its mask is empty; remove this view or correct its mask")
    if _share_of_votes(views.c2w_V44.double(), views) >= LEAST_VOTES:
        return
    for other in _others(convention):
        c2w_V44 = _read_as(views.c2w_V44.double(), convention, other)
        if _share_of_votes(c2w_V44, views) >= GOOD_VOTES:
            raise DataError(f"{path}: {_looks_like(convention, other)}")
    best = round(_share_of_votes(views.c2w_V44.double(), views) * len(views))
    raise DataError(
        f"{path}: the masks of the object do not meet: no point lies in more than {best} of {len(views)} masks; check "
        "that cameras and pictures belong together"
    )


def _looks_like(convention: str, other: str) -> str:
    return (
        f"read as {CONVENTIONS[convention]}, the cameras do not look at the object; the file looks like "
        f"{CONVENTIONS[other]}; convert it with tools/convert_cameras.py --from {other}"
    )


def _others(convention: str) -> list[str]:
    """Other conventions, those with the same direction of the matrices first."""
    same_way = convention.endswith("_w2c")
    return sorted((name for name in CONVENTIONS if name != convention), key=lambda n: n.endswith("_w2c") != same_way)


def _read_as(c2w_V44: Tensor, convention: str, other: str) -> Tensor:
    """The same file read in another convention."""
    return from_convention(to_convention(c2w_V44, convention), other)


def aim_point(c2w_V44: Tensor) -> Tensor | None:
    """The point that is closest to the optical axes: (3,) float64; None if the axes are nearly parallel."""
    return closest_point(c2w_V44[:, :3, 3].double(), c2w_V44[:, :3, 2].double())


def _depths(point_3: Tensor, c2w_V44: Tensor) -> Tensor:
    """Distance of a point from each camera along its axis: (V,)."""
    return ((point_3 - c2w_V44[:, :3, 3]) * c2w_V44[:, :3, 2]).sum(dim=1)


def _fits(c2w_V44: Tensor) -> bool:
    """Whether cameras look at one thing that is in front of all of them."""
    point_3 = aim_point(c2w_V44)
    if point_3 is None:
        return False
    depths_V = _depths(point_3, c2w_V44)
    beside_V = (point_3 - c2w_V44[:, :3, 3] - depths_V[:, None] * c2w_V44[:, :3, 2]).norm(dim=1)
    return bool((depths_V > 0).all()) and float(beside_V.median()) <= AIM_SHARE * float(depths_V.median())


def _share_of_votes(c2w_V44: Tensor, views: PosedViews) -> float:
    """The largest share of views in whose masks one point lies, of points on rays through the masks of a few views."""
    centers_V3 = c2w_V44[:, :3, 3]
    reach = float(torch.cdist(centers_V3, centers_V3).max())
    if not reach:
        return 0.0
    depths_D = reach * torch.logspace(-1.3, 1.7, RAY_DEPTHS, dtype=torch.float64)
    inside_V1HW = views.masks_V1HW > 0.5 * views.masks_V1HW.amax(dim=(2, 3), keepdim=True)
    points = []
    for view in np.unique(np.linspace(0, len(views) - 1, RAY_VIEWS).round().astype(int)):
        pixels_N2 = inside_V1HW[view, 0].nonzero().flip(1).double() + 0.5
        pixels_N2 = pixels_N2[torch.linspace(0, len(pixels_N2) - 1, min(RAY_PIXELS, len(pixels_N2))).round().long()]
        pixels_N3 = torch.cat([pixels_N2, torch.ones(len(pixels_N2), 1, dtype=torch.float64)], dim=1)
        rays_N3 = pixels_N3 @ torch.linalg.inv(views.K_V33[view].double()).T @ c2w_V44[view, :3, :3].T
        points.append((centers_V3[view] + rays_N3[:, None] * depths_D[:, None]).flatten(0, 1))
    points_N3 = torch.cat(points)
    # Pixels beside a mask count too, because cameras and masks are not exact.
    wide_V1HW = torch.nn.functional.max_pool2d(inside_V1HW.float(), 3, stride=1, padding=1) > 0
    height, width = views.size
    votes_N = torch.zeros(len(points_N3))
    for c2w_44, K_33, wide_1HW in zip(c2w_V44, views.K_V33.double(), wide_V1HW, strict=True):
        camera_N3 = (points_N3 - c2w_44[:3, 3]) @ c2w_44[:3, :3]
        x_N, y_N = ((camera_N3 @ K_33.T)[:, :2] / camera_N3[:, 2:].clamp_min(1e-9)).floor().unbind(dim=1)
        seen_N = (camera_N3[:, 2] > 0) & (x_N >= 0) & (x_N < width) & (y_N >= 0) & (y_N < height)
        votes_N[seen_N] += wide_1HW[0, y_N[seen_N].long(), x_N[seen_N].long()]
    return float(votes_N.max()) / len(views)


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
