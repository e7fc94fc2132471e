"""Reads and writes Gaussians in the two file formats of 3D Gaussian viewers and editors.

`.ply` contains every Gaussian, in the format of the first implementation of arXiv:2308.04079: binary little endian
float32, colour as the constant spherical harmonic, opacity before the sigmoid, scales before the exponential, rotation
as a unit quaternion, w first. `.splat` is the 32-byte format of web viewers: most important Gaussians first, without
invisible ones.

Positions are in the world of utils.cameras (z up), like the cameras in transforms.json of a run.

Letters: N Gaussians.
"""

from __future__ import annotations

import itertools
import logging
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from models.gaussians.scene import OTHER_GAUSSIANS, Gaussians
from utils.errors import DataError
from utils.files import atomic_path

log = logging.getLogger(__name__)

SH_C0 = 0.28209479177387814  # the constant spherical harmonic, 1 / (2 sqrt(pi))
# sigmoid(±13.8): the logits in the file stay finite if an opacity is 0 or 1
OPACITY_EDGE = 1e-6
SMALLEST_SCALE = 1e-9
POSITIONS, NORMALS, COLORS = ("x", "y", "z"), ("nx", "ny", "nz"), ("f_dc_0", "f_dc_1", "f_dc_2")
SCALES, QUATS = ("scale_0", "scale_1", "scale_2"), ("rot_0", "rot_1", "rot_2", "rot_3")
PROPERTIES = (*POSITIONS, *NORMALS, *COLORS, "opacity", *SCALES, *QUATS)
NEEDED = tuple(name for name in PROPERTIES if name not in NORMALS)
# Numbers beyond these bounds were not written in this format; training stays far within them.
LARGEST = {"opacity": 100.0} | dict.fromkeys(SCALES, 25.0) | dict.fromkeys(COLORS, 1e3) | dict.fromkeys(POSITIONS, 1e6)
COMMENT = "Gaussians of VideoMV-clean; world z up, the frame of transforms.json"
HEADER_BYTES = 1 << 16
PLY_TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4",
    "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4",
    "float32": "f4", "float64": "f8",
}  # fmt: skip
SPLAT = np.dtype([("position", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("quat", "u1", 4)])


def write_ply(path: str | Path, gaussians: Gaussians) -> None:
    """Write one scene as `.ply`, completely or not at all.

    Quaternions whose length is not one are replaced by a true rotation and scales with the same covariance, because
    viewers normalise quaternions.

    Raises:
        DataError: values that no rasteriser can draw.
    """
    scene = _one_scene(gaussians, path)
    opacity = scene.opacities_BN1[0].double().clamp(OPACITY_EDGE, 1 - OPACITY_EDGE)
    columns = [
        scene.means_BN3[0],
        torch.zeros_like(scene.means_BN3[0]),
        (scene.colors_BN3[0] - 0.5) / SH_C0,
        opacity.logit(),
        scene.scales_BN3[0].clamp_min(SMALLEST_SCALE).log(),
        scene.quats_BN4[0],
    ]
    rows = torch.cat([column.double() for column in columns], dim=1).numpy().astype("<f4")
    lines = ["ply", "format binary_little_endian 1.0", f"comment {COMMENT}", f"element vertex {len(rows)}"]
    lines += [f"property float {name}" for name in PROPERTIES] + ["end_header", ""]
    with atomic_path(path) as part, part.open("wb") as file:
        file.write("\n".join(lines).encode("ascii"))
        file.write(rows.tobytes())


def read_ply(path: str | Path) -> Gaussians:
    """Read a `.ply` of Gaussians, from this project or another program: a batch of one scene.

    View-dependent colour (f_rest) and further properties are ignored; colours are clamped to [0, 1], as in viewers.

    Raises:
        DataError: the file is missing, truncated, not a .ply, or a mesh or point cloud; a property is missing; or
            values are not finite or out of range.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; name a .ply file with Gaussians")
    with path.open("rb") as file:
        header = _read_header(file.read(HEADER_BYTES), path)
        num_whole = (path.stat().st_size - header.num_bytes) // header.row.itemsize
        if (
            num_whole < header.count
        ):  # checked before reading, because a wrong header could ask for more than the memory
            raise DataError(
                f"{path}: truncated, it has only {num_whole} of {header.count} Gaussians; copy or export it again"
            )
        file.seek(header.num_bytes)
        content = file.read(header.count * header.row.itemsize)
    table = np.frombuffer(content, dtype=header.row)
    values = {name: table[name].astype(np.float64) for name in NEEDED}
    for name, column in values.items():
        _check_column(path, name, column)
    _warn_of_activated(path, values)

    def stacked(names: tuple[str, ...]) -> torch.Tensor:
        return torch.from_numpy(np.stack([values[name] for name in names], axis=-1))[None]

    quats_1N4 = stacked(QUATS)
    if bool((quats_1N4.norm(dim=-1) == 0).any()):
        raise DataError(f"{path}: rot_0..3 are all zero for some Gaussians, which is not a rotation; export it again")
    return Gaussians(
        means_BN3=stacked(POSITIONS).float(),
        opacities_BN1=stacked(("opacity",)).sigmoid().float(),
        scales_BN3=stacked(SCALES).exp().float(),
        quats_BN4=(quats_1N4 / quats_1N4.norm(dim=-1, keepdim=True)).float(),
        colors_BN3=(stacked(COLORS) * SH_C0 + 0.5).clamp(0, 1).float(),
    )


@dataclass(frozen=True, kw_only=True)
class _Header:
    count: int
    row: np.dtype
    num_bytes: int


def _read_header(start: bytes, path: Path) -> _Header:
    """Read the header of a .ply; an error if the file cannot contain Gaussians.

    By hand: plyfile has the GPL, which this project's users need not accept.
    """
    if not start.startswith((b"ply\n", b"ply\r\n")):
        raise DataError(f"{path}: not a .ply file (it does not begin with `ply`); name a .ply file with Gaussians")
    end = start.find(b"end_header")
    newline = start.find(b"\n", end)
    if end < 0 or newline < 0:
        raise DataError(f"{path}: truncated, its header has no end; copy or export it again")
    lines = [line.split() for line in start[:end].decode("ascii", errors="replace").splitlines()]
    form = next((line[1] for line in lines if line[:1] == ["format"] and len(line) > 1), "missing")
    elements = {line[1]: line[2] for line in lines if line[:1] == ["element"] and len(line) == 3}
    if not re.fullmatch(r"[0-9]{1,18}", elements.get("vertex", "")):
        raise DataError(f"{path}: its header has no number of Gaussians (element vertex); export it again")
    properties = _vertex_properties(lines)
    missing = [name for name in NEEDED if name not in (line[-1] for line in properties)]
    if "chunk" in elements:
        raise DataError(f"{path}: the Gaussians are compressed; export them as an uncompressed .ply")
    if "face" in elements or len(missing) > len(NEEDED) - 4:
        raise DataError(f"{path}: the file is a mesh or a point cloud; name a .ply file of Gaussian splatting")
    if missing:
        raise DataError(
            f"{path}: property {', '.join(missing)} is missing; export it with all properties of Gaussian splatting"
        )
    if form != "binary_little_endian":
        raise DataError(f"{path}: its format is {form}; export it as binary little endian")
    if (first := next(iter(elements))) != "vertex":
        raise DataError(f"{path}: element {first} comes before the Gaussians; export it with element vertex first")
    if int(elements["vertex"]) == 0:
        raise DataError(f"{path}: the file contains no Gaussians; export it again")
    return _Header(count=int(elements["vertex"]), row=_row_type(properties, path), num_bytes=newline + 1)


def _vertex_properties(lines: list[list[str]]) -> list[list[str]]:
    """The header lines with the properties of a vertex."""
    first = next(index for index, line in enumerate(lines) if line[:2] == ["element", "vertex"])
    own = itertools.takewhile(lambda line: line[:1] != ["element"], lines[first + 1 :])
    return [line for line in own if line[:1] == ["property"]]


def _row_type(properties: list[list[str]], path: Path) -> np.dtype:
    """The numpy dtype of one vertex of the file."""
    for line in properties:
        if len(line) != 3 or line[1] not in PLY_TYPES:
            raise DataError(f"{path}: property {' '.join(line[1:])} is unknown; export it again")
    fields = [(name, "<" + PLY_TYPES[kind]) for _, kind, name in properties]
    try:
        return np.dtype(fields)
    except ValueError as err:
        raise DataError(f"{path}: its header has a property twice; export it again") from err


def _check_column(path: Path, name: str, column: np.ndarray) -> None:
    bad = np.flatnonzero(~np.isfinite(column))
    if len(bad):
        raise DataError(f"{path}: {name} of Gaussian {bad[0]} is not finite ({len(bad)} in all); export it again")
    largest = LARGEST.get(name, np.inf)
    bad = np.flatnonzero(np.abs(column) > largest)
    if len(bad):
        how = {"opacity": " before the sigmoid", "scale": " before the exponential"}.get(name.split("_")[0], "")
        raise DataError(
            f"{path}: {name}={column[bad[0]]:.4g} of Gaussian {bad[0]} is out of range (-{largest:g} to "
            f"{largest:g}{how}); export it again in the format of Gaussian splatting"
        )


def _warn_of_activated(path: Path, values: dict[str, np.ndarray]) -> None:
    """Warn about files of programs that write activated values; these look large and half transparent."""
    opacities, scales_3N = values["opacity"], np.stack([values[name] for name in SCALES])
    if opacities.min() >= 0 and opacities.max() <= 1 and scales_3N.min() > 0:
        log.warning(
            "%s: opacities seem to be after the sigmoid and scales after the exponential, against the format; "
            "if the result is too large, export it again in the format of Gaussian splatting",
            path,
        )


def splat_bytes(gaussians: Gaussians) -> bytes:
    """One scene in the 32-byte format: position and scale as float32, RGBA and rotation as bytes, w first.

    Sorted by volume times opacity, largest first, so that a viewer can draw while it loads. Gaussians whose opacity
    rounds to zero are left out.

    Raises:
        DataError: values that no rasteriser can draw, or all Gaussians are invisible.
    """
    scene = _one_scene(gaussians, "Gaussians")
    opacity_N = scene.opacities_BN1[0, :, 0]
    seen_N = (opacity_N * 255).round() > 0
    if not bool(seen_N.any()):
        raise DataError(f"every Gaussian is transparent, so a .splat file would be empty; {OTHER_GAUSSIANS}")
    importance_N = scene.scales_BN3[0].double().prod(-1) * opacity_N
    order = importance_N.argsort(descending=True, stable=True)
    scene = scene.only(order[seen_N[order]])
    quats_N4 = scene.quats_BN4[0]
    quats_N4 = torch.where(quats_N4[:, :1] < 0, -quats_N4, quats_N4)
    rows = np.empty(quats_N4.shape[0], dtype=SPLAT)
    rows["position"], rows["scale"] = scene.means_BN3[0].numpy(), scene.scales_BN3[0].numpy()
    rgba_N4 = torch.cat([scene.colors_BN3[0], scene.opacities_BN1[0]], dim=-1)
    rows["rgba"] = (rgba_N4 * 255).round().to(torch.uint8).numpy()
    rows["quat"] = (quats_N4 * 128 + 128).round().clamp(0, 255).to(torch.uint8).numpy()
    return rows.tobytes()


def write_splat(path: str | Path, gaussians: Gaussians) -> None:
    """Write one scene as `.splat`, completely or not at all."""
    content = splat_bytes(gaussians)
    with atomic_path(path) as part:
        part.write_bytes(content)


def read_splat(path: str | Path) -> Gaussians:
    """Read a `.splat` file: a batch of one scene.

    Raises:
        DataError: the file is missing, not a whole number of Gaussians, or has values that no rasteriser can draw.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; name a .splat file")
    content = path.read_bytes()
    if not content or len(content) % SPLAT.itemsize:
        raise DataError(f"{path}: {len(content)} bytes are not a multiple of the 32 bytes of a Gaussian; copy it again")
    rows = np.frombuffer(content, dtype=SPLAT)
    quats_N4 = (torch.from_numpy(rows["quat"].astype(np.float32)) - 128) / 128
    rgba_N4 = torch.from_numpy(rows["rgba"].astype(np.float32)) / 255
    scene = Gaussians(
        means_BN3=torch.from_numpy(rows["position"].copy())[None],
        opacities_BN1=rgba_N4[None, :, 3:],
        scales_BN3=torch.from_numpy(rows["scale"].copy())[None],
        quats_BN4=torch.nn.functional.normalize(quats_N4, dim=-1)[None],
        colors_BN3=rgba_N4[None, :, :3],
    )
    # Any file of the right size can be read this way, so the values are checked.
    scene.check_values(name=str(path), remedy="if it is a .splat file, copy or export it again")
    return scene


def _one_scene(gaussians: Gaussians, name: str | Path) -> Gaussians:
    """The scene on the CPU, checked, and with true rotations."""
    if len(gaussians.means_BN3) != 1:
        raise ValueError(f"a file contains one scene, got {len(gaussians.means_BN3)}; choose one with scene(index)")
    scene = gaussians.scene(0).to("cpu")
    scene.check_values(name=str(name))
    return scene.with_unit_quats()
