"""Reads and writes Gaussians as `.ply`, the format of the first implementation of arXiv:2308.04079.

It contains every Gaussian: colour as the constant spherical harmonic, opacity before the sigmoid, scales before the
exponential, rotation as a unit quaternion, w first. We write binary little endian float32. Files of other programs may
be ascii or big endian, may have their properties in another order and type, and further ones; harmonics up to degree 3
are kept. Compressed files of SuperSplat are read by compressed_ply.py.

Positions are in the world of utils.cameras (z up), like the cameras in transforms.json of a run.

Letters: N Gaussians, K coefficients of spherical harmonics.
"""

from __future__ import annotations

import io
import itertools
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from models.gaussians import compressed_ply
from models.gaussians.harmonics import DEGREES, SH_C0
from models.gaussians.scene import Gaussians
from utils.errors import DataError, first_line
from utils.files import atomic_path

log = logging.getLogger(__name__)

# sigmoid(±13.8): the logits in the file stay finite if an opacity is 0 or 1
OPACITY_EDGE = 1e-6
SMALLEST_SCALE = 1e-9
POSITIONS, NORMALS, COLORS = ("x", "y", "z"), ("nx", "ny", "nz"), ("f_dc_0", "f_dc_1", "f_dc_2")
SCALES, QUATS = ("scale_0", "scale_1", "scale_2"), ("rot_0", "rot_1", "rot_2", "rot_3")
PROPERTIES = (*POSITIONS, *NORMALS, *COLORS, "opacity", *SCALES, *QUATS)
NEEDED = tuple(name for name in PROPERTIES if name not in NORMALS)
# Numbers beyond these bounds were not written in this format; training stays far within them.
LARGEST = {"opacity": 100.0} | dict.fromkeys(SCALES, 25.0) | dict.fromkeys(COLORS, 1e3) | dict.fromkeys(POSITIONS, 1e6)
LARGEST_HARMONIC = 1e3
COMMENT = "Gaussians of VideoMV-clean; world z up, the frame of transforms.json"
HEADER_BYTES = 1 << 16
FORMATS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": ""}
PLY_TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4",
    "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4",
    "float32": "f4", "float64": "f8",
}  # fmt: skip


def write_ply(path: str | Path, gaussians: Gaussians) -> None:
    """Write one scene as `.ply`, completely or not at all.

    Quaternions whose length is not one are replaced by a true rotation and scales with the same covariance, because
    viewers normalise quaternions.

    Raises:
        DataError: values that no rasteriser can draw.
    """
    scene = gaussians.for_file(path)
    opacity = scene.opacities_BN1[0].double().clamp(OPACITY_EDGE, 1 - OPACITY_EDGE)
    columns = [scene.means_BN3[0], torch.zeros_like(scene.means_BN3[0]), (scene.colors_BN3[0] - 0.5) / SH_C0]
    names = [*POSITIONS, *NORMALS, *COLORS]
    if scene.harmonics_BNK3 is not None:  # all coefficients of red, then of green, then of blue
        columns.append(scene.harmonics_BNK3[0].movedim(-1, 1).flatten(1))
        names += [f"f_rest_{number}" for number in range(columns[-1].shape[1])]
    columns += [opacity.logit(), scene.scales_BN3[0].clamp_min(SMALLEST_SCALE).log(), scene.quats_BN4[0]]
    names += ["opacity", *SCALES, *QUATS]
    rows = torch.cat([column.float() for column in columns], dim=1).numpy().astype("<f4")
    lines = ["ply", "format binary_little_endian 1.0", f"comment {COMMENT}", f"element vertex {len(rows)}"]
    lines += [f"property float {name}" for name in names] + ["end_header", ""]
    with atomic_path(path) as part, part.open("wb") as file:
        file.write("\n".join(lines).encode("ascii"))
        file.write(rows.tobytes())


def read_ply(path: str | Path) -> Gaussians:
    """Read a `.ply` of Gaussians, from this project or another program: a batch of one scene.

    Unused properties are named in the log. Constant colours are clamped to [0, 1], as in viewers, if there are no
    further harmonics.

    Raises:
        DataError: the file is missing, truncated, not a .ply, or a mesh or point cloud; a property is missing; or
            values are not finite or out of range.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; name a .ply file with Gaussians")
    with path.open("rb") as file:
        header = _read_header(file.read(HEADER_BYTES), path)
        file.seek(header.num_bytes)
        tables = {element.name: _read_element(file, element, header, path) for element in header.wanted()}
    if header.compressed:
        columns = compressed_ply.unpack(tables, name=str(path))
    else:
        columns = {name: tables["vertex"][name] for name in tables["vertex"].dtype.names}
    rest_NK3 = _harmonics(columns, path)
    values = {name: columns[name].astype(np.float64) for name in NEEDED}
    # opacities of exactly 0 and 1, as programs write them that convert from bytes
    endless_N = np.isinf(values["opacity"])
    values["opacity"][endless_N] = np.sign(values["opacity"][endless_N]) * LARGEST["opacity"]
    for name, column in values.items():
        _check_column(path, name, column, largest=LARGEST.get(name, np.inf))
    _warn_of_activated(path, values)

    def stacked(names: tuple[str, ...]) -> torch.Tensor:
        return torch.from_numpy(np.stack([values[name] for name in names], axis=-1))[None]

    quats_1N4 = stacked(QUATS)
    if bool((quats_1N4.norm(dim=-1) == 0).any()):
        raise DataError(f"{path}: rot_0..3 are all zero for some Gaussians, which is not a rotation; export it again")
    colors_1N3 = stacked(COLORS) * SH_C0 + 0.5
    return Gaussians(
        means_BN3=stacked(POSITIONS).float(),
        opacities_BN1=stacked(("opacity",)).sigmoid().float(),
        scales_BN3=stacked(SCALES).exp().float(),
        quats_BN4=(quats_1N4 / quats_1N4.norm(dim=-1, keepdim=True)).float(),
        colors_BN3=(colors_1N3.clamp(0, 1) if rest_NK3 is None else colors_1N3).float(),
        harmonics_BNK3=None if rest_NK3 is None else torch.from_numpy(rest_NK3)[None],
    )


@dataclass(frozen=True, kw_only=True)
class _Element:
    name: str
    count: int
    properties: list[list[str]]  # words of the header lines


@dataclass(frozen=True, kw_only=True)
class _Header:
    elements: list[_Element]
    form: str
    num_bytes: int
    compressed: bool

    def wanted(self) -> list[_Element]:
        """The elements up to the last one that is used."""
        used = {*compressed_ply.ELEMENTS} if self.compressed else {"vertex"}
        last = max(index for index, element in enumerate(self.elements) if element.name in used)
        return self.elements[: last + 1]


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
    elements = list(_elements(lines, path))
    vertex = next((element for element in elements if element.name == "vertex"), None)
    if vertex is None:
        raise DataError(f"{path}: its header has no number of Gaussians (element vertex); export it again")
    compressed = any(element.name == "chunk" for element in elements)
    needed = compressed_ply.VERTEX if compressed else NEEDED
    missing = [name for name in needed if name not in (line[-1] for line in vertex.properties)]
    if any(element.name == "face" for element in elements) or (not compressed and len(missing) > len(NEEDED) - 4):
        raise DataError(f"{path}: the file is a mesh or a point cloud; name a .ply file of Gaussian splatting")
    if missing:
        raise DataError(
            f"{path}: property {', '.join(missing)} is missing; export it with all properties of Gaussian splatting"
        )
    if form not in FORMATS:
        raise DataError(f"{path}: its format is {form}; export it as binary little endian")
    if vertex.count == 0:
        raise DataError(f"{path}: the file contains no Gaussians; export it again")
    return _Header(elements=elements, form=form, num_bytes=newline + 1, compressed=compressed)


def _elements(lines: list[list[str]], path: Path) -> list[_Element]:
    found = []
    for index, line in enumerate(lines):
        if line[:1] != ["element"]:
            continue
        name = line[1] if len(line) > 1 else ""
        if len(line) != 3 or not re.fullmatch(r"[0-9]{1,18}", line[2]):
            what = "Gaussians (element vertex)" if name == "vertex" else f"rows of element {name}"
            raise DataError(f"{path}: its header has no number of {what}; export it again")
        own = itertools.takewhile(lambda line: line[:1] != ["element"], lines[index + 1 :])
        properties = [line for line in own if line[:1] == ["property"]]
        found.append(_Element(name=name, count=int(line[2]), properties=properties))
    return found


def _read_element(file: BinaryIO, element: _Element, header: _Header, path: Path) -> np.ndarray:
    """Read the rows of one element as a structured array."""
    row = _row_type(element, header, path)
    what = "Gaussians" if element.name == "vertex" else f"rows of element {element.name}"
    if header.form == "ascii":
        return _read_text(file, element, row, path)
    left = path.stat().st_size - file.tell()
    # checked before reading, because a wrong header could ask for more than the memory
    if (num_whole := left // row.itemsize) < element.count:
        raise DataError(
            f"{path}: truncated, it has only {num_whole} of {element.count} {what}; copy or export it again"
        )
    return np.frombuffer(file.read(element.count * row.itemsize), dtype=row)


def _read_text(file: BinaryIO, element: _Element, row: np.dtype, path: Path) -> np.ndarray:
    lines = list(itertools.islice((line for line in file if line.strip()), element.count))
    if len(lines) < element.count:
        what = "Gaussians" if element.name == "vertex" else f"rows of element {element.name}"
        raise DataError(
            f"{path}: truncated, it has only {len(lines)} of {element.count} {what}; copy or export it again"
        )
    try:
        values = np.loadtxt(io.BytesIO(b"".join(lines)), dtype=np.float64, comments=None, ndmin=2)
    except ValueError as err:
        raise DataError(
            f"{path}: a row of element {element.name} is not numbers ({first_line(err)}); export it again"
        ) from err
    if values.shape != (element.count, len(row.names)):
        raise DataError(
            f"{path}: rows of element {element.name} have {values.shape[1]} numbers, but the header lists "
            f"{len(row.names)} properties; export it again"
        )
    table = np.empty(element.count, dtype=row)
    for column, name in enumerate(row.names):
        table[name] = values[:, column]
    return table


def _row_type(element: _Element, header: _Header, path: Path) -> np.dtype:
    """The numpy dtype of one row of an element."""
    for line in element.properties:
        if len(line) != 3 or line[1] not in PLY_TYPES:
            raise DataError(f"{path}: property {' '.join(line[1:])} is unknown; export it again")
    order = FORMATS[header.form] or "="
    try:
        return np.dtype([(name, order + PLY_TYPES[kind]) for _, kind, name in element.properties])
    except ValueError as err:
        raise DataError(f"{path}: its header has a property twice; export it again") from err


def _harmonics(columns: dict[str, np.ndarray], path: Path) -> np.ndarray | None:
    """The coefficients beyond the constant one, (N, K, 3); None if there are none, or all are zero."""
    rest = [name for name in columns if name.startswith("f_rest_")]
    unused = [name for name in columns if name not in PROPERTIES and name not in rest]
    if rest and len(rest) not in {3 * number for number in DEGREES}:
        log.warning("%s: %d properties f_rest_* are no degree (9, 24 or 45 are), so they are not used", path, len(rest))
        rest = []
    if unused:
        log.info("%s: properties that are not used: %s", path, ", ".join(unused))
    if not rest:
        return None
    columns_CN = []
    for number in range(len(rest)):
        if (name := f"f_rest_{number}") not in columns:
            raise DataError(f"{path}: property {name} is missing; export it with all its harmonics")
        column = columns[name].astype(np.float32)
        _check_column(path, name, column, largest=LARGEST_HARMONIC)
        columns_CN.append(column)
    values_NK3 = np.stack(columns_CN, axis=-1).reshape(len(column), 3, -1).swapaxes(1, 2)
    return np.ascontiguousarray(values_NK3) if values_NK3.any() else None


def _check_column(path: Path, name: str, column: np.ndarray, *, largest: float) -> None:
    bad = np.flatnonzero(~np.isfinite(column))
    if len(bad):
        raise DataError(f"{path}: {name} of Gaussian {bad[0]} is not finite ({len(bad)} in all); export it again")
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
