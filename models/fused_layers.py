"""The blocks of models.fused_unet and models.fused_training.

Made from a block of the plain network, in the precision of the products. Where gradients are enabled, all of it is
differentiable with respect to that block's parameters, and to be made anew for every pass.

Letters: B batch, V views, F = B·V images, L places of an image, R = F·L rows, C channels, S context tokens, N heads,
D channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention import Attention, SpatialTransformer, TemporalTransformer, attention
from models.blocks import ResBlock, Upsample
from models.fused_rows import Rows


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Where rows are while they pass through the network.

    Attributes:
        num_views: V.
        shifts: of each residual block: what the embedding adds to each image, and the bias of the first convolution;
            (F, C).
        contexts: of each attention to the context: keys and values, (B, S, N, D) or for each image (F, S, N, D).
    """

    num_views: int
    shifts: dict[int, Tensor]
    contexts: dict[int, tuple[Tensor, Tensor]]


class FusedResBlock:
    """A ResBlock."""

    def __init__(self, block: ResBlock, dtype: torch.dtype) -> None:
        self.block, views = block, block.temopral_conv
        self.first, self.second = (_of_convolution(part[-1], dtype) for part in (block.in_layers, block.out_layers))
        self.over_views = (views.conv1, views.conv2, views.conv3, views.conv4)
        weights = [part[-1].weight.to(dtype) for part in self.over_views]
        self.weights = [weight.permute(0, 2, 3, 4, 1).reshape(len(weight), -1) for weight in weights]
        # The last convolution is added to the sum before it, so its bias is in that sum, and taken out for the norm.
        last = self.over_views[-1][-1].bias
        self.bias, self.without_end = block.out_layers[-1].bias + last, -last[None]
        self.skip_weight = None
        if not isinstance(block.skip_connection, nn.Identity):
            self.skip_weight = block.skip_connection.weight.flatten(1).to(dtype)
            self.bias = self.bias + block.skip_connection.bias

    def __call__(self, rows: Rows, frame: Frame) -> Rows:
        block = self.block
        rows, h = rows.product(block.in_layers[0], self.first, silu=True)
        out, shift_FC = block.out_layers, frame.shifts[id(block)]
        _, h = h.product(out[0], self.second, silu=True, shift=shift_FC, **_dropout(out))
        skip_RC = rows.x_RC if self.skip_weight is None else F.linear(rows.x_RC, self.skip_weight)
        return self._with_views(h.holding(rows.ops.add(skip_RC, h.x_RC, self.bias)), frame)

    def _with_views(self, rows: Rows, frame: Frame) -> Rows:
        """The four convolutions over the views, added to their input."""
        h, shift = rows, self.without_end
        options = {"rows": frame.num_views * rows.places, "silu": True, "window": rows.places}
        for part, weight in zip(self.over_views, self.weights, strict=True):
            onto_RC = rows.x_RC if part is self.over_views[-1] else None
            before, h = h.product(part[0], weight, shift=shift, onto_RC=onto_RC, **options, **_dropout(part))
            rows = before if part is self.over_views[0] else rows
            shift = part[-1].bias[None]
        return h


class FusedTransformer:
    """A SpatialTransformer or a TemporalTransformer; with the sum that follows it.

    Args:
        module: the transformer.
        dtype: of the products.
        join: makes one matrix of those of queries, keys and values.
    """

    def __init__(
        self,
        module: SpatialTransformer | TemporalTransformer,
        dtype: torch.dtype,
        *,
        join: Callable[[list[Tensor]], Tensor] = torch.cat,
    ) -> None:
        self.module, self.block = module, module.transformer_blocks[0]
        self.spatial = isinstance(module, SpatialTransformer)
        block, out = self.block, module.proj_out
        self.proj_in, self.proj_out = module.proj_in.weight.flatten(1).to(dtype), out.weight.flatten(1).to(dtype)
        self.queries, self.outs = {}, {}
        for attend in (block.attn1, block.attn2):
            alone = attend.axis == "context"
            parts = [attend.to_q] if alone else [attend.to_q, attend.to_k, attend.to_v]
            weights = [part.weight.to(dtype) for part in parts]
            self.queries[id(attend)] = weights[0] if alone else join(weights)
            self.outs[id(attend)] = attend.to_out[0].weight.to(dtype)
        project, _, back = block.ff.net
        self.widen, self.narrow = project.proj.weight.to(dtype), back.weight.to(dtype)
        # Products are made without their biases, which is faster; these wait for the next norm, and for the last sum.
        self.before_first = module.proj_in.bias
        self.after_first = self.before_first + block.attn1.to_out[0].bias
        self.after_second = self.after_first + block.attn2.to_out[0].bias
        exact = torch.promote_types(out.bias.dtype, torch.float32)
        pending_C = (self.after_second + back.bias).to(exact)
        self.out_bias = ((out.weight.flatten(1).to(exact) * pending_C).sum(1) + out.bias.to(exact)).to(out.bias.dtype)

    def __call__(self, rows: Rows, frame: Frame) -> Rows:
        block, ops = self.block, rows.ops
        unit = rows.places if self.spatial else frame.num_views * rows.places
        rows, h = rows.product(self.module.norm, self.proj_in, rows=unit)
        h_RC = h.x_RC
        for attend, norm, shift_C in (
            (block.attn1, block.norm1, self.before_first),
            (block.attn2, block.norm2, self.after_first),
        ):
            h_RC, normed_RC = ops.layer_norm(h_RC, norm.weight, norm.bias, eps=norm.eps, shift_C=shift_C)
            h_RC = ops.accumulate(h_RC, self._attended(attend, normed_RC, rows, frame), self.outs[id(attend)])
        norm, project = block.norm3, block.ff.net[0].proj
        h_RC, normed_RC = ops.layer_norm(h_RC, norm.weight, norm.bias, eps=norm.eps, shift_C=self.after_second)
        h_RC = ops.accumulate(h_RC, ops.gate(F.linear(normed_RC, self.widen), project.bias), self.narrow)
        return rows.holding(ops.add(rows.x_RC, F.linear(h_RC, self.proj_out), self.out_bias))

    def _attended(self, attend: Attention, x_RC: Tensor, rows: Rows, frame: Frame) -> Tensor:
        N, D, V, L = attend.num_heads, attend.head_dim, frame.num_views, rows.places
        projected = F.linear(x_RC, self.queries[id(attend)])
        if attend.axis == "context":
            k_BSND, v_BSND = frame.contexts[id(attend)]
            q = projected.view(len(k_BSND), -1, N, D)
            return attention(q, k_BSND, v_BSND, backend=attend.backend).reshape(len(x_RC), -1)
        if attend.axis == "views":
            return rows.ops.views_attention(projected, num_views=V, places=L, head_dim=D)
        q, k, v = projected.view(-1, L, 3, N, D).unbind(2)
        return attention(q, k, v, backend=attend.backend).reshape(len(x_RC), -1)


class FusedUpsample:
    """An Upsample."""

    def __init__(self, module: Upsample) -> None:
        self.conv = module.conv

    def __call__(self, rows: Rows, frame: Frame) -> Rows:
        return rows.doubled().through(self.conv)


class FusedConv:
    """A Downsample, or the first convolution."""

    def __init__(self, conv: nn.Conv2d) -> None:
        self.conv = conv

    def __call__(self, rows: Rows, frame: Frame) -> Rows:
        return rows.through(self.conv)


def joined(weights: list[Tensor]) -> Tensor:
    """Matrices below each other as one; the parameters become views of it, so memory does not grow."""
    whole = torch.cat([weight.detach() for weight in weights])
    for weight, part in zip(weights, whole.split([len(weight) for weight in weights]), strict=True):
        weight.data = part
    return whole


def _of_convolution(conv: nn.Conv2d, dtype: torch.dtype) -> Tensor:
    return conv.weight.to(dtype, memory_format=torch.channels_last)


def _dropout(layers: nn.Sequential) -> dict[str, float | int]:
    """How to drop what the layers would; the seed from PyTorch's generator of the CPU, without asking the GPU."""
    share = sum(layer.p for layer in layers if isinstance(layer, nn.Dropout) and layer.training)
    return {"dropout": share, "seed": int(torch.randint(2**31 - 1, ()))} if share else {}
