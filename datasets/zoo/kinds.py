"""Declares kinds of objects, and the painter that their functions draw with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from datasets.meshes.scene import RenderMesh, crease_normals, normalise, srgb_to_linear
from datasets.zoo.primitives import Shape

# sRGB, different enough that a person recognises them on a shaded object
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (208, 32, 36),
    "orange": (244, 126, 22),
    "yellow": (250, 212, 40),
    "green": (50, 150, 56),
    "cyan": (62, 196, 212),
    "blue": (44, 86, 214),
    "purple": (132, 62, 182),
    "pink": (248, 138, 184),
    "brown": (118, 70, 36),
    "white": (238, 238, 236),
    "black": (40, 40, 44),
    "gray": (134, 135, 139),
}
COLOR_JITTER = 9
# smaller, so that white and gray do not turn pink
HUE_JITTER = 3
# At distance 1.7 with a field of view of 39.6 degrees, a sphere of this radius is completely in the picture.
MAX_RADIUS = 0.57
# Larger than the default of the renderer, because bevels have steps of 30 to 45 degrees.
CREASE_DEG = 50.0


class Painter:
    """Collects painted shapes for one object.

    Attributes:
        rng: the random generator of this object, for shape parameters.
        part: the part that the caption names.
    """

    def __init__(self, rng: np.random.Generator, *, part: str, colors: Mapping[str, np.ndarray]) -> None:
        self.rng, self.part = rng, part
        self._colors = colors
        self._shapes: list[tuple[Shape, np.ndarray]] = []

    def add(self, shape: Shape, label: str = "body", *, plain: str = "body") -> None:
        """Add a shape.

        Args:
            shape: the shape at its place, at any scale; the whole object is normalised at the end.
            label: the part that it belongs to. If the caption names this part, the shape has the colour of the part.
            plain: its colour otherwise: "body", or the name of a colour.
        """
        key = "part" if label == self.part else plain
        self._shapes.append((shape, self._colors[key]))

    def between(self, low: float, high: float) -> float:
        """A shape parameter, uniform."""
        return float(self.rng.uniform(low, high))

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def whole(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return int(self.rng.integers(low, high + 1))

    def mesh(self) -> RenderMesh:
        """The whole object, centred, within the unit cube and within MAX_RADIUS of the origin."""
        offset, points, faces, colors = 0, [], [], []
        for shape, color in self._shapes:
            points.append(shape.points_N3)
            faces.append(shape.faces_F3 + offset)
            colors.append(np.broadcast_to(color, (len(shape.faces_F3), 3, 3)))
            offset += len(shape.points_N3)
        points_N3, faces_F3 = np.concatenate(points), np.concatenate(faces)
        return within_reach(
            RenderMesh(
                points_F33=points_N3[faces_F3],
                normals_F33=crease_normals(points_N3, faces_F3, crease_deg=CREASE_DEG),
                colors_F33=np.concatenate(colors).astype(np.float32),
            )
        )


def within_reach(mesh: RenderMesh) -> RenderMesh:
    """Centre a mesh and scale it into the unit cube and to at most MAX_RADIUS from the origin."""
    mesh = normalise(mesh)
    reach = float(np.linalg.norm(mesh.points_F33, axis=-1).max())
    return replace(mesh, points_F33=mesh.points_F33 * np.float32(min(1.0, MAX_RADIUS / reach)))


@dataclass(frozen=True)
class Kind:
    """name: noun in captions; parts: the parts that captions may name (plural if it ends in s); draw: paints it."""

    name: str
    parts: tuple[str, ...]
    draw: Callable[[Painter], None]


KINDS: dict[str, Kind] = {}


def kind(name: str, *parts: str) -> Callable[[Callable[[Painter], None]], Callable[[Painter], None]]:
    """Declare a kind of object with the parts that a caption may name.

    The colour of the object is always on the same, largest region, so that object and part are never exchanged.
    Objects look along +x, so that view 0 shows their front.
    """

    def enter(draw: Callable[[Painter], None]) -> Callable[[Painter], None]:
        assert name not in KINDS, f"{name} is declared twice"
        KINDS[name] = Kind(name, parts, draw)
        return draw

    return enter


def jittered(color: str, rng: np.random.Generator) -> np.ndarray:
    """A named colour with a small random change, in linear RGB."""
    offset = rng.uniform(-COLOR_JITTER, COLOR_JITTER) + rng.uniform(-HUE_JITTER, HUE_JITTER, 3)
    srgb = np.clip(np.array(COLORS[color]) + offset, 0, 255)
    return srgb_to_linear(srgb / 255.0)
