"""Triton kernels for group norms with SiLU, dropout and the window of a convolution over the views.

Activations are rows of channels: R = images x pixels rows of C channels, contiguous. A group norm works on U units of P
rows: a unit is one image, or all views of an orbit. It takes three kernels: sums of each channel over parts of the
rows, statistics of each group from these sums, and a last one that applies them. A unit is split over many programs,
because a norm over an orbit has too few groups to fill a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.fused.kernels.reference import NUM_GROUPS

CHANNELS = 64  # channels of a tile; divides every width of the published networks
PROGRAMS = 2048  # number of programs that fills the largest GPUs several times


@triton.jit(do_not_specialize=["P", "rows_per_split"])
def _sums_kernel(x, sums, squares, C, P, rows_per_split, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    unit, split, num_splits = tl.program_id(2), tl.program_id(1), tl.num_programs(1)
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    first, last = split * rows_per_split, tl.minimum((split + 1) * rows_per_split, P)
    sums_rc, squares_rc = tl.zeros((BLOCK_R, BLOCK_C), tl.float32), tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    base = x + unit.to(tl.int64) * P * C + channels[None, :]
    for start in range(first, last, BLOCK_R):
        rows = start + tl.arange(0, BLOCK_R)
        mask = (rows < last)[:, None] & (channels < C)[None, :]
        value = tl.load(base + rows[:, None] * C, mask=mask, other=0.0).to(tl.float32)
        sums_rc += value
        squares_rc += value * value
    place = (unit * num_splits + split) * C + channels
    tl.store(sums + place, tl.sum(sums_rc, axis=0), mask=channels < C)
    tl.store(squares + place, tl.sum(squares_rc, axis=0), mask=channels < C)


@triton.jit(do_not_specialize=["shift_stride", "C", "P", "num_splits", "group_size", "num_units"])
def _scales_kernel(
    sums, squares, shift, weight, bias, statistics, shift_stride, C, P, num_splits, group_size, num_units, eps,
    BLOCK_G: tl.constexpr, BLOCK_S: tl.constexpr, HAS_SHIFT: tl.constexpr, FOR_GRADIENTS: tl.constexpr,
):  # fmt: skip
    unit, group = tl.program_id(0), tl.program_id(1)
    inside = tl.arange(0, BLOCK_G) < group_size
    channels = group * group_size + tl.arange(0, BLOCK_G)
    sum_c, square_c = tl.zeros((BLOCK_G,), tl.float32), tl.zeros((BLOCK_G,), tl.float32)
    for start in range(0, num_splits, BLOCK_S):
        splits = start + tl.arange(0, BLOCK_S)
        place = (unit * num_splits + splits)[:, None] * C + channels[None, :]
        mask = (splits < num_splits)[:, None] & inside[None, :]
        sum_c += tl.sum(tl.load(sums + place, mask=mask, other=0.0), axis=0)
        square_c += tl.sum(tl.load(squares + place, mask=mask, other=0.0), axis=0)
    shift_c = tl.zeros((BLOCK_G,), tl.float32)
    if HAS_SHIFT:  # The norm is of x + shift. Its sums follow from those of x, so x + shift is never stored.
        shift_c = tl.load(shift + unit * shift_stride + channels, mask=inside, other=0.0).to(tl.float32)
        square_c += 2 * shift_c * sum_c + P * shift_c * shift_c
        sum_c += P * shift_c
    count = P * group_size
    mean = tl.sum(tl.where(inside, sum_c, 0.0)) / count
    variance = tl.sum(tl.where(inside, square_c, 0.0)) / count - mean * mean
    # mean(x²) - mean(x)² can be slightly negative through rounding
    deviation = tl.rsqrt(tl.maximum(variance, 0.0) + eps)
    scale_c = deviation * tl.load(weight + channels, mask=inside).to(tl.float32)
    offset_c = tl.load(bias + channels, mask=inside).to(tl.float32) + (shift_c - mean) * scale_c
    at, step = statistics + unit * C + channels, num_units * C
    tl.store(at, scale_c, mask=inside)
    tl.store(at + step, offset_c, mask=inside)
    if FOR_GRADIENTS:
        tl.store(at + 2 * step, shift_c - mean, mask=inside)
        tl.store(at + 3 * step, tl.zeros_like(scale_c) + deviation, mask=inside)


@triton.jit
def kept(value, row, channels, C, seed, dropout):
    """Dropout: values are zero with this probability, the others are scaled up. The seed determines which.

    A hash of the position gives the random bits, so that the backward pass can compute them again without storing a
    mask. Triton's random generator takes longer than reading the value.
    """
    drawn = (row[:, None] * C + channels[None, :]).to(tl.uint32) ^ tl.load(seed).to(tl.uint32)
    drawn = (drawn ^ (drawn >> 16)) * 0x7FEB352D
    drawn = (drawn ^ (drawn >> 15)) * 0x846CA68B
    drawn = drawn ^ (drawn >> 16)
    return tl.where((drawn >> 8).to(tl.float32) >= dropout * 16777216.0, value / (1.0 - dropout), 0.0)


@triton.jit(do_not_specialize=["P"])
def _apply_kernel(
    x, out, scales, offsets, C, P, L, seed, dropout,
    SILU: tl.constexpr, TAPS: tl.constexpr, DROPS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    unit, channels = tl.program_id(2), tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    rows = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside_c = channels < C
    mask = (rows < P)[:, None] & inside_c[None, :]
    scale = tl.load(scales + unit * C + channels, mask=inside_c)
    offset = tl.load(offsets + unit * C + channels, mask=inside_c)
    row = unit.to(tl.int64) * P + rows
    value = tl.load(x + row[:, None] * C + channels[None, :], mask=mask, other=0.0).to(tl.float32)
    value = value * scale[None, :] + offset[None, :]
    if SILU:
        value = value * tl.sigmoid(value)
    if DROPS:
        value = kept(value, row, channels, C, seed, dropout)
    value = value.to(out.dtype.element_ty)
    if not TAPS:
        tl.store(out + row[:, None] * C + channels[None, :], value, mask=mask)
    else:
        # A row is in three windows: the middle of its own, the first place of that of the next view (L rows later) and
        # the last place of that of the view before. Windows at both ends of the orbit get zeros.
        own = out + row[:, None] * (3 * C) + channels[None, :]
        not_first, not_last = (rows >= L)[:, None] & mask, (rows < P - L)[:, None] & mask
        tl.store(own + C, value, mask=mask)
        tl.store(own + L * 3 * C, value, mask=not_last)
        tl.store(own - L * 3 * C + 2 * C, value, mask=not_first)
        zero = tl.zeros_like(value)
        tl.store(own, zero, mask=(rows < L)[:, None] & mask)
        tl.store(own + 2 * C, zero, mask=(rows >= P - L)[:, None] & mask)


@dataclass(frozen=True, kw_only=True)
class Norm:
    """Options of a group norm, see models.fused.kernels.reference.group_norm."""

    rows: int
    eps: float
    silu: bool = False
    window: int = 0
    dropout: float = 0.0
    seed_1: Tensor | None = None


def tiles(num_rows: int, num_channels: int, norm: Norm) -> tuple[int, int, int]:
    """Rows of a tile, rows of a program and programs per unit, for kernels that sum columns."""
    num_blocks, P = triton.cdiv(num_channels, CHANNELS), norm.rows
    block = min(64 if norm.window else 128, triton.next_power_of_2(P))
    num_splits = max(1, min(triton.cdiv(P, block), triton.cdiv(PROGRAMS, num_rows // P * num_blocks)))
    per_split = triton.cdiv(triton.cdiv(P, num_splits), block) * block
    return block, per_split, triton.cdiv(P, per_split)


def group_statistics(
    x_RC: Tensor, weight_C: Tensor, bias_C: Tensor, norm: Norm, *, shift: Tensor | None, for_gradients: bool = False
) -> Tensor:
    """Statistics of each channel of each unit, float32.

    Returns:
        (2, U, C): scale and offset of x. For gradients (4, U, C): also shift - mean, and 1 / standard deviation.
    """
    R, C = x_RC.shape
    U, P, num_blocks = R // norm.rows, norm.rows, triton.cdiv(C, CHANNELS)
    block, per_split, num_splits = tiles(R, C, norm)
    partial = x_RC.new_empty((2, U, num_splits, C), dtype=torch.float32)
    _sums_kernel[(num_blocks, num_splits, U)](
        x_RC, partial[0], partial[1], C, P, per_split, BLOCK_R=min(block, 32), BLOCK_C=CHANNELS
    )
    statistics = x_RC.new_empty((4 if for_gradients else 2, U, C), dtype=torch.float32)
    group = C // NUM_GROUPS
    _scales_kernel[(U, NUM_GROUPS)](
        partial[0], partial[1], shift, weight_C, bias_C, statistics,
        0 if shift is None or shift.shape[0] == 1 else shift.stride(0), C, P, num_splits, group, U, norm.eps,
        BLOCK_G=max(16, triton.next_power_of_2(group)), BLOCK_S=16, HAS_SHIFT=shift is not None,
        FOR_GRADIENTS=for_gradients, num_warps=1,
    )  # fmt: skip
    return statistics


def normalized(x_RC: Tensor, statistics: Tensor, norm: Norm) -> Tensor:
    """Apply a norm with its statistics to x."""
    R, C = x_RC.shape
    U, P = R // norm.rows, norm.rows
    block, _, _ = tiles(R, C, norm)
    out = x_RC.new_empty((R, 3 * C if norm.window else C))
    _apply_kernel[(triton.cdiv(C, CHANNELS), triton.cdiv(P, block), U)](
        x_RC, out, statistics[0], statistics[1], C, P, norm.window, norm.seed_1, norm.dropout,
        SILU=norm.silu, TAPS=bool(norm.window), DROPS=norm.dropout > 0, BLOCK_R=block, BLOCK_C=CHANNELS,
    )  # fmt: skip
    return out
