"""How a kind of object is declared, and the painter that its function draws with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from datasets.meshes.scene import RenderMesh, crease_normals, normalise, srgb_to_linear
from datasets.zoo.primitives import Shape

# sRGB, far enough apart that a person names them right on a shaded object
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
# A sphere of this radius is wholly in the picture at distance 1.7 with a field of view of 39.6 degrees, from any side.
MAX_RADIUS = 0.57
# Softer than the renderer's default: bevels are made of steps of 30 to 45 degrees.
CREASE_DEG = 50.0


class Painter:
    """Collects painted shapes for one object.

    Attributes:
        rng: the object's own generator, for shape parameters.
        part: the part that the caption names.
    """

    def __init__(self, rng: np.random.Generator, *, part: str, colors: Mapping[str, np.ndarray]) -> None:
        self.rng, self.part = rng, part
        self._colors = colors
        self._shapes: list[tuple[Shape, np.ndarray]] = []

    def add(self, shape: Shape, label: str = "body", *, plain: str = "body") -> None:
        """Add a shape.

        Args:
            shape: where it stands, any scale; the whole object is normalised in the end.
            label: the part it belongs to; when the caption names this part, it takes the part's colour.
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
        """Everything added, centred, within the unit cube and within MAX_RADIUS of the origin."""
        offset, points, faces, colors = 0, [], [], []
        for shape, color in self._shapes:
            points.append(shape.points_N3)
            faces.append(shape.faces_F3 + offset)
            colors.append(np.broadcast_to(color, (len(shape.faces_F3), 3, 3)))
            offset += len(shape.points_N3)
        points_N3, faces_F3 = np.concatenate(points), np.concatenate(faces)
        mesh = normalise(
            RenderMesh(
                points_F33=points_N3[faces_F3],
                normals_F33=crease_normals(points_N3, faces_F3, crease_deg=CREASE_DEG),
                colors_F33=np.concatenate(colors).astype(np.float32),
            )
        )
        reach = float(np.linalg.norm(mesh.points_F33, axis=-1).max())
        return replace(mesh, points_F33=mesh.points_F33 * np.float32(min(1.0, MAX_RADIUS / reach)))


@dataclass(frozen=True)
class Kind:
    """name: the noun in captions; parts: what the caption may name (plural when it ends in s); draw: paints it."""

    name: str
    parts: tuple[str, ...]
    draw: Callable[[Painter], None]


KINDS: dict[str, Kind] = {}


def kind(name: str, *parts: str) -> Callable[[Callable[[Painter], None]], Callable[[Painter], None]]:
    """Declare a kind of object with the parts that a caption may name.

    The object's colour always sits on the same, largest region, so that a part never trades places with it.
    Objects look along +x, so that view 0 sees their front.
    """

    def enter(draw: Callable[[Painter], None]) -> Callable[[Painter], None]:
        assert name not in KINDS, f"{name} is declared twice"
        KINDS[name] = Kind(name, parts, draw)
        return draw

    return enter


def jittered(color: str, rng: np.random.Generator) -> np.ndarray:
    """A named colour, a little off, in linear RGB."""
    offset = rng.uniform(-COLOR_JITTER, COLOR_JITTER) + rng.uniform(-HUE_JITTER, HUE_JITTER, 3)
    srgb = np.clip(np.array(COLORS[color]) + offset, 0, 255)
    return srgb_to_linear(srgb / 255.0)
