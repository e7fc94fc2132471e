"""Convert the Gaussians or the surface of an object to a coloured triangle mesh in a `.glb` file.

The file is y-up with the object's front along +z, as glTF requires; the world frame of the project is z-up. The colours
already contain the light of the views. Therefore the material is marked as unlit (KHR_materials_unlit, which viewers
may ignore).

Letters: N points, F faces.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
import torch
import trimesh

from datasets.meshes.scene import Y_UP_TO_Z_UP, srgb_to_linear
from models.gaussians.scene import Gaussians
from pipelines.assets.depth_maps import DepthMaps, render_depth_maps
from pipelines.assets.surface import Surface, extract_surface
from pipelines.assets.texture import bake, colors_at
from utils.files import atomic_path
from utils.settings.assets import AssetOptions

UNLIT = "KHR_materials_unlit"
# For a texture of 1,024 pixels on an idle core: Pillow took 0.061 s and 0.95 MB with level 1 of zlib, and 0.221 s and
# 0.78 MB with level 6; OpenCV takes 0.035 s and 0.94 MB with these.
PNG_OPTIONS = (cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP)


def write_glb(path: Path, gaussians: Gaussians, options: AssetOptions, *, rasterizer: str = "auto") -> dict[str, Any]:
    """Write one scene as a mesh, completely or not at all.

    Args:
        rasterizer: see models.gaussians.rendering.

    Returns:
        Facts that are also in the file: faces, parts, whether it is watertight, and if not, the reason.

    Raises:
        DataError: there is no surface, or it cannot be unwrapped.
    """
    views = render_depth_maps(
        gaussians,
        num_views=options.mesh_views,
        size=options.mesh_view_size,
        lowest_deg=options.mesh_lowest_deg,
        rasterizer=rasterizer,
    )
    return write_surface(path, extract_surface(views, grid=options.grid, num_faces=options.faces), views, options)


def write_surface(
    path: Path,
    surface: Surface,
    views: DepthMaps,
    options: AssetOptions,
    *,
    pictures: DepthMaps | None = None,
    to_world_44: np.ndarray | None = None,
) -> dict[str, Any]:
    """Colour a surface and write it, see `write_glb`.

    Args:
        views: renders of the object from all directions.
        pictures: true views of the object, see `pipelines.assets.texture.colors_at`.
        to_world_44: similarity from the frame of the surface to the world, for column vectors; None: they are one.
    """
    closed = trimesh.Trimesh(surface.points_N3, surface.faces_F3, process=False)
    facts = describe(closed)
    mesh = _textured(closed, views, pictures, options.texture) if options.texture else _colored(closed, views, pictures)
    if options.texture:
        facts["note"] = "points are duplicated at texture seams; these facts apply after merging points by position"
    mesh.metadata.update(facts)
    mesh.apply_transform(_to_y_up() if to_world_44 is None else _to_y_up() @ to_world_44)
    with atomic_path(path) as part:
        scene = trimesh.Scene({"object": mesh})
        mark = _mark_unlit if options.unlit else None
        part.write_bytes(trimesh.exchange.gltf.export_glb(scene, include_normals=True, tree_postprocessor=mark))
    return facts


def describe(mesh: trimesh.Trimesh) -> dict[str, Any]:
    """Return facts about a mesh that matter for its use."""
    facts: dict[str, Any] = {"faces": len(mesh.faces), "parts": int(mesh.body_count)}
    facts["watertight"] = bool(mesh.is_watertight)
    if not mesh.is_watertight:
        edges, counts = np.unique(mesh.edges_sorted, axis=0, return_counts=True)
        facts["why_not_watertight"] = (
            f"simplification left {int((counts == 1).sum())} open edges and {int((counts > 2).sum())} edges with more "
            "than two faces; increase assets.faces to avoid them"
        )
    return facts


def _textured(mesh: trimesh.Trimesh, views: DepthMaps, pictures: DepthMaps | None, size: int) -> trimesh.Trimesh:
    texture = bake(mesh.vertices, mesh.faces, mesh.vertex_normals, views, size=size, pictures=pictures)
    material = _material(baseColorTexture=_Png(texture.image_HW3))
    return trimesh.Trimesh(
        texture.points_N3,
        texture.faces_F3,
        vertex_normals=mesh.vertex_normals[texture.source_N],
        visual=trimesh.visual.TextureVisuals(uv=texture.uvs_N2, material=material),
        process=False,
    )


class _Png:
    """A picture that trimesh writes as it is; for a picture of Pillow it would choose the slow options itself."""

    format = "PNG"

    def __init__(self, image_HW3: np.ndarray) -> None:
        self.content = cv2.imencode(".png", np.ascontiguousarray(image_HW3[..., ::-1]), PNG_OPTIONS)[1].tobytes()

    def save(self, file: BinaryIO, format: str) -> None:
        assert format.upper() == self.format
        file.write(self.content)


def _colored(mesh: trimesh.Trimesh, views: DepthMaps, pictures: DepthMaps | None) -> trimesh.Trimesh:
    points_N3, normals_N3 = (torch.from_numpy(np.array(values)) for values in (mesh.vertices, mesh.vertex_normals))
    # glTF's COLOR_0 is linear
    colors_N3 = srgb_to_linear(colors_at(points_N3, normals_N3, views, pictures=pictures))
    rgba_N4 = np.concatenate([colors_N3, np.ones_like(colors_N3[:, :1])], axis=1)
    visual = trimesh.visual.TextureVisuals(material=_material())
    visual.vertex_attributes["color"] = np.round(255 * rgba_N4).astype(np.uint8)
    return trimesh.Trimesh(mesh.vertices, mesh.faces, vertex_normals=mesh.vertex_normals, visual=visual, process=False)


def _material(**options: Any) -> trimesh.visual.material.PBRMaterial:
    return trimesh.visual.material.PBRMaterial(name="object", metallicFactor=0.0, roughnessFactor=1.0, **options)


def _to_y_up() -> np.ndarray:
    """Return the matrix from the z-up world frame to the y-up frame of glTF, for column vectors."""
    matrix = np.eye(4)
    matrix[:3, :3] = Y_UP_TO_Z_UP.T
    return matrix


def _mark_unlit(tree: dict[str, Any]) -> None:
    tree["extensionsUsed"] = [*tree.get("extensionsUsed", []), UNLIT]
    for material in tree["materials"]:
        material["extensions"] = {**material.get("extensions", {}), UNLIT: {}}
