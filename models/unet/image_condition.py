"""The image condition of the UNet: it is concatenated to the latents and added as context tokens.

Parameter names are those of the published image model. Letters: B batch, V views, C channels, H W latent pixels,
S context tokens, T = B·H·W sequences over the views.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from models.attention import attention

NUM_IMAGE_TOKENS = 4


class PreNormAttention(nn.Module):
    """Self-attention over the views on normalised tokens, with a residual connection (published parameter names)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(dim)
        self.fn = nn.Module()
        self.fn.to_qkv = nn.Linear(dim, 3 * num_heads * dim, bias=False)
        self.fn.to_out = nn.ModuleList([nn.Linear(num_heads * dim, dim)])

    def forward(self, x_TVC: Tensor) -> Tensor:
        qkv = self.fn.to_qkv(self.norm(x_TVC)).chunk(3, dim=-1)
        q, k, v = (rearrange(t, "t v (n d) -> t v n d", n=self.num_heads) for t in qkv)
        return x_TVC + self.fn.to_out[0](attention(q, k, v).flatten(2))


class PlainFeedForward(nn.Module):
    """Linear layer, GELU, linear layer, with a residual connection (published parameter names)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        first = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU())
        self.net = nn.ModuleList([first, nn.Identity(), nn.Linear(4 * dim, dim)])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net[2](self.net[0](x))


class ViewsEncoder(nn.Module):
    """A one-layer transformer over the views at every latent pixel."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleList([PreNormAttention(dim, num_heads=2), PlainFeedForward(dim)])])

    def forward(self, x_TVC: Tensor) -> Tensor:
        for attend, feed_forward in self.layers:
            x_TVC = feed_forward(attend(x_TVC))
        return x_TVC


def local_image_concat(in_dim: int, dim: int) -> nn.Sequential:
    """Build three convolutions from the conditioning planes to the channels that are concatenated to the latents."""
    return nn.Sequential(
        nn.Conv2d(in_dim, 4 * dim, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(4 * dim, 4 * dim, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(4 * dim, dim, 3, padding=1),
    )


def local_image_embedding(in_dim: int, dim: int, context_dim: int) -> nn.Sequential:
    """Build the convolutions that turn the conditioning latent into 8 x 8 context tokens."""
    return nn.Sequential(
        nn.Conv2d(in_dim, 8 * dim, 3, padding=1),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d((32, 32)),
        nn.Conv2d(8 * dim, 16 * dim, 3, stride=2, padding=1),
        nn.SiLU(),
        nn.Conv2d(16 * dim, context_dim, 3, stride=2, padding=1),
    )


def conditioning_planes(local_image_BCVHW: Tensor) -> Tensor:
    """Return planes of the same shape: view 0 is the conditioning latent, view k is filled with k / (V - 1)."""
    num_views = local_image_BCVHW.shape[2]
    first = local_image_BCVHW[:, :, :1]
    if num_views == 1:
        return first
    ramp_V = torch.arange(1, num_views, device=first.device, dtype=first.dtype) / (num_views - 1)
    planes = ramp_V[None, None, :, None, None].expand(*first.shape[:2], -1, *first.shape[3:])
    return torch.cat([first, planes], dim=2)


def concat_condition(local_image_BCVHW: Tensor, convolutions: nn.Module, views_encoder: nn.Module) -> Tensor:
    """Compute the channels that are concatenated to the noisy latents: (B, concat_dim, V, H, W).

    The factor 2 is needed because the published model adds this result to its buffer twice, also in training.
    """
    B, _, V, H, W = local_image_BCVHW.shape
    planes = rearrange(conditioning_planes(local_image_BCVHW), "b c v h w -> (b v) c h w")
    tokens = rearrange(convolutions(planes), "(b v) c h w -> (b h w) v c", v=V)
    encoded = views_encoder(tokens)
    return 2.0 * rearrange(encoded, "(b h w) v c -> b c v h w", b=B, h=H, w=W)
