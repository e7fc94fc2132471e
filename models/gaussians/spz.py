"""Reads and writes Gaussians as `.spz`, the compressed format of Niantic: about 16 bytes per Gaussian.

Inside gzip there are a header of 16 bytes and then one array after the other: positions in fixed point with 24 bits,
opacities, colours, logarithms of the scales, rotations and harmonics in bytes. Versions 1 to 4 are read, 3 is written,
which most programs read. They differ in positions (1: float16) and rotations (since 3: the three smallest numbers with
10 bits each). Version 4 has a longer header, and each array is compressed by itself with Zstandard.

The file's axes are right, up, back; the world of utils.cameras is z up. Both directions turn the object, and its front
stays the front. Source: https://github.com/nianticlabs/spz.

Letters: N Gaussians, K coefficients of spherical harmonics.
"""

from __future__ import annotations

import gzip
import logging
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch

from datasets.meshes.scene import Y_UP_TO_Z_UP
from models.gaussians.harmonics import DEGREES, NUM_COEFFICIENTS, SH_C0
from models.gaussians.ply import SMALLEST_SCALE
from models.gaussians.scene import Gaussians
from utils.errors import DataError, first_line
from utils.files import atomic_path

log = logging.getLogger(__name__)

HEADER = struct.Struct("<4sIIBBBB")  # magic, version, N, degree, fractional bits, flags, reserved
MAGIC = b"NGSP"
WRITTEN_VERSION = 3
READ_VERSIONS = (1, 2, 3)  # in gzip
NEWER_HEADER = struct.Struct("<4sIIBBBBI12x")  # magic, version, N, degree, fractional bits, flags, arrays, offset
NEWER_VERSION = 4
ENTRY = struct.Struct("<QQ")  # compressed and plain size of an array, at the offset of the header
MAX_DEGREE = 4  # in files; the fourth is left out
FIXED_BITS = 24  # of a position, signed
MAX_FRACTION_BITS = 20
COLOR_SCALE = 0.15  # of the constant coefficient: a byte covers colours a little beyond [0, 1]
ANTIALIASED, EXTENDED = 1, 2  # flags
GZIP_LEVEL = 6


def write_spz(path: str | Path, gaussians: Gaussians) -> None:
    """Write one scene as `.spz` of version 3, completely or not at all.

    Positions get as many fractional bits as fit. Scales have steps of 6 %, colours of 1/135, angles of about 0.2
    degrees.

    Raises:
        DataError: values that no rasteriser can draw, or positions too far from the origin.
    """
    scene = gaussians.for_file(path).moved(turn_44(Y_UP_TO_Z_UP.T))
    means_N3 = scene.means_BN3[0].double().numpy()
    far = float(np.abs(means_N3).max(initial=0))
    largest = (1 << (FIXED_BITS - 1)) - 1
    if far > largest:
        raise DataError(f"{path}: a position of {far:.3g} does not fit the format (at most {largest}); scale the scene")
    bits = min(MAX_FRACTION_BITS, math.floor(math.log2(largest / far))) if far else MAX_FRACTION_BITS
    colors_N3 = (scene.colors_BN3[0].double().numpy() - 0.5) / SH_C0
    arrays = [
        _fixed_bytes(means_N3, bits),
        _bytes(255 * scene.opacities_BN1[0].double().numpy()),
        _bytes(255 * (COLOR_SCALE * colors_N3 + 0.5)),
        _bytes(16 * (scene.scales_BN3[0].double().clamp_min(SMALLEST_SCALE).log().numpy() + 10)),
        _packed_rotations(scene.quats_BN4[0].double().numpy()),
    ]
    if scene.harmonics_BNK3 is not None:
        rest_NK3 = scene.harmonics_BNK3[0].double().numpy()
        if num_beyond := int((np.abs(rest_NK3) > 1).sum()):
            log.info(
                "%s: %d coefficients beyond [-1, 1] become its ends, which is all that .spz holds", path, num_beyond
            )
        arrays.append(_bytes(128 * (rest_NK3 + 1)))
    head = HEADER.pack(MAGIC, WRITTEN_VERSION, len(means_N3), scene.degree, bits, 0, 0)
    content = gzip.compress(b"".join([head, *(array.tobytes() for array in arrays)]), GZIP_LEVEL, mtime=0)
    with atomic_path(path) as part:
        part.write_bytes(content)


def read_spz(path: str | Path) -> Gaussians:
    """Read a `.spz` file of version 1 to 4: a batch of one scene.

    Raises:
        DataError: the file is missing, not a .spz, truncated, of another version, of version 4 without the package
            zstandard, or has values that no rasteriser can draw.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; name a .spz file")
    version, count, degree, bits, content = _unzipped(path)
    file_K = degree * (degree + 2)
    widths = {"means": 6 if version == 1 else 9, "opacities": 1, "colors": 3, "scales": 3}
    widths |= {"quats": 4 if version >= 3 else 3, "harmonics": 3 * file_K}
    if len(content) < count * sum(widths.values()):
        raise DataError(
            f"{path}: truncated, it has only {len(content) // sum(widths.values())} of {count} Gaussians; copy it again"
        )
    parts, start = {}, 0
    for name, width in widths.items():
        parts[name] = content[start : start + count * width].reshape(count, width)
        start += count * width
    means_N3 = parts["means"].copy().view("<f2").astype(np.float64) if version == 1 else _floats(parts["means"], bits)
    quats_N4 = _rotations(parts["quats"]) if version >= 3 else _first_rotations(parts["quats"])
    colors_N3 = (parts["colors"] / 255 - 0.5) / COLOR_SCALE * SH_C0 + 0.5
    harmonics_NK3 = (parts["harmonics"].reshape(count, file_K, 3) / 128.0 - 1)[:, : NUM_COEFFICIENTS[3]]
    kept = harmonics_NK3.shape[1] in DEGREES and bool(harmonics_NK3.any())
    scene = Gaussians(
        means_BN3=torch.from_numpy(means_N3).float()[None],
        opacities_BN1=torch.from_numpy(parts["opacities"] / 255).float()[None],
        scales_BN3=torch.from_numpy(np.exp(parts["scales"] / 16 - 10)).float()[None],
        quats_BN4=torch.from_numpy(quats_N4).float()[None],
        colors_BN3=torch.from_numpy(colors_N3 if kept else colors_N3.clip(0, 1)).float()[None],
        harmonics_BNK3=torch.from_numpy(harmonics_NK3).float()[None] if kept else None,
    )
    scene.check_values(name=str(path), remedy="if it is a .spz file, copy or export it again")
    return scene.moved(turn_44(Y_UP_TO_Z_UP))


def turn_44(turn_33: np.ndarray) -> torch.Tensor:
    """Return the transform of a rotation without a shift."""
    transform_44 = torch.eye(4, dtype=torch.float64)
    transform_44[:3, :3] = torch.from_numpy(turn_33.copy())
    return transform_44


def _unzipped(path: Path) -> tuple[int, int, int, int, np.ndarray]:
    """Return version, N, degree, fractional bits and the bytes after the header."""
    compressed = path.read_bytes()
    if compressed[:4] == MAGIC:
        return _newer(path, compressed)
    unzip = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        start = unzip.decompress(compressed, HEADER.size)
        if len(start) < HEADER.size or not start.startswith(MAGIC):
            raise DataError(f"{path}: not a .spz file (its content is not that of Gaussians); export it again")
        _, version, count, degree, bits, flags, _ = HEADER.unpack(start)
        if version not in READ_VERSIONS:
            raise DataError(f"{path}: a .spz of version {version}; versions 1 to 3 are read, export it as version 3")
        _check_header(path, count, degree, bits)
        content = unzip.decompress(unzip.unconsumed_tail, count * (20 + 3 * degree * (degree + 2)))
    except zlib.error as err:
        raise DataError(f"{path}: not a .spz file, or damaged ({first_line(err)}); copy or export it again") from err
    _note_flags(path, degree, flags)
    return version, count, degree, bits, np.frombuffer(content, dtype=np.uint8)


def _newer(path: Path, content: bytes) -> tuple[int, int, int, int, np.ndarray]:
    """Return the same as `_unzipped`, of a file of version 4."""
    if len(content) < NEWER_HEADER.size:
        raise DataError(f"{path}: truncated, its header has no end; copy it again")
    _, version, count, degree, bits, flags, num_arrays, offset = NEWER_HEADER.unpack_from(content)
    if version != NEWER_VERSION:
        raise DataError(f"{path}: a .spz of version {version}; versions 1 to 4 are read, export it as version 3")
    _check_header(path, count, degree, bits)
    try:
        import zstandard  # an extra, see pyproject.toml
    except ImportError as err:
        raise DataError(
            f"{path}: a .spz of version 4 needs the package zstandard; `pip install zstandard`, or export version 3"
        ) from err
    start, arrays = offset + num_arrays * ENTRY.size, []
    largest = count * (20 + 3 * degree * (degree + 2))
    try:
        for packed_size, size in [ENTRY.unpack_from(content, offset + k * ENTRY.size) for k in range(num_arrays)]:
            if size > largest or start + packed_size > len(content):
                raise DataError(f"{path}: truncated, or its list of arrays is wrong; copy or export it again")
            part = content[start : start + packed_size]
            arrays.append(zstandard.ZstdDecompressor().decompress(part, max_output_size=size) if size else b"")
            start += packed_size
    except (struct.error, zstandard.ZstdError) as err:
        raise DataError(f"{path}: damaged ({first_line(err)}); copy or export it again") from err
    _note_flags(path, degree, flags)
    return version, count, degree, bits, np.frombuffer(b"".join(arrays), dtype=np.uint8)


def _check_header(path: Path, count: int, degree: int, bits: int) -> None:
    if not count or degree > MAX_DEGREE or bits >= FIXED_BITS:
        raise DataError(
            f"{path}: its header is wrong ({count} Gaussians, degree {degree}, {bits} fractional bits); export it again"
        )


def _note_flags(path: Path, degree: int, flags: int) -> None:
    if degree > max(NUM_COEFFICIENTS):
        log.warning("%s: harmonics of degree %d are left out; those up to 3 are kept", path, degree)
    if flags & ANTIALIASED:
        log.warning("%s: made for antialiased rendering, which is not used; thin parts may look thicker", path)
    if flags & EXTENDED:
        log.info("%s: extensions of the format are not used", path)


def _bytes(values: np.ndarray) -> np.ndarray:
    """Round to bytes, halves away from zero."""
    return np.floor(values + 0.5).clip(0, 255).astype(np.uint8)


def _fixed_bytes(values_N3: np.ndarray, bits: int) -> np.ndarray:
    """Signed numbers of three bytes, lowest first: (N, 9)."""
    fixed_N3 = np.round(values_N3 * (1 << bits)).astype("<i4")
    return np.ascontiguousarray(fixed_N3[..., None].view(np.uint8)[..., :3]).reshape(-1, 9)


def _floats(bytes_N9: np.ndarray, bits: int) -> np.ndarray:
    words_N34 = np.zeros((len(bytes_N9), 3, 4), dtype=np.uint8)
    words_N34[..., 1:] = bytes_N9.reshape(-1, 3, 3)
    return (words_N34.view("<i4")[..., 0] >> 8) / (1 << bits)  # the shift keeps the sign


def _packed_rotations(quats_N4: np.ndarray) -> np.ndarray:
    """Pack quaternions, w first: the index of the largest number in two bits, ten bits (sign, size) for each other."""
    xyzw_N4 = np.roll(quats_N4 / np.linalg.norm(quats_N4, axis=1, keepdims=True), -1, axis=1)
    rows = np.arange(len(xyzw_N4))
    largest_N = np.abs(xyzw_N4).argmax(axis=1)
    xyzw_N4 = xyzw_N4 * np.where(xyzw_N4[rows, largest_N] < 0, -1, 1)[:, None]
    words_N = largest_N.astype(np.uint32)
    for number in range(4):
        values_N = xyzw_N4[:, number]
        size_N = np.floor(511 * math.sqrt(2) * np.abs(values_N) + 0.5).clip(0, 511).astype(np.uint32)
        added_N = (words_N << np.uint32(10)) | ((values_N < 0).astype(np.uint32) << np.uint32(9)) | size_N
        words_N = np.where(number == largest_N, words_N, added_N)
    return words_N.astype("<u4")


def _rotations(bytes_N4: np.ndarray) -> np.ndarray:
    """Unpack quaternions of version 3: (N, 4), w first."""
    words_N = np.ascontiguousarray(bytes_N4).view("<u4")[:, 0]
    largest_N = words_N >> 30
    xyzw_N4 = np.zeros((len(words_N), 4))
    for number in (3, 2, 1, 0):  # the last one is in the lowest bits
        size_N = (words_N & 511) / (511 * math.sqrt(2))
        stored_N = number != largest_N
        xyzw_N4[:, number] = np.where(stored_N, np.where(words_N & 512, -size_N, size_N), 0)
        words_N = np.where(stored_N, words_N >> 10, words_N)
    xyzw_N4[np.arange(len(words_N)), largest_N] = np.sqrt((1 - (xyzw_N4**2).sum(axis=1)).clip(0))
    return _unit(np.roll(xyzw_N4, 1, axis=1))


def _first_rotations(bytes_N3: np.ndarray) -> np.ndarray:
    """Unpack quaternions of versions 1 and 2, whose w is positive: (N, 4), w first."""
    xyz_N3 = bytes_N3 / 127.5 - 1
    w_N1 = np.sqrt((1 - (xyz_N3**2).sum(axis=1, keepdims=True)).clip(0))
    return _unit(np.concatenate([w_N1, xyz_N3], axis=1))


def _unit(quats_N4: np.ndarray) -> np.ndarray:
    return quats_N4 / np.linalg.norm(quats_N4, axis=1, keepdims=True)
