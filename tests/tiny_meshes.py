"""Small mesh files for tests, written by hand: glTF with everything that it can hold, and a textured .obj."""

from __future__ import annotations

import base64
import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)
TYPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}
COMPONENTS = {"b": 5120, "B": 5121, "h": 5122, "H": 5123, "I": 5125, "f": 5126}
CORNERS = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)


def box() -> dict[str, np.ndarray]:
    """A cube of side 1: 24 points with normals and texture coordinates (each side has the whole picture)."""
    points, normals, faces = [], [], []
    for axis in range(3):
        for sign in (-1.0, 1.0):
            u, v = np.eye(3)[(axis + 1) % 3], np.eye(3)[(axis + 2) % 3]
            normal = sign * np.eye(3)[axis]
            first, second = (u, v) if sign > 0 else (v, u)
            faces += [[len(points) + k for k in row] for row in ((0, 1, 2), (0, 2, 3))]
            points += [0.5 * normal + (a - 0.5) * first + (b - 0.5) * second for a, b in CORNERS]
            normals += [normal] * 4
    return {
        "POSITION": np.array(points, np.float32),
        "NORMAL": np.array(normals, np.float32),
        "TEXCOORD_0": np.tile(CORNERS * [1, -1] + [0, 1], (6, 1)).astype(np.float32),
        "indices": np.array(faces, np.uint16).reshape(-1),
    }


def card() -> dict[str, np.ndarray]:
    """A square of side 2 that faces the front (+z)."""
    return {
        "POSITION": np.concatenate([CORNERS * 2 - 1, np.zeros((4, 1))], axis=1).astype(np.float32),
        "NORMAL": np.tile([0, 0, 1], (4, 1)).astype(np.float32),
        "TEXCOORD_0": (CORNERS * [1, -1] + [0, 1]).astype(np.float32),
        "indices": np.array([0, 1, 2, 0, 2, 3], np.uint16),
    }


def png(pixels: Any, mode: str | None = None) -> bytes:
    """Pixels as a PNG."""
    buffer = io.BytesIO()
    pixels = np.asarray(pixels)
    image = Image.fromarray(pixels if pixels.dtype == np.uint16 else pixels.astype(np.uint8))
    (image.convert(mode) if mode else image).save(buffer, "PNG")
    return buffer.getvalue()


def flat_png(color: tuple[int, ...], size: int = 4) -> bytes:
    """A PNG of one colour."""
    return png(np.tile(np.array(color, np.uint8), (size, size, 1)))


class Glb:
    """A glTF file that is put together part by part; `json` may be changed in any way before it is written."""

    def __init__(self) -> None:
        self.json: dict[str, Any] = {"asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": []}]}
        self.blob = b""

    def row(self, kind: str, row: dict[str, Any]) -> int:
        self.json.setdefault(kind, []).append(row)
        return len(self.json[kind]) - 1

    def view(self, content: bytes) -> int:
        self.blob += b"\0" * (-len(self.blob) % 4)
        at = {"buffer": 0, "byteOffset": len(self.blob), "byteLength": len(content)}
        self.blob += content
        return self.row("bufferViews", at)

    def accessor(self, values: np.ndarray, **more: Any) -> int:
        values = np.ascontiguousarray(values)
        width = 1 if values.ndim == 1 else int(np.prod(values.shape[1:]))
        described = {"componentType": COMPONENTS[values.dtype.char], "count": len(values), "type": TYPES[width]}
        return self.row("accessors", {"bufferView": self.view(values.tobytes()), **described, **more})

    def texture(self, picture: bytes, **more: Any) -> int:
        image = self.row("images", {"bufferView": self.view(picture), "mimeType": "image/png"})
        return self.row("textures", {"source": image, **more})

    def material(self, color: Any = None, *, texture: Any = None, **more: Any) -> int:
        base: dict[str, Any] = {"metallicFactor": 0}
        if color is not None:
            base["baseColorFactor"] = [*color] if len(color) == 4 else [*color, 1]
        if texture is not None:
            base["baseColorTexture"] = texture if isinstance(texture, dict) else {"index": texture}
        return self.row("materials", {"pbrMetallicRoughness": base, **more})

    def mesh(self, shape: dict[str, np.ndarray], material: int | None = None, **more: Any) -> int:
        stored = {name: self.accessor(values) for name, values in shape.items()}
        primitive: dict[str, Any] = {"attributes": {k: v for k, v in stored.items() if k != "indices"}}
        primitive |= {"indices": stored["indices"]} if "indices" in stored else {}
        primitive |= {"material": material} if material is not None else {}
        return self.row("meshes", {"primitives": [primitive | more]})

    def node(self, mesh: int | None = None, **more: Any) -> int:
        node = self.row("nodes", ({} if mesh is None else {"mesh": mesh}) | more)
        self.json["scenes"][0]["nodes"].append(node)
        return node

    def primitive(self, mesh: int = 0) -> dict[str, Any]:
        return self.json["meshes"][mesh]["primitives"][0]

    def bytes(self) -> bytes:
        return glb_bytes(self.json | {"buffers": [{"byteLength": len(self.blob)}]}, self.blob)

    def write(self, path: Path) -> Path:
        path.write_bytes(self.bytes())
        return path

    def write_gltf(self, path: Path, *, uri: str | None = None) -> Path:
        """Write it as .gltf; without `uri` the buffer is a data URI."""
        uri = uri or "data:application/octet-stream;base64," + base64.b64encode(self.blob).decode()
        path.write_text(json.dumps(self.json | {"buffers": [{"byteLength": len(self.blob), "uri": uri}]}))
        return path


def glb_bytes(document: Any, blob: bytes) -> bytes:
    """A .glb of JSON (an object, or bytes that are taken as they are) and a buffer."""
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    blob += b"\0" * (-len(blob) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(blob), b"BIN\0") + blob
    return b"glTF" + struct.pack("<II", 2, 12 + len(chunks)) + chunks


def box_glb(color: Any = (1, 0, 0), **more: Any) -> Glb:
    """A box of one colour."""
    glb = Glb()
    glb.node(glb.mesh(box(), glb.material(color, **more)))
    return glb


def textured_box(picture: bytes, *, use: dict[str, Any] | None = None, texture: dict[str, Any] | None = None) -> Glb:
    """A box with a texture; `use` is added where the material names it, `texture` to the texture."""
    glb = Glb()
    index = glb.texture(picture, **(texture or {}))
    glb.node(glb.mesh(box(), glb.material(texture={"index": index, **(use or {})})))
    return glb


def obj_text(mtl: str | None = "m.mtl", *, material: str = "skin") -> str:
    """A textured box as .obj."""
    shape = box()
    lines = [f"mtllib {mtl}"] if mtl else []
    lines += ["v {:g} {:g} {:g}".format(*row) for row in shape["POSITION"]]
    lines += [f"vt {u:g} {1 - v:g}" for u, v in shape["TEXCOORD_0"]]
    lines += [f"usemtl {material}"]
    lines += ["f " + " ".join(f"{k + 1}/{k + 1}" for k in row) for row in shape["indices"].reshape(-1, 3).tolist()]
    return "\n".join(lines) + "\n"


def write_obj(path: Path, mtl_line: str, *, texture: Path | None = None, color: tuple[int, ...] = GREEN) -> Path:
    """Write the textured box, `m.mtl` with this `map_Kd` line, and the texture if it has a path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(obj_text())
    (path.parent / "m.mtl").write_text(f"newmtl skin\nKd 1 1 1\n{mtl_line}\n")
    if texture is not None:
        texture.parent.mkdir(parents=True, exist_ok=True)
        texture.write_bytes(flat_png(color))
    return path
