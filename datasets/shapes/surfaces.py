"""Surfaces with texture coordinates, and cuts through them.

A surface is a list of triangles over shared vertices; a vertex at a seam of the texture exists once on each side.

Letters: N vertices, F faces, R C rows and columns of a grid.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

SAME_PLACE = 1e-6  # relative distance of vertices that are one point


@dataclass(frozen=True, kw_only=True)
class Surface:
    """Triangles.

    points_N3: positions.
    faces_F3: indices, counter-clockwise seen from outside.
    uvs_N2: texture coordinates; [0, 1] is the picture once.
    """

    points_N3: np.ndarray
    faces_F3: np.ndarray
    uvs_N2: np.ndarray

    def moved(self, points_N3: np.ndarray) -> Surface:
        """The same surface with other positions."""
        return replace(self, points_N3=points_N3)

    def turned(self, matrix_33: np.ndarray) -> Surface:
        """Multiply positions by a matrix; a mirrored surface keeps its outside."""
        faces_F3 = self.faces_F3[:, ::-1] if np.linalg.det(matrix_33) < 0 else self.faces_F3
        return replace(self, points_N3=self.points_N3 @ matrix_33.T, faces_F3=faces_F3)

    @property
    def volume(self) -> float:
        """The enclosed volume; negative if the surface is turned inside out."""
        a, b, c = (self.points_N3[self.faces_F3[:, k]] for k in range(3))
        return float(np.einsum("fi,fi->", a, np.cross(b, c)) / 6)

    def outwards(self) -> Surface:
        """The same closed surface with its outside outside."""
        return self if self.volume >= 0 else replace(self, faces_F3=self.faces_F3[:, ::-1])

    def normals_N3(self) -> np.ndarray:
        """Unit normals at the vertices, equal on both sides of a seam."""
        a, b, c = (self.points_N3[self.faces_F3[:, k]] for k in range(3))
        cross_F3 = np.cross(b - a, c - a)
        place_N = self._places()
        sums = [
            np.bincount(place_N[self.faces_F3].ravel(), np.repeat(cross_F3[:, k], 3), minlength=len(place_N))
            for k in range(3)
        ]
        normals_N3 = np.stack(sums, axis=1)[place_N]
        return normals_N3 / np.maximum(np.linalg.norm(normals_N3, axis=1, keepdims=True), 1e-20)

    def _places(self) -> np.ndarray:
        """A number for each vertex, equal for vertices at one place."""
        low = self.points_N3.min(axis=0)
        side = max(float(np.ptp(self.points_N3, axis=0).max()), 1e-20)
        grid_N3 = np.round((self.points_N3 - low) / (side * SAME_PLACE)).astype(np.int64)
        key_N = (grid_N3[:, 0] * 2_000_003 + grid_N3[:, 1]) * 2_000_003 + grid_N3[:, 2]
        return np.unique(key_N, return_inverse=True)[1].reshape(-1)


def join(parts: list[Surface]) -> Surface:
    """Put surfaces into one."""
    starts = np.cumsum([0, *(len(part.points_N3) for part in parts[:-1])])
    return Surface(
        points_N3=np.concatenate([part.points_N3 for part in parts]),
        faces_F3=np.concatenate([part.faces_F3 + start for part, start in zip(parts, starts, strict=True)]),
        uvs_N2=np.concatenate([part.uvs_N2 for part in parts]),
    )


def grid(points_RC3: np.ndarray) -> Surface:
    """Join the points of a grid by triangles. u runs along the columns and v along the rows, both by length."""
    rows, columns = points_RC3.shape[:2]
    row, column = np.meshgrid(np.arange(rows - 1), np.arange(columns - 1), indexing="ij")
    a = (row * columns + column).ravel()
    b, c, d = a + 1, a + columns + 1, a + columns
    faces_F3 = np.concatenate([np.stack([a, b, c], axis=1), np.stack([a, c, d], axis=1)])
    u_RC, v_RC = np.meshgrid(_along(points_RC3.transpose(1, 0, 2)), _along(points_RC3))
    points_N3 = points_RC3.reshape(-1, 3).astype(np.float64)
    surface = Surface(points_N3=points_N3, faces_F3=faces_F3, uvs_N2=np.stack([u_RC.ravel(), v_RC.ravel()], axis=1))
    return without_slivers(surface)


def _along(points_RC3: np.ndarray) -> np.ndarray:
    """How far each row lies along the columns, in [0, 1]."""
    steps = np.linalg.norm(np.diff(points_RC3, axis=0), axis=-1).mean(axis=1)
    way = np.concatenate([[0.0], np.cumsum(steps)])
    return way / max(way[-1], 1e-20)


def without_slivers(surface: Surface) -> Surface:
    """Leave out triangles without an area."""
    a, b, c = (surface.points_N3[surface.faces_F3[:, k]] for k in range(3))
    area_F = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    return replace(surface, faces_F3=surface.faces_F3[area_F > 1e-10])


@dataclass(frozen=True)
class _Cut:
    """What remains of a surface; edges_E2 run along the new border, as in the faces that remain."""

    surface: Surface
    edges_E2: np.ndarray


def _cut(surface: Surface, field_N: np.ndarray) -> _Cut:
    """Keep what has a positive field; triangles on the border are cut where the field is linearly zero."""
    faces_F3, inside_N = surface.faces_F3, field_N > 0
    inside_F3 = inside_N[faces_F3]
    count_F = inside_F3.sum(axis=1)
    one_F3 = _rolled(faces_F3[count_F == 1], inside_F3[count_F == 1].argmax(axis=1))
    two_F3 = _rolled(faces_F3[count_F == 2], inside_F3[count_F == 2].argmin(axis=1))
    starts = np.concatenate([one_F3[:, 0], one_F3[:, 0], two_F3[:, 0], two_F3[:, 0]])
    ends = np.concatenate([one_F3[:, 1], one_F3[:, 2], two_F3[:, 1], two_F3[:, 2]])
    t = (field_N[starts] / (field_N[starts] - field_N[ends]))[:, None]
    num_one, num_two, first = len(one_F3), len(two_F3), len(field_N)
    one_ab, two_ab = first + np.arange(num_one), first + 2 * num_one + np.arange(num_two)
    one_ac, two_ac = one_ab + num_one, two_ab + num_two
    faces = [
        faces_F3[count_F == 3],
        np.stack([one_F3[:, 0], one_ab, one_ac], axis=1),
        np.stack([two_ab, two_F3[:, 1], two_F3[:, 2]], axis=1),
        np.stack([two_ab, two_F3[:, 2], two_ac], axis=1),
    ]
    points, uvs = surface.points_N3, surface.uvs_N2
    cut = Surface(
        points_N3=np.concatenate([points, points[starts] + t * (points[ends] - points[starts])]),
        faces_F3=np.concatenate(faces),
        uvs_N2=np.concatenate([uvs, uvs[starts] + t * (uvs[ends] - uvs[starts])]),
    )
    edges = [np.stack([one_ab, one_ac], axis=1), np.stack([two_ac, two_ab], axis=1)]
    return _Cut(cut, np.concatenate(edges))


def _rolled(faces_F3: np.ndarray, first_F: np.ndarray) -> np.ndarray:
    """Turn each face so that it begins with this corner."""
    return np.take_along_axis(faces_F3, (first_F[:, None] + np.arange(3)) % 3, axis=1)


def cut_open(surface: Surface, field_N: np.ndarray) -> Surface:
    """Keep what has a positive field (N,); what is cut stays open."""
    return used(without_slivers(_cut(surface, field_N).surface))


def cut_shell(surface: Surface, field_N: np.ndarray, *, thickness: float) -> Surface:
    """Keep what has a positive field (N,), as a hollow body with a wall of this thickness."""
    outer = _cut(surface, field_N)
    inner = _cut(surface.moved(surface.points_N3 - thickness * surface.normals_N3()), field_N)
    shift = len(outer.surface.points_N3)
    p, q = outer.edges_E2[:, 0], outer.edges_E2[:, 1]
    rim = np.concatenate([np.stack([q, p, p + shift], axis=1), np.stack([q, p + shift, q + shift], axis=1)])
    both = join([outer.surface, replace(inner.surface, faces_F3=inner.surface.faces_F3[:, ::-1])])
    return used(without_slivers(replace(both, faces_F3=np.concatenate([both.faces_F3, rim]))))


def used(surface: Surface) -> Surface:
    """Leave out vertices without a face."""
    kept, faces = np.unique(surface.faces_F3, return_inverse=True)
    return Surface(points_N3=surface.points_N3[kept], faces_F3=faces.reshape(-1, 3), uvs_N2=surface.uvs_N2[kept])
