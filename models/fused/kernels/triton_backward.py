"""Triton kernels for the backward passes of models.fused.kernels.triton_forward.

They must give the same gradients as autograd through models.fused.kernels.reference. The same letters are used: R rows
of C channels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.fused.kernels.triton_forward import normal_share

PROGRAMS = 1024  # number of programs that sum columns over all rows


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
    # Each program takes every num_programs-th block of rows and sums its columns once at the end: a sum over rows
    # inside the loop took more than twice the time (74 instead of 31 ms per step).
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
        # With n = (x - mean) / deviation and g = gradient * weight: dx = (g - mean(g) - n mean(g n)) / deviation.
        after *= weight_c[None, :]
        level, slope = tl.sum(after, axis=1) / C, tl.sum(after * normed, axis=1) / C
        result = tl.where(mask, (after - level[:, None] - normed * slope[:, None]) * deviation[:, None], 0.0)
        inputs_rc += result
        # The input also goes to the residual sum; its gradient from there is added here and not in another kernel.
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
    """Gradients of the input (R, C), and of gain, bias and shift (3, C) in float32.

    Args:
        statistics_2R: written by the forward pass.
        beside_RC: further gradient of the input that is added, as for the group norm.
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
        # d/dg (g Φ(g)) = Φ(g) + g φ(g), where φ(g) = exp(-g² / 2) / sqrt(2 π).
        of_gate = after * value * (share + gate * falling * 0.3989422804014327)
        values_ri += of_value
        gates_ri += of_gate
        tl.store(out + place, of_value.to(out.dtype.element_ty), mask=mask)
        tl.store(out + place + inner, of_gate.to(out.dtype.element_ty), mask=mask)
    at = sums + split * (2 * inner) + columns
    tl.store(at, tl.sum(values_ri, axis=0), mask=inside)
    tl.store(at + inner, tl.sum(gates_ri, axis=0), mask=inside)


def gate_gradients(x_R2I: Tensor, bias_2I: Tensor, gradient_RI: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the input (R, 2 I), and of the bias (2 I,) in float32."""
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
    """Gradients of queries, keys and values, side by side: (R, 3 C)."""
    R, C = gradient_RC.shape
    out_R3C = torch.empty_like(qkv_R3C)
    grid = (places, C // head_dim, R // (num_views * places))
    block = max(16, triton.next_power_of_2(num_views))
    _views_attention_gradient_kernel[grid](
        qkv_R3C, gradient_RC, out_R3C, num_views, places, C // head_dim, head_dim**-0.5,
        BLOCK_V=block, D=head_dim, num_warps=2,
    )  # fmt: skip
    return out_R3C
