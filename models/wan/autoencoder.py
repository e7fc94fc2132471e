"""The autoencoder of Wan: the network of diffusers, with its parameter names, for views alone or for whole orbits.

The network is causal in time and takes a video. Each view enters alone, as the first frame of a video, so that no
compression in time mixes views. With `packed`, an orbit is one video, and four views share a frame of the latents. The
latents are normalised per channel with the published means and deviations.

Letters: B batch, V views, I chosen views, T pictures of a video, F frames of its latents, C channels, H W pixels or
latent pixels.
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

from models.encoders import Autoencoder, AutoencoderConfig, FrameLayout, chosen_views
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
PACKED = FrameLayout(views_per_frame=4)  # two levels that each halve the time


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
            packed: encode an orbit as one video, closed by view 0, with four views in a frame of the latents.
        """

        network: NetworkConfig = field(default_factory=NetworkConfig)
        posterior: str = "mode"
        packed: bool = False

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.packed and sum(self.network.temperal_downsample) != 2:
                raise ConfigError(
                    f"auto_encoder.packed=true needs two levels with compression in time, but "
                    f"auto_encoder.network.temperal_downsample={self.network.temperal_downsample}; set "
                    "auto_encoder.packed=false"
                )

        @property
        def layout(self) -> FrameLayout:
            return PACKED if self.packed else FrameLayout()

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
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

        return DiagonalGaussianDistribution(self._encode_video(image_B3HW[:, :, None])[:, :, 0])

    def decode(self, latent_BCHW: Tensor) -> Tensor:
        return self._decode_video(latent_BCHW[:, :, None])[:, :, 0]

    def encode_orbits(self, images_BVCHW: Tensor, *, chunk: int) -> tuple[Tensor, Tensor]:
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

        if not self.config.packed:
            return super().encode_orbits(images_BVCHW, chunk=chunk)
        self.layout.check(images_BVCHW.shape[1], option="encoded orbits")
        videos_BCTHW = self.layout.closed(images_BVCHW).transpose(1, 2)
        moments = [self._encode_video(part) for part in videos_BCTHW.split(self._videos_in(chunk))]
        posterior = DiagonalGaussianDistribution(torch.cat(moments))
        return posterior.mean, posterior.std

    def decode_orbits(self, latents_BCFHW: Tensor, *, views_BI: Tensor | None, chunk: int) -> Tensor:
        if not self.config.packed:
            return super().decode_orbits(latents_BCFHW, views_BI=views_BI, chunk=chunk)
        # the last picture of an orbit is view 0 again
        num_views = self.layout.num_views(latents_BCFHW.shape[2])
        parts = latents_BCFHW.split(self._videos_in(chunk))
        images_BVCHW = torch.cat([self._decode_video(part).transpose(1, 2)[:, :num_views] for part in parts])
        return chosen_views(images_BVCHW, views_BI)

    def _videos_in(self, chunk: int) -> int:
        """Number of videos of which `chunk` pictures are coded at once, which are those of one frame of the latents."""
        return max(1, chunk // self.layout.views_per_frame)

    def _encode_video(self, video_BCTHW: Tensor) -> Tensor:
        """Encode the first picture alone, then four at a time: moments of the normalised latents, (B, 2 C, F, H, W)."""
        from diffusers.models.autoencoders.autoencoder_kl_wan import patchify

        video_BCTHW = patchify(video_BCTHW, self.config.network.patch_size or 1)
        pieces = [video_BCTHW[:, :, :1], *video_BCTHW[:, :, 1:].split(PACKED.views_per_frame, dim=2)]
        kept = _no_frames(self.network.encoder, num_frames=video_BCTHW.shape[2])
        coded = [self.network.encoder(piece, feat_cache=kept, feat_idx=[0]) for piece in pieces if piece.shape[2]]
        moments = self.network.quant_conv(torch.cat(coded, dim=2))
        mean, logvar = moments.float().chunk(2, dim=1)
        shift, scale = self._moments(mean)
        logvar = logvar.clamp(MIN_LOGVAR, MAX_LOGVAR) - 2 * scale.log()
        return torch.cat([(mean - shift) / scale, logvar], dim=1).to(moments.dtype)

    def _decode_video(self, latents_BCFHW: Tensor) -> Tensor:
        """Decode normalised latents frame by frame: (B, 3, T, H, W), without clamping."""
        from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

        shift, scale = self._moments(latents_BCFHW.float())
        latents = (latents_BCFHW.float() * scale + shift).to(latents_BCFHW.dtype)
        # not network.decode, which clamps: then pixels outside have no gradient, and infinity becomes white
        frames = self.network.post_quant_conv(latents).split(1, dim=2)
        kept = _no_frames(self.network.decoder, num_frames=len(frames))
        pieces = [
            self.network.decoder(frame, feat_cache=kept, feat_idx=[0], first_chunk=number == 0)
            for number, frame in enumerate(frames)
        ]
        return unpatchify(torch.cat(pieces, dim=2), self.config.network.patch_size or 1)

    def _moments(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Means and deviations of the latents, in a shape that broadcasts to (B, C, F, H, W)."""
        mean, std = like.new_tensor(self.latents_mean), like.new_tensor(self.latents_std)
        return mean[:, None, None, None], std[:, None, None, None]


def build_network(config: NetworkConfig) -> AutoencoderKLWan:
    """The autoencoder of diffusers with these sizes and untrained weights, faster for the first frame of a video."""
    from diffusers import AutoencoderKLWan

    network = AutoencoderKLWan(**asdict(config), scale_factor_spatial=config.reduction)
    for module in _causal_layers(network):
        module.forward = partial(_causal, module)
    return network


def _causal_layers(network: nn.Module) -> list[nn.Module]:
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d

    return [module for module in network.modules() if isinstance(module, WanCausalConv3d)]


def _no_frames(network: nn.Module, *, num_frames: int) -> list[Tensor | None] | None:
    """The memory of a coder before its first frame, one entry a causal layer; None: a single frame needs none."""
    return [None] * len(_causal_layers(network)) if num_frames > 1 else None


def _causal(layer: nn.Conv3d, video_BCTHW: Tensor, cache_x: Tensor | None = None) -> Tensor:
    """A causal convolution. Before the first frame there are zeros, so only the last slice of the kernel acts on it.

    For this frame, it is the same function with a third of the operations.
    """
    if cache_x is not None or video_BCTHW.shape[2] > 1:
        return type(layer).forward(layer, video_BCTHW, cache_x)
    left, _, top, _, *_ = layer._padding
    weight_OCHW = layer.weight[:, :, -1]
    return functional.conv2d(video_BCTHW[:, :, 0], weight_OCHW, layer.bias, padding=(top, left))[:, :, None]


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
