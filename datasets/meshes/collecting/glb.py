"""Writes a mesh as one .glb file that any viewer opens.

Source: https://registry.khronos.org/glTF/specs/2.0/glTF-2.0.html. Letters: F faces, N vertices.
"""

from __future__ import annotations

import io
import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from datasets.meshes.scene import CLAMP, MIRROR, REPEAT, Y_UP_TO_Z_UP, RenderMesh, Texture, seamless_normals
from utils.files import atomic_path

WRAPS = {REPEAT: 10497, CLAMP: 33071, MIRROR: 33648}
ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963
FLOAT, UINT32, UINT16 = 5126, 5125, 5123
WIDTHS = {2: "VEC2", 3: "VEC3", 4: "VEC4"}
SAME_NORMAL = 0.02  # normals that differ by less are those that readers compute themselves
JPEG_QUALITY = 90


def write_glb(path: Path, mesh: RenderMesh, *, max_texture: int) -> None:
    """Write a mesh, y up as glTF has it, completely or not at all.

    Args:
        mesh: z up. Faces of one texture, opacity and light become one primitive.
        max_texture: longest side of a texture in pixels; larger ones are made smaller.

    Raises:
        WriteError: the disk is full.
    """
    glb = _Glb(max_texture)
    points_N3 = mesh.points_F33.reshape(-1, 3)
    computed_F33 = seamless_normals(points_N3, np.arange(len(points_N3)).reshape(-1, 3))
    same_F = np.abs(mesh.normals_F33 - computed_F33).max(axis=(1, 2)) < SAME_NORMAL
    primitives = [_primitive(glb, mesh, chosen_F, normals=not same_F[chosen_F].all()) for chosen_F in _groups(mesh)]
    glb.json["meshes"] = [{"primitives": primitives}]
    with atomic_path(path) as part:
        part.write_bytes(glb.content())


def _groups(mesh: RenderMesh) -> list[np.ndarray]:
    """Faces that share a material, as masks."""
    num_faces = len(mesh.points_F33)
    keys = [np.zeros(num_faces)]
    keys += [key for key in (mesh.texture_F, mesh.cutoff_F, mesh.lit_F, mesh.glow_texture_F) if key is not None]
    if mesh.opacities_F3 is not None:
        keys.append(_opaque_F(mesh))
    if mesh.glow_F33 is not None:
        keys += list(mesh.glow_F33.mean(axis=1).T)
    _, group_F = np.unique(np.stack([np.asarray(key, np.float64) for key in keys]), axis=1, return_inverse=True)
    return [group_F.reshape(-1) == number for number in range(int(group_F.max()) + 1)]


def _opaque_F(mesh: RenderMesh) -> np.ndarray:
    """Faces whose alpha has no influence."""
    opaque_F = (mesh.opacities_F3 >= 1.0).all(axis=1)
    if mesh.texture_F is None:
        return opaque_F
    clear = np.array([texture.alphas[0] < 1 for texture in mesh.textures] + [False])
    return opaque_F & ~clear[mesh.texture_F]


def _primitive(glb: _Glb, mesh: RenderMesh, chosen_F: np.ndarray, *, normals: bool) -> dict[str, Any]:
    """The faces of one group with their material; without normals if readers would compute the same ones."""
    first = int(np.flatnonzero(chosen_F)[0])
    material, clear = _material(glb, mesh, first)
    columns = {"POSITION": mesh.points_F33[chosen_F] @ Y_UP_TO_Z_UP}
    if normals:
        columns["NORMAL"] = mesh.normals_F33[chosen_F] @ Y_UP_TO_Z_UP
    textured = "baseColorTexture" in material["pbrMetallicRoughness"]
    if textured:
        columns["TEXCOORD_0"] = _flipped(mesh.uvs_F32[chosen_F])
    if "emissiveTexture" in material:
        name = "TEXCOORD_1" if textured else "TEXCOORD_0"
        material["emissiveTexture"]["texCoord"] = int(textured)
        columns[name] = _flipped(mesh.glow_uvs_F32[chosen_F])
    opacities_F3 = mesh.opacities_F3[chosen_F] if clear else np.ones(columns["POSITION"].shape[:2])
    rgba_F34 = np.concatenate([np.clip(mesh.colors_F33[chosen_F], 0, 1), opacities_F3[..., None]], axis=2)
    if np.ptp(rgba_F34.reshape(-1, 4), axis=0).max() < 1e-6:
        material["pbrMetallicRoughness"]["baseColorFactor"] = [round(float(v), 6) for v in rgba_F34[0, 0]]
    else:
        columns["COLOR_0"] = rgba_F34
    joined = np.concatenate([column.reshape(-1, column.shape[-1]) for column in columns.values()], axis=1)
    vertices, index = np.unique(joined.astype(np.float32), axis=0, return_inverse=True)
    attributes, start = {}, 0
    for name, column in columns.items():
        width = column.shape[-1]
        attributes[name] = glb.vertices(vertices[:, start : start + width], is_color=name == "COLOR_0")
        start += width
    return {
        "attributes": attributes,
        "indices": glb.indices(index.reshape(-1)),
        "material": glb.row("materials", material),
    }


def _flipped(uvs_F32: np.ndarray) -> np.ndarray:
    """Texture coordinates with the origin at the upper left, as glTF has it."""
    return uvs_F32 * [1, -1] + [0, 1]


def _material(glb: _Glb, mesh: RenderMesh, face: int) -> tuple[dict[str, Any], bool]:
    """The material of a face, without its colour, and whether alpha has an influence."""
    clear = mesh.opacities_F3 is not None and not _opaque_F(mesh)[face]
    surface: dict[str, Any] = {"metallicFactor": 0, "roughnessFactor": 1}
    material: dict[str, Any] = {"pbrMetallicRoughness": surface, "doubleSided": True}
    if mesh.texture_F is not None and mesh.texture_F[face] >= 0:
        texture = mesh.textures[mesh.texture_F[face]]
        surface["baseColorTexture"] = {"index": glb.texture(texture if clear else texture.opaque)}
    if clear and mesh.cutoff_F[face] > 0:
        material |= {"alphaMode": "MASK", "alphaCutoff": round(float(mesh.cutoff_F[face]), 6)}
    elif clear:
        material["alphaMode"] = "BLEND"
    if mesh.lit_F is not None and not mesh.lit_F[face]:
        material["extensions"] = {"KHR_materials_unlit": {}}
        glb.json["extensionsUsed"] = ["KHR_materials_unlit"]
    if mesh.glow_F33 is not None and mesh.glow_F33[face].max() > 0:
        material["emissiveFactor"] = [round(float(v), 6) for v in np.clip(mesh.glow_F33[face].mean(axis=0), 0, 1)]
        if mesh.glow_texture_F is not None and mesh.glow_texture_F[face] >= 0:
            material["emissiveTexture"] = {"index": glb.texture(mesh.textures[mesh.glow_texture_F[face]].opaque)}
    return material, clear


@dataclass
class _Glb:
    """A file that is put together part by part."""

    max_texture: int
    json: dict[str, Any] = field(
        default_factory=lambda: {
            "asset": {"version": "2.0", "generator": "VideoMV collect_meshes"},
            "scene": 0,
            "scenes": [{"nodes": [0]}],
            "nodes": [{"mesh": 0}],
        }
    )
    blob: bytearray = field(default_factory=bytearray)
    textures: dict[int, int] = field(default_factory=dict)
    kept: list[Texture] = field(default_factory=list)  # so that their ids are not used again

    def row(self, kind: str, row: dict[str, Any]) -> int:
        self.json.setdefault(kind, []).append(row)
        return len(self.json[kind]) - 1

    def view(self, content: bytes, **more: Any) -> int:
        self.blob += b"\0" * (-len(self.blob) % 4)
        at = {"buffer": 0, "byteOffset": len(self.blob), "byteLength": len(content)}
        self.blob += content
        return self.row("bufferViews", at | more)

    def vertices(self, values: np.ndarray, *, is_color: bool) -> int:
        """Positions and the like as floats, colours as 16 bits."""
        ends = {"min": values.min(axis=0).tolist(), "max": values.max(axis=0).tolist()}
        kind = {"componentType": FLOAT}
        if is_color:
            values, ends, kind = (
                np.round(values * 65535).astype("<u2"),
                {},
                {"componentType": UINT16, "normalized": True},
            )
        described = {"count": len(values), "type": WIDTHS[values.shape[1]], **kind, **ends}
        view = self.view(np.ascontiguousarray(values).tobytes(), target=ARRAY_BUFFER)
        return self.row("accessors", {"bufferView": view, **described})

    def indices(self, values: np.ndarray) -> int:
        kind, code = ("<u2", UINT16) if values.max() < 65535 else ("<u4", UINT32)
        view = self.view(values.astype(kind).tobytes(), target=ELEMENT_ARRAY_BUFFER)
        return self.row(
            "accessors", {"bufferView": view, "componentType": code, "count": len(values), "type": "SCALAR"}
        )

    def texture(self, texture: Texture) -> int:
        """A texture as JPEG, or as PNG where it has alpha or few pixels; once in the file."""
        if id(texture) not in self.textures:
            content, kind = _encoded(texture.pixels_HWC, self.max_texture)
            image = self.row("images", {"bufferView": self.view(content), "mimeType": kind})
            wrap_s, wrap_t = (WRAPS[wrap] for wrap in texture.wrap)
            sampler = self.row("samplers", {"wrapS": wrap_s, "wrapT": wrap_t})
            self.textures[id(texture)] = self.row("textures", {"source": image, "sampler": sampler})
            self.kept.append(texture)
        return self.textures[id(texture)]

    def content(self) -> bytes:
        self.blob += b"\0" * (-len(self.blob) % 4)
        self.json["buffers"] = [{"byteLength": len(self.blob)}]
        text = json.dumps(self.json, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 4)
        head = struct.pack("<4sII", b"glTF", 2, 28 + len(text) + len(self.blob))
        json_chunk = struct.pack("<I4s", len(text), b"JSON") + text
        return head + json_chunk + struct.pack("<I4s", len(self.blob), b"BIN\0") + self.blob


def _encoded(pixels_HWC: np.ndarray, max_side: int) -> tuple[bytes, str]:
    """A picture as JPEG or PNG, and its type."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(pixels_HWC))
    scale = max_side / max(image.size)
    if scale < 1:
        image = image.resize((max(round(image.width * scale), 1), max(round(image.height * scale), 1)), Image.BOX)
    buffer = io.BytesIO()
    if image.mode == "RGBA" or image.width * image.height <= 4096:
        image.save(buffer, "PNG", optimize=True)
        return buffer.getvalue(), "image/png"
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue(), "image/jpeg"
