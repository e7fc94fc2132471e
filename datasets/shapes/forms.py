"""The forms that random shapes are built of, and their deformations. A form fits into the cube [-1, 1]^3.

The choice of forms follows LRM-Zero (arXiv:2406.09371): simple bodies, deformed and put together at random.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from datasets.shapes.surfaces import Surface, grid, join, used
from datasets.zoo.primitives import spline

ROWS, COLUMNS = 24, 44  # of a grid; fine enough for smooth outlines at 256 pixels
Form = Callable[[np.random.Generator], Surface]


def _power(values: np.ndarray, exponent: float) -> np.ndarray:
    return np.sign(values) * np.abs(values) ** exponent


def box(rng: np.random.Generator) -> Surface:
    """A box whose edges are sharp or rounded."""
    steps = np.linspace(-1, 1, 13)
    flat_RC3 = np.stack([*np.meshgrid(steps, steps), np.ones((13, 13))], axis=-1)
    sides = []
    for axis in range(3):
        for sign in (-1, 1):
            side = np.roll(flat_RC3 * [1, 1, sign], axis, axis=-1)
            sides.append(grid(side if sign > 0 else side[::-1]))
    surface = join(sides)
    if rng.random() < 0.5:
        return surface
    # The p-norm of a point on the cube is 1 in the middle of a side and larger towards edges.
    norm_N1 = (np.abs(surface.points_N3) ** rng.uniform(6, 14)).sum(axis=1, keepdims=True) ** (1 / 10)
    return surface.moved(surface.points_N3 / norm_N1)


def _superquadric(across: float, along: float) -> Surface:
    v, u = np.linspace(-np.pi / 2, np.pi / 2, ROWS)[:, None], np.linspace(0, 2 * np.pi, COLUMNS)
    radius = _power(np.cos(v), along)
    x, y = radius * _power(np.cos(u), across), radius * _power(np.sin(u), across)
    return grid(np.stack([x, y, np.broadcast_to(_power(np.sin(v), along), x.shape)], axis=-1))


def ball(rng: np.random.Generator) -> Surface:
    return _superquadric(1.0, 1.0)


def block(rng: np.random.Generator) -> Surface:
    """A superquadric: between a cube, a ball and a double pyramid."""
    return _superquadric(*rng.choice([rng.uniform(0.3, 0.8), rng.uniform(1.4, 2.2)], size=2))


def _revolved(profile_R2: np.ndarray, outline_C: np.ndarray | float = 1.0) -> Surface:
    """Turn a profile of (radius, z) about the z axis; `outline_C` scales the radius by direction."""
    u = np.linspace(0, 2 * np.pi, COLUMNS + 1)
    radius = np.maximum(profile_R2[:, :1], 0) * outline_C
    x, y = radius * np.cos(u), radius * np.sin(u)
    return grid(np.stack([x, y, np.broadcast_to(profile_R2[:, 1:], x.shape)], axis=-1))


def _corners(*points: tuple[float, float]) -> np.ndarray:
    """A line with corners, in steps that are short enough to be bent."""
    ends = np.array(points)
    parts = []
    for a, b in itertools.pairwise(ends):
        num = max(2, round(12 * float(np.linalg.norm(b - a))))
        parts.append(a + (b - a) * (np.arange(num) / num)[:, None])
    return np.concatenate([*parts, ends[-1:]])


def cylinder(rng: np.random.Generator) -> Surface:
    return _revolved(_corners((0, -1), (1, -1), (1, 1), (0, 1)))


def cone(rng: np.random.Generator) -> Surface:
    top = rng.choice([0.0, rng.uniform(0.2, 0.7)])
    return _revolved(_corners((0, -1), (1, -1), (top, 1), (0, 1)))


def prism(rng: np.random.Generator) -> Surface:
    """A column or pyramid with 3 to 6 sides, or with the outline of a star."""
    sides, u = int(rng.integers(3, 7)), np.linspace(0, 2 * np.pi, COLUMNS + 1)
    if rng.random() < 0.65:
        outline = np.cos(np.pi / sides) / np.cos(u % (2 * np.pi / sides) - np.pi / sides)
    else:
        outline = 0.75 + 0.25 * np.cos(u * sides)
    top = rng.choice([1.0, rng.uniform(0.0, 0.8)])
    return _revolved(_corners((0, -1), (1, -1), (top, 1), (0, 1)), outline)


def spindle(rng: np.random.Generator) -> Surface:
    """A turned body with a random profile, such as a vase or a chess piece."""
    num = int(rng.integers(4, 8))
    knots = np.column_stack([rng.uniform(0.2, 1.0, num), np.linspace(-1, 1, num)])
    side = spline(knots, 36 // num)
    caps = [np.array([[0.0, -1.0]]), np.array([[0.0, 1.0]])]
    return _revolved(np.concatenate([caps[0], side, caps[1]]))


def ring(rng: np.random.Generator) -> Surface:
    """A torus; its tube is round or square."""
    inner, exponent = rng.uniform(0.15, 0.45), rng.choice([1.0, rng.uniform(0.25, 0.6)])
    v, u = np.linspace(0, 2 * np.pi, 21)[:, None], np.linspace(0, 2 * np.pi, COLUMNS + 1)
    radius = 1 - inner + inner * _power(np.cos(v), exponent)
    x, y = radius * np.cos(u), radius * np.sin(u)
    z = np.broadcast_to(inner * _power(np.sin(v), exponent), x.shape)
    return grid(np.stack([x, y, z], axis=-1))


def tube(rng: np.random.Generator) -> Surface:
    """A tube along a random curve, with round ends and a varying radius."""
    num = int(rng.integers(3, 6))
    way = np.cumsum(rng.normal(size=(num, 3)) * [1.0, 1.0, 0.8] + [0, 0, 0.5], axis=0)
    path_R3 = spline(way, 40 // num)
    path_R3 = path_R3 / max(float(np.ptp(path_R3, axis=0).max()), 1e-6)
    thick = rng.uniform(0.06, 0.2) * spline(np.column_stack([rng.uniform(0.6, 1.4, num)] * 2), 40 // num)[:, 0]
    t = np.linspace(0, 1, len(path_R3))
    ends = np.sqrt(np.clip(np.minimum(t, 1 - t) / 0.08, 0, 1))  # round ends
    radius_R = thick * ends
    tangents = np.gradient(path_R3, axis=0)
    tangents /= np.maximum(np.linalg.norm(tangents, axis=1, keepdims=True), 1e-9)
    side = np.cross(tangents[0], [0.3, 0.5, 0.8])
    circle = np.linspace(0, 2 * np.pi, 19)[:, None]
    rings = []
    for point, tangent, radius in zip(path_R3, tangents, radius_R, strict=True):
        side = side - tangent * (side @ tangent)
        side /= np.linalg.norm(side)
        rings.append(point + radius * (np.cos(circle) * side + np.sin(circle) * np.cross(tangent, side)))
    return grid(np.stack(rings))


# The words are those of captions.
FORMS: dict[str, Form] = {
    "box": box, "ball": ball, "block": block, "cylinder": cylinder, "cone": cone, "prism": prism, "spindle": spindle,
    "ring": ring, "tube": tube,
}  # fmt: skip


def fitted(surface: Surface) -> Surface:
    """Centre a surface and scale its longest side to [-1, 1]."""
    low, high = surface.points_N3.min(axis=0), surface.points_N3.max(axis=0)
    return surface.moved((surface.points_N3 - (low + high) / 2) / max(float((high - low).max()) / 2, 1e-9))


def stretched(points_N3: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return points_N3 * rng.uniform(0.35, 1.0, 3)


def twisted(points_N3: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turn about the z axis, in proportion to z."""
    angle = rng.uniform(0.5, 1.6) * rng.choice([-1, 1]) * points_N3[:, 2]
    x, y, z = points_N3.T
    return np.stack([x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle), z], axis=1)


def bent(points_N3: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Bend the z axis to an arc in the plane of x and z."""
    angle = rng.uniform(0.6, 2.2)  # of the whole arc
    x, y, z = points_N3.T
    radius, way = 2 / angle, z * angle / 2
    return np.stack([radius - (radius - x) * np.cos(way), y, (radius - x) * np.sin(way)], axis=1)


def tapered(points_N3: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Make one end thinner."""
    scale = 1 + rng.uniform(0.3, 0.75) * rng.choice([-1, 1]) * points_N3[:, 2:]
    return points_N3 * np.concatenate([np.repeat(scale, 2, axis=1), np.ones_like(scale)], axis=1)


def lumpy(points_N3: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Move points by a smooth random field: a sum of waves."""
    waves = rng.normal(size=(10, 3)) * rng.uniform(1.0, 3.5)
    phases, ways = rng.uniform(0, 2 * np.pi, 10), rng.normal(size=(10, 3))
    lengths = np.linalg.norm(waves, axis=1, keepdims=True)
    # steep waves would fold the surface over
    ways = ways * rng.uniform(0.1, 0.22) / np.maximum(lengths, 1.0)
    return points_N3 + np.einsum("nw,wk->nk", np.sin(points_N3 @ waves.T + phases), ways)


DEFORMATIONS = {"twisted": twisted, "bent": bent, "tapered": tapered, "lumpy": lumpy}


def draw_form(rng: np.random.Generator) -> tuple[Surface, str]:
    """Draw a form, deformed by zero to two deformations, and its description, such as `twisted box`."""
    name = str(rng.choice(list(FORMS)))
    surface = fitted(used(FORMS[name](rng)))
    surface = surface.moved(stretched(surface.points_N3, rng)).outwards()
    words = [
        str(word) for word in rng.choice(list(DEFORMATIONS), size=rng.choice(3, p=[0.35, 0.45, 0.2]), replace=False)
    ]
    round_names = ("ball", "ring", "tube", "spindle")
    for word in words:
        surface = fitted(surface)
        surface = surface.moved(DEFORMATIONS[word](surface.points_N3, rng))
    said = [word for word in words if not (word == "twisted" and name in (*round_names, "cylinder", "cone"))]
    return fitted(surface), " ".join([*said[:1], name])
