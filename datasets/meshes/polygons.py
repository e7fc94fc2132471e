"""Rewrites concave polygons of an .obj: trimesh makes fans from their first corners, which fill holes and notches.

Letters: P polygons, N corners of a polygon.
"""

from __future__ import annotations

import re
from collections import defaultdict

import numpy as np

POLYGON = re.compile(rb"\nf((?:[ \t]+[0-9/]+){4,})[ \t]*(?:#[^\n]*)?(?=\n)")
VERTEX = re.compile(rb"\nv[ \t]+([^\n#]*)")
MAX_STARTS = 8  # corners from which fans are tried
MAX_CORNERS = 2000  # clipping ears takes quadratic time
REVERSED = 1e-3  # of the polygon's area; smaller triangles in the other direction are errors of rounding


def divide_concave_polygons(content: bytes) -> bytes:
    """Rewrite the faces of an .obj of which fans from the first corner are wrong.

    They begin with a corner whose fan is right, or become triangles.

    Args:
        content: text whose lines begin with their keyword; indices are positive.

    Returns:
        The text; all of it is as before if trimesh would refuse it.
    """
    polygons = list(POLYGON.finditer(content))
    if not polygons:
        return content
    try:
        points_V3 = np.array([line.split()[:3] for line in VERTEX.findall(content)], np.float64)
        corners = [[int(word.split(b"/")[0]) - 1 for word in polygon[1].split()] for polygon in polygons]
        by_length: dict[int, list[int]] = defaultdict(list)
        for number, indices in enumerate(corners):
            by_length[len(indices)].append(number)
        first: dict[int, int | None] = {}  # corners from which fans are right, where the first one is not
        for length, numbers in by_length.items():
            if length <= MAX_CORNERS:
                first |= _first_corners(numbers, points_V3[[corners[number] for number in numbers]])
    except (ValueError, IndexError):  # the parser names what is wrong
        return content
    parts, end = [], 0
    for number, start in sorted(first.items()):
        polygon, words = polygons[number], polygons[number][1].split()
        parts.append(content[end : polygon.start()])
        faces = clip_ears(points_V3[corners[number]]) if start is None else [range(start - len(words), start)]
        parts += [b"\nf " + b" ".join(words[k] for k in face) for face in faces]
        end = polygon.end()
    return b"".join([*parts, content[end:]])


def _first_corners(numbers: list[int], points_PN3: np.ndarray) -> dict[int, int | None]:
    """The corner from which a fan is right, by the number of a polygon; None if no fan was found.

    Polygons whose fans from the first corner are right are left out.
    """
    wrong_P = _fan_is_wrong(points_PN3)
    found: dict[int, int | None] = {numbers[k]: None for k in np.flatnonzero(wrong_P)}
    left_P = np.flatnonzero(wrong_P)
    for start in range(1, min(points_PN3.shape[1], MAX_STARTS)):
        right_P = ~_fan_is_wrong(np.roll(points_PN3[left_P], -start, axis=1))
        found |= {numbers[k]: start for k in left_P[right_P]}
        left_P = left_P[~right_P]
    return found


def _fan_is_wrong(points_PN3: np.ndarray) -> np.ndarray:
    """Whether a triangle of the fan from the first corner runs in the other direction than the polygon: (P,) bools."""
    edges_PN3 = points_PN3[:, 1:] - points_PN3[:, :1]
    cross_PN3 = np.cross(edges_PN3[:, :-1], edges_PN3[:, 1:])
    sum_P3 = cross_PN3.sum(axis=1)
    along_PN = np.einsum("pnk,pk->pn", cross_PN3, sum_P3)
    return (along_PN < -REVERSED * np.square(sum_P3).sum(axis=1)[:, None]).any(axis=1)


def clip_ears(points_N3: np.ndarray) -> list[tuple[int, int, int]]:
    """Divide a polygon into triangles.

    Args:
        points_N3: corners in order. A hole is connected to the outline by an edge that is passed twice.

    Returns:
        Triangles with the polygon's direction, as numbers of corners; corners on a straight line may be left out.

    Source: Meisters, Polygons have ears, 1975.
    """
    flat_N2 = _flattened(points_N3)
    left, triangles = list(range(len(flat_N2))), []
    smallest = 1e-12 * float(np.ptp(flat_N2, axis=0).max()) ** 2
    while len(left) > 3:
        order_M2 = flat_N2[left]
        before_M2, after_M2 = np.roll(order_M2, 1, axis=0), np.roll(order_M2, -1, axis=0)
        turn_M = _cross(order_M2 - before_M2, after_M2 - order_M2)
        straight = np.flatnonzero(np.abs(turn_M) <= smallest)
        if len(straight):
            left.pop(int(straight[0]))
            continue
        reflex_R2 = order_M2[turn_M < 0]
        convex = np.flatnonzero(turn_M > 0)
        ears = (k for k in convex if not _inside(reflex_R2, before_M2[k], order_M2[k], after_M2[k], smallest))
        ear = int(next(ears, convex[0] if len(convex) else 0))  # a polygon that crosses itself may have no ear
        triangles.append((left[ear - 1], left[ear], left[(ear + 1) % len(left)]))
        left.pop(ear)
    return [*triangles, (left[0], left[1], left[2])]


def _flattened(points_N3: np.ndarray) -> np.ndarray:
    """Coordinates (N, 2) in the polygon's plane, in which it runs counter-clockwise."""
    centred_N3 = points_N3 - points_N3.mean(axis=0)
    normal_3 = np.cross(centred_N3, np.roll(centred_N3, -1, axis=0)).sum(axis=0)
    normal_3 = normal_3 / max(float(np.linalg.norm(normal_3)), 1e-30)
    across_3 = np.cross(normal_3, np.eye(3)[np.abs(normal_3).argmin()])
    across_3 = across_3 / max(float(np.linalg.norm(across_3)), 1e-30)
    return centred_N3 @ np.stack([across_3, np.cross(normal_3, across_3)], axis=1)


def _cross(a_N2: np.ndarray, b_N2: np.ndarray) -> np.ndarray:
    return a_N2[..., 0] * b_N2[..., 1] - a_N2[..., 1] * b_N2[..., 0]


def _inside(points_R2: np.ndarray, a_2: np.ndarray, b_2: np.ndarray, c_2: np.ndarray, smallest: float) -> bool:
    """Whether a point lies in a triangle or on its border; its own corners, also as other corners of a hole, do not."""
    corners_32 = np.stack([a_2, b_2, c_2])
    within_R = np.ones(len(points_R2), bool)
    for start_2, end_2 in zip(corners_32, np.roll(corners_32, -1, axis=0), strict=True):
        within_R &= _cross(end_2 - start_2, points_R2 - start_2) >= -smallest
    own_R = (np.square(points_R2[:, None] - corners_32).sum(axis=2) <= smallest).any(axis=1)
    return bool((within_R & ~own_R).any())
