"""Materials and textures of a glTF file, and the coordinates that its textures use.

Source: https://registry.khronos.org/glTF/specs/2.0/glTF-2.0.html#materials.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from datasets.meshes.gltf import Gltf
from datasets.meshes.materials import Material
from datasets.meshes.scene import CLAMP, MIRROR, REPEAT, Texture
from utils.errors import DataError

BRIGHTEST = 1e4  # far beyond white
WRAPS = {33071: CLAMP, 33648: MIRROR, 10497: REPEAT}
TRANSMISSION = ("KHR_materials_transmission", "KHR_materials_diffuse_transmission")
# the extensions whose textures Pillow reads
TEXTURE_EXTENSIONS = ("EXT_texture_webp", "EXT_texture_avif", "MSFT_texture_dds")


@dataclass(frozen=True, kw_only=True, eq=False)
class Mapping:
    """How a texture lies on a surface: `TEXCOORD_<texcoord>`, turned and shifted by `transform_33` (v downwards)."""

    texcoord: int
    transform_33: np.ndarray

    def uvs(self, stored_N2: np.ndarray) -> np.ndarray:
        """Coordinates with the origin at the lower left, from those of the file."""
        moved = stored_N2.astype(np.float64) @ self.transform_33[:2, :2].T + self.transform_33[:2, 2]
        return np.stack([moved[:, 0], 1.0 - moved[:, 1]], axis=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Look:
    """A material and how its two textures lie."""

    material: Material
    mapping: Mapping | None = None
    glow_mapping: Mapping | None = None


class Materials:
    """Reads the materials of one file, each once."""

    def __init__(self, gltf: Gltf) -> None:
        self.gltf = gltf
        self._looks: dict[Any, Look] = {}
        self._textures: dict[tuple[int, tuple[str, str]], Texture | None] = {}

    def look(self, index: Any, *, tinted: bool) -> Look:
        """Material `index`; without one, the default grey, or white where vertices have colours."""
        if index is None:
            return Look(material=Material(color=(1.0, 1.0, 1.0)) if tinted else Material())
        if index not in self._looks:
            self._looks[index] = self._read(self.gltf.row("materials", index))
        return self._looks[index]

    def _read(self, stored: dict[str, Any]) -> Look:
        extensions = stored.get("extensions", {})
        if any(name in extensions for name in TRANSMISSION):
            self.gltf.files.note("glass (KHR_materials_transmission) is drawn opaque")
        part, names = stored.get("pbrMetallicRoughness", {}), ("baseColorFactor", "baseColorTexture")
        if "KHR_materials_pbrSpecularGlossiness" in extensions:
            part, names = extensions["KHR_materials_pbrSpecularGlossiness"], ("diffuseFactor", "diffuseTexture")
        factors = numbers(part.get(names[0], [1.0, 1.0, 1.0, 1.0]), 4, name=names[0])
        *color, opacity = (min(max(value, 0.0), 1.0) for value in factors)
        texture, mapping = self._texture(part.get(names[1]))
        glow_texture, glow_mapping = None, None
        strength = extensions.get("KHR_materials_emissive_strength", {}).get("emissiveStrength", 1.0)
        factor = numbers([strength], 1, name="emissiveStrength")[0]
        glow = numbers(stored.get("emissiveFactor", [0.0] * 3), 3, name="emissiveFactor")
        glow = tuple(min(factor * value, BRIGHTEST) for value in glow)
        if max(glow) > 0 and "emissiveTexture" in stored:
            glow_texture, glow_mapping = self._texture(stored["emissiveTexture"])
            if glow_texture is None:  # its factor is usually white and alone would hide the colour
                glow = (0.0, 0.0, 0.0)
        mode = stored.get("alphaMode", "OPAQUE")
        if mode not in ("OPAQUE", "MASK", "BLEND"):
            self.gltf.files.note(f"alphaMode {str(mode)[:20]} is unknown, so the material is opaque")
        cutoff = {"MASK": stored.get("alphaCutoff", 0.5), "BLEND": 0.0}.get(mode)
        if mode == "MASK":  # a cutoff of 0 cuts nothing out; in Material, 0 stands for blending
            cutoff = numbers([cutoff], 1, name="alphaCutoff")[0]
            cutoff = cutoff if cutoff > 0 else None
        material = Material(
            color=tuple(color), opacity=opacity, cutoff=cutoff, texture=texture, glow=glow,
            glow_texture=None if glow_texture is None else glow_texture.opaque,
            lit="KHR_materials_unlit" not in extensions,
        )  # fmt: skip
        return Look(material=material, mapping=mapping, glow_mapping=glow_mapping)

    def _texture(self, use: Any) -> tuple[Texture | None, Mapping | None]:
        """The texture that a material uses, and how it lies; (None, None) if there is none or it cannot be read."""
        if use is None:
            return None, None
        stored = self.gltf.row("textures", use.get("index"))
        wrap = (REPEAT, REPEAT)
        if "sampler" in stored:
            sampler = self.gltf.row("samplers", stored["sampler"])
            wrap = tuple(WRAPS.get(sampler.get(name, 10497), REPEAT) for name in ("wrapS", "wrapT"))
        key = (use["index"], wrap)
        if key not in self._textures:
            pixels_HWC = self._pixels(stored)
            self._textures[key] = None if pixels_HWC is None else Texture(pixels_HWC=pixels_HWC, wrap=wrap)
        transform = use.get("extensions", {}).get("KHR_texture_transform", {})
        texcoord = transform.get("texCoord", use.get("texCoord", 0))
        return self._textures[key], Mapping(texcoord=texcoord, transform_33=texture_transform(transform))

    def _pixels(self, stored: dict[str, Any]) -> np.ndarray | None:
        extensions = stored.get("extensions", {})
        sources = [extensions[name].get("source") for name in TEXTURE_EXTENSIONS if name in extensions]
        sources += [stored["source"]] if "source" in stored else []
        if not sources and "KHR_texture_basisu" in extensions:
            sources = [extensions["KHR_texture_basisu"].get("source")]
        if not sources:
            self.gltf.files.note("a texture without picture is left out")
            return None
        return next((found for found in map(self.gltf.picture, sources) if found is not None), None)


def numbers(values: Any, count: int, *, name: str) -> list[float]:
    """Check that a value of the JSON is a list of finite numbers.

    Raises:
        DataError: it is not.
    """
    good = isinstance(values, list) and len(values) == count
    if not good or not all(type(v) in (int, float) and math.isfinite(v) for v in values):
        raise DataError(f"its JSON is wrong: {name} is not {count} finite numbers; export it again")
    return [float(value) for value in values]


def texture_transform(transform: dict[str, Any]) -> np.ndarray:
    """The (3, 3) matrix of KHR_texture_transform, for coordinates with v downwards."""
    x, y = numbers(transform.get("offset", [0.0, 0.0]), 2, name="the texture's offset")
    u, v = numbers(transform.get("scale", [1.0, 1.0]), 2, name="the texture's scale")
    (angle,) = numbers([transform.get("rotation", 0.0)], 1, name="the texture's rotation")
    cos, sin = math.cos(angle), math.sin(angle)
    # The extension's own order: translation x rotation x scale, with rotation [[c, s], [-s, c]].
    return np.array([[cos * u, sin * v, x], [-sin * u, cos * v, y], [0.0, 0.0, 1.0]])


def without_texture(look: Look, *, base: bool, glow: bool) -> Look:
    """Leave out textures that have no coordinates on a primitive."""
    material = look.material
    if base:
        material = replace(material, texture=None)
    if glow:
        material = replace(material, glow=(0.0, 0.0, 0.0), glow_texture=None)
    return replace(look, material=material)
