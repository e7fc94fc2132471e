"""Prepares meshes for rendering: a list of triangles with normals, colours and textures.

Letters: F faces, N points. World units; z is up after loading.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from utils.errors import DataError

if TYPE_CHECKING:
    import trimesh

DEFAULT_ALBEDO = 0.7
# The colour that trimesh gives to meshes without colour; it is too dark.
TRIMESH_DEFAULT = 102
# The colour of the 2 x 2 image that trimesh uses if there are texture coordinates but no texture.
TRIMESH_NO_TEXTURE = 100
CREASE_DEG = 40.0
# glTF is y-up by its specification, and so are nearly all exported .obj and .ply files; .stl comes from CAD, z-up.
UP_BY_SUFFIX = {".glb": "y", ".gltf": "y", ".obj": "y", ".ply": "y", ".off": "y", ".stl": "z"}
# Rows are the new axes: the front of glTF (+z) becomes +x, the side of view 0, and its up axis (+y) becomes +z.
Y_UP_TO_Z_UP = np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]], dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class RenderMesh:
    """Triangles with all data that a renderer needs, per corner.

    points_F33, normals_F33: corner positions and unit normals, z-up.
    colors_F33: linear RGB in [0, 1]; multiplied with the texture if there is one.
    uvs_F32: texture coordinates, origin at the lower left, repeating.
    texture_F: index into `textures`, -1 for none.
    textures: sRGB images as uint8 (height, width, 3).
    """

    points_F33: np.ndarray
    normals_F33: np.ndarray
    colors_F33: np.ndarray
    uvs_F32: np.ndarray | None = None
    texture_F: np.ndarray | None = None
    textures: tuple[np.ndarray, ...] = field(default=())

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
        DataError: the mesh has no size.
    """
    low, high = mesh.bounds_23
    side = float((high - low).max())
    if not np.isfinite(side) or side <= 0.0:
        raise DataError("the mesh has no size: all its points coincide or are not finite")
    return replace(mesh, points_F33=((mesh.points_F33 - (low + high) / 2) / side).astype(np.float32))


def load_mesh(path: str | Path, *, up: str = "auto") -> RenderMesh:
    """Read any mesh file that trimesh opens; all geometries of a scene become one mesh.

    Args:
        path: .glb, .gltf, .obj, .ply, .stl, ...
        up: up axis of the file, "y" or "z"; "auto" is y for .glb, .gltf, .obj, .ply and .off, and z for all others.

    Returns:
        The mesh with z up and, for a y-up file, its front (+z in glTF) along +x. Not normalised.

    Raises:
        DataError: the file is missing, is not a mesh, or contains no triangles.
    """
    import trimesh  # imported here, because training does not need it

    path = Path(path)
    if up not in ("auto", "y", "z"):
        raise DataError(f"up must be auto, y or z, got {up!r}")
    if not path.is_file():
        raise DataError(f"{path}: no such file; name a .glb, .obj, .ply or .stl mesh")
    try:
        scene = trimesh.load_scene(path)
    except Exception as err:  # the readers of trimesh raise any exception of their parsers
        reason = f"{type(err).__name__}: {err}"
        raise DataError(f"{path}: cannot be read as a mesh ({reason}); export it again as .glb") from err
    for geometry in scene.geometry.values():
        # trimesh keeps the COLOR_0 of a glTF mesh with a material here, and forgets it when it copies the mesh
        tint = getattr(getattr(geometry, "visual", None), "vertex_attributes", {}).get("color")
        if tint is not None:
            geometry.vertex_attributes["color"] = tint
    parts = [g for g in scene.dump() if isinstance(g, trimesh.Trimesh) and len(g.faces)]
    if not parts:
        raise DataError(f"{path}: contains no triangles (it is a point cloud, or empty); export a triangle mesh")
    if not all(np.isfinite(g.vertices).all() for g in parts):
        raise DataError(f"{path}: some vertices are not finite; repair the mesh and export it again")
    mesh = _join([_from_trimesh(g) for g in parts])
    if up == "auto":
        up = UP_BY_SUFFIX.get(path.suffix.lower(), "z")
    return _turned(mesh, Y_UP_TO_Z_UP) if up == "y" else mesh


def _turned(mesh: RenderMesh, rotation_33: np.ndarray) -> RenderMesh:
    turn = rotation_33.T.astype(np.float32)
    return replace(mesh, points_F33=mesh.points_F33 @ turn, normals_F33=mesh.normals_F33 @ turn)


def _from_trimesh(geometry: trimesh.Trimesh) -> RenderMesh:
    faces_F3 = np.asarray(geometry.faces)
    visual = geometry.visual
    uv = getattr(visual, "uv", None)
    material = getattr(visual, "material", None)
    factor, texture = _material(material)
    colors_F33 = np.broadcast_to(factor, (len(faces_F3), 3, 3)).copy()
    if material is None and visual.kind == "face":
        colors_F33 = np.repeat(srgb_to_linear(visual.face_colors[:, None, :3] / 255.0), 3, axis=1)
    elif material is None and visual.kind == "vertex":
        colors_F33 = srgb_to_linear(visual.vertex_colors[:, :3] / 255.0)[faces_F3]
    elif "color" in geometry.vertex_attributes:
        tint = np.asarray(geometry.vertex_attributes["color"])[:, :3]
        scale = 255.0 if tint.dtype == np.uint8 else 65535.0 if tint.dtype == np.uint16 else 1.0
        colors_F33 *= (tint / scale).astype(np.float32)[faces_F3]  # glTF's COLOR_0 is linear
    textured = texture is not None and uv is not None and len(uv) == len(geometry.vertices)
    return RenderMesh(
        points_F33=np.asarray(geometry.triangles, dtype=np.float64),
        normals_F33=_normals(geometry, faces_F3),
        colors_F33=colors_F33.astype(np.float32),
        uvs_F32=np.asarray(uv, dtype=np.float32)[faces_F3] if textured else None,
        textures=(texture,) if textured else (),
    )


def _normals(geometry: trimesh.Trimesh, faces_F3: np.ndarray) -> np.ndarray:
    # Use the normals of the file if it has any; otherwise trimesh would smooth every edge.
    if "vertex_normals" in geometry._cache:
        normals = np.asarray(geometry.vertex_normals, dtype=np.float32)
        if normals.shape == geometry.vertices.shape and np.isfinite(normals).all():
            return normals[faces_F3]
    # Texture seams split vertices; merge these by position, so that the seams are invisible.
    grid = np.round((geometry.vertices - geometry.bounds[0]) / max(float(geometry.scale), 1e-20) * 1e6).astype(np.int64)
    _, first, inverse = np.unique(grid, axis=0, return_index=True, return_inverse=True)
    return crease_normals(np.asarray(geometry.vertices)[first], inverse.reshape(-1)[faces_F3])


def _material(material: object) -> tuple[np.ndarray, np.ndarray | None]:
    """Linear base colour (3,) and the sRGB base colour texture, if there is one."""
    if material is None:
        return np.full(3, DEFAULT_ALBEDO, dtype=np.float32), None
    if hasattr(material, "baseColorFactor"):
        image = material.baseColorTexture
        factor = material.baseColorFactor
        # trimesh keeps the (linear) glTF factor as 8 bit numbers
        color = np.ones(3) if factor is None else np.asarray(factor, dtype=np.float64)[:3]
        if factor is not None and np.asarray(factor).dtype == np.uint8:
            color = color / 255.0
    else:
        image = getattr(material, "image", None)
        diffuse = np.asarray(material.main_color)[:3]
        if (
            image is not None
            and image.size == (2, 2)
            and (np.asarray(image.convert("RGB")) == TRIMESH_NO_TEXTURE).all()
        ):
            image = None
        color = np.ones(3) if image is not None else srgb_to_linear(diffuse / 255.0)
        if image is None and (diffuse == TRIMESH_DEFAULT).all():
            color = np.full(3, DEFAULT_ALBEDO)
    texture = None if image is None else np.asarray(image.convert("RGB"))
    return np.asarray(color, dtype=np.float32), texture


def _join(meshes: list[RenderMesh]) -> RenderMesh:
    textures: list[np.ndarray] = []
    uvs, texture_ids = [], []
    for mesh in meshes:
        num_faces = len(mesh.points_F33)
        uvs.append(mesh.uvs_F32 if mesh.textures else np.zeros((num_faces, 3, 2), dtype=np.float32))
        texture_ids.append(np.full(num_faces, len(textures) if mesh.textures else -1, dtype=np.int32))
        textures.extend(mesh.textures)
    return RenderMesh(
        points_F33=np.concatenate([m.points_F33 for m in meshes]),
        normals_F33=np.concatenate([m.normals_F33 for m in meshes]),
        colors_F33=np.concatenate([m.colors_F33 for m in meshes]),
        uvs_F32=np.concatenate(uvs) if textures else None,
        texture_F=np.concatenate(texture_ids) if textures else None,
        textures=tuple(textures),
    )
