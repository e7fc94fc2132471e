"""Unpacks the compressed `.ply` of SuperSplat: 16 bytes per Gaussian, in chunks of 256 that share their bounds.

A chunk has the lowest and highest position, logarithm of the scale and, in files since 2024, colour of its Gaussians.
Each Gaussian has four words of 32 bits: position and scale in 11, 10 and 11 bits, the rotation as the index of its
largest number and 10 bits for each other, colour and opacity in 8 bits each. Higher harmonics are bytes of an element
of their own. Source: https://developer.playcanvas.com/user-manual/gaussian-splatting/formats/.

Letters: N Gaussians.
"""

from __future__ import annotations

import math

import numpy as np

from models.gaussians.harmonics import SH_C0
from utils.errors import DataError

CHUNK = 256  # Gaussians
ELEMENTS = ("chunk", "vertex", "sh")
VERTEX = ("packed_position", "packed_rotation", "packed_scale", "packed_color")
AXES, CHANNELS = ("x", "y", "z"), ("r", "g", "b")
LOWEST_OPACITY = 1e-6  # so that the logarithm of the odds is finite
SH_RANGE = 8.0  # bytes of harmonics span [-4, 4]


def unpack(tables: dict[str, np.ndarray], *, name: str) -> dict[str, np.ndarray]:
    """Return the columns of an uncompressed file.

    Args:
        tables: rows of the elements in ELEMENTS.
        name: name of the file in error messages.

    Raises:
        DataError: chunks are missing, or their bounds.
    """
    chunks, vertices = tables["chunk"], tables["vertex"]
    bounds = [f"{end}_{part}" for part in (*AXES, *(f"scale_{axis}" for axis in AXES)) for end in ("min", "max")]
    missing = [bound for bound in bounds if bound not in (chunks.dtype.names or ())]
    if missing:
        raise DataError(f"{name}: property {', '.join(missing)} of the chunks is missing; export it uncompressed")
    if len(chunks) < math.ceil(len(vertices) / CHUNK):
        raise DataError(
            f"{name}: truncated, {len(chunks)} chunks are too few for {len(vertices)} Gaussians; export it again"
        )
    chunk_N = np.arange(len(vertices)) // CHUNK

    def between(part: str, share_N: np.ndarray) -> np.ndarray:
        low_N, high_N = (chunks[f"{end}_{part}"][chunk_N].astype(np.float64) for end in ("min", "max"))
        return low_N * (1 - share_N) + high_N * share_N

    columns = {}
    for axis, share_N in zip(AXES, _fractions(vertices["packed_position"], (11, 10, 11)), strict=True):
        columns[axis] = between(axis, share_N)
    for number, share_N in enumerate(_fractions(vertices["packed_scale"], (11, 10, 11))):
        columns[f"scale_{number}"] = between(f"scale_{AXES[number]}", share_N)
    for number, values_N in enumerate(_rotations(vertices["packed_rotation"])):
        columns[f"rot_{number}"] = values_N
    *colors, opacity_N = _fractions(vertices["packed_color"], (8, 8, 8, 8))
    for number, (channel, share_N) in enumerate(zip(CHANNELS, colors, strict=True)):
        bounded = f"min_{channel}" in chunks.dtype.names  # not in files of early versions
        columns[f"f_dc_{number}"] = ((between(channel, share_N) if bounded else share_N) - 0.5) / SH_C0
    opacity_N = opacity_N.clip(LOWEST_OPACITY, 1 - LOWEST_OPACITY)
    columns["opacity"] = np.log(opacity_N / (1 - opacity_N))
    if "sh" in tables:
        if len(tables["sh"]) != len(vertices):
            raise DataError(f"{name}: {len(tables['sh'])} rows of sh for {len(vertices)} Gaussians; export it again")
        for rest in tables["sh"].dtype.names:
            columns[rest] = tables["sh"][rest] * (SH_RANGE / 255) - SH_RANGE / 2
    return columns


def _fractions(words_N: np.ndarray, bits: tuple[int, ...]) -> list[np.ndarray]:
    """Split words into numbers in [0, 1], the first in the highest bits."""
    words_N, shift, found = words_N.astype(np.uint32), 32, []
    for width in bits:
        shift -= width
        found.append(((words_N >> shift) & ((1 << width) - 1)) / ((1 << width) - 1))
    return found


def _rotations(words_N: np.ndarray) -> np.ndarray:
    """Unpack quaternions, w first: (4, N). The largest number is positive and follows from the others."""
    words_N = words_N.astype(np.uint32)
    largest_N = words_N >> 30
    others_3N = np.stack([((words_N >> shift) & 1023) / 1023 - 0.5 for shift in (20, 10, 0)]) * math.sqrt(2)
    quats_4N = np.empty((4, len(words_N)))
    quats_4N[largest_N, np.arange(len(words_N))] = np.sqrt((1 - (others_3N**2).sum(axis=0)).clip(0))
    for number in range(4):
        # the others are stored in their order, so those after the largest one are one place further
        place_N = number - (number > largest_N).astype(int)
        rest_N = number != largest_N
        quats_4N[number, rest_N] = others_3N[place_N[rest_N], np.flatnonzero(rest_N)]
    return quats_4N
