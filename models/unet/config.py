"""Sizes and switches of the video UNet."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from models.attention import check_backend
from models.backbone import BackboneConfig
from utils.errors import ConfigError

CAMERA_DIM = 16
CHECKPOINT_LEVELS = ("block", "layer", "transformers")


@dataclass(frozen=True, kw_only=True)
class UNetConfig(BackboneConfig):
    """Sizes and switches, under their published names.

    Attributes:
        in_dim: channels of the latents.
        out_dim: channels of the prediction.
        dim: channels of the first level.
        dim_mult: channels of each level, as multiples of dim.
        y_dim: channels of the text tokens.
        image_dim: channels of the image embedding; null: y_dim, as published.
        context_dim: channels of the context; must equal y_dim.
        concat_dim: channels that the image condition adds to the latents.
        num_heads: heads of the temporal transformer after the first convolution.
        head_dim: channels of a head.
        attn_scales: levels with attention, as fractions of the latent resolution.
        image_condition: take `local_image` and `image` (and always fps).
        attention: backend, see models.attention.
        use_checkpoint: recompute activations in the backward pass.
        checkpoint_level: the unit of recomputation. `block` stores least between the passes. `layer` recomputes single
            layers of a block, which needs less memory in the backward pass. `transformers` recomputes only these, which
            is faster.
        checkpoint_places: number of latent pixels; layers that work on fewer are not recomputed.
    """

    in_dim: int = 4
    out_dim: int = 4
    dim: int = 320
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    y_dim: int = 1024
    image_dim: int | None = None
    context_dim: int = 1024
    concat_dim: int = 4
    num_heads: int = 8
    head_dim: int = 64
    num_res_blocks: int = 2
    attn_scales: tuple[float, ...] = (1.0, 0.5, 0.25)
    dropout: float = 0.1
    temporal_attention: bool = True
    temporal_attn_times: int = 1
    use_fps_condition: bool = False
    use_camera_condition: bool = True
    use_checkpoint: bool = False
    checkpoint_level: str = "block"
    checkpoint_places: int = 0
    image_condition: bool = False
    attention: str = "sdpa"

    def __post_init__(self) -> None:
        if self.dim % 32:
            raise ConfigError(f"UNet.dim must be a multiple of 32, got {self.dim}")
        for width in {self.dim * mult for mult in self.dim_mult}:
            if width % self.head_dim:
                raise ConfigError(f"UNet.dim x dim_mult = {width} must be a multiple of head_dim={self.head_dim}")
        if self.temporal_attn_times != 1:
            raise ConfigError(f"UNet.temporal_attn_times must be 1, got {self.temporal_attn_times}")
        if self.context_dim != self.y_dim:
            raise ConfigError(f"UNet.context_dim={self.context_dim} must equal UNet.y_dim={self.y_dim}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"UNet.dropout must lie in [0, 1), got {self.dropout}")
        if self.checkpoint_places < 0:
            raise ConfigError(f"UNet.checkpoint_places must be 0 or more, got {self.checkpoint_places}")
        if self.checkpoint_level not in CHECKPOINT_LEVELS:
            valid = ", ".join(CHECKPOINT_LEVELS)
            raise ConfigError(f"UNet.checkpoint_level={self.checkpoint_level} is unknown; valid: {valid}")
        check_backend(self.attention)

    @property
    def takes_images(self) -> bool:
        return self.image_condition

    @property
    def takes_fps(self) -> bool:
        """Whether the frame rate is a condition."""
        return self.use_fps_condition or self.image_condition

    @property
    def image_width(self) -> int:
        return self.image_dim or self.y_dim

    @property
    def latent_multiple(self) -> int:
        return 2 ** (len(self.dim_mult) - 1)

    @property
    def can_reuse(self) -> bool:
        return True

    def check_device(self, device: torch.device) -> None:
        if self.attention == "xformers" and device.type != "cuda":
            raise ConfigError(f"UNet.attention=xformers needs a GPU, but device is {device.type}; use sdpa")
