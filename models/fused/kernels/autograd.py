"""The operations of models.fused.kernels.reference for training on a GPU: Triton kernels forward and backward.

Values that are cheap to compute are not stored between the passes: norm, activation and window are computed again from
the input of the norm and its statistics. So a product after a norm stores only the input of the norm, and not the
window with three times its size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from models.fused.kernels import reference, triton_backward, triton_forward
from models.fused.kernels.reference import accumulate, product
from models.fused.kernels.triton_norms import Norm, group_statistics, normalized
from models.fused.kernels.triton_norms_backward import group_norm_gradients

__all__ = ["accumulate", "add", "cast", "gate", "layer_norm", "normed_product", "views_attention"]


@dataclass(frozen=True, kw_only=True)
class _Options:
    norm: Norm
    size: tuple[int, int] | None


class _NormedProduct(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_RC: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        shift: Tensor | None,
        weight: Tensor,
        onto_RC: Tensor | None,
        options: _Options,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        norm = options.norm
        statistics = group_statistics(x_RC, norm_weight, norm_bias, norm, shift=shift, for_gradients=True)
        normed = normalized(x_RC, statistics, norm)
        ctx.save_for_backward(x_RC, weight, statistics)
        ctx.options, ctx.shift = options, None if shift is None else (len(shift), shift.dtype)
        ctx.vector_types = norm_weight.dtype, norm_bias.dtype
        out = product(normed, weight, size=options.size) if onto_RC is None else accumulate(onto_RC, normed, weight)
        return x_RC, out

    @staticmethod
    def backward(ctx: Any, beside_RC: Tensor | None, gradient_RO: Tensor) -> tuple[Tensor | None, ...]:
        x_RC, weight, statistics = ctx.saved_tensors
        norm, gradient_RO = ctx.options.norm, gradient_RO.contiguous()
        normed = normalized(x_RC, statistics, norm) if ctx.needs_input_grad[4] else None
        of_normed, of_weight = _product_gradients(gradient_RO, normed, weight, size=ctx.options.size, like=x_RC)
        del normed
        of_x, of_gain, of_bias, of_shift = group_norm_gradients(
            x_RC, of_normed, statistics, norm, beside_RC=None if beside_RC is None else beside_RC.contiguous()
        )
        if ctx.shift is None:
            of_shift = None
        else:
            length, dtype = ctx.shift
            of_shift = (of_shift.sum(0, keepdim=True) if length == 1 else of_shift).to(dtype)
        of_gain, of_bias = (part.to(dtype) for part, dtype in zip((of_gain, of_bias), ctx.vector_types, strict=True))
        return of_x, of_gain, of_bias, of_shift, of_weight, gradient_RO if ctx.needs_input_grad[5] else None, None


def _product_gradients(
    gradient_RO: Tensor, x: Tensor | None, weight: Tensor, *, size: tuple[int, int] | None, like: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Gradients of both factors of `product`; that of the weight only if x is given."""
    if weight.dim() == 2:
        return gradient_RO @ weight, None if x is None else gradient_RO.T @ x

    def images(rows: Tensor) -> Tensor:
        return rows.view(-1, *size, rows.shape[1]).permute(0, 3, 1, 2)

    padding = [side // 2 for side in weight.shape[2:]]
    given = images(like) if x is None else images(x)
    how, wanted = ([1, 1], padding, [1, 1], False, [0, 0], 1), [True, x is not None, False]
    of_images, of_weight, _ = torch.ops.aten.convolution_backward(
        images(gradient_RO), given, weight, None, *how, wanted
    )
    return of_images.permute(0, 2, 3, 1).reshape(like.shape), of_weight


class _LayerNorm(Function):
    @staticmethod
    def forward(
        ctx: Any, x_RC: Tensor, weight_C: Tensor, bias_C: Tensor, shift_C: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        statistics_2R = x_RC.new_empty((2, len(x_RC)), dtype=torch.float32)
        ctx.save_for_backward(x_RC, weight_C, shift_C, statistics_2R)
        ctx.types = weight_C.dtype, bias_C.dtype, None if shift_C is None else shift_C.dtype
        return triton_forward.layer_norm(x_RC, weight_C, bias_C, eps=eps, shift_C=shift_C, statistics_2R=statistics_2R)

    @staticmethod
    def backward(ctx: Any, beside_RC: Tensor | None, gradient_RC: Tensor) -> tuple[Tensor | None, ...]:
        x_RC, weight_C, shift_C, statistics_2R = ctx.saved_tensors
        beside_RC = None if beside_RC is None else beside_RC.contiguous()
        of_x, of_vectors = triton_backward.layer_norm_gradients(
            x_RC, weight_C, shift_C, gradient_RC.contiguous(), statistics_2R, beside_RC=beside_RC
        )
        gain, bias, shift = (
            None if dtype is None else part.to(dtype) for part, dtype in zip(of_vectors, ctx.types, strict=True)
        )
        return of_x, gain, bias, shift, None


class _Add(Function):
    @staticmethod
    def forward(ctx: Any, x_RC: Tensor, y_RC: Tensor, bias_C: Tensor, scale: float) -> Tensor:
        ctx.scale, ctx.dtype = scale, bias_C.dtype
        return triton_forward.add(x_RC, y_RC, bias_C, scale=scale)

    @staticmethod
    def backward(ctx: Any, gradient_RC: Tensor) -> tuple[Tensor | None, ...]:
        # made contiguous once here, instead of in each kernel of the two branches that follow
        gradient_RC = gradient_RC.contiguous() if ctx.scale == 1.0 else gradient_RC * ctx.scale
        of_bias = gradient_RC.sum(0, dtype=torch.float32).to(ctx.dtype) if ctx.needs_input_grad[2] else None
        return gradient_RC, gradient_RC, of_bias, None


class _Gate(Function):
    @staticmethod
    def forward(ctx: Any, x_R2I: Tensor, bias_2I: Tensor) -> Tensor:
        ctx.save_for_backward(x_R2I, bias_2I)
        return triton_forward.gate(x_R2I, bias_2I)

    @staticmethod
    def backward(ctx: Any, gradient_RI: Tensor) -> tuple[Tensor, Tensor]:
        x_R2I, bias_2I = ctx.saved_tensors
        of_x, of_bias = triton_backward.gate_gradients(x_R2I, bias_2I, gradient_RI.contiguous())
        return of_x, of_bias.to(bias_2I.dtype)


class _ViewsAttention(Function):
    @staticmethod
    def forward(ctx: Any, qkv_R3C: Tensor, sizes: dict[str, int]) -> Tensor:
        ctx.save_for_backward(qkv_R3C)
        ctx.sizes = sizes
        return triton_forward.views_attention(qkv_R3C, **sizes)

    @staticmethod
    def backward(ctx: Any, gradient_RC: Tensor) -> tuple[Tensor, None]:
        (qkv_R3C,) = ctx.saved_tensors
        return triton_backward.views_attention_gradient(qkv_R3C, gradient_RC.contiguous(), **ctx.sizes), None


class _Cast(Function):
    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.types = [weight.dtype for weight in weights]
        return tuple(_cast(weights, [dtype] * len(weights)))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_cast(gradients, ctx.types)


def _cast(tensors: Sequence[Tensor], types: Sequence[torch.dtype]) -> list[Tensor]:
    """Cast all tensors in one kernel; each keeps its memory format."""
    out = [torch.empty_like(tensor, dtype=dtype) for tensor, dtype in zip(tensors, types, strict=True)]
    torch._foreach_copy_(out, list(tensors))
    return out


def cast(weights: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Cast weights to another precision; their gradients are cast back."""
    return list(_Cast.apply(dtype, *weights))


def normed_product(
    x_RC: Tensor,
    norm_weight_C: Tensor,
    norm_bias_C: Tensor,
    weight: Tensor,
    *,
    size: tuple[int, int] | None = None,
    onto_RC: Tensor | None = None,
    shift: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """See models.fused.kernels.reference.normed_product."""
    how = _Options(norm=Norm(**options), size=size)
    return _NormedProduct.apply(x_RC, norm_weight_C, norm_bias_C, shift, weight, onto_RC, how)


def layer_norm(
    x_RC: Tensor, weight_C: Tensor, bias_C: Tensor, *, eps: float, shift_C: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """See models.fused.kernels.reference.layer_norm."""
    return _LayerNorm.apply(x_RC, weight_C, bias_C, shift_C, eps)


def add(x_RC: Tensor, y_RC: Tensor, bias_C: Tensor, *, scale: float = 1.0) -> Tensor:
    """See models.fused.kernels.reference.add."""
    return _Add.apply(x_RC, y_RC, bias_C, scale)


def gate(x_R2I: Tensor, bias_2I: Tensor) -> Tensor:
    """See models.fused.kernels.reference.gate."""
    return _Gate.apply(x_R2I, bias_2I)


def views_attention(qkv_R3C: Tensor, **sizes: int) -> Tensor:
    """See models.fused.kernels.reference.views_attention."""
    if not reference.is_small(sizes["num_views"], sizes["head_dim"]):
        return reference.views_attention(qkv_R3C, **sizes)
    return _ViewsAttention.apply(qkv_R3C, sizes)
