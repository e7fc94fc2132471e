"""Trains the UNet with the fused operations: same parameters, same function, same checkpointing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from models.fused.kernels.choice import has_kernels
from models.fused.layers import FusedResBlock, FusedTransformer, LayerContext
from models.fused.rows import Rows
from models.unet.blocks import ResBlock
from models.unet.transformers import SpatialTransformer, TemporalTransformer
from utils.torch_settings import GroupNorm

# Where the layers come from that the fused operations know: torch, this package, whose name differs in the installed
# package, and the group norms.
KNOWN = ("torch.", __name__.removesuffix("fused.training"), GroupNorm.__module__)


def fuse_for_training(parts: Iterable[nn.Module]) -> None:
    """Make blocks of the UNet use fused operations for half precision on a GPU; in place.

    Other parts do not change. Neither do blocks with LoRA, because LoRA changes single layers that the fused operations
    do not call.
    """
    for part in parts:
        known = isinstance(part, ResBlock | SpatialTransformer | TemporalTransformer)
        if known and all(type(layer).__module__.startswith(KNOWN) for layer in part.modules()):
            part.forward = partial(_forward, part, part.forward)


def _forward(part: nn.Module, plain: Callable[..., Tensor], x_FCHW: Tensor, *args: Any) -> Tensor:
    if not has_kernels(x_FCHW.device, x_FCHW.dtype):
        return plain(x_FCHW, *args)
    return fused_forward(part, x_FCHW, *args)


def fused_forward(part: nn.Module, x_FCHW: Tensor, *args: Any) -> Tensor:
    """Compute a ResBlock, SpatialTransformer or TemporalTransformer with its usual arguments; differentiable."""
    dtype = x_FCHW.dtype
    with torch.autocast(x_FCHW.device.type, enabled=False):
        rows = Rows.of(x_FCHW.contiguous(memory_format=torch.channels_last))
        cast = partial(rows.ops.cast, dtype=dtype)
        if isinstance(part, ResBlock):
            embedding_FE, num_views = args
            project = part.emb_layers[1]
            shift_FC = nn.functional.linear(
                part.emb_layers[0](embedding_FE.to(dtype)),
                project.weight.to(dtype),
                (project.bias + part.in_layers[-1].bias).to(dtype),
            )
            context = LayerContext(num_views=num_views, shifts={id(part): shift_FC}, contexts={})
            return FusedResBlock(part, cast)(rows, context).images()
        contexts, num_views = {}, args[0]
        if isinstance(part, SpatialTransformer):
            attend = part.transformer_blocks[0].attn2
            contexts[id(attend)] = _keys_and_values(attend, args[1].to(dtype), num_views)
        context = LayerContext(num_views=num_views, shifts={}, contexts=contexts)
        return FusedTransformer(part, cast)(rows, context).images()


def _keys_and_values(attend: Any, context_BSC: Tensor, num_views: int) -> tuple[Tensor, Tensor]:
    """Keys and values of the context, repeated for each image.

    The backward pass of attention processes all queries of one set of keys together, which is slow for the queries of a
    whole orbit.
    """

    def heads(projection: nn.Linear) -> Tensor:
        out = nn.functional.linear(context_BSC, projection.weight.to(context_BSC.dtype))
        out = out.unflatten(2, (attend.num_heads, attend.head_dim))
        return out[:, None].expand(-1, num_views, -1, -1, -1).flatten(0, 1)

    return heads(attend.to_k), heads(attend.to_v)
