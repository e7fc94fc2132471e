"""Reads the data of a glTF 2.0 file: its JSON, buffers, accessors and pictures. gltf_scene.py makes meshes of them.

Source: https://registry.khronos.org/glTF/specs/2.0/glTF-2.0.html and the extensions named below.
"""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np

from datasets.meshes.companions import Companions
from utils.errors import DataError, first_line

COMPONENTS = {5120: np.int8, 5121: np.uint8, 5122: np.int16, 5123: np.uint16, 5125: np.uint32, 5126: np.float32}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
MAX_VALUES = 1 << 28
DRACO = "KHR_draco_mesh_compression"
MESHOPT = ("EXT_meshopt_compression", "KHR_meshopt_compression")
INSTANCING = "EXT_mesh_gpu_instancing"
# What these say is used, or has no influence on what is drawn here: diffuse colour in the light of renderer.py.
HANDLED = {
    DRACO, INSTANCING, "KHR_mesh_quantization", "KHR_texture_transform", "KHR_node_visibility", "EXT_texture_webp",
    "EXT_texture_avif", "MSFT_texture_dds", "KHR_materials_unlit", "KHR_materials_emissive_strength",
    "KHR_materials_pbrSpecularGlossiness", "KHR_materials_variants", "KHR_materials_ior", "KHR_materials_specular",
    "KHR_materials_clearcoat", "KHR_materials_sheen", "KHR_materials_iridescence", "KHR_materials_anisotropy",
    "KHR_materials_dispersion", "KHR_materials_volume", "KHR_lights_punctual", "KHR_animation_pointer", "KHR_xmp",
    "KHR_xmp_json_ld", "EXT_lights_image_based", "EXT_lights_ies", "KHR_gaussian_splatting",
}  # fmt: skip
REMEDIES = {
    "KHR_texture_basisu": "its textures are KTX2; export it with PNG or JPEG textures",
    **dict.fromkeys(MESHOPT, "its data are compressed by meshopt; export it without compression"),
}


class Gltf:
    """The content of a .glb or .gltf file."""

    def __init__(self, content: bytes, files: Companions) -> None:
        """Read the JSON and check which extensions it needs.

        Raises:
            DataError: the container or the JSON is broken, or an extension is required that is not read here.
        """
        self.files = files
        self.json, self._binary = _split(content)
        self._buffers: dict[int, bytes] = {}
        self._accessors: dict[tuple[int, bool], np.ndarray] = {}
        self._pictures: dict[int, np.ndarray | None] = {}
        self._check_version_and_extensions()

    def _check_version_and_extensions(self) -> None:
        version = str(self.json.get("asset", {}).get("version", "2.0"))
        if not version.startswith("2."):
            raise DataError(f"its glTF version is {version[:20]}, but 2.0 is read; export it again as glTF 2.0")
        unknown = [name for name in self.rows("extensionsRequired", of=str) if name not in HANDLED]
        if unknown:
            raise DataError(
                f"needs the extension {', '.join(unknown)}, which is not read here: "
                + REMEDIES.get(unknown[0], "export it without this extension")
            )
        ignored = [name for name in self.rows("extensionsUsed", of=str) if name not in HANDLED]
        ignored = [name for name in ignored if name not in REMEDIES]  # these have a substitute, or are noted by part
        if ignored:
            self.files.note(f"extension {', '.join(ignored)} is ignored")

    def rows(self, kind: str, *, of: type = dict) -> list[Any]:
        """The list `kind` of the JSON, such as `nodes`; an empty list if it is not there."""
        rows = self.json.get(kind, [])
        if not isinstance(rows, list) or not all(isinstance(row, of) for row in rows):
            raise DataError(f"its JSON is wrong: {kind} is no list of {of.__name__}; export it again")
        return rows

    def row(self, kind: str, index: Any) -> dict[str, Any]:
        """Entry `index` of the list `kind`.

        Raises:
            DataError: there is no such entry.
        """
        rows = self.rows(kind)
        if type(index) is not int or not 0 <= index < len(rows):
            raise DataError(f"names entry {index} of {kind}, but there are {len(rows)}; export it again")
        return rows[index]

    def buffer(self, index: Any) -> bytes:
        """The bytes of a buffer."""
        buffer = self.row("buffers", index)
        if index in self._buffers:
            return self._buffers[index]
        uri = buffer.get("uri")
        if uri is None:
            if index != 0 or self._binary is None:
                raise DataError(f"its buffer {index} has no content; export it again without compression")
            content = self._binary
        else:
            found = self.files.content(str(uri))
            if found is None:
                raise DataError(f"its buffer {self.files.why_missing(str(uri))}; put it beside the mesh")
            content = found
        self._buffers[index] = content
        return content

    def view(self, index: Any) -> tuple[bytes, int | None]:
        """The bytes of a buffer view, and the distance of its rows if it names one."""
        view = self.row("bufferViews", index)
        compressed = [name for name in MESHOPT if name in view.get("extensions", {})]
        without = "uri" not in self.row("buffers", view.get("buffer"))
        if compressed and without and (view["buffer"] != 0 or self._binary is None):  # no copy without compression
            raise DataError(f"needs the extension {compressed[0]}, which is not read here: {REMEDIES[compressed[0]]}")
        content = self.buffer(view.get("buffer"))
        start, length = view.get("byteOffset", 0), view.get("byteLength")
        if type(start) is not int or type(length) is not int or start < 0 or length < 0:
            raise DataError(f"its bufferView {index} has a wrong offset or length; export it again")
        if start + length > len(content):
            raise DataError(
                f"is truncated: bufferView {index} ends at byte {start + length}, but the buffer has {len(content)}; "
                "copy or export it again"
            )
        return content[start : start + length], view.get("byteStride")

    def accessor(self, index: Any, *, whole: bool = False) -> np.ndarray:
        """The rows of an accessor.

        Args:
            whole: leave integers as they are, for indices; otherwise they become float32, normalised where the file
                says so.

        Returns:
            (count, components).

        Raises:
            DataError: it lies outside its buffer, or its description is wrong.
        """
        if (index, whole) not in self._accessors:
            accessor = self.row("accessors", index)
            kind, width = COMPONENTS.get(accessor.get("componentType")), WIDTHS.get(accessor.get("type"))
            count = accessor.get("count")
            if kind is None or width is None or type(count) is not int or not 0 <= count * width <= MAX_VALUES:
                raise DataError(f"its accessor {index} has a wrong type or count; export it again")
            if accessor.get("bufferView") is None:
                values = np.zeros((count, width), kind)
            else:
                values = self._strided(accessor, count, width, kind, name=f"accessor {index}")
            if "sparse" in accessor:
                values = self._with_sparse(accessor["sparse"], values, name=f"accessor {index}")
            self._accessors[index, whole] = values if whole else as_float(values, bool(accessor.get("normalized")))
        return self._accessors[index, whole]

    def _strided(self, part: dict[str, Any], count: int, width: int, kind: type, *, name: str) -> np.ndarray:
        """Rows of numbers in a buffer view; a view on its bytes, with the distance of rows that it names."""
        content, stride = self.view(part["bufferView"])
        dtype = np.dtype(kind).newbyteorder("<")
        start, row = part.get("byteOffset", 0), width * dtype.itemsize
        stride = row if not stride else stride
        if type(start) is not int or type(stride) is not int or start < 0 or stride < row:
            raise DataError(f"its {name} has a wrong offset or stride; export it again")
        if count and start + (count - 1) * stride + row > len(content):
            raise DataError(f"is truncated: {name} reaches beyond its bufferView; copy or export it again")
        if not count:
            return np.zeros((0, width), kind)
        return np.ndarray((count, width), dtype, buffer=content, offset=start, strides=(stride, dtype.itemsize))

    def _with_sparse(self, sparse: dict[str, Any], values: np.ndarray, *, name: str) -> np.ndarray:
        count, indices = sparse["count"], sparse["indices"]
        if type(count) is not int or not 0 <= count <= len(values):
            raise DataError(f"its sparse {name} has a wrong count; export it again")
        kind = COMPONENTS.get(indices.get("componentType"))
        if kind not in (np.uint8, np.uint16, np.uint32):
            raise DataError(f"its sparse {name} has a wrong type of indices; export it again")
        rows = self._strided(indices, count, 1, kind, name=name)[:, 0]
        if count and rows.max() >= len(values):
            raise DataError(f"its sparse {name} has an index out of range; export it again")
        values = values.copy()
        values[rows] = self._strided(sparse["values"], count, values.shape[1], values.dtype.type, name=name)
        return values

    def picture(self, index: Any) -> np.ndarray | None:
        """The pixels of an image, as Companions.picture; None, and a note, if it cannot be read."""
        image = self.row("images", index)
        if index not in self._pictures:
            name = str(image.get("uri") or image.get("name") or f"number {index}")
            if "bufferView" in image:
                self._pictures[index] = self.files.picture(name, content=self.view(image["bufferView"])[0])
            elif "uri" in image:
                self._pictures[index] = self.files.picture(str(image["uri"]))
            else:
                self.files.note(f"texture {name} has no content")
                self._pictures[index] = None
        return self._pictures[index]

    def draco(self, part: dict[str, Any]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Decode the attributes and indices of a compressed primitive.

        Raises:
            DataError: the package DracoPy is not installed, or the data are broken.
        """
        try:
            import DracoPy  # an extra, see pyproject.toml
        except ImportError as err:
            raise DataError(
                f"needs the extension {DRACO}: its data are compressed by Draco; "
                "`pip install DracoPy`, or export it without compression"
            ) from err
        try:
            decoded = DracoPy.decode(self.view(part["bufferView"])[0])
            by_id = {row["unique_id"]: row["data"] for row in decoded.attributes}
            found = {name: np.asarray(by_id[ident]) for name, ident in part["attributes"].items()}
            return found, np.asarray(decoded.faces, dtype=np.int64).reshape(-1)
        except DataError:
            raise
        except Exception as err:  # the decoder raises any exception
            raise DataError(f"its Draco data are broken ({first_line(err)[:80]}); export it again") from err


def as_float(values: np.ndarray, normalised: bool) -> np.ndarray:
    """Numbers of an accessor as float32; normalised integers become [0, 1] or [-1, 1]."""
    if values.dtype.kind == "f":
        return values.astype(np.float32)
    if not normalised:
        return values.astype(np.float32)
    return np.maximum(values.astype(np.float32) / np.iinfo(values.dtype).max, -1.0)


def _split(content: bytes) -> tuple[dict[str, Any], bytes | None]:
    """The JSON and the binary chunk of a .glb, or the JSON of a .gltf; the content decides, not the file's name."""
    binary = None
    text = content
    if content[:4] == b"glTF":
        if len(content) < 20:
            raise DataError("is truncated: its header has no end; copy or export it again")
        (version,) = struct.unpack("<I", content[4:8])
        if version != 2:
            raise DataError(f"its glTF version is {version}, but 2 is read; export it again as glTF 2.0")
        chunks = list(_chunks(content))
        text = next((data for kind, data in chunks if kind == b"JSON"), b"")
        binary = next((data for kind, data in chunks if kind == b"BIN\0"), None)
    try:
        document = json.loads(text.decode("utf-8-sig").rstrip("\0"))
    except (ValueError, RecursionError) as err:
        raise DataError(f"is no glTF: its JSON is broken ({first_line(err)[:80]}); export it again") from err
    if not isinstance(document, dict) or not isinstance(document.get("asset", {}), dict):
        raise DataError("is no glTF: its JSON is no object with an asset; export it again")
    return document, binary


def _chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    chunks, start = [], 12
    while start + 8 <= len(content):
        (length,) = struct.unpack("<I", content[start : start + 4])
        if start + 8 + length > len(content):
            raise DataError("is truncated: its last chunk has no end; copy or export it again")
        chunks.append((content[start + 4 : start + 8], content[start + 8 : start + 8 + length]))
        start += 8 + length
    return chunks
