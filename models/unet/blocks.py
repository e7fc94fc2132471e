"""The convolutional blocks of the UNet: residual, temporal, downsampling and upsampling.

Inside the UNet an orbit is (B·V, C, H, W), one image per view, in channels_last memory. Letters: F = B·V images,
L = H·W pixels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.unet.transformers import from_orbit, to_orbit, zeroed
from utils.torch_settings import GroupNorm


def sinusoidal_embedding(position_B: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding, cosine half first: (B,) to (B, dim) float32. `dim` must be even."""
    half = dim // 2
    frequency = torch.exp(-math.log(10000.0) / half * torch.arange(half, dtype=torch.float64, device=position_B.device))
    angle = position_B.double()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=1).float()


def embedding_mlp(in_dim: int, dim: int, *, out_dim: int | None = None) -> nn.Sequential:
    """Build two linear layers with SiLU between them, for time, camera, fps and image embeddings."""
    return nn.Sequential(nn.Linear(in_dim, dim), nn.SiLU(), nn.Linear(dim, out_dim or dim))


class TemporalConv(nn.Conv3d):
    """(3, 1, 1) convolution over the views, computed as a faster 2D convolution on (V, L) in the same memory."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, (3, 1, 1), padding=(1, 0, 0))

    def forward(self, x_BCVL: Tensor) -> Tensor:
        return F.conv2d(x_BCVL, self.weight[..., 0], self.bias, padding=(1, 0))


class TemporalConvBlock(nn.Module):
    """Four convolutions over the views, each after a group norm over the whole orbit; the result is added to the
    input."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(GroupNorm(32, dim), nn.SiLU(), TemporalConv(dim))
        self.conv2, self.conv3, self.conv4 = (
            nn.Sequential(GroupNorm(32, dim), nn.SiLU(), nn.Dropout(dropout), TemporalConv(dim)) for _ in range(3)
        )
        zeroed(self.conv4[-1])

    def forward(self, x_FCHW: Tensor, num_views: int) -> Tensor:
        x_BCVL = to_orbit(x_FCHW, num_views)
        h_BCVL = self.conv4(self.conv3(self.conv2(self.conv1(x_BCVL))))
        return x_FCHW + from_orbit(h_BCVL, x_FCHW)


class ResBlock(nn.Module):
    """The residual block of Stable Diffusion, followed by the temporal convolutions.

    The spelling of `temopral_conv` is that of the published weights.
    """

    def __init__(self, in_dim: int, embed_dim: int, out_dim: int, dropout: float) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(GroupNorm(32, in_dim), nn.SiLU(), nn.Conv2d(in_dim, out_dim, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embed_dim, out_dim))
        self.out_layers = nn.Sequential(
            GroupNorm(32, out_dim),
            nn.SiLU(),
            nn.Dropout(dropout),
            zeroed(nn.Conv2d(out_dim, out_dim, 3, padding=1)),
        )
        self.skip_connection = nn.Identity() if in_dim == out_dim else nn.Conv2d(in_dim, out_dim, 1)
        self.temopral_conv = TemporalConvBlock(out_dim, dropout)

    def forward(self, x_FCHW: Tensor, embedding_FE: Tensor, num_views: int) -> Tensor:
        h_FCHW = self.in_layers(x_FCHW) + self.emb_layers(embedding_FE)[:, :, None, None]
        h_FCHW = self.skip_connection(x_FCHW) + self.out_layers(h_FCHW)
        return self.temopral_conv(h_FCHW, num_views)


class Downsample(nn.Module):
    """Halve H and W with a strided convolution."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(dim, dim, 3, stride=2, padding=1)

    def forward(self, x_FCHW: Tensor) -> Tensor:
        return self.op(x_FCHW)


class Upsample(nn.Module):
    """Double H and W with nearest-neighbour interpolation, then apply a convolution."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x_FCHW: Tensor) -> Tensor:
        F_, C, H, W = x_FCHW.shape
        # F.interpolate is avoided, because autocast runs it in float32
        x_FHWC = x_FCHW.permute(0, 2, 3, 1)[:, :, None, :, None].expand(-1, -1, 2, -1, 2, -1)
        return self.conv(x_FHWC.reshape(F_, 2 * H, 2 * W, C).permute(0, 3, 1, 2))
