"""The autoencoder of Wan: the network of diffusers, with its parameter names, for views that are encoded one by one.

The network is causal in time and takes a video. Each view enters alone, as the first frame of a video, so that no
compression in time mixes views. The latents are normalised per channel with the published means and deviations.

Letters: B batch, C channels, H W pixels or latent pixels.
"""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.encoders import Autoencoder, AutoencoderConfig
from models.wan.folder import check_config, is_own_file, part_folder, read_config, read_part, weight_files
from models.wan.random_folder import write_random_part
from models.weights import load_state, load_strict
from utils.errors import ConfigError, DataError
from utils.registry import AUTO_ENCODER

if TYPE_CHECKING:
    # diffusers takes seconds to import, so it is imported when a network is built; errors in settings come before that.
    from diffusers import AutoencoderKLWan
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

PART, OPTION = "vae", "auto_encoder.pretrained"
MEAN, STD = "latents_mean", "latents_std"  # in config.json, and in our own weight files
MIN_LOGVAR, MAX_LOGVAR = -30.0, 20.0  # as in diffusers
NETWORK = "network."


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Sizes of the network, named as in its config.json; the defaults are those of Wan 2.1.

    Attributes:
        base_dim: width of the first level of the encoder.
        decoder_base_dim: width of the last level of the decoder; null: base_dim.
        z_dim: channels of the latents.
        dim_mult: width of each level in multiples of the first; each level after the first halves the image.
        num_res_blocks: residual blocks per level of the encoder; the decoder has one more.
        temperal_downsample: levels that also compress the time of a video, which a single frame does not need.
        is_residual: levels have a shortcut without weights, as in Wan 2.2.
        in_channels: channels of the input, after `patch_size`.
        out_channels: channels of the output, before `patch_size`.
        patch_size: side of the pixel patches that become channels first; null: none.
    """

    base_dim: int = 96
    decoder_base_dim: int | None = None
    z_dim: int = 16
    dim_mult: list[int] = field(default_factory=lambda: [1, 2, 4, 4])
    num_res_blocks: int = 2
    temperal_downsample: list[bool] = field(default_factory=lambda: [False, True, True])
    is_residual: bool = False
    in_channels: int = 3
    out_channels: int = 3
    patch_size: int | None = None

    def __post_init__(self) -> None:
        where = "auto_encoder.network"
        if min(self.base_dim, self.z_dim, *self.dim_mult) < 1:
            raise ConfigError(f"{where}: base_dim, z_dim and dim_mult must be positive, got {self.dim_mult}")
        if len(self.temperal_downsample) != len(self.dim_mult) - 1:
            raise ConfigError(
                f"{where}.temperal_downsample={self.temperal_downsample} must have an entry for each level after the "
                f"first, {len(self.dim_mult) - 1}"
            )
        expected = 3 * (self.patch_size or 1) ** 2
        if (self.in_channels, self.out_channels) != (expected, expected):
            raise ConfigError(
                f"{where}.in_channels={self.in_channels} and out_channels={self.out_channels} must be {expected} with "
                f"patch_size={self.patch_size}"
            )

    @property
    def reduction(self) -> int:
        """Side of an image divided by the side of its latent."""
        return (self.patch_size or 1) * 2 ** (len(self.dim_mult) - 1)


@AUTO_ENCODER.register
class WanAutoencoder(Autoencoder):
    """The autoencoder of Wan 2.1 (16 channels, reduction 8) or Wan 2.2 TI2V-5B (48 channels, reduction 16).

    `encode` and `decode` work with normalised latents. `state_dict` has the names of diffusers, and the means and
    deviations of the latents.

    Source: arXiv:2503.20314, section 4.1.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(AutoencoderConfig):
        """
        Attributes:
            network: sizes of the network.
            pretrained: a published folder (or its folder vae/), a hub name, or a weight file of ours; null for
                untrained weights.
            posterior: see AutoencoderConfig; the pipelines of Wan use the `mode`.
        """

        network: NetworkConfig = field(default_factory=NetworkConfig)
        posterior: str = "mode"

        @property
        def reduction(self) -> int:
            return self.network.reduction

        @property
        def latent_channels(self) -> int:
            return self.network.z_dim

        def published_files(self, path: str, *, option: str) -> list[Path] | None:
            if is_own_file(path, PART):
                return None
            folder = part_folder(path, PART, option=option)
            self.check_folder(folder, option=option)
            return weight_files(folder, option=option)

        def check_folder(self, folder: Path, *, option: str) -> dict[str, Any]:
            """Compare a folder's config.json with `network`, and return it.

            Raises:
                DataError: they differ.
            """
            found = {**asdict(NetworkConfig()), **read_config(folder, option=option)}
            wanted = {key: (f"network.{key}", value) for key, value in asdict(self.network).items()}
            check_config(found, wanted, source=f"{option}={folder}", network="auto_encoder")
            return found

        def write_random(self, out: Path, *, seed: int) -> bool:
            with torch.device("meta"):
                network = build_network(self.network)
            moments = {MEAN: [0.0] * self.network.z_dim, STD: [1.0] * self.network.z_dim}
            write_random_part(
                out / PART, network, {"_class_name": "AutoencoderKLWan", **asdict(self.network), **moments}, seed=seed
            )
            return True

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.latents_mean, self.latents_std = [0.0] * config.network.z_dim, [1.0] * config.network.z_dim
        with torch.device("meta") if config.pretrained else contextlib.nullcontext():
            self.network = build_network(config.network)
        self.register_state_dict_post_hook(_publish_names)
        self.register_load_state_dict_pre_hook(_accept_names)
        if config.pretrained and is_own_file(config.pretrained, PART):
            load_strict(self, config.pretrained, option=OPTION)
        elif config.pretrained:
            self._load_folder(part_folder(config.pretrained, PART, option=OPTION))

    def _load_folder(self, folder: Path) -> None:
        found = self.config.check_folder(folder, option=OPTION)
        moments = {}
        for name in (MEAN, STD):
            # diffusers has the moments of Wan 2.1 as defaults, so a folder may leave them out
            values = found.get(name, self.network.config[name])
            if len(values) != self.latent_channels or (name == STD and min(values) <= 0):
                raise DataError(
                    f"{OPTION}={folder}: {name} in config.json must be {self.latent_channels} numbers"
                    f"{' above 0' * (name == STD)}; download it again"
                )
            moments[name] = torch.tensor(values, dtype=torch.float32)
        load_state(self, read_part(folder, option=OPTION) | moments, source=f"{OPTION}={folder}")

    def encode(self, image_B3HW: Tensor) -> DiagonalGaussianDistribution:
        from diffusers.models.autoencoders.autoencoder_kl_wan import patchify
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

        # Without its cache of earlier frames, the network treats every input as the first frame of a video.
        video_BC1HW = patchify(image_B3HW[:, :, None], self.config.network.patch_size or 1)
        moments = self.network.quant_conv(self.network.encoder(video_BC1HW))[:, :, 0]
        mean, logvar = moments.float().chunk(2, dim=1)
        shift, scale = self._moments(mean)
        logvar = logvar.clamp(MIN_LOGVAR, MAX_LOGVAR) - 2 * scale.log()
        return DiagonalGaussianDistribution(torch.cat([(mean - shift) / scale, logvar], dim=1).to(moments.dtype))

    def decode(self, latent_BCHW: Tensor) -> Tensor:
        from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

        shift, scale = self._moments(latent_BCHW.float())
        latents = (latent_BCHW.float() * scale + shift).to(latent_BCHW.dtype)[:, :, None]
        # not network.decode, which clamps: then pixels outside have no gradient, and infinity becomes white
        video_BC1HW = self.network.decoder(self.network.post_quant_conv(latents), first_chunk=True)
        return unpatchify(video_BC1HW, self.config.network.patch_size or 1)[:, :, 0]

    def _moments(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Means and deviations of the latents, in a shape that broadcasts to (B, C, H, W)."""
        return like.new_tensor(self.latents_mean)[:, None, None], like.new_tensor(self.latents_std)[:, None, None]


def build_network(config: NetworkConfig) -> AutoencoderKLWan:
    """The autoencoder of diffusers with these sizes and untrained weights, for single frames only."""
    from diffusers import AutoencoderKLWan
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d

    network = AutoencoderKLWan(**asdict(config), scale_factor_spatial=config.reduction)
    for module in network.modules():
        if isinstance(module, WanCausalConv3d):
            module.forward = partial(_first_frame, module)
    return network


def _first_frame(layer: nn.Conv3d, video_BC1HW: Tensor, cache_x: None = None) -> Tensor:
    """A causal convolution of the first frame: before it there are zeros, so only the last slice of the kernel acts.

    It is the same function with a third of the operations.
    """
    left, _, top, _, *_ = layer._padding
    weight_OCHW = layer.weight[:, :, -1]
    return functional.conv2d(video_BC1HW[:, :, 0], weight_OCHW, layer.bias, padding=(top, left))[:, :, None]


def _publish_names(module: WanAutoencoder, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    """Hook after `state_dict`: the names of diffusers, and the moments of the latents."""
    for name in [name for name in state if name.startswith(prefix + NETWORK)]:
        state[prefix + name.removeprefix(prefix + NETWORK)] = state.pop(name)
    state[prefix + MEAN], state[prefix + STD] = torch.tensor(module.latents_mean), torch.tensor(module.latents_std)


def _accept_names(module: WanAutoencoder, state: dict[str, Any], prefix: str, *_others: Any) -> None:
    """Hook before `load_state_dict`: the inverse of the above."""
    if prefix + MEAN in state and prefix + STD in state:
        module.latents_mean = state.pop(prefix + MEAN).tolist()
        module.latents_std = state.pop(prefix + STD).tolist()
    for name in module.network.state_dict():
        if prefix + name in state:
            state[prefix + NETWORK + name] = state.pop(prefix + name)
