"""The fused network of the Gaussian head for a GPU: the same function, but faster.

Fused as in models.fused.autoencoder. The last layers stay in float32, as in models.gaussians.lgm. It computes no
gradients.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention import attention
from models.fused.rows import Rows
from models.gaussians.lgm import NUM_HEADS, SKIP_SCALE, HeadUNet, ResnetBlock, ViewsAttention


class FusedHead:
    """Is called like a HeadUNet.

    Args:
        unet: on its device, in float32; its inner layers are copied.
        dtype: dtype of the inner layers.
    """

    def __init__(self, unet: HeadUNet, *, dtype: torch.dtype) -> None:
        self.norm_out, self.conv_out, self.dtype = unet.norm_out, unet.conv_out, dtype
        self.unet = copy.deepcopy(unet).to(dtype)

    @torch.no_grad()
    def __call__(self, x_FCHW: Tensor, num_views: int) -> Tensor:
        """See HeadUNet.forward."""
        unet = self.unet
        rows = Rows.of(x_FCHW.to(self.dtype)).through(unet.conv_in)
        skips = [rows.x_RC]
        for level in unet.down_blocks:
            for net, attend in zip(level.nets, level.attns, strict=True):
                rows = _attended(attend, _residual(net, rows), num_views)
                skips.append(rows.x_RC)
            if hasattr(level, "downsample"):
                rows = rows.through(level.downsample)
                skips.append(rows.x_RC)
        first, second = unet.mid_block.nets
        rows = _residual(second, _attended(unet.mid_block.attns[0], _residual(first, rows), num_views))
        for level in unet.up_blocks:
            for net, attend in zip(level.nets, level.attns, strict=True):
                rows = rows.holding(torch.cat([rows.x_RC, skips.pop()], dim=1))
                rows = _attended(attend, _residual(net, rows), num_views)
            if hasattr(level, "upsample"):
                rows = rows.doubled().through(level.upsample)
        # positions need float32 in the last layers, as in models.gaussians.lgm
        with torch.autocast(x_FCHW.device.type, enabled=False):
            return self.conv_out(F.silu(self.norm_out(rows.images().to(self.conv_out.weight.dtype))))


def _residual(block: ResnetBlock, rows: Rows) -> Rows:
    shortcut = None if isinstance(block.shortcut, nn.Identity) else block.shortcut
    return rows.residual(block, shortcut=shortcut, scale=SKIP_SCALE)


def _attended(module: nn.Module, rows: Rows, num_views: int) -> Rows:
    if not isinstance(module, ViewsAttention):
        return rows
    qkv_R3C = F.linear(rows.normed(module.norm), module.attn.qkv.weight)
    q, k, v = qkv_R3C.view(-1, num_views * rows.places, 3, NUM_HEADS, qkv_R3C.shape[1] // (3 * NUM_HEADS)).unbind(2)
    mixed_RC = attention(q, k, v, backend=module.backend).reshape(rows.x_RC.shape)
    proj = module.attn.proj
    return rows.holding(rows.ops.add(rows.x_RC, F.linear(mixed_RC, proj.weight), proj.bias, scale=SKIP_SCALE))
