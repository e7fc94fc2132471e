"""Draws a random shape from a seed: forms that touch each other, textures and a caption.

Source: arXiv:2406.09371 (LRM-Zero), which shows that a reconstruction model can be trained on such shapes alone. The
code is our own; its cuts are thin walls instead of booleans, and half of its colours are those of photographs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from datasets.meshes.scene import RenderMesh, Texture, join, seamless_normals
from datasets.shapes.forms import draw_form
from datasets.shapes.surfaces import Surface, cut_open, cut_shell
from datasets.shapes.textures import Drawn, draw_palette, draw_texture
from datasets.zoo.kinds import within_reach
from utils.errors import ConfigError, DataError

SPLITS = ("train", "held_out")
VERSION = 1  # increase it when a seed gives another shape
STREAM = 2406_09371  # keeps these random numbers apart from those of the zoo
NUM_PARTS = (1, 2, 3, 4, 5, 6, 7, 8)
NUM_WEIGHTS = (0.12, 0.2, 0.2, 0.16, 0.12, 0.08, 0.06, 0.06)
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight")
MIRRORED, HOLLOW, HOLES, UPRIGHT = 0.25, 0.18, 0.06, 0.5  # probabilities
OVERLAP = 0.06  # how deep a part goes into the other, relative to its size


@dataclass(frozen=True, kw_only=True)
class RandomShape:
    """A shape with its caption; `mesh` is normalised into the unit cube. `forms` describe its parts."""

    mesh: RenderMesh | None
    caption: str
    forms: tuple[str, ...]
    seed: int
    split: str

    def attributes(self) -> dict[str, Any]:
        """What is known of the shape, as plain values."""
        return {"forms": list(self.forms), "seed": self.seed, "split": self.split, "version": VERSION}


@dataclass(frozen=True)
class _Part:
    surface: Surface
    texture: Drawn
    form: str
    size: float


def sample_shape(seed: int, split: str = "train", *, with_mesh: bool = True) -> RandomShape:
    """Draw a shape; the same arguments always give the same shape.

    Args:
        seed: not negative.
        split: "train" or "held_out"; their random numbers are independent.
        with_mesh: also make the mesh; false: return only what describes it, which is fast.

    Raises:
        ConfigError: the split is unknown.
    """
    if split not in SPLITS:
        raise ConfigError(f"split must be one of {', '.join(SPLITS)}, got {split}")
    rng = np.random.default_rng([STREAM, SPLITS.index(split), seed])
    num, palette_P3 = int(rng.choice(NUM_PARTS, p=NUM_WEIGHTS)), draw_palette(rng)
    mirrored = num > 1 and bool(rng.random() < MIRRORED)
    parts = [_draw_part(rng, palette_P3, first=True, with_pixels=with_mesh)]
    while len(parts) < num:
        part = _draw_part(rng, palette_P3, first=False, with_pixels=with_mesh)
        parts.append(_attached(part, parts, rng, mirrored=mirrored))
    if mirrored:
        halves = [replace(part, surface=cut_open(part.surface, part.surface.points_N3[:, 1])) for part in parts]
        parts = [half for half in halves if len(half.surface.faces_F3)]
    return RandomShape(
        mesh=_mesh_of(parts, mirrored=mirrored) if with_mesh else None,
        caption=write_caption(parts, mirrored=mirrored),
        forms=tuple(f"{part.texture.words} {part.form}" for part in parts),
        seed=seed,
        split=split,
    )


def redraw_shape(attributes: Mapping[str, Any]) -> RandomShape:
    """Draw the shape of these attributes again.

    Raises:
        DataError: another version drew it.
    """
    if attributes.get("version") != VERSION:
        raise DataError(
            f"the random shape with seed {attributes['seed']} was drawn by version {attributes.get('version')}, and "
            f"this is version {VERSION}; make the folder again with tools/make_zoo.py --shapes"
        )
    return sample_shape(int(attributes["seed"]), str(attributes["split"]))


def _draw_part(rng: np.random.Generator, palette_P3: np.ndarray, *, first: bool, with_pixels: bool) -> _Part:
    """Draw a part around the origin."""
    surface, form = draw_form(rng)
    holes = bool(rng.random() < HOLES)
    if rng.random() < HOLLOW:
        whole, surface = surface, _hollowed(surface, rng)
        form = form if surface is whole else f"hollow {form}"
    size = 1.0 if first else float(np.clip(rng.lognormal(-0.7, 0.4), 0.15, 1.2))
    surface = surface.turned(_rotation(rng) * size)
    surface = replace(surface, uvs_N2=surface.uvs_N2 * rng.choice([1, 1, 2, 3]))
    # its own random numbers, because it draws fewer of them without pixels
    texture = draw_texture(rng.spawn(1)[0], palette_P3, holes=holes, with_pixels=with_pixels)
    return _Part(surface, texture, form, size)


def _hollowed(surface: Surface, rng: np.random.Generator) -> Surface:
    """Cut a piece off, or a hole through; a thin wall remains."""
    points_N3, kind = surface.points_N3, rng.integers(3)
    direction = rng.normal(size=3)
    direction /= np.linalg.norm(direction)
    if kind == 0:  # one end
        field_N = rng.uniform(0.2, 0.7) * np.abs(points_N3[:, 2]).max() - points_N3[:, 2]
    elif kind == 1:  # a bite
        field_N = np.linalg.norm(points_N3 - direction * 0.9, axis=1) - rng.uniform(0.4, 0.8)
    else:  # a hole through the middle
        away = points_N3 - np.outer(points_N3 @ direction, direction)
        field_N = np.linalg.norm(away, axis=1) - rng.uniform(0.15, 0.4)
    if not 0.3 < (field_N > 0).mean() < 0.98:
        return surface
    return cut_shell(surface, field_N, thickness=float(rng.uniform(0.03, 0.08)))


def _rotation(rng: np.random.Generator) -> np.ndarray:
    """A rotation: along the axes, as in things that people make, or any."""
    if rng.random() < UPRIGHT:
        matrix = np.eye(3)[rng.permutation(3)] * rng.choice([-1, 1], size=(3, 1))
        return matrix if np.linalg.det(matrix) > 0 else -matrix
    matrix, upper = np.linalg.qr(rng.normal(size=(3, 3)))
    matrix = matrix * np.sign(np.diag(upper))
    return matrix if np.linalg.det(matrix) > 0 else -matrix


def _attached(part: _Part, others: list[_Part], rng: np.random.Generator, *, mirrored: bool) -> _Part:
    """Move a part so that it touches one of the others; of a mirrored shape, on the side that is kept."""
    other = others[rng.integers(len(others))]
    points_N3, normals_N3 = other.surface.points_N3, other.surface.normals_N3()
    allowed = np.flatnonzero(points_N3[:, 1] >= 0) if mirrored else np.arange(len(points_N3))
    at = allowed[rng.integers(len(allowed))] if len(allowed) else int(rng.integers(len(points_N3)))
    # the point of the part that lies farthest in the direction of the other
    own_N3 = part.surface.points_N3
    touching = own_N3[int((own_N3 @ normals_N3[at]).argmin())]
    offset = points_N3[at] - touching - normals_N3[at] * OVERLAP * part.size
    return replace(part, surface=part.surface.moved(own_N3 + offset))


def _mesh_of(parts: list[_Part], *, mirrored: bool) -> RenderMesh:
    """The whole shape; of a mirrored one, the parts are its left half."""
    meshes = []
    for part in parts:
        texture = Texture(pixels_HWC=part.texture.pixels_HWC)
        sides = (part.surface, part.surface.turned(np.diag([1.0, -1.0, 1.0]))) if mirrored else (part.surface,)
        meshes += [_triangles_of(surface, texture) for surface in sides]
    return within_reach(join(meshes))


def _triangles_of(surface: Surface, texture: Texture) -> RenderMesh:
    num, pierced = len(surface.faces_F3), texture.pixels_HWC.shape[2] == 4
    return RenderMesh(
        points_F33=surface.points_N3[surface.faces_F3].astype(np.float32),
        normals_F33=seamless_normals(surface.points_N3, surface.faces_F3),
        colors_F33=np.ones((num, 3, 3), np.float32),
        uvs_F32=surface.uvs_N2[surface.faces_F3].astype(np.float32),
        texture_F=np.zeros(num, np.int32),
        textures=(texture,),
        opacities_F3=np.ones((num, 3), np.float32) if pierced else None,
        cutoff_F=np.full(num, 0.5, np.float32) if pierced else None,
    )


def write_caption(parts: list[_Part], *, mirrored: bool) -> str:
    """Describe the largest parts, e.g. `a random shape of a red twisted box and a striped blue and white cone`."""
    largest = sorted(parts, key=lambda part: -part.size)[:3]
    described = [f"a {part.texture.words} {part.form}" for part in largest]
    described = [f"an {text[2:]}" if text[2] in "aeiou" else text for text in described]
    listed = described[0] if len(described) == 1 else f"{', '.join(described[:-1])} and {described[-1]}"
    symmetric = "symmetric " if mirrored else ""
    count = f"{NUMBERS[len(parts) - 1]} parts, among them " if len(parts) > 3 else ""
    return f"a random {symmetric}shape of {count}{listed}"
