"""Reads mesh files of all formats: what a file holds is decided here, before anything is drawn.

glTF is read by gltf_scene.py. trimesh parses the other formats; materials of .obj are read by obj.py, and what trimesh
does not know in .ply is renamed before.

Letters: F faces.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from datasets.meshes.companions import Companions
from datasets.meshes.gltf_scene import LARGEST_UV, read_gltf
from datasets.meshes.materials import Material, painted
from datasets.meshes.obj import KEY, MTL_NAME, ObjMaterial, prepare
from datasets.meshes.scene import (
    DEFAULT_ALBEDO,
    Y_UP_TO_Z_UP,
    EmptyMeshError,
    RenderMesh,
    Texture,
    join,
    seamless_normals,
    srgb_to_linear,
    turned,
)
from utils.errors import DataError, first_line

if TYPE_CHECKING:
    import trimesh

log = logging.getLogger(__name__)

# glTF is y-up by its specification, and so are nearly all exported .obj and .ply files; .stl comes from CAD, z-up.
UP_BY_SUFFIX = {".glb": "y", ".gltf": "y", ".obj": "y", ".ply": "y", ".off": "y", ".stl": "z"}
GLTF = (".glb", ".gltf")
# The colour that trimesh gives to meshes without colour; it is too dark.
TRIMESH_DEFAULT = 102
# The colour of the 2 x 2 image that trimesh uses if there are texture coordinates but no texture.
TRIMESH_NO_TEXTURE = 100
PLY_HEADER_BYTES = 1 << 16
PLY_NAMES = {b"diffuse_red": b"red", b"diffuse_green": b"green", b"diffuse_blue": b"blue", b"diffuse_alpha": b"alpha"}


def load_mesh(path: str | Path, *, up: str = "auto") -> RenderMesh:
    """Read a mesh file, and log a line for what is ignored or not found. See `read_mesh`."""
    files = Companions(Path(path))
    mesh = read_mesh(files, up=up)
    if files.notes:
        log.warning("%s: %s", path, "; ".join(files.notes))
    return mesh


def read_mesh(files: Companions, *, up: str = "auto") -> RenderMesh:
    """Read a mesh file; all its meshes become one.

    Args:
        files: names a .glb, .gltf, .obj, .ply, .stl, or another format that trimesh opens. The files that belong to it
            and notes on what is ignored or not found are added.
        up: up axis of the file, "y" or "z"; "auto" is y for .glb, .gltf, .obj, .ply and .off, and z for all others.

    Returns:
        The mesh with z up and, for a y-up file, its front (+z in glTF) along +x. Not normalised.

    Raises:
        DataError: the file is missing, is not a mesh, or needs something that is not read here.
        EmptyMeshError: it contains no triangles, or nothing of it can be seen.
    """
    path = files.path
    if up not in ("auto", "y", "z"):
        raise DataError(f"up must be auto, y or z, got {up!r}")
    if not path.is_file():
        raise DataError(f"{path}: no such file; name a .glb, .obj, .ply or .stl mesh")
    suffix = path.suffix.lower()
    try:
        content = path.read_bytes()
        if not content:
            raise DataError("the file is empty; copy or export it again")
        if content.startswith(b"version https://git-lfs"):
            raise DataError("is a Git LFS pointer, not the mesh itself; fetch it with `git lfs pull`")
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            is_gltf = suffix in GLTF or content[:4] == b"glTF"
            mesh = read_gltf(content, files) if is_gltf else _from_trimesh(content, suffix, files)
    except EmptyMeshError as err:
        raise EmptyMeshError(f"{path}: {err}") from err
    except DataError as err:
        raise DataError(f"{path}: {err}") from err
    except MemoryError as err:
        raise DataError(f"{path}: does not fit into memory; reduce it") from err
    except Exception as err:  # readers raise any exception of their parsers
        reason = f"{type(err).__name__}: {first_line(err)[:200]}"
        raise DataError(f"{path}: cannot be read as a mesh ({reason}); export it again as .glb") from err
    if up == "auto":
        up = UP_BY_SUFFIX.get(suffix, "z")
    return turned(mesh, Y_UP_TO_Z_UP) if up == "y" else mesh


def _from_trimesh(content: bytes, suffix: str, files: Companions) -> RenderMesh:
    """Read a format other than glTF."""
    import trimesh  # imported here, because training does not need it

    logging.getLogger("trimesh").setLevel(logging.CRITICAL)  # it logs tracebacks; what is lost is noted here
    materials: list[ObjMaterial] = []
    extra: dict[str, bytes] = {}
    if suffix == ".obj":
        prepared = prepare(content, files)
        content, materials, extra = prepared.content, prepared.materials, {MTL_NAME: prepared.mtl.encode()}
    elif suffix == ".ply":
        content = _plain_ply(content)
    resolver = _resolver(files, extra)
    try:
        scene = trimesh.load_scene(io.BytesIO(content), file_type=suffix[1:], resolver=resolver, process=False)
    except ImportError as err:
        raise DataError(
            f"{suffix} needs a package that is not installed ({first_line(err)}); export it as .glb"
        ) from err
    parts = [g for g in scene.dump() if isinstance(g, trimesh.Trimesh) and len(g.faces)]
    if not parts:
        raise EmptyMeshError("contains no triangles (it is a point cloud, or empty); export a triangle mesh")
    if not all(np.isfinite(np.asarray(g.vertices)[np.asarray(g.faces)]).all() for g in parts):
        raise DataError("some vertices are not finite; repair the mesh and export it again")
    meshes = [mesh for g in parts if (mesh := _painted(g, materials, files)) is not None]
    if not meshes:
        raise EmptyMeshError("everything in it is transparent, so nothing can be seen; correct the materials")
    return join(meshes)


def _resolver(files: Companions, extra: dict[str, bytes]) -> trimesh.resolvers.Resolver:
    """What trimesh asks for the files that a mesh names; `extra` are files that we wrote."""
    from PIL import Image
    from trimesh.resolvers import Resolver

    class Finder(Resolver):
        def __init__(self) -> None:
            """Nothing is kept: `files` keeps account."""

        def get(self, name: str) -> bytes:
            name = str(name).strip()
            if name in extra:
                return extra[name]
            pixels_HWC = files.picture(name)  # formats other than .obj name nothing but textures
            if pixels_HWC is None:
                raise FileNotFoundError(name)
            buffer = io.BytesIO()
            Image.fromarray(pixels_HWC).save(buffer, "PNG", compress_level=1)
            return buffer.getvalue()

        def keys(self) -> list[str]:
            return list(extra)

        def namespaced(self, namespace: str) -> Finder:
            return self

        def write(self, name: str, data: bytes) -> None:
            raise NotImplementedError("meshes are only read")

    return Finder()


def _plain_ply(content: bytes) -> bytes:
    """Rename the properties of a .ply that trimesh does not know; refuse one that holds Gaussians."""
    end = content.find(b"end_header", 0, PLY_HEADER_BYTES)
    if not content.startswith(b"ply") or end < 0:
        raise DataError("is no .ply file, or its header has no end; export it again")
    header = content[:end]
    properties = re.findall(rb"(?m)^property[ \t]+(?:list[ \t]+\w+[ \t]+)?\w+[ \t]+(\w+)[ \t]*\r?$", header)
    if {b"f_dc_0", b"opacity", b"rot_0"} <= set(properties):
        raise DataError("holds Gaussians, not a mesh; tools/export_gaussians.py converts them")
    if b"red" not in properties:
        for name, known in PLY_NAMES.items():
            header = re.sub(rb"(?m)\b" + name + rb"(?=[ \t]*\r?$)", known, header)
    return header + content[end:]


def _painted(geometry: trimesh.Trimesh, materials: list[ObjMaterial], files: Companions) -> RenderMesh | None:
    """The triangles of one geometry with their look."""
    faces_F3 = np.asarray(geometry.faces)
    visual = geometry.visual
    uv = getattr(visual, "uv", None)
    stored = getattr(visual, "material", None)
    material, uv_scale, uv_offset = _material(stored, materials)
    tints_F34 = None
    if stored is None and visual.kind in ("face", "vertex"):
        material = Material(color=(1.0, 1.0, 1.0))
        rgba = (
            visual.face_colors[:, None].repeat(3, axis=1) if visual.kind == "face" else visual.vertex_colors[faces_F3]
        )
        tints_F34 = srgb_to_linear(rgba / 255.0)
    textured = uv is not None and len(uv) == len(geometry.vertices) and bool((np.abs(uv) < LARGEST_UV).all())
    if material.texture is not None and not textured:
        files.note("a texture has no coordinates and is left out")
    uvs_F32 = (np.asarray(uv, np.float64) * uv_scale + uv_offset)[faces_F3] if textured else None
    return painted(
        np.asarray(geometry.triangles, dtype=np.float64),
        _normals(geometry, faces_F3),
        material,
        uvs_F32=uvs_F32,
        tints_F34=tints_F34,
    )


def _normals(geometry: trimesh.Trimesh, faces_F3: np.ndarray) -> np.ndarray:
    # Use the normals of the file if it has any; otherwise trimesh would smooth every edge.
    if "vertex_normals" in geometry._cache:
        normals = np.asarray(geometry.vertex_normals, dtype=np.float32)
        if normals.shape == geometry.vertices.shape and np.isfinite(normals).all():
            return normals[faces_F3]
    return seamless_normals(np.asarray(geometry.vertices), faces_F3)


def _material(
    stored: object, materials: list[ObjMaterial]
) -> tuple[Material, tuple[float, float], tuple[float, float]]:
    """A material of trimesh, and scale and offset of its texture's coordinates."""
    still = (1.0, 1.0), (0.0, 0.0)
    if stored is None:
        return Material(), *still
    own = getattr(stored, "kwargs", {}).get(KEY)
    if own:
        found = materials[int(own[0])]
        return found.material, found.scale, found.offset
    if hasattr(stored, "baseColorFactor"):
        image, factor = stored.baseColorTexture, stored.baseColorFactor
        color = np.ones(3) if factor is None else np.asarray(factor, dtype=np.float64)[:3]
        if factor is not None and np.asarray(factor).dtype == np.uint8:
            color = color / 255.0
    else:
        image = getattr(stored, "image", None)
        diffuse = np.asarray(stored.main_color)[:3]
        if (
            image is not None
            and image.size == (2, 2)
            and (np.asarray(image.convert("RGB")) == TRIMESH_NO_TEXTURE).all()
        ):
            image = None
        color = np.ones(3) if image is not None else srgb_to_linear(diffuse / 255.0)
        if image is None and (diffuse == TRIMESH_DEFAULT).all():
            color = np.full(3, DEFAULT_ALBEDO)
    texture = None if image is None else Texture(pixels_HWC=np.asarray(image.convert("RGB")))
    return Material(color=tuple(color.tolist()), texture=texture), *still
