"""The blocks of the UNet, and how a block is run.

A block is a list of layers: a residual block, the transformers after it, and a change of size. In training, its
activations may be recomputed in the backward pass instead of stored.

Letters: F = B·V images, C channels, H W latent pixels.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.unet.blocks import Downsample, ResBlock, Upsample
from models.unet.config import UNetConfig
from models.unet.transformers import SpatialTransformer, TemporalTransformer

REPEATED_BLOCKS = (ResBlock, SpatialTransformer, TemporalTransformer)


def attentions(config: UNetConfig, width: int) -> list[nn.Module]:
    """Build the transformers after a residual block: spatial and, with `temporal_attention`, temporal."""
    heads = {"num_heads": width // config.head_dim, "head_dim": config.head_dim, "backend": config.attention}
    layers: list[nn.Module] = [SpatialTransformer(width, context_dim=config.context_dim, **heads)]
    if config.temporal_attention:
        layers.append(TemporalTransformer(width, **heads))
    return layers


def encoder(config: UNetConfig, embed_dim: int) -> tuple[nn.ModuleList, list[int]]:
    """Build the encoder; return its blocks and the number of output channels of each block, for the skips."""
    in_dim = config.in_dim + (config.concat_dim if config.image_condition else 0)
    stem = nn.ModuleList([nn.Conv2d(in_dim, config.dim, 3, padding=1)])
    if config.temporal_attention:
        stem.append(
            TemporalTransformer(
                config.dim, num_heads=config.num_heads, head_dim=config.head_dim, backend=config.attention
            )
        )
    blocks = nn.ModuleList([stem])
    widths, width, scale = [config.dim], config.dim, 1.0
    for level, mult in enumerate(config.dim_mult):
        for _ in range(config.num_res_blocks):
            block = nn.ModuleList([ResBlock(width, embed_dim, config.dim * mult, config.dropout)])
            width = config.dim * mult
            if scale in config.attn_scales:
                block.extend(attentions(config, width))
            blocks.append(block)
            widths.append(width)
        if level < len(config.dim_mult) - 1:
            blocks.append(Downsample(width))
            widths.append(width)
            scale /= 2
    return blocks, widths


def middle(config: UNetConfig, embed_dim: int) -> nn.ModuleList:
    """Build the block between the encoder and the decoder."""
    width = config.dim * config.dim_mult[-1]
    return nn.ModuleList(
        [
            ResBlock(width, embed_dim, width, config.dropout),
            *attentions(config, width),
            ResBlock(width, embed_dim, width, config.dropout),
        ]
    )


def decoder(config: UNetConfig, embed_dim: int, widths: list[int]) -> tuple[nn.ModuleList, int]:
    """Build the decoder; return its blocks and its number of output channels. `widths`: channels of the skips."""
    blocks, widths = nn.ModuleList(), list(widths)
    width, num_levels = widths[-1], len(config.dim_mult)
    for level in reversed(range(num_levels)):
        for index in range(config.num_res_blocks + 1):
            out_width = config.dim * config.dim_mult[level]
            block = nn.ModuleList([ResBlock(width + widths.pop(), embed_dim, out_width, config.dropout)])
            width = out_width
            if 0.5**level in config.attn_scales:
                block.extend(attentions(config, width))
            if level > 0 and index == config.num_res_blocks:
                block.append(Upsample(width))
            blocks.append(block)
    return blocks, width


def run(
    block: nn.Module,
    h_FCHW: Tensor,
    embedding_FE: Tensor,
    num_views: int,
    context_BSC: Tensor,
    *,
    config: UNetConfig | None,
) -> Tensor:
    """Apply a block.

    Args:
        config: sets what the backward pass recomputes; None: nothing.
    """
    given = (embedding_FE, num_views, context_BSC)
    if config is None:
        return _apply(block, h_FCHW, *given)
    whole = config.checkpoint_level == "block" or not isinstance(block, nn.ModuleList)
    for part in [block] if whole else block:
        if _is_recomputed(part, h_FCHW, config):
            # Transformers draw no random numbers. Residual blocks do, for dropout, and must draw the same ones again.
            draws = not isinstance(part, SpatialTransformer | TemporalTransformer)
            h_FCHW = checkpoint(_apply, part, h_FCHW, *given, use_reentrant=False, preserve_rng_state=draws)
        else:
            h_FCHW = _apply(part, h_FCHW, *given)
    return h_FCHW


def _is_recomputed(part: nn.Module, h_FCHW: Tensor, config: UNetConfig) -> bool:
    if h_FCHW.shape[2] * h_FCHW.shape[3] < config.checkpoint_places:
        return False
    return config.checkpoint_level != "transformers" or isinstance(part, SpatialTransformer | TemporalTransformer)


def _apply(block: nn.Module, h_FCHW: Tensor, embedding_FE: Tensor, num_views: int, context_BSC: Tensor) -> Tensor:
    """Call each layer with the arguments of its kind."""
    for layer in block if isinstance(block, nn.ModuleList) else [block]:
        if isinstance(layer, ResBlock):
            h_FCHW = layer(h_FCHW, embedding_FE, num_views)
        elif isinstance(layer, SpatialTransformer):
            h_FCHW = layer(h_FCHW, num_views, context_BSC)
        elif isinstance(layer, TemporalTransformer):
            h_FCHW = layer(h_FCHW, num_views)
        else:
            h_FCHW = layer(h_FCHW)
    return h_FCHW
