"""The blocks of the transformer: those of diffusers' Wan, with one modulation for each view instead of each token.

Importing this file imports diffusers, which takes seconds.

Letters: B batch, V views, L tokens of a view, C channels, S text tokens, N heads, D channels of a head.
"""

from __future__ import annotations

import torch
from diffusers.models.transformers.transformer_wan import WanAttention, WanTransformer3DModel, WanTransformerBlock
from torch import Tensor

from models.attention import attention

__all__ = ["OrbitBlock", "WanTransformer3DModel", "modulated"]


class OrbitBlock(WanTransformerBlock):
    """Attention over all tokens of all views, attention to the text, and a feed-forward part."""

    def forward(
        self, h_BVLC: Tensor, words_BSC: Tensor, changes_BV6C: Tensor, cos_VLD: Tensor, sin_VLD: Tensor
    ) -> Tensor:
        """Compute the next hidden states.

        Args:
            h_BVLC: hidden states.
            words_BSC: text tokens in the width of the network.
            changes_BV6C: shift, scale and gate of the self-attention, then of the feed-forward part, from timestep and
                camera of each view.
            cos_VLD: cosines of the rotary embedding, (1 or V, L, D / 2).
            sin_VLD: its sines.
        """
        parts = (self.scale_shift_table + changes_BV6C.float())[:, :, :, None].unbind(dim=2)
        shift, scale, gate, shift_ffn, scale_ffn, gate_ffn = parts
        attended = self_attention(self.attn1, modulated(self.norm1, h_BVLC, shift, scale), cos_VLD, sin_VLD)
        h_BVLC = (h_BVLC.float() + attended * gate).type_as(h_BVLC)
        h_BVLC = h_BVLC + text_attention(self.attn2, self.norm2(h_BVLC.float()).type_as(h_BVLC), words_BSC)
        out = self.ffn(modulated(self.norm3, h_BVLC, shift_ffn, scale_ffn))
        return (h_BVLC.float() + out.float() * gate_ffn).type_as(h_BVLC)


def modulated(norm: torch.nn.Module, h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Normalise in float32, then scale and shift."""
    return (norm(h.float()) * (1 + scale) + shift).type_as(h)


def self_attention(layer: WanAttention, h_BVLC: Tensor, cos_VLD: Tensor, sin_VLD: Tensor) -> Tensor:
    """Attention among all tokens of all views."""
    q, k, v = layer.norm_q(layer.to_q(h_BVLC)), layer.norm_k(layer.to_k(h_BVLC)), layer.to_v(h_BVLC)
    q, k, v = (value.unflatten(-1, (layer.heads, -1)) for value in (q, k, v))
    q, k = (rotated(value, cos_VLD, sin_VLD).type_as(v).flatten(1, 2) for value in (q, k))
    out_BTND = attention(q, k, v.flatten(1, 2))
    return layer.to_out[0](out_BTND.flatten(2)).unflatten(1, h_BVLC.shape[1:3])


def text_attention(layer: WanAttention, h_BVLC: Tensor, words_BSC: Tensor) -> Tensor:
    """Attention from every token to the text."""
    q_BTC = layer.norm_q(layer.to_q(h_BVLC.flatten(1, 2)))
    k_BSC, v_BSC = layer.norm_k(layer.to_k(words_BSC)), layer.to_v(words_BSC)
    q, k, v = (value.unflatten(-1, (layer.heads, -1)) for value in (q_BTC, k_BSC, v_BSC))
    out_BTC = attention(q.type_as(v), k.type_as(v), v).flatten(2)
    return layer.to_out[0](out_BTC).unflatten(1, h_BVLC.shape[1:3])


def rotated(values_BVLND: Tensor, cos_VLD: Tensor, sin_VLD: Tensor) -> Tensor:
    """Rotate pairs of neighbouring channels (arXiv:2104.09864)."""
    even, odd = values_BVLND.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos_VLD[:, :, None], sin_VLD[:, :, None]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
