"""Prepares an .obj file for the parser of trimesh: materials are read here, and what it gets wrong is rewritten.

trimesh reads one material file, names without spaces before a texture's name, counts relative indices from the file's
end, and divides concave polygons as if they were convex. Source: the Wavefront OBJ and MTL descriptions, http://paulbourke.net/dataformats/mtl/.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

import numpy as np

from datasets.meshes.companions import Companions
from datasets.meshes.materials import Material
from datasets.meshes.polygons import divide_concave_polygons
from datasets.meshes.scene import CLAMP, DEFAULT_ALBEDO, REPEAT, Texture, srgb_to_linear
from utils.errors import DataError

# How many values may follow an option of a texture's line; -o, -s and -t have one to three.
OPTIONS = {
    "-blendu": 1, "-blendv": 1, "-boost": 1, "-mm": 2, "-o": 3, "-s": 3, "-t": 3, "-texres": 1, "-clamp": 1,
    "-bm": 1, "-imfchan": 1, "-type": 1, "-cc": 1, "-colorspace": 1,
}  # fmt: skip
KEY = "videomv_material"  # names our own material in the text that trimesh reads
MTL_NAME = "materials of this file"


@dataclass(frozen=True, kw_only=True, eq=False)
class ObjMaterial:
    """A material, and scale and offset of its texture's coordinates."""

    material: Material
    scale: tuple[float, float] = (1.0, 1.0)
    offset: tuple[float, float] = (0.0, 0.0)


@dataclass
class ObjText:
    """What trimesh reads of an .obj: its text and a material file; `materials` by the number that stands after KEY."""

    content: bytes
    mtl: str = ""
    materials: list[ObjMaterial] = field(default_factory=list)


def prepare(content: bytes, files: Companions) -> ObjText:
    """Read the materials of an .obj and rewrite its text.

    What is not found is noted in `files`.

    Raises:
        DataError: the text is UTF-16, or a face has an index that is not allowed.
    """
    if content[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in content[:4096]:
        raise DataError("is no UTF-8 text; save it as UTF-8 or export it again")
    content = b"\n" + content.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n") + b"\n"
    content = content.replace(b"\\\n", b" ")
    if b"\n " in content or b"\n\t" in content:
        content = re.sub(rb"\n[ \t]+", b"\n", content)
    names = [_text(line).strip() for line in re.findall(rb"\nmtllib[ \t]+([^\n]*)", content)]
    used = dict.fromkeys(_text(line).strip() for line in re.findall(rb"\nusemtl[ \t]+([^\n]*)", content))
    materials: dict[str, ObjMaterial] = {}
    for name in dict.fromkeys(names):
        materials |= _read_library(name, files)
    if used and not names:
        files.note(f"material {', '.join(list(used)[:3])} is named, but no material file (mtllib)")
    content = re.sub(rb"\nmtllib\b[^\n]*", b"", divide_concave_polygons(_without_relative_indices(content)))
    out = ObjText(content=b"mtllib " + MTL_NAME.encode())
    lowered = {name.lower(): material for name, material in materials.items()}
    lost: list[str] = []
    numbers: dict[str, int] = {}  # trimesh gets numbers for names, which may have spaces or any encoding
    for name in used:
        found = materials.get(name, lowered.get(name.lower()))
        if found is None:
            lost.append(name)
            continue
        numbers[name] = len(out.materials)
        out.mtl += f"newmtl m{numbers[name]}\n{KEY} {numbers[name]}\n"
        out.materials.append(found)
    if lost and materials:
        files.note(f"material {', '.join(lost[:3])}{' ...' * (len(lost) > 3)} is in no material file")
    out.content += re.sub(
        rb"\nusemtl[ \t]+([^\n]*)",
        lambda line: b"\nusemtl m%d" % numbers.get(_text(line[1]).strip(), -1),
        content,
    )
    return out


def _read_library(name: str, files: Companions) -> dict[str, ObjMaterial]:
    """The materials of one `mtllib` line, which names one file with spaces, or several."""
    missing = len(files.missing)
    content = files.content(name)
    if content is None and " " in name:
        del files.missing[missing:]
        found: dict[str, ObjMaterial] = {}
        for one in name.split():
            found |= _read_library(one, files)
        return found
    if content is None:
        files.note(f"material file {files.why_missing(name)}")
        return {}
    return parse_mtl(_text(content), files)


def parse_mtl(text: str, files: Companions) -> dict[str, ObjMaterial]:
    """The materials of an .mtl file by name."""
    blocks: dict[str, dict[str, str]] = {}
    block: dict[str, str] = {}
    for line in text.removeprefix("\ufeff").replace("\\\n", " ").splitlines():
        key, _, value = line.strip().replace("\t", " ").partition(" ")
        if key.lower() == "newmtl":
            block = blocks.setdefault(value.strip(), {})
        elif key and not key.startswith("#"):
            block[key.lower()] = value.strip()
    return {name: _material(block, files) for name, block in blocks.items()}


def _material(block: dict[str, str], files: Companions) -> ObjMaterial:
    diffuse = _numbers(block.get("kd", ""))
    opacity = _numbers(block.get("d", "").replace("-halo", ""))
    if not opacity and (clear := _numbers(block.get("tr", ""))):
        # Tr is 1 - d, but many programs write Tr 1 for what is opaque
        opacity = [1.0 if clear[0] >= 1 else 1.0 - clear[0]]
    alpha = min(max(opacity[0], 0.0), 1.0) if opacity else 1.0
    kd = tuple(float(v) for v in srgb_to_linear(np.clip((diffuse * 3)[:3], 0, 1))) if diffuse else None
    texture, scale, offset = _texture(block.get("map_kd", ""), files)
    if texture is not None and (mask := block.get("map_d", "")):
        texture = _masked(texture, mask, files)
    color = (DEFAULT_ALBEDO,) * 3 if kd is None else kd
    if texture is not None:
        color = (1.0, 1.0, 1.0)  # as trimesh and most viewers: Kd beside a texture is often black or grey
    glow = [v for v in (_numbers(block.get("ke", "")) * 3)[:3]]
    glow_color = (
        tuple(float(v) for v in srgb_to_linear(np.clip(glow, 0, 1))) if max(glow, default=0) > 0 else (0.0,) * 3
    )
    clear = alpha < 1.0 or (texture is not None and texture.pixels_HWC.shape[2] == 4 and texture.alphas[0] < 1)
    material = Material(color=color, opacity=alpha, cutoff=0.0 if clear else None, texture=texture, glow=glow_color)
    return ObjMaterial(material=material, scale=scale, offset=offset)


def _texture(line: str, files: Companions) -> tuple[Texture | None, tuple[float, float], tuple[float, float]]:
    """The texture of a `map_Kd` line, and scale and offset of its coordinates."""
    scale, offset, wrap, rest = [1.0, 1.0], [0.0, 0.0], REPEAT, line.strip()
    while match := re.match(r"(-\w+)\s+", rest):
        option = match[1].lower()
        if option not in OPTIONS:
            break
        rest = rest[match.end() :]
        values: list[str] = []
        while len(values) < OPTIONS[option] and (word := re.match(r"(\S+)\s+", rest)):
            if values and not _numbers(word[1]):
                break
            values.append(word[1])
            rest = rest[word.end() :]
        found = [float(v) for text in values for v in _numbers(text)]
        if option == "-s" and found:
            scale = [*found, 1.0][:2]
        elif option == "-o" and found:
            offset = [*found, 0.0][:2]
        elif option == "-clamp" and values and values[0].lower() == "on":
            wrap = CLAMP
    if not rest:
        return None, (1.0, 1.0), (0.0, 0.0)
    pixels_HWC = files.picture(rest)
    texture = None if pixels_HWC is None else Texture(pixels_HWC=pixels_HWC, wrap=(wrap, wrap))
    return texture, (scale[0], scale[1]), (offset[0], offset[1])


def _masked(texture: Texture, line: str, files: Companions) -> Texture:
    """A texture with the opacity of a `map_d` line: the alpha of its picture, or its grey values."""
    mask, _, _ = _texture(line, files)
    if mask is None:
        return texture
    import cv2

    pixels_HWC = mask.pixels_HWC
    alpha_HW = pixels_HWC[..., 3] if pixels_HWC.shape[2] == 4 else pixels_HWC[..., 0]
    height, width = texture.pixels_HWC.shape[:2]
    if alpha_HW.shape != (height, width):
        alpha_HW = cv2.resize(alpha_HW, (width, height), interpolation=cv2.INTER_AREA)
    return replace(texture, pixels_HWC=np.dstack([texture.pixels_HWC[..., :3], alpha_HW]))


def _numbers(text: str) -> list[float]:
    """The finite numbers at the start of a text."""
    found = []
    for word in text.split():
        try:
            value = float(word)
        except ValueError:
            break
        if not np.isfinite(value):
            break
        found.append(value)
    return found


def _without_relative_indices(content: bytes) -> bytes:
    """Count vertices as the file does: -1 is the last one before the face. Index 0 is an error."""
    faces = b"".join(re.findall(rb"\nf[ \t][^\n#]*", content)) + b"\n"
    if re.search(rb"[ \t/]0+[ \t/\n]", faces):
        raise DataError("a face names vertex 0, but .obj counts from 1; repair the mesh and export it again")
    if b"-" not in faces:
        return content
    counts = {b"v": 0, b"vt": 0, b"vn": 0}
    kinds = (b"v", b"vt", b"vn")
    lines = content.split(b"\n")
    for number, line in enumerate(lines):
        words = line.split()
        if not words:
            continue
        if words[0] in counts:
            counts[words[0]] += 1
        elif words[0] == b"f":
            corners = [
                b"/".join(_absolute(part, counts[kind]) for part, kind in zip(word.split(b"/"), kinds, strict=False))
                for word in words[1:]
            ]
            lines[number] = b" ".join([b"f", *corners])
    return b"\n".join(lines)


def _absolute(part: bytes, count: int) -> bytes:
    if not part.startswith(b"-"):
        return part
    try:
        index = count + int(part) + 1
    except ValueError as err:
        raise DataError(f"a face has the index {part[:20]!r}; repair the mesh and export it again") from err
    if index < 1:
        raise DataError(f"a face names vertex {part.decode()} of {count}; repair the mesh and export it again")
    return str(index).encode()


def _text(content: bytes) -> str:
    """UTF-8, or else Latin-1, in which every byte is a character."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")
