"""Triton kernels for a GPU. models.fused.kernels.reference has the same operations in plain PyTorch.

Activations are rows of channels, as in models.fused.kernels.triton_norms. Values are computed in float32 and stored in
half precision. Row numbers are int64, because R times C can be more than 2³¹. Sizes that change with the batch are not
specialised (do_not_specialize), so that Triton does not compile a kernel again for every batch size.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.fused.kernels import reference
from models.fused.kernels.reference import cast, product
from models.fused.kernels.triton_norms import CHANNELS, Norm, group_statistics, normalized

__all__ = [
    "accumulate", "add", "cast", "doubled", "gate", "group_norm", "layer_norm", "normed_product", "views_attention",
]  # fmt: skip


def group_norm(
    x_RC: Tensor, weight_C: Tensor, bias_C: Tensor, *, shift: Tensor | None = None, **options: Any
) -> Tensor:
    """See models.fused.kernels.reference.group_norm."""
    norm = Norm(**options)
    return normalized(x_RC, group_statistics(x_RC, weight_C, bias_C, norm, shift=shift), norm)


def normed_product(
    x_RC: Tensor,
    norm_weight_C: Tensor,
    norm_bias_C: Tensor,
    weight: Tensor,
    *,
    size: tuple[int, int] | None = None,
    onto_RC: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """See models.fused.kernels.reference.normed_product; adds to `onto_RC` in place."""
    normed = group_norm(x_RC, norm_weight_C, norm_bias_C, **options)
    return x_RC, product(normed, weight, size=size) if onto_RC is None else onto_RC.addmm_(normed, weight.T)


def accumulate(h_RC: Tensor, x_RI: Tensor, weight_CI: Tensor) -> Tensor:
    """See models.fused.kernels.reference.accumulate; in place."""
    return h_RC.addmm_(x_RI, weight_CI.T)


@triton.jit(do_not_specialize=["R"])
def _layer_norm_kernel(
    x, shift, weight, bias, out, statistics, R, C, eps,
    HAS_SHIFT: tl.constexpr, FOR_GRADIENTS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    rows = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    channels = tl.arange(0, BLOCK_C)
    inside = channels < C
    mask = (rows < R)[:, None] & inside[None, :]
    place = rows[:, None] * C + channels[None, :]
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    if HAS_SHIFT:
        value += tl.load(shift + channels, mask=inside, other=0.0).to(tl.float32)[None, :]
    mean = tl.sum(value, axis=1) / C
    centred = tl.where(inside[None, :], value - mean[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, axis=1) / C + eps)
    if FOR_GRADIENTS:
        tl.store(statistics + rows, mean, mask=rows < R)
        tl.store(statistics + R + rows, scale, mask=rows < R)
    weight_c = tl.load(weight + channels, mask=inside).to(tl.float32)
    bias_c = tl.load(bias + channels, mask=inside).to(tl.float32)
    value = centred * scale[:, None] * weight_c[None, :] + bias_c[None, :]
    tl.store(out + place, value.to(out.dtype.element_ty), mask=mask)


def layer_norm(
    x_RC: Tensor,
    weight_C: Tensor,
    bias_C: Tensor,
    *,
    eps: float,
    shift_C: Tensor | None = None,
    statistics_2R: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `reference.layer_norm`; also writes means and 1 / standard deviations of the rows into `statistics_2R`."""
    R, C = x_RC.shape
    out_RC = torch.empty_like(x_RC)
    # A program holds complete rows, so that one pass is enough for mean and deviation; about 2048 values per program.
    width = triton.next_power_of_2(C)
    block = max(1, 2048 // width)
    _layer_norm_kernel[(triton.cdiv(R, block),)](
        x_RC, shift_C, weight_C, bias_C, out_RC, statistics_2R, R, C, eps,
        HAS_SHIFT=shift_C is not None, FOR_GRADIENTS=statistics_2R is not None,
        BLOCK_R=block, BLOCK_C=width, num_warps=2,
    )  # fmt: skip
    return x_RC, out_RC


@triton.jit
def _place_of(program, num_columns, BLOCK: tl.constexpr):
    """Block of rows and block of columns of a program.

    Both are in the first grid dimension, because the other dimensions of a CUDA grid are limited to 65,535.
    """
    num_blocks = tl.cdiv(num_columns, BLOCK)
    return program // num_blocks, program % num_blocks


@triton.jit(do_not_specialize=["R"])
def _add_kernel(x, y, bias, out, scale, R, C, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    row_block, channel_block = _place_of(tl.program_id(0), C, BLOCK_C)
    rows = (row_block * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    channels = channel_block * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (rows < R)[:, None] & (channels < C)[None, :]
    place = rows[:, None] * C + channels[None, :]
    value = tl.load(x + place, mask=mask).to(tl.float32) + tl.load(y + place, mask=mask).to(tl.float32)
    value += tl.load(bias + channels, mask=channels < C).to(tl.float32)[None, :]
    tl.store(out + place, (value * scale).to(out.dtype.element_ty), mask=mask)


def add(x_RC: Tensor, y_RC: Tensor, bias_C: Tensor, *, scale: float = 1.0) -> Tensor:
    """See models.fused.kernels.reference.add."""
    R, C = x_RC.shape
    out_RC = torch.empty_like(x_RC)
    grid = (triton.cdiv(C, CHANNELS) * triton.cdiv(R, 64),)
    _add_kernel[grid](x_RC, y_RC, bias_C, out_RC, scale, R, C, BLOCK_R=64, BLOCK_C=CHANNELS)
    return out_RC


@triton.jit
def normal_share(z):
    """The normal distribution function at z, up to 1e-7, and exp(-z²/2). Source: Abramowitz and Stegun, 7.1.26.

    The erf of the library takes longer than reading and writing the values.
    """
    falling = tl.exp(-0.5 * z * z)
    t = 1.0 / (1.0 + 0.23164190 * tl.abs(z))
    sum_t = 0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429)))
    beyond = 0.5 * t * sum_t * falling
    return tl.where(z < 0, beyond, 1.0 - beyond), falling


@triton.jit(do_not_specialize=["R"])
def _gate_kernel(x, bias, out, R, inner, BLOCK_R: tl.constexpr, BLOCK_I: tl.constexpr):
    row_block, column_block = _place_of(tl.program_id(0), inner, BLOCK_I)
    rows = (row_block * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    columns = column_block * BLOCK_I + tl.arange(0, BLOCK_I)
    inside = columns < inner
    mask = (rows < R)[:, None] & inside[None, :]
    at = x + rows[:, None] * (2 * inner) + columns[None, :]
    value, gate = tl.load(at, mask=mask).to(tl.float32), tl.load(at + inner, mask=mask).to(tl.float32)
    value += tl.load(bias + columns, mask=inside).to(tl.float32)[None, :]
    gate += tl.load(bias + inner + columns, mask=inside).to(tl.float32)[None, :]
    share, _ = normal_share(gate)
    tl.store(out + rows[:, None] * inner + columns[None, :], (value * gate * share).to(out.dtype.element_ty), mask=mask)


def gate(x_R2I: Tensor, bias_2I: Tensor) -> Tensor:
    """See models.fused.kernels.reference.gate."""
    R, inner = x_R2I.shape[0], x_R2I.shape[1] // 2
    out_RI = x_R2I.new_empty((R, inner))
    grid = (triton.cdiv(inner, 128) * triton.cdiv(R, 16),)
    _gate_kernel[grid](x_R2I, bias_2I, out_RI, R, inner, BLOCK_R=16, BLOCK_I=128)
    return out_RI


@triton.jit(do_not_specialize=["V", "L"])
def _views_attention_kernel(qkv, out, V, L, N, scale, BLOCK_V: tl.constexpr, D: tl.constexpr):
    place, head, orbit = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    # One program per pixel, head and orbit: its queries, keys and values of all views fit into registers, so the
    # softmax needs a single pass. The rows of a pixel are L apart, because views follow each other in memory.
    views, dims = tl.arange(0, BLOCK_V), tl.arange(0, D)
    row = (orbit * V + views).to(tl.int64) * L + place
    mask = (views < V)[:, None]
    at = qkv + row[:, None] * (3 * N * D) + head * D + dims[None, :]
    q, k = tl.load(at, mask=mask, other=0.0), tl.load(at + N * D, mask=mask, other=0.0)
    v = tl.load(at + 2 * N * D, mask=mask, other=0.0)
    score = tl.dot(q, tl.trans(k)) * scale
    score = tl.where((views < V)[None, :], score, float("-inf"))
    weight = tl.exp(score - tl.max(score, axis=1)[:, None])
    weight = weight / tl.sum(weight, axis=1)[:, None]
    mixed = tl.dot(weight.to(v.dtype), v)
    tl.store(out + row[:, None] * (N * D) + head * D + dims[None, :], mixed.to(out.dtype.element_ty), mask=mask)


def views_attention(qkv_R3C: Tensor, *, num_views: int, places: int, head_dim: int) -> Tensor:
    """See models.fused.kernels.reference.views_attention, which is used for sizes that the kernel does not support."""
    if not reference.is_small(num_views, head_dim):
        return reference.views_attention(qkv_R3C, num_views=num_views, places=places, head_dim=head_dim)
    R, C = qkv_R3C.shape[0], qkv_R3C.shape[1] // 3
    out_RC = qkv_R3C.new_empty((R, C))
    grid = (places, C // head_dim, R // (num_views * places))
    block = max(16, triton.next_power_of_2(num_views))  # tl.dot needs at least 16 rows
    _views_attention_kernel[grid](
        qkv_R3C, out_RC, num_views, places, C // head_dim, head_dim**-0.5, BLOCK_V=block, D=head_dim, num_warps=2
    )
    return out_RC


@triton.jit(do_not_specialize=["W"])
def _doubled_kernel(x, out, W, C, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr):
    line, columns = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W)
    channels = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (columns < W)[:, None] & (channels < C)[None, :]
    value = tl.load(x + (line * W + columns)[:, None] * C + channels[None, :], mask=mask)
    # An input line of W pixels becomes two output lines of 2 W pixels; each pixel is written to four places.
    at = out + (line * 4 * W + 2 * columns)[:, None] * C + channels[None, :]
    tl.store(at, value, mask=mask)
    tl.store(at + C, value, mask=mask)
    tl.store(at + 2 * W * C, value, mask=mask)
    tl.store(at + 2 * W * C + C, value, mask=mask)


def doubled(x_RC: Tensor, *, height: int, width: int) -> Tensor:
    """See models.fused.kernels.reference.doubled."""
    R, C = x_RC.shape
    out = x_RC.new_empty((4 * R, C))
    block = min(16, triton.next_power_of_2(width))
    grid = (R // width, triton.cdiv(width, block), triton.cdiv(C, CHANNELS))
    _doubled_kernel[grid](x_RC, out, width, C, BLOCK_W=block, BLOCK_C=CHANNELS)
    return out
