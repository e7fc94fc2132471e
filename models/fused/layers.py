"""The fused blocks of models.fused.unet and models.fused.training.

Each is built from a block of the plain network and a function that casts its matrices to the precision of the products.
For training, it is differentiable with respect to the parameters of that block, and must be built again for every pass.

Letters: B batch, V views, F = B·V images, L pixels of an image, R = F·L rows, C channels, S context tokens, N heads,
D channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention import attention
from models.fused.rows import Rows
from models.unet.blocks import ResBlock, Upsample
from models.unet.transformers import Attention, SpatialTransformer, TemporalTransformer

Cast = Callable[[Sequence[Tensor]], Sequence[Tensor]]


@dataclass(frozen=True, kw_only=True)
class LayerContext:
    """Data of a pass that all blocks share.

    Attributes:
        num_views: V.
        shifts: by id of a residual block, (F, C): the projected embedding plus the bias of the first convolution.
        contexts: by id of an attention to the context: keys and values, (B, S, N, D), or (F, S, N, D) per image.
    """

    num_views: int
    shifts: dict[int, Tensor]
    contexts: dict[int, tuple[Tensor, Tensor]]


class FusedResBlock:
    def __init__(self, block: ResBlock, cast: Cast) -> None:
        self.block, views, skip = block, block.temopral_conv, block.skip_connection
        self.over_views = (views.conv1, views.conv2, views.conv3, views.conv4)
        layers = [block.in_layers[-1], block.out_layers[-1], *(part[-1] for part in self.over_views)]
        # The product of the last convolution is added to the sum before it in place. So its bias is added to that sum
        # early, and the norms that read the sum subtract it again (`without_end`).
        last = layers[-1].bias
        self.bias, self.without_end = block.out_layers[-1].bias + last, -last[None]
        if not isinstance(skip, nn.Identity):
            layers.append(skip)
            self.bias = self.bias + skip.bias
        self.first, self.second, *rest = cast([layer.weight for layer in layers])
        self.weights = [weight.permute(0, 2, 3, 4, 1).reshape(len(weight), -1) for weight in rest[:4]]
        self.skip_weight = rest[4].flatten(1) if rest[4:] else None

    def __call__(self, rows: Rows, context: LayerContext) -> Rows:
        block = self.block
        rows, h = rows.product(block.in_layers[0], self.first, silu=True)
        out, shift_FC = block.out_layers, context.shifts[id(block)]
        _, h = h.product(out[0], self.second, silu=True, shift=shift_FC, **_dropout(out))
        skip_RC = rows.x_RC if self.skip_weight is None else F.linear(rows.x_RC, self.skip_weight)
        return self._with_views(h.holding(rows.ops.add(skip_RC, h.x_RC, self.bias)), context)

    def _with_views(self, rows: Rows, context: LayerContext) -> Rows:
        """The four convolutions over the views, added to their input.

        Each is a product with `window`: a row together with the rows of the same pixel in the views before and after.
        """
        h, shift = rows, self.without_end
        options = {"rows": context.num_views * rows.places, "silu": True, "window": rows.places}
        for part, weight in zip(self.over_views, self.weights, strict=True):
            onto_RC = rows.x_RC if part is self.over_views[-1] else None
            before, h = h.product(part[0], weight, shift=shift, onto_RC=onto_RC, **options, **_dropout(part))
            rows = before if part is self.over_views[0] else rows
            shift = part[-1].bias[None]
        return h


class FusedTransformer:
    """A SpatialTransformer or TemporalTransformer, with the residual sum that follows it.

    Args:
        module: the transformer.
        cast: casts matrices, see the top of the file.
        join: joins the matrices of queries, keys and values to one.
    """

    def __init__(
        self,
        module: SpatialTransformer | TemporalTransformer,
        cast: Cast,
        *,
        join: Callable[[list[Tensor]], Tensor] = torch.cat,
    ) -> None:
        self.module, self.block = module, module.transformer_blocks[0]
        self.spatial = isinstance(module, SpatialTransformer)
        block, out = self.block, module.proj_out
        project, _, back = block.ff.net
        layers = [module.proj_in, out, project.proj, back]
        for attend in (block.attn1, block.attn2):
            own = [] if attend.axis == "context" else [attend.to_k, attend.to_v]
            layers += [attend.to_out[0], attend.to_q, *own]
        proj_in, proj_out, self.widen, self.narrow, *rest = cast([layer.weight for layer in layers])
        self.proj_in, self.proj_out = proj_in.flatten(1), proj_out.flatten(1)
        self.outs, self.queries = {}, {}
        for attend in (block.attn1, block.attn2):
            self.outs[id(attend)], *queries = rest[: 2 if attend.axis == "context" else 4]
            self.queries[id(attend)] = join(queries) if queries[1:] else queries[0]
            rest = rest[4:]
        # Products are computed without their biases, which is faster. The next norm adds the pending biases to its
        # input, and `out_bias` adds them, projected through proj_out, to the last sum.
        self.before_first = module.proj_in.bias
        self.after_first = self.before_first + block.attn1.to_out[0].bias
        self.after_second = self.after_first + block.attn2.to_out[0].bias
        exact = torch.promote_types(out.bias.dtype, torch.float32)
        pending_C = (self.after_second + back.bias).to(exact)
        self.out_bias = torch.addmv(out.bias.to(exact), out.weight.flatten(1).to(exact), pending_C).to(out.bias.dtype)

    def __call__(self, rows: Rows, context: LayerContext) -> Rows:
        block, ops = self.block, rows.ops
        unit = rows.places if self.spatial else context.num_views * rows.places
        rows, h = rows.product(self.module.norm, self.proj_in, rows=unit)
        h_RC = h.x_RC
        for attend, norm, shift_C in (
            (block.attn1, block.norm1, self.before_first),
            (block.attn2, block.norm2, self.after_first),
        ):
            h_RC, normed_RC = ops.layer_norm(h_RC, norm.weight, norm.bias, eps=norm.eps, shift_C=shift_C)
            h_RC = ops.accumulate(h_RC, self._attended(attend, normed_RC, rows, context), self.outs[id(attend)])
        norm, project = block.norm3, block.ff.net[0].proj
        h_RC, normed_RC = ops.layer_norm(h_RC, norm.weight, norm.bias, eps=norm.eps, shift_C=self.after_second)
        h_RC = ops.accumulate(h_RC, ops.gate(F.linear(normed_RC, self.widen), project.bias), self.narrow)
        return rows.holding(ops.add(rows.x_RC, F.linear(h_RC, self.proj_out), self.out_bias))

    def _attended(self, attend: Attention, x_RC: Tensor, rows: Rows, context: LayerContext) -> Tensor:
        N, D, V, L = attend.num_heads, attend.head_dim, context.num_views, rows.places
        projected = F.linear(x_RC, self.queries[id(attend)])
        if attend.axis == "context":
            k_BSND, v_BSND = context.contexts[id(attend)]
            q = projected.view(len(k_BSND), -1, N, D)
            return attention(q, k_BSND, v_BSND, backend=attend.backend).reshape(len(x_RC), -1)
        if attend.axis == "views":
            return rows.ops.views_attention(projected, num_views=V, places=L, head_dim=D)
        q, k, v = projected.view(-1, L, 3, N, D).unbind(2)
        return attention(q, k, v, backend=attend.backend).reshape(len(x_RC), -1)


class FusedUpsample:
    def __init__(self, module: Upsample) -> None:
        self.conv = module.conv

    def __call__(self, rows: Rows, context: LayerContext) -> Rows:
        return rows.doubled().through(self.conv)


class FusedConv:
    """The convolution of a Downsample, or the first convolution."""

    def __init__(self, conv: nn.Conv2d) -> None:
        self.conv = conv

    def __call__(self, rows: Rows, context: LayerContext) -> Rows:
        return rows.through(self.conv)


def joined(weights: list[Tensor]) -> Tensor:
    """Stack matrices to one; the parameters become views of the result, so that memory does not grow."""
    whole = torch.cat([weight.detach() for weight in weights])
    for weight, part in zip(weights, whole.split([len(weight) for weight in weights]), strict=True):
        weight.data = part
    return whole


def _dropout(layers: nn.Sequential) -> dict[str, float | Tensor]:
    """Options for the dropout of these layers; the seed comes from PyTorch's generator of the device."""
    share = sum(layer.p for layer in layers if isinstance(layer, nn.Dropout) and layer.training)
    if not share:
        return {}
    device = next(layers.parameters()).device
    return {"dropout": share, "seed_1": torch.randint(2**31 - 1, (1,), dtype=torch.int32, device=device)}
