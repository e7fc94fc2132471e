"""Reads and writes Gaussians as glTF (`.glb`) with KHR_gaussian_splatting, ratified by the Khronos Group.

A scene is a primitive of points, with opacities and scales as they are drawn, rotations with w last, and colours as
coefficients of spherical harmonics. Viewers without the extension show coloured points. glTF is y up with the front
along +z; the world of utils.cameras is z up with the front along +x. Both directions turn the object.

Source: https://github.com/KhronosGroup/glTF/tree/main/extensions/2.0/Khronos/KHR_gaussian_splatting.

Letters: N Gaussians, K coefficients of spherical harmonics.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.meshes.companions import Companions
from datasets.meshes.gltf import Gltf
from datasets.meshes.gltf_scene import local_transform
from datasets.meshes.scene import Y_UP_TO_Z_UP, srgb_to_linear
from models.gaussians.harmonics import NUM_COEFFICIENTS, SH_C0
from models.gaussians.scene import Gaussians
from models.gaussians.spz import turn_44
from utils.errors import DataError
from utils.files import atomic_path

log = logging.getLogger(__name__)

EXTENSION = "KHR_gaussian_splatting"
SRGB = "srgb_rec709_display"
POINTS, FLOAT, UBYTE, ARRAY_BUFFER = 0, 5126, 5121, 34962
WIDTHS = {1: "SCALAR", 3: "VEC3", 4: "VEC4"}
MAX_DEPTH = 64  # of nodes below each other
EQUAL_SCALES = 1e-3  # relative difference of the scales of a node's axes that is not noticed


def write_gltf(path: str | Path, gaussians: Gaussians) -> None:
    """Write one scene as `.glb`, completely or not at all.

    Raises:
        DataError: values that no rasteriser can draw.
    """
    scene = gaussians.for_file(path).moved(turn_44(Y_UP_TO_Z_UP.T))
    colors_N3, quats_N4 = scene.colors_BN3[0].numpy(), torch.nn.functional.normalize(scene.quats_BN4[0], dim=-1)
    linear_N3 = srgb_to_linear(colors_N3.clip(0, 1))
    rgba_N4 = np.concatenate([linear_N3, scene.opacities_BN1[0].numpy()], axis=1)
    columns = {
        "POSITION": scene.means_BN3[0].numpy(),
        "COLOR_0": np.round(255 * rgba_N4).astype(np.uint8),
        f"{EXTENSION}:ROTATION": quats_N4.roll(-1, dims=-1).numpy(),
        f"{EXTENSION}:SCALE": scene.scales_BN3[0].numpy(),
        f"{EXTENSION}:OPACITY": scene.opacities_BN1[0].numpy(),
        f"{EXTENSION}:SH_DEGREE_0_COEF_0": (colors_N3 - 0.5) / SH_C0,
    }
    for name, first in _coefficient_names(scene.degree).items():
        columns[name] = scene.harmonics_BNK3[0, :, first].numpy()
    path = Path(path)
    with atomic_path(path) as part:
        part.write_bytes(_glb(columns))


def _coefficient_names(degree: int) -> dict[str, int]:
    """The attribute of each coefficient beyond the constant one, and its index."""
    names = [(band, order) for band in range(1, degree + 1) for order in range(2 * band + 1)]
    return {f"{EXTENSION}:SH_DEGREE_{band}_COEF_{order}": index for index, (band, order) in enumerate(names)}


def _glb(columns: dict[str, np.ndarray]) -> bytes:
    """A file with one node of points, whose attributes are the columns."""
    accessors, views, chunks, start = [], [], [], 0
    for name, values in columns.items():
        values = np.ascontiguousarray(values, dtype=np.uint8 if values.dtype == np.uint8 else "<f4")
        content = values.tobytes()
        accessor = {
            "bufferView": len(views),
            "componentType": UBYTE if values.dtype == np.uint8 else FLOAT,
            "count": len(values),
            "type": WIDTHS[values.shape[1]],
        }
        if values.dtype == np.uint8:
            accessor["normalized"] = True
        if name == "POSITION":
            accessor |= {"min": values.min(axis=0).tolist(), "max": values.max(axis=0).tolist()}
        accessors.append(accessor)
        views.append({"buffer": 0, "byteOffset": start, "byteLength": len(content), "target": ARRAY_BUFFER})
        chunks.append(content)  # every row is a multiple of 4 bytes, as glTF requires
        start += len(content)
    primitive = {
        "attributes": {name: index for index, name in enumerate(columns)},
        "mode": POINTS,
        "extensions": {EXTENSION: {"kernel": "ellipse", "colorSpace": SRGB}},
    }
    document = {
        "asset": {"version": "2.0", "generator": "VideoMV-clean"},
        "extensionsUsed": [EXTENSION],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": "gaussians"}],
        "meshes": [{"primitives": [primitive]}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": start}],
    }
    text = json.dumps(document, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 4)
    body = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", start, b"BIN\0") + b"".join(chunks)
    return struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body


def read_gltf(path: str | Path) -> Gaussians:
    """Read the Gaussians of a `.glb` or `.gltf`, of all its nodes: a batch of one scene.

    Raises:
        DataError: the file is missing, broken, has no Gaussians, or has them in a way that is not read here.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; name a .glb file with Gaussians")
    files = Companions(path)
    try:
        gltf = Gltf(path.read_bytes(), files)
        parts = [_primitive(gltf, primitive, world_44) for primitive, world_44 in _placed(gltf)]
    except DataError as err:
        raise DataError(f"{path}: {err}") from err
    for note in files.notes:
        log.info("%s: %s", path, note)
    if not parts:
        raise DataError(f"{path}: it contains no Gaussians ({EXTENSION}); name a .glb file with Gaussians")
    scene = _joined(parts)
    scene.check_values(name=str(path), remedy="export it again")
    return scene.moved(turn_44(Y_UP_TO_Z_UP))


def _placed(gltf: Gltf) -> list[tuple[dict[str, Any], np.ndarray]]:
    """The primitives of Gaussians with the matrix of their node."""
    found = []

    def visit(index: Any, above_44: np.ndarray, depth: int) -> None:
        node = gltf.row("nodes", index)
        if depth > MAX_DEPTH:
            raise DataError(f"its nodes lie more than {MAX_DEPTH} below each other; export it again")
        world_44 = above_44 @ local_transform(node)
        for primitive in gltf.row("meshes", node["mesh"]).get("primitives", []) if "mesh" in node else []:
            if EXTENSION in primitive.get("extensions", {}):
                found.append((primitive, world_44))
        for child in node.get("children", []):
            visit(child, world_44, depth + 1)

    scenes = gltf.rows("scenes")
    roots = gltf.row("scenes", gltf.json.get("scene", 0)).get("nodes", []) if scenes else range(len(gltf.rows("nodes")))
    for root in roots:
        visit(root, np.eye(4), 0)
    return found


def _primitive(gltf: Gltf, primitive: dict[str, Any], world_44: np.ndarray) -> Gaussians:
    """The Gaussians of one primitive, y up, where its node places them."""
    facts, attributes = primitive["extensions"][EXTENSION], primitive.get("attributes", {})
    if more := sorted(facts.get("extensions", {})):
        raise DataError(f"its Gaussians need the extension {', '.join(more)}, which is not read here; leave it out")
    for name, known in (("kernel", "ellipse"), ("colorSpace", SRGB)):
        if facts.get(name) != known:
            raise DataError(f"its Gaussians have {name} {facts.get(name)}, but {known} is read; export it so")

    def column(name: str) -> Tensor:
        if name not in attributes:
            raise DataError(f"its Gaussians have no attribute {name}; export it again")
        return torch.from_numpy(np.ascontiguousarray(gltf.accessor(attributes[name])))[None]

    degree = max(degree for degree in range(4) if f"{EXTENSION}:SH_DEGREE_{degree}_COEF_0" in attributes or not degree)
    rest = [column(name) for name in _coefficient_names(degree)]
    assert len(rest) == NUM_COEFFICIENTS.get(degree, 0)
    scale, turn_33 = _scale_and_turn(world_44)
    colors_1N3 = column(f"{EXTENSION}:SH_DEGREE_0_COEF_0") * SH_C0 + 0.5
    scene = Gaussians(
        means_BN3=column("POSITION") * scale,
        opacities_BN1=column(f"{EXTENSION}:OPACITY"),
        scales_BN3=column(f"{EXTENSION}:SCALE").clamp_min(1e-9) * scale,
        quats_BN4=torch.nn.functional.normalize(column(f"{EXTENSION}:ROTATION").roll(1, dims=-1), dim=-1),
        colors_BN3=colors_1N3 if rest else colors_1N3.clamp(0, 1),
        harmonics_BNK3=torch.stack(rest, dim=2) if rest else None,
    )
    place_44 = turn_44(turn_33)
    place_44[:3, 3] = torch.from_numpy(world_44[:3, 3].copy())
    return scene.moved(place_44)


def _scale_and_turn(world_44: np.ndarray) -> tuple[float, np.ndarray]:
    """Split a node's matrix into one scale and a rotation."""
    scales_3 = np.linalg.norm(world_44[:3, :3], axis=0)
    scale = float(scales_3.mean())
    if not scale > 0 or np.ptp(scales_3) > EQUAL_SCALES * scale or np.linalg.det(world_44[:3, :3]) <= 0:
        raise DataError("a node of its Gaussians has unequal or negative scales; apply them, and export it again")
    return scale, world_44[:3, :3] / scale


def _joined(parts: list[Gaussians]) -> Gaussians:
    """All Gaussians in one scene; those of a lower degree get coefficients of zero."""
    num = max(NUM_COEFFICIENTS.get(part.degree, 0) for part in parts)
    if num:
        parts = [dataclasses.replace(part, harmonics_BNK3=_padded(part, num)) for part in parts]
    names = parts[0].tensors()
    return Gaussians(**{name: torch.cat([part.tensors()[name] for part in parts], dim=1) for name in names})


def _padded(part: Gaussians, num: int) -> Tensor:
    full_BNK3 = part.means_BN3.new_zeros(1, part.means_BN3.shape[1], num, 3)
    if part.harmonics_BNK3 is not None:
        full_BNK3[:, :, : part.harmonics_BNK3.shape[2]] = part.harmonics_BNK3
    return full_BNK3
