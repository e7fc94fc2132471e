"""The fused encoder and decoder for a GPU: the same weights and the same function as the autoencoder, but faster.

As in models.fused.unet, norms and activations are fused, and the next operation adds the bias of a convolution. They
compute no gradients.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention import attention
from models.fused.rows import Rows


class FusedCoder:
    """Encoder and decoder of the AutoencoderKL of diffusers.

    Args:
        network: on its device and in its dtype, channels last; its weights are shared.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    @torch.no_grad()
    def decode(self, latent_BCHW: Tensor) -> Tensor:
        """Decode unscaled latents to images, as `network.decode` does."""
        decoder = self.network.decoder
        rows = Rows.of(latent_BCHW).through(self.network.post_quant_conv)
        rows = _middle(decoder.mid_block, rows.through(decoder.conv_in))
        for block in decoder.up_blocks:
            rows = _level(block, rows)
            for upsampler in block.upsamplers or ():
                rows = rows.doubled().through(upsampler.conv)
        return _last(decoder, rows).images()

    @torch.no_grad()
    def encode(self, image_BCHW: Tensor) -> Tensor:
        """Encode images to means and log variances, as in the distribution of `network.encode`."""
        encoder = self.network.encoder
        rows = Rows.of(image_BCHW).through(encoder.conv_in)
        for block in encoder.down_blocks:
            rows = _level(block, rows)
            for downsampler in block.downsamplers or ():
                # as in the published network, zeros are added only below and at the right
                rows = Rows.of(F.pad(rows.images(), (0, 1, 0, 1))).through(downsampler.conv)
        rows = _last(encoder, _middle(encoder.mid_block, rows))
        return rows.through(self.network.quant_conv).images()


def _last(coder: nn.Module, rows: Rows) -> Rows:
    return rows.holding(rows.normed(coder.conv_norm_out, silu=True)).through(coder.conv_out)


def _level(block: Any, rows: Rows) -> Rows:
    attentions = getattr(block, "attentions", None) or [None] * len(block.resnets)
    for resnet, attend in zip(block.resnets, attentions, strict=True):
        rows = rows.residual(resnet, shortcut=resnet.conv_shortcut)
        rows = rows if attend is None else _attended(attend, rows)
    return rows


def _middle(block: Any, rows: Rows) -> Rows:
    rows = rows.residual(block.resnets[0], shortcut=block.resnets[0].conv_shortcut)
    for attend, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        rows = rows if attend is None else _attended(attend, rows)
        rows = rows.residual(resnet, shortcut=resnet.conv_shortcut)
    return rows


def _attended(module: Any, rows: Rows) -> Rows:
    """Self-attention over the pixels of each image; every projection has a bias."""
    normed_RC = rows.normed(module.group_norm)
    heads = (-1, rows.places, module.heads, normed_RC.shape[1] // module.heads)
    q, k, v = (part(normed_RC).view(heads) for part in (module.to_q, module.to_k, module.to_v))
    mixed_RC = attention(q, k, v).reshape(normed_RC.shape)
    out = module.to_out[0]
    return rows.holding(rows.ops.add(rows.x_RC, F.linear(mixed_RC, out.weight), out.bias))
