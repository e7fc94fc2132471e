"""The transformers of the UNet: spatial (within a view) and temporal (over the views).

Tokens are always contiguous and have the layout (B, V, L, C) with L = H·W. Attention in space, over the views and to
the context uses different views of the same memory, so it makes no copies.

Letters: B batch, V views, L tokens of a view, S context tokens, C channels, N heads, D channels of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention import attention
from utils.torch_settings import GroupNorm


class Attention(nn.Module):
    """Multi-head attention with the published parameter names.

    Args:
        dim: C of the tokens.
        num_heads: N.
        head_dim: D.
        context_dim: channels of the context; None for self-attention.
        axis: "space" (tokens of one view), "views" (one pixel in all views) or "context".
        backend: see `attention`.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        head_dim: int,
        axis: str,
        context_dim: int | None = None,
        backend: str = "sdpa",
    ) -> None:
        super().__init__()
        inner = num_heads * head_dim
        self.num_heads, self.head_dim, self.axis, self.backend = num_heads, head_dim, axis, backend
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_k = nn.Linear(context_dim or dim, inner, bias=False)
        self.to_v = nn.Linear(context_dim or dim, inner, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(inner, dim)])

    def forward(self, x_BVLC: Tensor, context_BSC: Tensor | None = None) -> Tensor:
        """Apply attention along `axis`; the result has the shape of the input, (B, V, L, C)."""
        B, V, L, _ = x_BVLC.shape
        source = x_BVLC if context_BSC is None else context_BSC
        q, k, v = self.to_q(x_BVLC), self.to_k(source), self.to_v(source)
        if self.axis == "space":
            q, k, v = (t.view(B * V, L, self.num_heads, self.head_dim) for t in (q, k, v))
        elif self.axis == "views":
            # Every pixel acts as a separate head: (B, V, L·N, D) is the same memory, so no transposed copy is needed.
            q, k, v = (t.view(B, V, L * self.num_heads, self.head_dim) for t in (q, k, v))
        else:
            # All views share the context, so one long query sequence replaces V copies of the context.
            q = q.view(B, V * L, self.num_heads, self.head_dim)
            k, v = (t.view(B, -1, self.num_heads, self.head_dim) for t in (k, v))
        out = attention(q, k, v, backend=self.backend)
        return self.to_out[0](out.reshape(B, V, L, self.num_heads * self.head_dim))


class GEGLU(nn.Module):
    """A linear layer; one half of its output, after GELU, is multiplied with the other half (arXiv:2002.05202)."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU, then a linear layer back to `dim`; the positions in `net` give the published parameter names."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([GEGLU(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


class TransformerBlock(nn.Module):
    """Two attention layers and a feed-forward layer, each on normalised tokens with a residual connection.

    In space, the second layer attends to the context. Over the views, both layers are self-attention.
    """

    def __init__(
        self, dim: int, *, num_heads: int, head_dim: int, axis: str, context_dim: int | None, backend: str
    ) -> None:
        super().__init__()
        heads = {"num_heads": num_heads, "head_dim": head_dim, "backend": backend}
        second = "context" if context_dim else axis
        self.attn1 = Attention(dim, axis=axis, **heads)
        self.ff = FeedForward(dim)
        self.attn2 = Attention(dim, axis=second, context_dim=context_dim, **heads)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, x_BVLC: Tensor, context_BSC: Tensor | None) -> Tensor:
        x_BVLC = x_BVLC + self.attn1(self.norm1(x_BVLC))
        x_BVLC = x_BVLC + self.attn2(self.norm2(x_BVLC), context_BSC)
        return x_BVLC + self.ff(self.norm3(x_BVLC))


class SpatialTransformer(nn.Module):
    """Self-attention within each view, then attention to the context."""

    def __init__(self, dim: int, *, num_heads: int, head_dim: int, context_dim: int, backend: str) -> None:
        super().__init__()
        inner = num_heads * head_dim
        self.norm = GroupNorm(32, dim, eps=1e-6)
        self.proj_in = nn.Linear(dim, inner)
        block = TransformerBlock(
            inner, num_heads=num_heads, head_dim=head_dim, axis="space", context_dim=context_dim, backend=backend
        )
        self.transformer_blocks = nn.ModuleList([block])
        self.proj_out = zeroed(nn.Linear(inner, dim))

    def forward(self, x_FCHW: Tensor, num_views: int, context_BSC: Tensor) -> Tensor:
        tokens_BVLC = to_tokens(self.norm(x_FCHW), num_views)
        tokens_BVLC = self.proj_in(tokens_BVLC)
        for block in self.transformer_blocks:
            tokens_BVLC = block(tokens_BVLC, context_BSC)
        return x_FCHW + from_tokens(self.proj_out(tokens_BVLC), x_FCHW)


class TemporalTransformer(nn.Module):
    """Attention over the views at every pixel, after a group norm over the whole orbit.

    The published projections are 1D convolutions of kernel size 1, which equal linear layers.
    """

    def __init__(self, dim: int, *, num_heads: int, head_dim: int, backend: str) -> None:
        super().__init__()
        inner = num_heads * head_dim
        self.norm = GroupNorm(32, dim, eps=1e-6)
        self.proj_in = nn.Conv1d(dim, inner, 1)
        block = TransformerBlock(
            inner, num_heads=num_heads, head_dim=head_dim, axis="views", context_dim=None, backend=backend
        )
        self.transformer_blocks = nn.ModuleList([block])
        self.proj_out = zeroed(nn.Conv1d(inner, dim, 1))

    def forward(self, x_FCHW: Tensor, num_views: int) -> Tensor:
        normed = self.norm(to_orbit(x_FCHW, num_views))
        tokens_BVLC = normed.permute(0, 2, 3, 1)
        tokens_BVLC = F.linear(tokens_BVLC, self.proj_in.weight[..., 0], self.proj_in.bias)
        for block in self.transformer_blocks:
            tokens_BVLC = block(tokens_BVLC, None)
        tokens_BVLC = F.linear(tokens_BVLC, self.proj_out.weight[..., 0], self.proj_out.bias)
        return x_FCHW + from_tokens(tokens_BVLC, x_FCHW)


def to_tokens(x_FCHW: Tensor, num_views: int) -> Tensor:
    """Reshape (B·V, C, H, W) to (B, V, L, C); no copy when the input is channels_last."""
    F_, C, H, W = x_FCHW.shape
    return x_FCHW.permute(0, 2, 3, 1).reshape(F_ // num_views, num_views, H * W, C)


def from_tokens(tokens_BVLC: Tensor, like_FCHW: Tensor) -> Tensor:
    """Reshape (B, V, L, C) to the shape of `like_FCHW` in channels_last memory, without a copy."""
    F_, C, H, W = like_FCHW.shape
    return tokens_BVLC.reshape(F_, H, W, C).permute(0, 3, 1, 2)


def to_orbit(x_FCHW: Tensor, num_views: int) -> Tensor:
    """Reshape (B·V, C, H, W) to (B, C, V, L), an image whose rows are views; no copy when it is channels_last."""
    return to_tokens(x_FCHW, num_views).permute(0, 3, 1, 2)


def from_orbit(x_BCVL: Tensor, like_FCHW: Tensor) -> Tensor:
    """Invert `to_orbit`."""
    return from_tokens(x_BCVL.permute(0, 2, 3, 1), like_FCHW)


def zeroed(layer: nn.Module) -> nn.Module:
    """Set a layer to zero and return it, so that its branch adds nothing at the start of training."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
    return layer
