"""The fused UNet for sampling on a GPU: the same weights and the same function as models.unet.model, but faster.

The differences:
- Norms, activations and residual additions are fused (models.fused.kernels.triton_forward).
- The next norm adds the bias of a convolution, so no kernel runs for the bias alone.
- One product computes queries, keys and values.
- A convolution over the views is one matrix product of rows with their neighbours.
- Everything that depends only on the conditions is computed once for all steps.
- All kernels of a step are replayed as one CUDA graph.
It computes no gradients.

Letters: B batch, V views, F = B·V images, H W latent pixels, L = H·W pixels of an image, R = F·L rows, C channels, S
context tokens, E embedding.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.backbone import DeepFeatures
from models.fused.layers import FusedConv, FusedResBlock, FusedTransformer, FusedUpsample, LayerContext, joined
from models.fused.rows import Rows
from models.unet.blocks import Downsample, ResBlock, Upsample, sinusoidal_embedding
from models.unet.image_condition import concat_condition
from models.unet.model import OrbitUNet
from models.unet.transformers import Attention, SpatialTransformer, TemporalTransformer

NUM_PREPARED = 8  # sets of conditions that are kept: both branches of guidance, also with several known views


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Everything that depends on the conditions and not on the step.

    Attributes:
        embedding_BVE: cameras and frame rate.
        contexts: see LayerContext.
        concat_BCVHW: channels that join the latents; None for a text model.
    """

    embedding_BVE: Tensor
    contexts: dict[int, tuple[Tensor, Tensor]]
    concat_BCVHW: Tensor | None

    def tensors(self) -> list[Tensor]:
        """All tensors, always in the same order, so that a graph can copy them one by one."""
        parts = [self.embedding_BVE, *(one for pair in self.contexts.values() for one in pair)]
        return parts if self.concat_BCVHW is None else [*parts, self.concat_BCVHW]


class FusedUNet:
    """Is called like the UNet that it is built from.

    It shares the weights with that UNet, so it must be built again if they are moved or replaced.

    Args:
        unet: on its device and in its dtype, channels last.
        graph: replay the network as a CUDA graph, one per shape of the inputs.
    """

    def __init__(self, unet: OrbitUNet, *, graph: bool = False) -> None:
        self.unet, self.dtype, self.graph = unet, next(unet.parameters()).dtype, graph
        self._graphs: dict[Any, _Graph] = {}
        self._prepared: deque[tuple[tuple[Tensor | None, ...], Prepared]] = deque(maxlen=NUM_PREPARED)
        self._blocks: list[ResBlock] = []
        with torch.no_grad():
            self.input_blocks = [self._fused(block) for block in unet.input_blocks]
            self.middle_block = self._fused(unet.middle_block)
            self.output_blocks = [self._fused(block) for block in unet.output_blocks]
            self._join_projections()

    @property
    def config(self) -> Any:
        return self.unet.config

    def _fused(self, block: nn.Module) -> list[Callable[[Rows, LayerContext], Rows]]:
        layers = []
        for layer in block if isinstance(block, nn.ModuleList) else [block]:
            if isinstance(layer, ResBlock):
                layers.append(FusedResBlock(layer, list))
                self._blocks.append(layer)
            elif isinstance(layer, SpatialTransformer | TemporalTransformer):
                layers.append(FusedTransformer(layer, list, join=joined))
            elif isinstance(layer, Upsample):
                layers.append(FusedUpsample(layer))
            else:
                layers.append(FusedConv(layer.op if isinstance(layer, Downsample) else layer))
        return layers

    def _join_projections(self) -> None:
        """Join the embedding projections of all residual blocks into one product.

        Its bias contains the biases of the first convolutions, because the norm that follows adds both.
        """
        linears = [block.emb_layers[1] for block in self._blocks]
        self.emb_weight = joined([linear.weight for linear in linears])
        self.emb_bias = torch.cat([block.emb_layers[1].bias + block.in_layers[-1].bias for block in self._blocks])
        self.emb_widths = [len(linear.bias) for linear in linears]

    @torch.no_grad()
    def __call__(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor,
        *,
        camera_data: Tensor | None = None,
        fps: Tensor | None = None,
        image: Tensor | None = None,
        local_image: Tensor | None = None,
        deep: DeepFeatures | None = None,
    ) -> Tensor:
        """As OrbitUNet.forward. A later call with the same condition tensors does not prepare them again."""
        self.unet.check_inputs(x, camera_data, fps, local_image)
        prepared = self._prepare(y, camera_data, fps, image, local_image, num_views=x.shape[2])
        outer, inner = (deep.num_outer, deep.value) if deep else (len(self.input_blocks), None)
        if deep:
            self.unet.check_outer(outer)
        if self.graph and x.is_cuda:
            key = (x.shape, x.dtype, outer, inner is None, *(tensor.shape for tensor in prepared.tensors()))
            if key not in self._graphs:
                self._graphs[key] = _Graph(self._forward, x, t, prepared, outer, inner)
            out, found = self._graphs[key](x, t, prepared, inner)
        else:
            out, found = self._forward(x, t, prepared, outer, inner)
        if deep and inner is None:
            # The result is in the memory of the graph, and the next replay overwrites it.
            deep.value = found.clone()
        return out.clone()

    def _prepare(self, *conditions: Tensor | None, num_views: int) -> Prepared:
        # Compare by identity: comparing values would wait for the GPU at every step. The deque keeps the tensors alive,
        # so a new tensor is never mistaken for an old one.
        for known, prepared in self._prepared:
            if all(a is b for a, b in zip(known, conditions, strict=True)):
                return prepared
        prepared = self._prepare_anew(*conditions, num_views=num_views)
        self._prepared.append((conditions, prepared))
        return prepared

    def _prepare_anew(
        self,
        y: Tensor,
        camera_data: Tensor | None,
        fps: Tensor | None,
        image: Tensor | None,
        local_image: Tensor | None,
        *,
        num_views: int,
    ) -> Prepared:
        unet = self.unet
        embedding_BVE = y.new_zeros((len(y), num_views, self.emb_weight.shape[1]), dtype=self.dtype)
        if unet.config.takes_fps and fps is not None:
            fps = torch.as_tensor(fps, device=y.device).expand(len(y))
            fps_BE = unet.fps_embedding(sinusoidal_embedding(fps, unet.config.dim).to(self.dtype))
            embedding_BVE = embedding_BVE + fps_BE[:, None]
        if camera_data is not None and unet.config.use_camera_condition:
            embedding_BVE = embedding_BVE + unet.camera_embedding(camera_data.to(self.dtype))
        context_BSC = unet.context_tokens(y, image, local_image)
        contexts = {}
        for module in unet.modules():
            if isinstance(module, Attention) and module.axis == "context":
                heads = (len(y), -1, module.num_heads, module.head_dim)
                contexts[id(module)] = (module.to_k(context_BSC).view(heads), module.to_v(context_BSC).view(heads))
        concat = None
        if local_image is not None:
            concat = concat_condition(local_image, unet.local_image_concat, unet.local_temporal_encoder)
        return Prepared(embedding_BVE=embedding_BVE, contexts=contexts, concat_BCVHW=concat)

    def _forward(
        self, x: Tensor, t: Tensor, prepared: Prepared, outer: int, inner_RC: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Returns the prediction, and the input of the last `outer` blocks.

        If that input is given (`inner_RC`), the inner part of the network is not run, see DeepFeatures.
        """
        unet, V = self.unet, x.shape[2]
        time_BE = unet.time_embed(sinusoidal_embedding(t, unet.config.dim).to(self.dtype))
        embedding_FE = F.silu(time_BE[:, None] + prepared.embedding_BVE).flatten(0, 1)
        shifts_FC = F.linear(embedding_FE, self.emb_weight, self.emb_bias).split(self.emb_widths, dim=1)
        shifts = {id(block): shift_FC for block, shift_FC in zip(self._blocks, shifts_FC, strict=True)}
        # Blocks find their part of the shifts by id, because one product computed them for all blocks.
        context = LayerContext(num_views=V, shifts=shifts, contexts=prepared.contexts)
        if prepared.concat_BCVHW is not None:
            x = torch.cat([x, prepared.concat_BCVHW.to(x.dtype)], dim=1)
        rows = Rows.of(rearrange(x, "b c v h w -> (b v) c h w").contiguous(memory_format=torch.channels_last))
        skips = []
        # With a given inner_RC, only the first `outer` input blocks are needed: their skips feed the last output
        # blocks.
        for block in self.input_blocks if inner_RC is None else self.input_blocks[:outer]:
            rows = _through(block, rows, context)
            skips.append(rows.x_RC)
        if inner_RC is None:
            rows = _through(self.middle_block, rows, context)
            for block in self.output_blocks[:-outer]:
                rows = _through(block, rows.holding(torch.cat([rows.x_RC, skips.pop()], dim=1)), context)
            inner_RC = rows.x_RC
        rows = rows.holding(inner_RC)
        for block in self.output_blocks[-outer:]:
            rows = _through(block, rows.holding(torch.cat([rows.x_RC, skips.pop()], dim=1)), context)
        norm, _, conv = unet.out
        rows = rows.holding(rows.normed(norm, silu=True)).through(conv)
        return rearrange(rows.images(), "(b v) c h w -> b c v h w", v=V), inner_RC


class _Graph:
    """One captured forward pass.

    A graph always reads and writes the same memory. So it has its own inputs, into which each call copies, and its
    outputs are valid until the next call.
    """

    # Passes before the capture: Triton compiles and libraries choose their kernels, which a capture cannot contain.
    WARM_UP = 3

    def __init__(
        self,
        forward: Callable[..., tuple[Tensor, Tensor]],
        x: Tensor,
        t: Tensor,
        prepared: Prepared,
        outer: int,
        inner_RC: Tensor | None,
    ) -> None:
        self.x, self.t, self.source = x.clone(), t.clone(), None
        self.inner_RC = None if inner_RC is None else inner_RC.clone()
        own = iter([tensor.clone() for tensor in prepared.tensors()])
        self.prepared = Prepared(
            embedding_BVE=next(own),
            contexts={key: (next(own), next(own)) for key in prepared.contexts},
            concat_BCVHW=None if prepared.concat_BCVHW is None else next(own),
        )
        given = (self.x, self.t, self.prepared, outer, self.inner_RC)
        # Warm up on another stream, as CUDA requires before a capture, with events in both directions so that neither
        # stream reads unfinished data.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(self.WARM_UP):
                forward(*given)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.out = forward(*given)

    def __call__(self, x: Tensor, t: Tensor, prepared: Prepared, inner_RC: Tensor | None) -> tuple[Tensor, Tensor]:
        """Run the graph; the results are in its own memory until the next call."""
        self.x.copy_(x)
        self.t.copy_(t)
        if self.inner_RC is not None:
            self.inner_RC.copy_(inner_RC)
        # The conditions are the same in most steps, so copy them only when they change.
        if prepared is not self.source:
            for own, given in zip(self.prepared.tensors(), prepared.tensors(), strict=True):
                own.copy_(given)
            self.source = prepared
        self.graph.replay()
        return self.out


def _through(layers: list[Callable[[Rows, LayerContext], Rows]], rows: Rows, context: LayerContext) -> Rows:
    for layer in layers:
        rows = layer(rows, context)
    return rows
