"""Finds orbits from which a training would learn nothing or something wrong, although every file can be read.

Letters: V views, H W pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from datasets.base import StoredOrbit

NEAR_ORIGIN = 1e-3  # world units; objects are about 1 large
SAME_PLACE = 1e-5  # published files have six digits
FAINT = 3 / 255  # alpha up to this is not an object
SYMMETRIC = 0.98  # share of a silhouette that its mirror image covers
COVERED_GAP = 2.5  # gap between two cameras, as a multiple of that of a full orbit


def problems_of(orbit: StoredOrbit, *, with_alpha: Sequence[bool]) -> list[str]:
    """Return one line for each problem of an orbit.

    Args:
        with_alpha: whether the file of each view has an alpha channel.
    """
    return [*_picture_problems(orbit.rgba_VHW4, with_alpha), *_camera_problems(orbit.c2w_V44)]


def uncovered_deg(c2w_V44: np.ndarray) -> float:
    """Return the largest angle around the world's z axis without a camera, in degrees."""
    azimuths_V = np.sort(np.degrees(np.arctan2(c2w_V44[:, 1, 3], c2w_V44[:, 0, 3])) % 360)
    return float(np.diff(azimuths_V, append=azimuths_V[0] + 360).max())


def _picture_problems(rgba_VHW4: np.ndarray, with_alpha: Sequence[bool]) -> list[str]:
    found = []
    alpha_VHW = rgba_VHW4[..., 3]
    without = [view for view, has in enumerate(with_alpha) if not has]
    if without:
        found.append(f"{_views(without)} no alpha channel, so the background counts as object")
    blank = [view for view, alpha_HW in enumerate(alpha_VHW) if alpha_HW.max() <= FAINT * 255]
    if blank:
        found.append(f"{_views(blank)} no object, every pixel is transparent")
    shown = [view for view in range(len(rgba_VHW4)) if view not in blank and view not in without]
    flat = [view for view in shown if alpha_VHW[view].min() == 255]
    if flat:
        found.append(f"{_views(flat)} no transparent pixel, so the background counts as object")
    if not found and (repeated := _repeated(rgba_VHW4)):
        found.append(f"view {repeated[0]} and view {repeated[1]} have the same picture")
    return found


def _repeated(rgba_VHW4: np.ndarray) -> tuple[int, int] | None:
    """The first views with equal pictures, unless the object is symmetric.

    An object with a rotational symmetry repeats all its pictures with one period. A solid of revolution has the same
    picture everywhere, with a silhouette that equals its mirror image.
    """
    digests = [hashlib.blake2b(rgba_HW4.tobytes(), digest_size=16).digest() for rgba_HW4 in rgba_VHW4]
    num = len(digests)
    same = next(((a, b) for a in range(num) for b in range(a + 1, num) if digests[a] == digests[b]), None)
    if same is None:
        return None
    if len(set(digests)) == 1:
        inside_HW = rgba_VHW4[0, ..., 3] > 127
        both = (inside_HW & inside_HW[:, ::-1]).sum()
        return None if both >= SYMMETRIC * inside_HW.sum() else same
    periods = [period for period in range(2, num // 2 + 1) if num % period == 0]
    symmetric = any(all(digests[view] == digests[view - period] for view in range(num)) for period in periods)
    return None if symmetric else same


def _camera_problems(c2w_V44: np.ndarray) -> list[str]:
    found = []
    places_V3 = c2w_V44[:, :3, 3].astype(np.float64)
    distances_V = np.linalg.norm(places_V3, axis=-1)
    inside = [view for view, distance in enumerate(distances_V) if distance < NEAR_ORIGIN]
    if inside:
        found.append(f"{_views(inside)} a camera at the origin, inside the object")
        return found
    away = [view for view, c2w_44 in enumerate(c2w_V44) if float(c2w_44[:3, 2] @ places_V3[view]) > 0]
    if away:
        found.append(f"{_views(away)} a camera that looks away from the origin, where the object is")
    between_VV = np.linalg.norm(places_V3[:, None] - places_V3[None], axis=-1)
    same = np.argwhere(np.triu(between_VV < SAME_PLACE * distances_V.max(), k=1))
    if len(same):
        found.append(f"view {same[0][0]} and view {same[0][1]} have the same camera")
    return found


def _views(views: Sequence[int]) -> str:
    shown = ", ".join(map(str, views[:4])) + (", ..." if len(views) > 4 else "")
    return f"view {shown} has" if len(views) == 1 else f"{len(views)} views ({shown}) have"
