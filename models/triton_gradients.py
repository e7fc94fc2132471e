"""Triton kernels for the backward passes of models.triton_kernels; autograd through models.fused_ops says what they
must compute.

Letters as there: R = U units x P rows, C channels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.fused_ops import NUM_GROUPS
from models.triton_kernels import CHANNELS, Norm, kept, normal_share, tiles

PROGRAMS = 1024  # that sum columns over all rows


@triton.jit
def _before_activation(
    gradient, value, scale, offset, row, rows, channels, mask, C, P, L, seed, dropout,
    SILU: tl.constexpr, TAPS: tl.constexpr, DROPS: tl.constexpr,
):  # fmt: skip
    """The gradient at the output of the norm itself, before SiLU, dropout and window."""
    if TAPS:  # a row has stood in its own window, in the next view's and in the one before
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
        if TAPS:  # so that the next pass reads one row and not three
            tl.store(written + row[:, None] * C + channels[None, :], before.to(written.dtype.element_ty), mask=mask)
        normed = tl.where(mask, (value + centre[None, :]) * deviation[None, :], 0.0)
        sums_rc += before  # zero outside, as the gradient that was read
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
    """Of the input (R, C), the gain (C,), the bias (C,) and the shift of each unit (U, C); the last three float32.

    Args:
        beside_RC: what the input's gradient is besides.
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
    if norm.window:
        gradient, after = written, {"SILU": False, "TAPS": False, "DROPS": False}
    block = min(block, 64)
    _norm_input_kernel[(num_blocks, triton.cdiv(P, block), U)](
        x_RC, gradient, beside_RC, statistics_4UC, means, out_RC, C, P, norm.window, U, norm.seed_1, norm.dropout,
        HAS_BESIDE=beside_RC is not None, BLOCK_R=block, BLOCK_C=CHANNELS, **after,
    )  # fmt: skip
    of_vectors = means[:2].sum(1)
    return out_RC, of_vectors[1], of_vectors[0], means[4]


@triton.jit(do_not_specialize=["R"])
def _layer_norm_gradient_kernel(
    x, shift, weight, gradient, beside, statistics, out, sums, R, C,
    HAS_SHIFT: tl.constexpr, HAS_BESIDE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    channels = tl.arange(0, BLOCK_C)
    inside = channels < C
    weight_c = tl.load(weight + channels, mask=inside, other=0.0).to(tl.float32)
    shift_c = tl.zeros((BLOCK_C,), tl.float32)
    if HAS_SHIFT:
        shift_c = tl.load(shift + channels, mask=inside, other=0.0).to(tl.float32)
    gains_rc, biases_rc = tl.zeros((BLOCK_R, BLOCK_C), tl.float32), tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    inputs_rc = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for start in range(program * BLOCK_R, R, num_programs * BLOCK_R):
        rows = (start + tl.arange(0, BLOCK_R)).to(tl.int64)
        mask = (rows < R)[:, None] & inside[None, :]
        place = rows[:, None] * C + channels[None, :]
        mean = tl.load(statistics + rows, mask=rows < R, other=0.0)
        deviation = tl.load(statistics + R + rows, mask=rows < R, other=0.0)
        value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32) + shift_c[None, :]
        after = tl.load(gradient + place, mask=mask, other=0.0).to(tl.float32)
        normed = tl.where(mask, (value - mean[:, None]) * deviation[:, None], 0.0)
        gains_rc += after * normed
        biases_rc += after
        after *= weight_c[None, :]
        level, slope = tl.sum(after, axis=1) / C, tl.sum(after * normed, axis=1) / C
        result = tl.where(mask, (after - level[:, None] - normed * slope[:, None]) * deviation[:, None], 0.0)
        inputs_rc += result
        if HAS_BESIDE:
            result += tl.load(beside + place, mask=mask, other=0.0).to(tl.float32)
        tl.store(out + place, result.to(out.dtype.element_ty), mask=mask)
    at, step = sums + program * C + channels, num_programs * C
    tl.store(at, tl.sum(gains_rc, axis=0), mask=inside)
    tl.store(at + step, tl.sum(biases_rc, axis=0), mask=inside)
    tl.store(at + 2 * step, tl.sum(inputs_rc, axis=0), mask=inside)


def layer_norm_gradients(
    x_RC: Tensor,
    weight_C: Tensor,
    shift_C: Tensor | None,
    gradient_RC: Tensor,
    statistics_2R: Tensor,
    *,
    beside_RC: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Of the input (R, C), and of gain, bias and shift (3, C) in float32.

    Args:
        statistics_2R: that the forward pass wrote.
        beside_RC: as for the group norm.
    """
    R, C = x_RC.shape
    out_RC, width = torch.empty_like(x_RC), triton.next_power_of_2(C)
    block = max(1, 2048 // width)
    num_programs = min(PROGRAMS, triton.cdiv(R, block))
    sums = x_RC.new_empty((3, num_programs, C), dtype=torch.float32)
    _layer_norm_gradient_kernel[(num_programs,)](
        x_RC, shift_C, weight_C, gradient_RC, beside_RC, statistics_2R, out_RC, sums, R, C,
        HAS_SHIFT=shift_C is not None, HAS_BESIDE=beside_RC is not None, BLOCK_R=block, BLOCK_C=width, num_warps=4,
    )  # fmt: skip
    return out_RC, sums.sum(1)


@triton.jit(do_not_specialize=["R", "rows_per_split"])
def _gate_gradient_kernel(
    x, bias, gradient, out, sums, R, inner, rows_per_split, BLOCK_R: tl.constexpr, BLOCK_I: tl.constexpr
):
    split = tl.program_id(1)
    columns = tl.program_id(0) * BLOCK_I + tl.arange(0, BLOCK_I)
    inside = columns < inner
    value_bias = tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    gate_bias = tl.load(bias + inner + columns, mask=inside, other=0.0).to(tl.float32)
    values_ri, gates_ri = tl.zeros((BLOCK_R, BLOCK_I), tl.float32), tl.zeros((BLOCK_R, BLOCK_I), tl.float32)
    last = tl.minimum((split + 1) * rows_per_split, R)
    for start in range(split * rows_per_split, last, BLOCK_R):
        rows = (start + tl.arange(0, BLOCK_R)).to(tl.int64)
        mask = (rows < last)[:, None] & inside[None, :]
        place = rows[:, None] * (2 * inner) + columns[None, :]
        value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32) + value_bias[None, :]
        gate = tl.load(x + place + inner, mask=mask, other=0.0).to(tl.float32) + gate_bias[None, :]
        after = tl.load(gradient + rows[:, None] * inner + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        share, falling = normal_share(gate)
        of_value = after * gate * share
        of_gate = after * value * (share + gate * falling * 0.3989422804014327)
        values_ri += of_value
        gates_ri += of_gate
        tl.store(out + place, of_value.to(out.dtype.element_ty), mask=mask)
        tl.store(out + place + inner, of_gate.to(out.dtype.element_ty), mask=mask)
    at = sums + split * (2 * inner) + columns
    tl.store(at, tl.sum(values_ri, axis=0), mask=inside)
    tl.store(at + inner, tl.sum(gates_ri, axis=0), mask=inside)


def gate_gradients(x_R2I: Tensor, bias_2I: Tensor, gradient_RI: Tensor) -> tuple[Tensor, Tensor]:
    """Of the input (R, 2 I), and of the bias (2 I,) in float32."""
    R, inner = gradient_RI.shape
    out_R2I, rows, columns = torch.empty_like(x_R2I), 8, 256
    num_columns = triton.cdiv(inner, columns)
    num_splits = max(1, min(triton.cdiv(R, rows), triton.cdiv(4 * PROGRAMS, num_columns)))
    per_split = triton.cdiv(triton.cdiv(R, num_splits), rows) * rows
    num_splits = triton.cdiv(R, per_split)
    sums = x_R2I.new_empty((num_splits, 2 * inner), dtype=torch.float32)
    _gate_gradient_kernel[(num_columns, num_splits)](
        x_R2I, bias_2I, gradient_RI, out_R2I, sums, R, inner, per_split, BLOCK_R=rows, BLOCK_I=columns
    )
    return out_R2I, sums.sum(0)


@triton.jit(do_not_specialize=["V", "L"])
def _views_attention_gradient_kernel(qkv, gradient, out, V, L, N, scale, BLOCK_V: tl.constexpr, D: tl.constexpr):
    place, head, orbit = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    views, dims = tl.arange(0, BLOCK_V), tl.arange(0, D)
    row = (orbit * V + views).to(tl.int64) * L + place
    mask = (views < V)[:, None]
    at = row[:, None] * (3 * N * D) + head * D + dims[None, :]
    q, k = tl.load(qkv + at, mask=mask, other=0.0), tl.load(qkv + at + N * D, mask=mask, other=0.0)
    v = tl.load(qkv + at + 2 * N * D, mask=mask, other=0.0)
    after = tl.load(gradient + row[:, None] * (N * D) + head * D + dims[None, :], mask=mask, other=0.0)
    score = tl.where((views < V)[None, :], tl.dot(q, tl.trans(k)) * scale, float("-inf"))
    weight = tl.exp(score - tl.max(score, axis=1)[:, None])
    weight = weight / tl.sum(weight, axis=1)[:, None]
    of_v = tl.dot(tl.trans(weight.to(v.dtype)), after)
    of_weight = tl.dot(after, tl.trans(v))
    of_score = weight * (of_weight - tl.sum(weight * of_weight, axis=1)[:, None]) * scale
    of_score = of_score.to(q.dtype)
    of_q, of_k = tl.dot(of_score, k), tl.dot(tl.trans(of_score), q)
    tl.store(out + at, of_q.to(out.dtype.element_ty), mask=mask)
    tl.store(out + at + N * D, of_k.to(out.dtype.element_ty), mask=mask)
    tl.store(out + at + 2 * N * D, of_v.to(out.dtype.element_ty), mask=mask)


def views_attention_gradient(
    qkv_R3C: Tensor, gradient_RC: Tensor, *, num_views: int, places: int, head_dim: int
) -> Tensor:
    """Of queries, keys and values, side by side: (R, 3 C)."""
    R, C = gradient_RC.shape
    out_R3C = torch.empty_like(qkv_R3C)
    grid = (places, C // head_dim, R // (num_views * places))
    block = max(16, triton.next_power_of_2(num_views))
    _views_attention_gradient_kernel[grid](
        qkv_R3C, gradient_RC, out_R3C, num_views, places, C // head_dim, head_dim**-0.5,
        BLOCK_V=block, D=head_dim, num_warps=2,
    )  # fmt: skip
    return out_R3C
