"""The blocks of models.fused_unet.

Letters: B batch, V views, F = B·V images, L places of an image, R = F·L rows, C channels, S context tokens, E
embedding, N heads, D channels of a head.
"""

from __future__ import annotations

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
        embedding_FE: projections of the embedding for all residual blocks, side by side.
        contexts: keys and values of each attention to the context, (B, S, N, D).
    """

    num_views: int
    embedding_FE: Tensor
    contexts: dict[int, tuple[Tensor, Tensor]]


class FusedResBlock:
    """A ResBlock; `first` is the place of its projection among all."""

    def __init__(self, block: ResBlock, first: int) -> None:
        self.block, self.views = block, block.temopral_conv
        self.channels = slice(first, first + block.out_layers[-1].out_channels)
        self.convs = [conv[-1] for conv in (self.views.conv1, self.views.conv2, self.views.conv3, self.views.conv4)]
        self.weights = [conv.weight.permute(0, 2, 3, 4, 1).reshape(len(conv.weight), -1) for conv in self.convs]
        # The last convolution is added in place, so its bias is in the sum before, and taken out for the norm.
        last = self.convs[-1].bias
        self.bias, self.without_end = block.out_layers[-1].bias + last, -last[None]
        self.skip_weight = None
        if not isinstance(block.skip_connection, nn.Identity):
            self.skip_weight = block.skip_connection.weight.flatten(1)
            self.bias = self.bias + block.skip_connection.bias

    def __call__(self, rows: Rows, frame: Frame) -> Rows:
        block = self.block
        h = rows.holding(rows.normed(block.in_layers[0], silu=True)).convolved(block.in_layers[-1])
        shift_FC = frame.embedding_FE[:, self.channels]
        h = h.holding(h.normed(block.out_layers[0], silu=True, shift=shift_FC)).convolved(block.out_layers[-1])
        skip_RC = rows.x_RC if self.skip_weight is None else F.linear(rows.x_RC, self.skip_weight)
        h = h.holding(rows.ops.add(skip_RC, h.x_RC, self.bias))
        self._add_over_views(h, frame)
        return h

    def _add_over_views(self, rows: Rows, frame: Frame) -> None:
        """The four convolutions over the views, added in place."""
        views, shift = self.views, self.without_end
        options = {"rows": frame.num_views * rows.places, "silu": True, "window": rows.places}
        h = rows
        for index, part in enumerate((views.conv1, views.conv2, views.conv3, views.conv4)):
            window_R3C = h.normed(part[0], shift=shift, **options)
            if index == 3:
                rows.x_RC.addmm_(window_R3C, self.weights[index].T)
                return
            h, shift = h.holding(F.linear(window_R3C, self.weights[index])), self.convs[index].bias[None]


class FusedTransformer:
    """A SpatialTransformer or a TemporalTransformer; with the sum that follows it."""

    def __init__(self, module: SpatialTransformer | TemporalTransformer) -> None:
        self.module, self.block = module, module.transformer_blocks[0]
        self.spatial = isinstance(module, SpatialTransformer)
        block, out = self.block, module.proj_out
        self.proj_in, self.proj_out = module.proj_in.weight.flatten(1), out.weight.flatten(1)
        self.qkv = {id(one): _joined_qkv(one) for one in (block.attn1, block.attn2) if one.axis != "context"}
        # Products are made without their biases, which is faster; these wait for the next norm, and for the last sum.
        self.before_first = module.proj_in.bias
        self.after_first = self.before_first + block.attn1.to_out[0].bias
        self.after_second = self.after_first + block.attn2.to_out[0].bias
        pending = (self.after_second + block.ff.net[2].bias).float()
        self.out_bias = (self.proj_out.float() @ pending + out.bias.float()).to(out.bias.dtype)

    def __call__(self, rows: Rows, frame: Frame) -> Rows:
        block, ops = self.block, rows.ops
        unit = rows.places if self.spatial else frame.num_views * rows.places
        h_RC = F.linear(rows.normed(self.module.norm, rows=unit), self.proj_in)
        for attend, norm, shift_C in (
            (block.attn1, block.norm1, self.before_first),
            (block.attn2, block.norm2, self.after_first),
        ):
            normed_RC = ops.layer_norm(h_RC, norm.weight, norm.bias, eps=norm.eps, shift_C=shift_C)
            h_RC.addmm_(self._attended(attend, normed_RC, rows, frame), attend.to_out[0].weight.T)
        norm, (project, _, back) = block.norm3, block.ff.net
        normed_RC = ops.layer_norm(h_RC, norm.weight, norm.bias, eps=norm.eps, shift_C=self.after_second)
        h_RC.addmm_(ops.gate(F.linear(normed_RC, project.proj.weight), project.proj.bias), back.weight.T)
        return rows.holding(ops.add(rows.x_RC, F.linear(h_RC, self.proj_out), self.out_bias))

    def _attended(self, attend: Attention, x_RC: Tensor, rows: Rows, frame: Frame) -> Tensor:
        N, D, V, L = attend.num_heads, attend.head_dim, frame.num_views, rows.places
        if attend.axis == "context":
            k_BSND, v_BSND = frame.contexts[id(attend)]
            q = F.linear(x_RC, attend.to_q.weight).view(-1, V * L, N, D)
            return attention(q, k_BSND, v_BSND, backend=attend.backend).reshape(len(x_RC), -1)
        qkv_R3C = F.linear(x_RC, self.qkv[id(attend)])
        if attend.axis == "views":
            return rows.ops.views_attention(qkv_R3C, num_views=V, places=L, head_dim=D)
        q, k, v = qkv_R3C.view(-1, L, 3, N, D).unbind(2)
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
    joined = torch.cat([weight.detach() for weight in weights])
    for weight, part in zip(weights, joined.split([len(weight) for weight in weights]), strict=True):
        weight.data = part
    return joined


def _joined_qkv(attend: Attention) -> Tensor:
    return joined([attend.to_q.weight, attend.to_k.weight, attend.to_v.weight])
