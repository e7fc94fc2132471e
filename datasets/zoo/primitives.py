"""The shapes of the zoo's objects. Each one is a loft: rings of points joined by quads.

The bottom of a shape is at z = 0 and it is centred in x and y, unless its docstring gives another position. Faces are
counter-clockwise seen from outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Shape:
    """points_N3: vertices; faces_F3: indices into them."""

    points_N3: np.ndarray
    faces_F3: np.ndarray

    def move(self, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Shape:
        return Shape(self.points_N3 + np.array([x, y, z]), self.faces_F3)

    def stretch(self, x: float = 1.0, y: float = 1.0, z: float = 1.0) -> Shape:
        """Scale about the origin; a mirrored shape gets its faces turned, so that their outside stays outside."""
        faces_F3 = self.faces_F3[:, ::-1] if x * y * z < 0 else self.faces_F3
        return Shape(self.points_N3 * np.array([x, y, z]), faces_F3)

    def turn(self, axis: str, degrees: float) -> Shape:
        """Rotate about a world axis, counter-clockwise seen from its positive end."""
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        k = "xyz".index(axis)
        i, j = (k + 1) % 3, (k + 2) % 3
        rotation = np.eye(3)
        rotation[i, i], rotation[i, j], rotation[j, i], rotation[j, j] = c, -s, s, c
        return Shape(self.points_N3 @ rotation.T, self.faces_F3)


def loft(rings_RN3: np.ndarray, *, closed: bool = False) -> Shape:
    """Join rings of equal length. Fans close the ends, unless the loft is closed to a ring.

    Rings run counter-clockwise, seen from the end of the loft.
    """
    num_rings, num_points = rings_RN3.shape[:2]
    points = rings_RN3.reshape(-1, 3)
    steps = num_rings if closed else num_rings - 1
    ring, k = np.meshgrid(np.arange(steps), np.arange(num_points), indexing="ij")
    above, after = (ring + 1) % num_rings, (k + 1) % num_points
    a, b = ring * num_points + k, ring * num_points + after
    c, d = above * num_points + after, above * num_points + k
    faces = [np.stack([a, b, c], axis=-1).reshape(-1, 3), np.stack([a, c, d], axis=-1).reshape(-1, 3)]
    if not closed:
        centres = np.stack([rings_RN3[0].mean(axis=0), rings_RN3[-1].mean(axis=0)])
        first, last = len(points), len(points) + 1
        points = np.concatenate([points, centres])
        k = np.arange(num_points)
        after = (k + 1) % num_points
        faces.append(np.stack([np.full_like(k, first), after, k], axis=-1))
        top = (num_rings - 1) * num_points
        faces.append(np.stack([np.full_like(k, last), top + k, top + after], axis=-1))
    return _without_slivers(Shape(points, np.concatenate(faces)))


def _without_slivers(shape: Shape) -> Shape:
    a, b, c = (shape.points_N3[shape.faces_F3[:, k]] for k in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    return Shape(shape.points_N3, shape.faces_F3[area > 1e-12])


def _circle(sides: int) -> np.ndarray:
    angle = 2 * np.pi * np.arange(sides) / sides
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def lathe(profile: Sequence[tuple[float, float]], *, sides: int = 28, smooth: int = 1) -> Shape:
    """Rotate a profile of (radius, z), given from its lower to its upper end, about the z axis.

    smooth: number of segments of a curve between two given points; 1 keeps the corners.
    """
    curve = spline(np.asarray(profile, dtype=np.float64), smooth)
    curve[:, 0] = np.maximum(curve[:, 0], 0.0)
    rings = np.empty((len(curve), sides, 3))
    rings[..., :2] = curve[:, None, :1] * _circle(sides)
    rings[..., 2] = curve[:, 1:]
    return loft(rings)


def cylinder(radius: float, height: float, *, top: float | None = None, bevel: float = 0.0, sides: int = 24) -> Shape:
    """A cylinder, or a (cut) cone if `top` has another radius; `bevel` rounds both rims."""
    top = radius if top is None else top
    if bevel <= 0:
        return lathe([(radius, 0), (top, height)], sides=sides)
    cut = bevel * 0.3
    low = [(radius - bevel, 0), (radius - cut, cut), (radius, bevel)]
    high = [(top, height - bevel), (max(top - cut, 0), height - cut), (max(top - bevel, 0), height)]
    return lathe(low + high, sides=sides)


def ellipsoid(x: float, y: float, z: float, *, sides: int = 22, rings: int = 13) -> Shape:
    """An ellipsoid with these half axes, centred on the origin."""
    angle = np.linspace(-np.pi / 2, np.pi / 2, rings)
    return lathe(list(zip(np.cos(angle), np.sin(angle), strict=True)), sides=sides).stretch(x, y, z)


def box(x: float, y: float, z: float, *, bevel: float = 0.03, top: tuple[float, float] = (1.0, 1.0)) -> Shape:
    """A box with rounded edges; `top` scales the upper end in x and y."""
    bevel = min(bevel, 0.49 * min(x, y, z))
    # a narrow edge looks like one facet anyway
    angles = np.radians([0, 30, 60, 90] if bevel >= 0.02 else [0, 90])
    steps = [((1 - np.sin(a)) * bevel, (1 - np.cos(a)) * bevel) for a in angles]  # (inset, lift), flat end to side
    rings = steps + [(inset, z - lift) for inset, lift in steps[::-1]]
    outlines = []
    for inset, height in rings:
        t = height / z
        sx, sy = 1 + (top[0] - 1) * t, 1 + (top[1] - 1) * t
        outline = _rounded_rectangle(x * sx / 2 - inset, y * sy / 2 - inset, max(bevel - inset, 0.0))
        outlines.append(np.column_stack([outline, np.full(len(outline), height)]))
    return loft(np.stack(outlines))


def _rounded_rectangle(half_x: float, half_y: float, radius: float) -> np.ndarray:
    corners = []
    for quarter, (sx, sy) in enumerate([(1, 1), (-1, 1), (-1, -1), (1, -1)]):
        angle = np.radians(90 * quarter + np.array([0, 45, 90]))
        centre = np.array([sx * (half_x - radius), sy * (half_y - radius)])
        corners.append(centre + radius * np.stack([np.cos(angle), np.sin(angle)], axis=1))
    return np.concatenate(corners)


def prism(outline: Sequence[tuple[float, float]], depth: float, *, bevel: float = 0.015) -> Shape:
    """A counter-clockwise polygon in the x-z plane, extruded along y and centred in y; it must be star-shaped."""
    flat = np.asarray(outline, dtype=np.float64)
    centre = flat.mean(axis=0)
    bevel = min(bevel, 0.45 * depth)
    reach = np.linalg.norm(flat - centre, axis=1).max()
    small = centre + (flat - centre) * (1 - bevel / reach)
    half = depth / 2
    rings = []
    for ring, y in ((small, half), (flat, half - bevel), (flat, -half + bevel), (small, -half)):
        rings.append(np.column_stack([ring[:, 0], np.full(len(ring), y), ring[:, 1]]))
    return loft(np.stack(rings))


def tube(
    path: Sequence[Sequence[float]],
    radius: float | Sequence[float],
    *,
    sides: int = 10,
    smooth: int = 1,
    closed: bool = False,
) -> Shape:
    """Sweep a circle along a path of (x, y, z) with flat ends; one radius for all points, or one per point."""
    points = np.asarray(path, dtype=np.float64)
    radii = np.broadcast_to(np.asarray(radius, dtype=np.float64), len(points))
    curve = points if closed else spline(np.column_stack([points, radii]), smooth)
    if closed:
        curve = np.column_stack([points, radii])
    points, radii = curve[:, :3], curve[:, 3]
    if closed:
        tangents = np.roll(points, -1, axis=0) - np.roll(points, 1, axis=0)
    else:
        tangents = np.gradient(points, axis=0)
    tangents /= np.linalg.norm(tangents, axis=1, keepdims=True)
    # move a frame along the path and turn it as little as possible
    side = np.cross(tangents[0], [0.0, 0.0, 1.0])
    if np.linalg.norm(side) < 0.1:
        side = np.cross(tangents[0], [0.0, 1.0, 0.0])
    circle = _circle(sides)
    rings = []
    for point, tangent, r in zip(points, tangents, radii, strict=True):
        side = side - tangent * (side @ tangent)
        side /= np.linalg.norm(side)
        other = np.cross(tangent, side)
        rings.append(point + r * (circle[:, :1] * side + circle[:, 1:] * other))
    return loft(np.stack(rings), closed=closed)


def torus(radius: float, thickness: float, *, sides: int = 24, around: int = 10) -> Shape:
    """A ring in the x-y plane, centred on the origin; `thickness` is the radius of its tube."""
    circle = _circle(sides) * radius
    return tube(np.column_stack([circle, np.zeros(sides)]), thickness, sides=around, closed=True)


def capsule(length: float, radius: float, *, sides: int = 14) -> Shape:
    """A rod with round ends along z."""
    angle = np.radians([-90, -60, -30, 0])
    low = [(radius * np.cos(a), radius + radius * np.sin(a)) for a in angle]
    high = [(r, length - z) for r, z in low[::-1]]
    return lathe(low + high, sides=sides)


def spline(points: np.ndarray, steps: int) -> np.ndarray:
    """Catmull-Rom curve through points, with `steps` segments between two points."""
    if steps <= 1:
        return points.copy()
    padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    t = (np.arange(steps) / steps)[:, None]
    pieces = []
    for a, b, c, d in zip(padded[:-3], padded[1:-2], padded[2:-1], padded[3:], strict=True):
        pieces.append(0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3))
    return np.concatenate([*pieces, points[-1:]])
