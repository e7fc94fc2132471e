"""What a surface looks like, for every file format: colour, texture, opacity and own light.

Letters: F faces.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from datasets.meshes.scene import DEFAULT_ALBEDO, RenderMesh, Texture

# Less than half a step of 8 bits: such a face cannot be seen.
INVISIBLE = 0.5 / 255


@dataclass(frozen=True, kw_only=True, eq=False)
class Material:
    """The look of a surface.

    Attributes:
        color: linear RGB, multiplied with the texture.
        opacity: in [0, 1], multiplied with the texture's alpha.
        cutoff: None for an opaque surface, which ignores all alpha; 0 for a blended one; else the opacity from which
            the surface is there.
        texture: of colour and alpha.
        glow: linear RGB that is added after lighting, multiplied with `glow_texture`.
        lit: whether light has an influence on the colour.
    """

    color: tuple[float, float, float] = (DEFAULT_ALBEDO, DEFAULT_ALBEDO, DEFAULT_ALBEDO)
    opacity: float = 1.0
    cutoff: float | None = None
    texture: Texture | None = None
    glow: tuple[float, float, float] = (0.0, 0.0, 0.0)
    glow_texture: Texture | None = None
    lit: bool = True


def painted(
    points_F33: np.ndarray,
    normals_F33: np.ndarray,
    material: Material,
    *,
    uvs_F32: np.ndarray | None = None,
    glow_uvs_F32: np.ndarray | None = None,
    tints_F34: np.ndarray | None = None,
) -> RenderMesh | None:
    """Give triangles the look of a material.

    Args:
        uvs_F32, glow_uvs_F32: coordinates of the two textures; a texture without coordinates is left out.
        tints_F34: linear RGB and opacity per corner, multiplied with the material's.

    Returns:
        The mesh without the faces that are invisible everywhere; None if no face is left.
    """
    num_faces = len(points_F33)
    colors_F33 = np.broadcast_to(np.asarray(material.color, np.float32), (num_faces, 3, 3))
    if tints_F34 is not None:
        colors_F33 = colors_F33 * tints_F34[..., :3]
    texture = material.texture if uvs_F32 is not None else None
    mesh = RenderMesh(
        points_F33=points_F33,
        normals_F33=normals_F33.astype(np.float32),
        colors_F33=np.ascontiguousarray(np.clip(colors_F33, 0, None), dtype=np.float32),
    )
    mesh, seen_F, texture = _with_opacity(mesh, material, texture, tints_F34)
    if texture is not None:
        mesh = replace(
            mesh, textures=(texture,), texture_F=np.zeros(num_faces, np.int32), uvs_F32=uvs_F32.astype(np.float32)
        )
    if max(material.glow) > 0:
        glow_F33 = np.broadcast_to(np.asarray(material.glow, np.float32), (num_faces, 3, 3)).copy()
        mesh = replace(mesh, glow_F33=glow_F33)
        if material.glow_texture is not None and glow_uvs_F32 is not None:
            mesh = replace(
                mesh,
                glow_uvs_F32=glow_uvs_F32.astype(np.float32),
                glow_texture_F=np.full(num_faces, len(mesh.textures), np.int32),
                textures=(*mesh.textures, material.glow_texture),
            )
    if not material.lit:
        mesh = replace(mesh, lit_F=np.zeros(num_faces, bool))
    if seen_F is None or seen_F.all():
        return mesh
    return _only(mesh, seen_F) if seen_F.any() else None


def _with_opacity(
    mesh: RenderMesh, material: Material, texture: Texture | None, tints_F34: np.ndarray | None
) -> tuple[RenderMesh, np.ndarray | None, Texture | None]:
    """The mesh with its opacity, which faces can be seen (None for all), and the texture as it is used."""
    plain = None if texture is None else texture.opaque
    if material.cutoff is None:
        return mesh, None, plain
    lowest, highest = (1.0, 1.0) if texture is None else texture.alphas
    opacities_F3 = np.full((len(mesh.points_F33), 3), material.opacity, np.float32)
    if tints_F34 is not None:
        opacities_F3 *= tints_F34[..., 3]
    opacities_F3 = np.clip(opacities_F3, 0, 1)
    seen_F = opacities_F3.max(axis=1) * highest >= max(material.cutoff, INVISIBLE)
    if len(opacities_F3) and opacities_F3.min() * lowest >= (material.cutoff or 1.0 - INVISIBLE):
        return mesh, seen_F, plain
    mesh = replace(mesh, opacities_F3=opacities_F3, cutoff_F=np.full(len(opacities_F3), material.cutoff, np.float32))
    return mesh, seen_F, texture


def _only(mesh: RenderMesh, chosen_F: np.ndarray) -> RenderMesh:
    names = [name for name, value in vars(mesh).items() if name != "textures" and value is not None]
    return replace(mesh, **{name: vars(mesh)[name][chosen_F] for name in names})
