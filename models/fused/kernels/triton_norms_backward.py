"""Triton kernels for the backward pass of models.fused.kernels.triton_norms.

They must give the same gradients as autograd through models.fused.kernels.reference. The same letters are used: R = U
units x P rows, C channels. Three kernels: sums of each channel over parts of the rows, means of each group from these
sums, and a last one that computes the gradient of the input.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.fused.kernels.reference import NUM_GROUPS
from models.fused.kernels.triton_norms import CHANNELS, Norm, kept, tiles


@triton.jit
def _before_activation(
    gradient, value, scale, offset, row, rows, channels, mask, C, P, L, seed, dropout,
    SILU: tl.constexpr, TAPS: tl.constexpr, DROPS: tl.constexpr,
):  # fmt: skip
    """Gradient at the output of the norm itself, before SiLU, dropout and window."""
    if TAPS:  # sum the gradients of the three windows that contain the row, see _apply_kernel
        at = gradient + row[:, None] * (3 * C) + channels[None, :]
        out = tl.load(at + C, mask=mask, other=0.0).to(tl.float32)
        out += tl.load(at + L * 3 * C, mask=mask & (rows < P - L)[:, None], other=0.0).to(tl.float32)
        out += tl.load(at - L * 3 * C + 2 * C, mask=mask & (rows >= L)[:, None], other=0.0).to(tl.float32)
    else:
        out = tl.load(gradient + row[:, None] * C + channels[None, :], mask=mask, other=0.0).to(tl.float32)
    if DROPS:
        out = kept(out, row, channels, C, seed, dropout)
    if SILU:
        normed = value * scale[None, :] + offset[None, :]
        sigmoid = tl.sigmoid(normed)
        out = out * sigmoid * (1.0 + normed * (1.0 - sigmoid))
    return out


@triton.jit(do_not_specialize=["P", "rows_per_split", "num_units"])
def _norm_sums_kernel(
    x, gradient, statistics, sums, written, C, P, L, rows_per_split, num_units, seed, dropout,
    SILU: tl.constexpr, TAPS: tl.constexpr, DROPS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    unit, split, num_splits = tl.program_id(2), tl.program_id(1), tl.num_programs(1)
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = channels < C
    at, step = statistics + unit * C + channels, num_units * C
    scale, offset = tl.load(at, mask=inside), tl.load(at + step, mask=inside)
    centre, deviation = tl.load(at + 2 * step, mask=inside), tl.load(at + 3 * step, mask=inside)
    first, last = split * rows_per_split, tl.minimum((split + 1) * rows_per_split, P)
    sums_rc, products_rc = tl.zeros((BLOCK_R, BLOCK_C), tl.float32), tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    values_rc = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for start in range(first, last, BLOCK_R):
        rows = start + tl.arange(0, BLOCK_R)
        mask = (rows < last)[:, None] & inside[None, :]
        row = unit.to(tl.int64) * P + rows
        value = tl.load(x + row[:, None] * C + channels[None, :], mask=mask, other=0.0).to(tl.float32)
        before = _before_activation(
            gradient, value, scale, offset, row, rows, channels, mask, C, P, L, seed, dropout, SILU, TAPS, DROPS
        )
        if TAPS:  # stored, so that the last kernel reads one row instead of three (26 instead of 34 ms per step)
            tl.store(written + row[:, None] * C + channels[None, :], before.to(written.dtype.element_ty), mask=mask)
        normed = tl.where(mask, (value + centre[None, :]) * deviation[None, :], 0.0)
        sums_rc += before  # rows outside add zero, because their gradient was read as zero
        products_rc += before * normed
        values_rc += normed
    sum_c, product_c, normed_c = tl.sum(sums_rc, axis=0), tl.sum(products_rc, axis=0), tl.sum(values_rc, axis=0)
    at, step = sums + (unit * num_splits + split) * C + channels, num_units * num_splits * C
    tl.store(at, sum_c, mask=inside)
    tl.store(at + step, product_c, mask=inside)
    tl.store(at + 2 * step, normed_c, mask=inside)


@triton.jit(do_not_specialize=["C", "P", "num_splits", "group_size", "num_units"])
def _norm_means_kernel(
    sums, statistics, out, C, P, num_splits, group_size, num_units, BLOCK_G: tl.constexpr, BLOCK_S: tl.constexpr
):
    unit, group = tl.program_id(0), tl.program_id(1)
    inside = tl.arange(0, BLOCK_G) < group_size
    channels = group * group_size + tl.arange(0, BLOCK_G)
    sum_c, product_c = tl.zeros((BLOCK_G,), tl.float32), tl.zeros((BLOCK_G,), tl.float32)
    normed_c = tl.zeros((BLOCK_G,), tl.float32)
    for start in range(0, num_splits, BLOCK_S):
        splits = start + tl.arange(0, BLOCK_S)
        at = sums + (unit * num_splits + splits)[:, None] * C + channels[None, :]
        mask, step = (splits < num_splits)[:, None] & inside[None, :], num_units * num_splits * C
        sum_c += tl.sum(tl.load(at, mask=mask, other=0.0), axis=0)
        product_c += tl.sum(tl.load(at + step, mask=mask, other=0.0), axis=0)
        normed_c += tl.sum(tl.load(at + 2 * step, mask=mask, other=0.0), axis=0)
    step = num_units * C
    scale = tl.load(statistics + unit * C + channels, mask=inside, other=0.0)
    count = P * group_size
    # With g = gradient * gain and n = the normalised x: dx = (g - mean(g) - n mean(g n)) / deviation, means over a
    # group. `scale` is gain / deviation, so the division is already in it.
    mean = tl.sum(scale * sum_c) / count
    slope = tl.sum(scale * product_c) / count
    mean_c, slope_c = tl.zeros_like(sum_c) + mean, tl.zeros_like(sum_c) + slope
    at = out + unit * C + channels
    tl.store(at, sum_c, mask=inside)
    tl.store(at + step, product_c, mask=inside)
    tl.store(at + 2 * step, mean_c, mask=inside)
    tl.store(at + 3 * step, slope_c, mask=inside)
    tl.store(at + 4 * step, scale * sum_c - P * mean_c - slope_c * normed_c, mask=inside)


@triton.jit(do_not_specialize=["P", "num_units"])
def _norm_input_kernel(
    x, gradient, beside, statistics, means, out, C, P, L, num_units, seed, dropout,
    SILU: tl.constexpr, TAPS: tl.constexpr, DROPS: tl.constexpr, HAS_BESIDE: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    unit, channels = tl.program_id(2), tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    rows, inside = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R), channels < C
    at, step = unit * C + channels, num_units * C
    scale, offset = tl.load(statistics + at, mask=inside), tl.load(statistics + at + step, mask=inside)
    centre = tl.load(statistics + at + 2 * step, mask=inside)
    deviation = tl.load(statistics + at + 3 * step, mask=inside)
    mean, slope = tl.load(means + at + 2 * step, mask=inside), tl.load(means + at + 3 * step, mask=inside)
    mask = (rows < P)[:, None] & inside[None, :]
    row = unit.to(tl.int64) * P + rows
    place = row[:, None] * C + channels[None, :]
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    before = _before_activation(
        gradient, value, scale, offset, row, rows, channels, mask, C, P, L, seed, dropout, SILU, TAPS, DROPS
    )
    normed = (value + centre[None, :]) * deviation[None, :]
    result = before * scale[None, :] - mean[None, :] - normed * slope[None, :]
    if HAS_BESIDE:
        result += tl.load(beside + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + place, result.to(out.dtype.element_ty), mask=mask)


def group_norm_gradients(
    x_RC: Tensor, gradient: Tensor, statistics_4UC: Tensor, norm: Norm, *, beside_RC: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the input (R, C), the gain (C,), the bias (C,) and the shift of each unit (U, C); the last three
    float32.

    Args:
        beside_RC: further gradient of the input, from its other uses, which is added.
    """
    R, C = x_RC.shape
    U, P, num_blocks = R // norm.rows, norm.rows, triton.cdiv(C, CHANNELS)
    block, per_split, num_splits = tiles(R, C, norm)
    after = {"SILU": norm.silu, "TAPS": bool(norm.window), "DROPS": norm.dropout > 0}
    sums = x_RC.new_empty((3, U, num_splits, C), dtype=torch.float32)
    out_RC = torch.empty_like(x_RC)
    written = torch.empty_like(x_RC) if norm.window else None
    _norm_sums_kernel[(num_blocks, num_splits, U)](
        x_RC, gradient, statistics_4UC, sums, written, C, P, norm.window, per_split, U, norm.seed_1, norm.dropout,
        BLOCK_R=min(block, 32), BLOCK_C=CHANNELS, **after,
    )  # fmt: skip
    means, group = x_RC.new_empty((5, U, C), dtype=torch.float32), C // NUM_GROUPS
    _norm_means_kernel[(U, NUM_GROUPS)](
        sums, statistics_4UC, means, C, P, num_splits, group, U,
        BLOCK_G=max(16, triton.next_power_of_2(group)), BLOCK_S=16, num_warps=1,
    )  # fmt: skip
    # The first kernel has already written the gradient before window, dropout and SiLU.
    if norm.window:
        gradient, after = written, {"SILU": False, "TAPS": False, "DROPS": False}
    block = min(block, 64)
    _norm_input_kernel[(num_blocks, triton.cdiv(P, block), U)](
        x_RC, gradient, beside_RC, statistics_4UC, means, out_RC, C, P, norm.window, U, norm.seed_1, norm.dropout,
        HAS_BESIDE=beside_RC is not None, BLOCK_R=block, BLOCK_C=CHANNELS, **after,
    )  # fmt: skip
    of_vectors = means[:2].sum(1)
    return out_RC, of_vectors[1], of_vectors[0], means[4]
