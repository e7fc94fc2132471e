"""Meshes as the renderer takes them: a list of triangles with normals, colours and textures.

Letters: F faces, N points. World units; z is up after loading.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from scipy import sparse

from utils.errors import DataError

DEFAULT_ALBEDO = 0.7
CREASE_DEG = 40.0
# Rows are the new axes: the front of glTF (+z) becomes +x, the side of view 0, and its up axis (+y) becomes +z.
Y_UP_TO_Z_UP = np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]], dtype=np.float64)
REPEAT, CLAMP, MIRROR = "repeat", "clamp", "mirror"
# The data of a RenderMesh that each corner of a face has.
PER_CORNER = ("points_F33", "normals_F33", "colors_F33", "uvs_F32", "opacities_F3", "glow_F33", "glow_uvs_F32")


class EmptyMeshError(DataError):
    """A file was read, but it contains no surface that can be seen."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Texture:
    """A picture on a surface.

    pixels_HWC: uint8 sRGB (height, width, 3), or (height, width, 4) with straight alpha.
    wrap: what lies beyond the picture's edges, along u and along v.
    """

    pixels_HWC: np.ndarray
    wrap: tuple[str, str] = (REPEAT, REPEAT)

    @cached_property
    def opaque(self) -> Texture:
        """The same picture without alpha."""
        if self.pixels_HWC.shape[2] == 3:
            return self
        return replace(self, pixels_HWC=np.ascontiguousarray(self.pixels_HWC[..., :3]))

    @cached_property
    def alphas(self) -> tuple[float, float]:
        """The smallest and the largest alpha, in [0, 1]."""
        if self.pixels_HWC.shape[2] == 3:
            return 1.0, 1.0
        alpha = self.pixels_HWC[..., 3]
        return float(alpha.min() / 255), float(alpha.max() / 255)


@dataclass(frozen=True, kw_only=True)
class RenderMesh:
    """Triangles with all data that a renderer needs, per corner.

    points_F33, normals_F33: corner positions and unit normals, z-up.
    colors_F33: linear RGB in [0, 1]; multiplied with the texture if there is one.
    uvs_F32: texture coordinates, origin at the lower left.
    texture_F: index into `textures`, -1 for none.
    textures: the pictures.
    opacities_F3: opacity in [0, 1], multiplied with the texture's alpha; None where everything is opaque.
    cutoff_F: opacity from which a face is drawn, opaque; 0 for a face that is blended. Comes with opacities_F3.
    lit_F: False where light has no influence on the colour; None where everything is lit.
    glow_F33: linear RGB that is added after lighting; glow_uvs_F32, glow_texture_F: its texture. None for none.
    """

    points_F33: np.ndarray
    normals_F33: np.ndarray
    colors_F33: np.ndarray
    uvs_F32: np.ndarray | None = None
    texture_F: np.ndarray | None = None
    textures: tuple[Texture, ...] = field(default=())
    opacities_F3: np.ndarray | None = None
    cutoff_F: np.ndarray | None = None
    lit_F: np.ndarray | None = None
    glow_F33: np.ndarray | None = None
    glow_uvs_F32: np.ndarray | None = None
    glow_texture_F: np.ndarray | None = None

    @property
    def bounds_23(self) -> np.ndarray:
        """Lowest and highest corner of the bounding box."""
        points_N3 = self.points_F33.reshape(-1, 3)
        return np.stack([points_N3.min(axis=0), points_N3.max(axis=0)])


def srgb_to_linear(values: np.ndarray) -> np.ndarray:
    """Decode sRGB values in [0, 1] to linear light. Source: IEC 61966-2-1."""
    values = np.asarray(values, dtype=np.float32)
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4).astype(np.float32)


def linear_to_srgb(values: np.ndarray) -> np.ndarray:
    """Encode linear light in [0, 1] as sRGB. Source: IEC 61966-2-1."""
    values = np.clip(np.asarray(values, dtype=np.float32), 0.0, 1.0)
    return np.where(values <= 0.0031308, values * 12.92, 1.055 * values ** (1 / 2.4) - 0.055).astype(np.float32)


def crease_normals(points_N3: np.ndarray, faces_F3: np.ndarray, *, crease_deg: float = CREASE_DEG) -> np.ndarray:
    """Corner normals that are smooth, except at edges sharper than the crease angle.

    Args:
        points_N3: vertex positions; faces that share an index share a vertex.
        faces_F3: vertex indices, counter-clockwise seen from outside.
        crease_deg: faces that meet at a larger angle keep a sharp edge.

    Returns:
        normals_F33: one unit normal per corner of each face.
    """
    triangles_F33 = points_N3[faces_F3].astype(np.float64)
    cross_F3 = np.cross(triangles_F33[:, 1] - triangles_F33[:, 0], triangles_F33[:, 2] - triangles_F33[:, 0])
    face_normals_F3 = cross_F3 / np.maximum(np.linalg.norm(cross_F3, axis=1, keepdims=True), 1e-20)
    num_faces = len(faces_F3)
    corner_vertices = faces_F3.ravel()
    corners = np.arange(3 * num_faces)
    ones = np.ones(3 * num_faces, dtype=np.int8)
    at_vertex = sparse.csr_array((ones, (corners, corner_vertices)), shape=(3 * num_faces, len(points_N3)))
    touches = sparse.csr_array((ones, (corner_vertices, corners // 3)), shape=(len(points_N3), num_faces))
    pairs = (at_vertex @ touches).tocoo()
    corner, neighbour = pairs.row, pairs.col
    smooth = np.einsum("ij,ij->i", face_normals_F3[corner // 3], face_normals_F3[neighbour]) > np.cos(
        np.radians(crease_deg)
    )
    corner, neighbour = corner[smooth], neighbour[smooth]
    sums = [np.bincount(corner, weights=cross_F3[neighbour, k], minlength=3 * num_faces) for k in range(3)]
    summed = np.stack(sums, axis=1)
    length = np.linalg.norm(summed, axis=1, keepdims=True)
    flat = np.repeat(face_normals_F3, 3, axis=0)
    return np.where(length > 1e-20, summed / np.maximum(length, 1e-20), flat).reshape(-1, 3, 3).astype(np.float32)


def normalise(mesh: RenderMesh) -> RenderMesh:
    """Centre the bounding box on the origin and scale its longest side to 1, as G-Objaverse does.

    No point is then farther than sqrt(3) / 2 from the origin.

    Raises:
        EmptyMeshError: the mesh has no size.
    """
    low, high = mesh.bounds_23
    side = float((high - low).max())
    if not np.isfinite(side) or side <= 0.0:
        raise EmptyMeshError("the mesh has no size: all its points coincide or are not finite")
    return replace(mesh, points_F33=((mesh.points_F33 - (low + high) / 2) / side).astype(np.float32))


def seamless_normals(points_N3: np.ndarray, faces_F3: np.ndarray) -> np.ndarray:
    """Corner normals of a mesh whose vertices are split at texture seams: these are merged by position first.

    Returns:
        normals_F33: as `crease_normals`.
    """
    low, high = points_N3.min(axis=0), points_N3.max(axis=0)
    grid = np.round((points_N3 - low) / max(float(np.linalg.norm(high - low)), 1e-20) * 1e6).astype(np.int64)
    _, first, inverse = np.unique(grid, axis=0, return_index=True, return_inverse=True)
    return crease_normals(np.asarray(points_N3)[first], inverse.reshape(-1)[faces_F3])


def stretched(mesh: RenderMesh, factors_3: np.ndarray) -> RenderMesh:
    """Scale each axis by a factor; a negative factor mirrors the mesh.

    Args:
        factors_3: none of them 0.
    """
    factors_3 = np.asarray(factors_3, dtype=np.float32)
    normals_F33 = mesh.normals_F33 / factors_3
    normals_F33 /= np.maximum(np.linalg.norm(normals_F33, axis=-1, keepdims=True), 1e-12)
    changed = replace(mesh, points_F33=mesh.points_F33 * factors_3, normals_F33=normals_F33)
    if np.prod(factors_3) > 0:
        return changed
    # A mirrored face is seen from its inside, unless its corners go the other way round.
    corners = {name: getattr(changed, name) for name in PER_CORNER}
    return replace(changed, **{name: values[:, ::-1] for name, values in corners.items() if values is not None})


def turned(mesh: RenderMesh, rotation_33: np.ndarray) -> RenderMesh:
    """Turn a mesh about the origin."""
    turn = rotation_33.T.astype(np.float32)
    return replace(mesh, points_F33=mesh.points_F33 @ turn, normals_F33=mesh.normals_F33 @ turn)


def join(meshes: list[RenderMesh]) -> RenderMesh:
    """Put meshes into one; what only some of them have is filled up in the others. A shared texture is kept once."""
    numbers: dict[int, int] = {}
    textures: list[Texture] = []
    for texture in (texture for mesh in meshes for texture in mesh.textures):
        if id(texture) not in numbers:
            numbers[id(texture)] = len(textures)
            textures.append(texture)

    def filled(name: str, empty: Callable[[int], np.ndarray]) -> np.ndarray | None:
        parts = [getattr(mesh, name) for mesh in meshes]
        if all(part is None for part in parts):
            return None
        sizes = [len(mesh.points_F33) for mesh in meshes]
        return np.concatenate([empty(n) if part is None else part for part, n in zip(parts, sizes, strict=True)])

    def renumbered(name: str) -> np.ndarray | None:
        maps = [np.array([numbers[id(t)] for t in mesh.textures] + [-1], dtype=np.int32) for mesh in meshes]
        parts = [getattr(mesh, name) for mesh in meshes]
        if all(part is None for part in parts):
            return None
        sizes = [len(mesh.points_F33) for mesh in meshes]
        rows = zip(parts, maps, sizes, strict=True)
        return np.concatenate([np.full(n, -1, np.int32) if part is None else to[part] for part, to, n in rows])

    return RenderMesh(
        points_F33=np.concatenate([m.points_F33 for m in meshes]),
        normals_F33=np.concatenate([m.normals_F33 for m in meshes]),
        colors_F33=np.concatenate([m.colors_F33 for m in meshes]),
        uvs_F32=filled("uvs_F32", lambda n: np.zeros((n, 3, 2), np.float32)),
        texture_F=renumbered("texture_F"),
        textures=tuple(textures),
        opacities_F3=filled("opacities_F3", lambda n: np.ones((n, 3), np.float32)),
        cutoff_F=filled("cutoff_F", lambda n: np.zeros(n, np.float32)),
        lit_F=filled("lit_F", lambda n: np.ones(n, bool)),
        glow_F33=filled("glow_F33", lambda n: np.zeros((n, 3, 3), np.float32)),
        glow_uvs_F32=filled("glow_uvs_F32", lambda n: np.zeros((n, 3, 2), np.float32)),
        glow_texture_F=renumbered("glow_texture_F"),
    )
