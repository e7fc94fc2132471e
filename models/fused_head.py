"""The Gaussian head's network for a GPU: the same function, arranged for speed.

As in models.fused_autoencoder; the last layers stay in float32, as in models.lgm. It takes no gradients.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention import attention
from models.fused_rows import Rows
from models.lgm import NUM_HEADS, SKIP_SCALE, HeadUNet, ResnetBlock, ViewsAttention


class FusedHead:
    """Calls like a HeadUNet.

    Args:
        unet: on its device, in float32; its inner layers are copied.
        dtype: of the inner layers.
    """

    def __init__(self, unet: HeadUNet, *, dtype: torch.dtype) -> None:
        self.norm_out, self.conv_out, self.dtype = unet.norm_out, unet.conv_out, dtype
        self.unet = copy.deepcopy(unet).to(dtype)

    @torch.no_grad()
    def __call__(self, x_FCHW: Tensor, num_views: int) -> Tensor:
        """See HeadUNet.forward."""
        unet = self.unet
        rows = _conv(unet.conv_in, Rows.of(x_FCHW.to(self.dtype)))
        skips = [rows.x_RC]
        for level in unet.down_blocks:
            for net, attend in zip(level.nets, level.attns, strict=True):
                rows = _attended(attend, _residual(net, rows), num_views)
                skips.append(rows.x_RC)
            if hasattr(level, "downsample"):
                rows = _conv(level.downsample, rows)
                skips.append(rows.x_RC)
        first, second = unet.mid_block.nets
        rows = _residual(second, _attended(unet.mid_block.attns[0], _residual(first, rows), num_views))
        for level in unet.up_blocks:
            for net, attend in zip(level.nets, level.attns, strict=True):
                rows = rows.holding(torch.cat([rows.x_RC, skips.pop()], dim=1))
                rows = _attended(attend, _residual(net, rows), num_views)
            if hasattr(level, "upsample"):
                rows = _conv(level.upsample, rows.doubled())
        # as in models.lgm: positions need the last layers exact
        with torch.autocast(x_FCHW.device.type, enabled=False):
            return self.conv_out(F.silu(self.norm_out(rows.images().to(self.conv_out.weight.dtype))))


def _conv(conv: nn.Conv2d, rows: Rows) -> Rows:
    return rows.convolved(conv).with_bias(conv)


def _residual(block: ResnetBlock, rows: Rows) -> Rows:
    h = rows.holding(rows.normed(block.norm1, silu=True)).convolved(block.conv1)
    h = h.holding(h.normed(block.norm2, silu=True, shift=block.conv1.bias[None])).convolved(block.conv2)
    skip_RC, bias_C = rows.x_RC, block.conv2.bias
    if not isinstance(block.shortcut, nn.Identity):
        skip_RC, bias_C = F.linear(skip_RC, block.shortcut.weight.flatten(1)), bias_C + block.shortcut.bias
    return h.holding(rows.ops.add(skip_RC, h.x_RC, bias_C, scale=SKIP_SCALE))


def _attended(module: nn.Module, rows: Rows, num_views: int) -> Rows:
    if not isinstance(module, ViewsAttention):
        return rows
    qkv_R3C = F.linear(rows.normed(module.norm), module.attn.qkv.weight)
    q, k, v = qkv_R3C.view(-1, num_views * rows.places, 3, NUM_HEADS, qkv_R3C.shape[1] // (3 * NUM_HEADS)).unbind(2)
    mixed_RC = attention(q, k, v, backend=module.backend).reshape(rows.x_RC.shape)
    proj = module.attn.proj
    return rows.holding(rows.ops.add(rows.x_RC, F.linear(mixed_RC, proj.weight), proj.bias, scale=SKIP_SCALE))
