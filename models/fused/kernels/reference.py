"""The fused operations in plain PyTorch. The kernels of models.fused.kernels.triton_forward must give the same results.

Activations are rows of channels: R = images x pixels rows of C channels, contiguous, with the views of an orbit one
after the other. Channels-last images, tokens and matrices then have the same memory layout, and nothing is ever
transposed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.attention import attention

NUM_GROUPS = 32


def group_norm(
    x_RC: Tensor,
    weight_C: Tensor,
    bias_C: Tensor,
    *,
    rows: int,
    eps: float,
    shift: Tensor | None = None,
    silu: bool = False,
    window: int = 0,
    dropout: float = 0.0,
    seed_1: Tensor | None = None,
) -> Tensor:
    """Group norm of `x + shift` in 32 groups, over `rows` rows at a time.

    Args:
        rows: number of rows of an image, or of an orbit.
        shift: (R / rows, C) or (1, C); the last dimension contiguous.
        silu: apply SiLU to the result.
        window: number of rows of a view. The result is then (R, 3 C): the rows of the same pixel in the view before, in
            this view and in the view after, with zeros beyond the ends. A product with it is a convolution over the
            views.
        dropout: fraction of the results that are zero; the others are scaled up.
        seed_1: seed of the dropout, an integer on the device; the kernels draw other numbers than this module.

    Returns:
        (R, C), or (R, 3 C) with a window.
    """
    x_UPC = x_RC.unflatten(0, (-1, rows))
    if shift is not None:
        x_UPC = x_UPC + shift[:, None].to(x_UPC)
    x_UPC = F.group_norm(x_UPC.transpose(1, 2), NUM_GROUPS, weight_C, bias_C, eps).transpose(1, 2)
    x_UPC = F.silu(x_UPC) if silu else x_UPC
    if dropout:
        generator = torch.Generator(x_RC.device).manual_seed(int(seed_1))
        drawn = torch.rand(x_UPC.shape, generator=generator, device=x_RC.device)
        x_UPC = torch.where(drawn >= dropout, x_UPC / (1 - dropout), 0)
    if not window:
        return x_UPC.reshape(x_RC.shape)
    before_UPC = F.pad(x_UPC, (0, 0, window, 0))[:, :rows]
    after_UPC = F.pad(x_UPC, (0, 0, 0, window))[:, window:]
    return torch.cat([before_UPC, x_UPC, after_UPC], dim=2).flatten(0, 1)


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
    """A product of the result of `group_norm`.

    Args:
        weight: (O, I), or (O, I, h, w) of a convolution that keeps the size.
        size: height and width of the images, for a convolution.
        onto_RC: tensor to which the product is added; the kernels do this in place.
        options: options of `group_norm`.

    Returns:
        The input and the product. Use the returned input for further operations, so that one kernel sums its gradients.
    """
    out = product(group_norm(x_RC, norm_weight_C, norm_bias_C, **options), weight, size=size)
    return x_RC, out if onto_RC is None else onto_RC + out


def product(x_RI: Tensor, weight: Tensor, *, size: tuple[int, int] | None = None) -> Tensor:
    """Product of rows with a matrix (O, I), or convolution of images of that size; without bias."""
    if weight.dim() == 2:
        return F.linear(x_RI, weight)
    images = x_RI.view(-1, *size, x_RI.shape[1]).permute(0, 3, 1, 2)
    images = F.conv2d(images, weight, padding=[side // 2 for side in weight.shape[2:]])
    return images.permute(0, 2, 3, 1).reshape(len(x_RI), -1)


def accumulate(h_RC: Tensor, x_RI: Tensor, weight_CI: Tensor) -> Tensor:
    """`h + x W'`; the kernels overwrite h."""
    return torch.addmm(h_RC, x_RI, weight_CI.T)


def cast(weights: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Cast weights to another precision."""
    return [weight.to(dtype) for weight in weights]


def layer_norm(
    x_RC: Tensor, weight_C: Tensor, bias_C: Tensor, *, eps: float, shift_C: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The input (for further operations, as in `normed_product`), and the layer norm of `x + shift`."""
    shifted_RC = x_RC if shift_C is None else x_RC + shift_C
    return x_RC, F.layer_norm(shifted_RC, x_RC.shape[-1:], weight_C, bias_C, eps)


def add(x_RC: Tensor, y_RC: Tensor, bias_C: Tensor, *, scale: float = 1.0) -> Tensor:
    """The scaled sum of two activations and a bias."""
    total_RC = x_RC + y_RC + bias_C
    return total_RC if scale == 1.0 else total_RC * scale


def gate(x_R2I: Tensor, bias_2I: Tensor) -> Tensor:
    """GEGLU of `x + bias`: the first half times GELU of the second, (R, 2 I) to (R, I)."""
    value_RI, gate_RI = (x_R2I + bias_2I).chunk(2, dim=-1)
    return value_RI * F.gelu(gate_RI)


def views_attention(qkv_R3C: Tensor, *, num_views: int, places: int, head_dim: int) -> Tensor:
    """Self-attention over the views for every pixel: (R, 3 C), queries, keys and values side by side, to (R, C)."""
    qkv = qkv_R3C.view(-1, num_views, places, 3, qkv_R3C.shape[1] // (3 * head_dim), head_dim)
    q, k, v = (part.flatten(2, 3) for part in qkv.unbind(3))
    return attention(q, k, v).reshape(len(qkv_R3C), -1)


def is_small(num_views: int, head_dim: int) -> bool:
    """Whether the kernels of `views_attention` support these sizes; they hold all views of a head at once."""
    return num_views <= 64 and head_dim in (16, 32, 64, 128)


def doubled(x_RC: Tensor, *, height: int, width: int) -> Tensor:
    """Enlarge images of height x width pixels to twice the size with nearest neighbours."""
    x_FHWC = x_RC.view(-1, height, 1, width, 1, x_RC.shape[1])
    return x_FHWC.expand(-1, -1, 2, -1, 2, -1).reshape(-1, x_RC.shape[1])
