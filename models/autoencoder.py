"""The image autoencoder: the network of diffusers, with the published parameter names and tensor layouts.

Letters: B batch, C channels, H W pixels or latent pixels.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from models.encoders import Autoencoder, AutoencoderConfig
from models.weights import load_strict
from utils.errors import ConfigError
from utils.registry import AUTO_ENCODER
from utils.torch_settings import replace_group_norms

if TYPE_CHECKING:
    # diffusers takes seconds to import, so it is imported when a network is built; errors in settings come before that.
    from diffusers import AutoencoderKL as DiffusersAutoencoderKL
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

PUBLISHED_PREFIX = "first_stage_model."
NUM_GROUPS = 32  # in every group norm, as in latent diffusion


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The published `ddconfig`.

    Attributes:
        double_z: the encoder gives mean and log variance; must be true.
        z_channels: channels of the latent inside the network.
        resolution: size of the images; only used with `attn_resolutions`.
        in_channels: channels of the input image.
        out_ch: channels of the output image.
        ch: width of the first level, a multiple of 32.
        ch_mult: width of each level in multiples of `ch`; each level after the first halves the image.
        num_res_blocks: residual blocks per level of the encoder; the decoder has one more.
        attn_resolutions: resolutions of the levels with attention, in addition to the middle.
        dropout: rate in the residual blocks.
        video_kernel_size: only in the published file; not used, because the autoencoder works on single images.
    """

    double_z: bool = True
    z_channels: int = 4
    resolution: int = 256
    in_channels: int = 3
    out_ch: int = 3
    ch: int = 128
    ch_mult: list[int] = field(default_factory=lambda: [1, 2, 4, 4])
    num_res_blocks: int = 2
    attn_resolutions: list[int] = field(default_factory=list)
    dropout: float = 0.0
    video_kernel_size: list[int] = field(default_factory=lambda: [3, 1, 1])

    def __post_init__(self) -> None:
        if not self.double_z:
            raise ConfigError(
                "ddconfig.double_z must be true, because the encoder gives a mean and a variance; got false"
            )
        if self.ch % NUM_GROUPS or self.ch < NUM_GROUPS:
            raise ConfigError(f"ddconfig.ch must be a multiple of {NUM_GROUPS}, got {self.ch}")
        if not self.ch_mult or min(self.ch_mult) < 1:
            raise ConfigError(f"ddconfig.ch_mult must contain positive numbers, got {self.ch_mult}")

    def attends(self, level: int) -> bool:
        """Whether a level (0 is full resolution) has attention."""
        return self.resolution // 2**level in self.attn_resolutions


@AUTO_ENCODER.register
class AutoencoderKL(Autoencoder):
    """The autoencoder of latent diffusion. Its twin is models.fused.autoencoder.

    `state_dict` and `load_state_dict` use the published names (latent-diffusion layout).
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(AutoencoderConfig):
        """
        Attributes:
            ddconfig: sizes of the network.
            embed_dim: channels of the latents.
            pretrained: weight file, published or ours; null for untrained weights.
            scale_factor: `encode_views` multiplies latents by this.
            posterior: see AutoencoderConfig; published: `sample`.
        """

        ddconfig: NetworkConfig = field(default_factory=NetworkConfig)
        embed_dim: int = 4
        scale_factor: float = 0.18215

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.embed_dim < 1:
                raise ConfigError(f"embed_dim must be >= 1, got {self.embed_dim}")
            if self.scale_factor <= 0:
                raise ConfigError(f"scale_factor must be positive, got {self.scale_factor}")

        @property
        def reduction(self) -> int:
            return 2 ** (len(self.ddconfig.ch_mult) - 1)

        @property
        def latent_channels(self) -> int:
            return self.embed_dim

        @property
        def can_be_trained(self) -> bool:
            return True

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.scale_factor = config.scale_factor
        with torch.device("meta") if config.pretrained else contextlib.nullcontext():
            self.network = build_network(config.ddconfig, embed_dim=config.embed_dim)
        self.register_state_dict_post_hook(_publish_names)
        self.register_load_state_dict_pre_hook(_accept_names)
        if config.pretrained:
            load_strict(self, config.pretrained, option="auto_encoder.pretrained", prefix=PUBLISHED_PREFIX)

    def encode(self, image_B3HW: Tensor) -> DiagonalGaussianDistribution:
        """Encode images to the posterior distribution of their latents.

        Args:
            image_B3HW: in [-1, 1].

        Returns:
            A distribution with `.mean`, `.logvar` (clamped to [-30, 20]), `.sample(generator)` and `.mode()`, unscaled.
        """
        if self.twin and not torch.is_grad_enabled():
            from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

            return DiagonalGaussianDistribution(self.twin.encode(image_B3HW))
        return self.network.encode(image_B3HW, return_dict=False)[0]

    def decode(self, latent_BCHW: Tensor) -> Tensor:
        """Decode unscaled latents to images of about [-1, 1]."""
        if self.twin and not torch.is_grad_enabled():
            return self.twin.decode(latent_BCHW)
        return self.network.decode(latent_BCHW, return_dict=False)[0]

    @torch.no_grad()
    def whiten(self, mean_C: Tensor, std_C: Tensor) -> None:
        """Shift and scale the latents per channel so that they have mean 0 and deviation 1; reconstructions do not
        change.

        The convolution after the encoder applies the change, and the one before the decoder reverts it.

        Args:
            mean_C: measured mean of the posterior's mean per channel, on training images.
            std_C: measured standard deviation per channel, positive.
        """
        quant, post_quant = self.network.quant_conv, self.network.post_quant_conv
        mean_C, std_C = mean_C.to(quant.weight), std_C.to(quant.weight)
        # The first half of quant_conv gives the means, the second the log variances.
        num_channels = self.latent_channels
        quant.weight[:num_channels] /= std_C[:, None, None, None]
        quant.bias[:num_channels] = (quant.bias[:num_channels] - mean_C) / std_C
        quant.bias[num_channels:] -= 2 * std_C.log()
        post_quant.bias += post_quant.weight[:, :, 0, 0] @ mean_C
        post_quant.weight *= std_C[None, :, None, None]


def build_network(config: NetworkConfig, *, embed_dim: int) -> DiffusersAutoencoderKL:
    """The autoencoder of diffusers with the sizes of a published `ddconfig` and untrained weights."""
    from diffusers import AutoencoderKL as DiffusersAutoencoderKL

    levels = range(len(config.ch_mult))
    network = DiffusersAutoencoderKL(
        in_channels=config.in_channels,
        out_channels=config.out_ch,
        down_block_types=tuple(f"{'Attn' * config.attends(i)}DownEncoderBlock2D" for i in levels),
        up_block_types=tuple(f"{'Attn' * config.attends(i)}UpDecoderBlock2D" for i in reversed(levels)),
        block_out_channels=tuple(config.ch * mult for mult in config.ch_mult),
        layers_per_block=config.num_res_blocks,
        latent_channels=config.z_channels,
        norm_num_groups=NUM_GROUPS,
        sample_size=config.resolution,
    )
    network.quant_conv = nn.Conv2d(2 * config.z_channels, 2 * embed_dim, 1)
    network.post_quant_conv = nn.Conv2d(embed_dim, config.z_channels, 1)
    for name, module in network.named_modules():
        if isinstance(module, nn.Dropout) and ".resnets." in name:
            module.p = config.dropout
    return replace_group_norms(network)


# (ours, published) for one level. Levels and blocks have the same numbers, but the decoder counts levels from the top.
_PART_NAMES = (
    ("mid_block.resnets.0.", "mid.block_1."),
    ("mid_block.resnets.1.", "mid.block_2."),
    ("mid_block.attentions.0.", "mid.attn_1."),
    (".resnets.", ".block."),
    (".attentions.", ".attn."),
    (".downsamplers.0.", ".downsample."),
    (".upsamplers.0.", ".upsample."),
    ("conv_norm_out.", "norm_out."),
    (".conv_shortcut.", ".nin_shortcut."),
    (".group_norm.", ".norm."),
    (".to_q.", ".q."),
    (".to_k.", ".k."),
    (".to_v.", ".v."),
    (".to_out.0.", ".proj_out."),
)


def published_name(name: str, *, num_levels: int) -> str:
    """The published name of a parameter of the diffusers network."""
    for ours, published in _PART_NAMES:
        name = name.replace(ours, published)
    name = name.replace("down_blocks.", "down.")
    return re.sub(r"up_blocks\.(\d+)", lambda found: f"up.{num_levels - 1 - int(found[1])}", name)


def _names(module: AutoencoderKL) -> dict[str, str]:
    """Map from published names to names in `module.network`."""
    num_levels = len(module.config.ddconfig.ch_mult)
    names = [name for name, _ in module.network.named_parameters()]
    return {published_name(name, num_levels=num_levels): name for name in names}


def _is_attention_matrix(published: str) -> bool:
    return bool(re.search(r"\.attn(_1|\.\d+)\.(q|k|v|proj_out)\.weight$", published))


def _publish_names(module: AutoencoderKL, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    """Hook after `state_dict`: published names, attention matrices as 1 x 1 convolutions."""
    for published, ours in _names(module).items():
        value = state.pop(f"{prefix}network.{ours}")
        state[prefix + published] = value[:, :, None, None] if _is_attention_matrix(published) else value


def _accept_names(module: AutoencoderKL, state: dict[str, Any], prefix: str, *_others: Any) -> None:
    """Hook before `load_state_dict`: the inverse of the above."""
    for published, ours in _names(module).items():
        if prefix + published in state:
            value = state.pop(prefix + published)
            state[f"{prefix}network.{ours}"] = value[:, :, 0, 0] if _is_attention_matrix(published) else value
