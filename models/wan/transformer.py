"""A video diffusion transformer that makes orbits: Wan's network (arXiv:2503.20314), with cameras.

All layers but `ray_embedding` and `camera_embedding` are those of diffusers' `WanTransformer3DModel`, under its names.
Their output is zero at first, so a pretrained network starts with its own predictions.

Letters: B batch, V views, F frames of the latents (F = V, unless `packed`), P views of a frame, C channels, H W latent
pixels, L tokens of a frame, S text tokens, D channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from models.backbone import Backbone, BackboneConfig, check_shapes
from models.encoders import FrameLayout
from models.wan.autoencoder import PACKED
from models.wan.folder import TRANSFORMER, check_transformer, is_own_file, load_transformer, part_folder, weight_files
from models.wan.random_folder import write_random_transformer
from utils.cameras import DATA_FOV_DEG, plucker_rays, without_first_azimuth
from utils.errors import ConfigError
from utils.registry import MODEL

NEW_PARTS = ("ray_embedding", "camera_embedding")  # zero at first, and not in published weights
CAMERA_DIM = 16
RAY_DIM = 6
ROPE_BASE = 10000.0


@dataclass(frozen=True, kw_only=True)
class WanOrbitConfig(BackboneConfig):
    """Sizes and switches; the default sizes are those of Wan2.1-T2V-1.3B.

    Attributes:
        in_dim: channels of the latents, and of the prediction.
        patch: side of the square of latent pixels that becomes a token.
        num_layers: number of blocks.
        num_heads: heads of each attention.
        head_dim: channels of a head; an even number.
        ffn_dim: inner width of the feed-forward part.
        text_dim: channels of the text tokens.
        freq_dim: channels of the sinusoidal embedding of the timestep.
        image_condition: make views from pictures as well; they are known views with timestep 0, see `hold_views`.
        rays: add the Plücker coordinates of each latent pixel's ray to the patch embedding.
        camera_vector: add an embedding of the 16 numbers of each camera to that of the timestep, as the published UNet.
        relative_azimuth: turn all cameras about the vertical axis so that view 0 has azimuth 0.
        temporal_rope: number the views in the rotary embedding, as frames of a video; if false, only rays and cameras
            tell the views apart, so their order does not matter.
        packed: four views share a frame of the latents, and a token has their four rays; see `auto_encoder.packed`,
            which must be equal. The order of the views in a frame matters then.
        fov_deg: field of view of the views.
        use_checkpoint: recompute each block in the backward pass.
    """

    in_dim: int = 16
    patch: int = 2
    num_layers: int = 30
    num_heads: int = 12
    head_dim: int = 128
    ffn_dim: int = 8960
    text_dim: int = 4096
    freq_dim: int = 256
    image_condition: bool = False
    rays: bool = True
    camera_vector: bool = False
    relative_azimuth: bool = True
    temporal_rope: bool = False
    packed: bool = False
    fov_deg: float = DATA_FOV_DEG
    use_checkpoint: bool = False

    def __post_init__(self) -> None:
        for name in ("in_dim", "patch", "num_layers", "num_heads", "head_dim", "ffn_dim", "text_dim", "freq_dim"):
            if getattr(self, name) < 1:
                raise ConfigError(f"UNet.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("head_dim", "freq_dim"):
            if getattr(self, name) % 2:
                raise ConfigError(f"UNet.{name} must be even, got {getattr(self, name)}")
        if self.head_dim < 6:
            raise ConfigError(f"UNet.head_dim must be at least 6, got {self.head_dim}")
        if not 1 <= self.fov_deg < 180:
            raise ConfigError(f"UNet.fov_deg must lie in [1, 180), got {self.fov_deg:g}")
        if not (self.rays or self.camera_vector):
            raise ConfigError("UNet.rays=false and UNet.camera_vector=false leave no camera; set one of them to true")
        if self.packed and self.camera_vector:
            raise ConfigError(
                "UNet.camera_vector=true gives one camera to each frame, but a frame has four with UNet.packed=true; "
                "set UNet.camera_vector=false"
            )

    @property
    def takes_images(self) -> bool:
        return self.image_condition

    @property
    def takes_image_embedding(self) -> bool:
        return False

    @property
    def view_timesteps(self) -> bool:
        return True

    @property
    def layout(self) -> FrameLayout:
        return PACKED if self.packed else FrameLayout()

    @property
    def latent_multiple(self) -> int:
        return self.patch

    @property
    def ray_channels(self) -> int:
        """Numbers of a token's rays."""
        return self.layout.views_per_frame * RAY_DIM * self.patch**2

    @property
    def width(self) -> int:
        """Channels of the hidden states."""
        return self.num_heads * self.head_dim

    @property
    def latent_channels(self) -> int:
        return self.in_dim

    @property
    def text_width(self) -> int:
        return self.text_dim

    def published_files(self, path: str, *, option: str) -> list[Path] | None:
        if is_own_file(path, TRANSFORMER):
            return None
        folder = part_folder(path, TRANSFORMER, option=option)
        check_transformer(folder, self.diffusers_options(), option=option)
        return weight_files(folder, option=option)

    def write_random(self, out: Path, *, seed: int) -> bool:
        write_random_transformer(out, self.diffusers_options(), seed=seed)
        return True

    def diffusers_options(self) -> dict[str, Any]:
        """Return the options of diffusers' class for the same layers."""
        return {
            "patch_size": (1, self.patch, self.patch),
            "num_attention_heads": self.num_heads,
            "attention_head_dim": self.head_dim,
            "in_channels": self.in_dim,
            "out_channels": self.in_dim,
            "text_dim": self.text_dim,
            "freq_dim": self.freq_dim,
            "ffn_dim": self.ffn_dim,
            "num_layers": self.num_layers,
        }


@MODEL.register
class WanOrbit(Backbone):
    """Predicts the velocity of flow matching for every view; all tokens of all views attend to each other."""

    Config = WanOrbitConfig

    def __init__(self, config: WanOrbitConfig) -> None:
        from models.wan.blocks import OrbitBlock, WanTransformer3DModel

        super().__init__(config)
        width = config.width
        layers = WanTransformer3DModel(**{**config.diffusers_options(), "num_layers": 0})
        self.patch_embedding, self.condition_embedder = layers.patch_embedding, layers.condition_embedder
        self.blocks = nn.ModuleList(
            OrbitBlock(width, config.ffn_dim, config.num_heads, cross_attn_norm=True) for _ in range(config.num_layers)
        )
        self.norm_out, self.proj_out = layers.norm_out, layers.proj_out
        self.scale_shift_table = layers.scale_shift_table
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)
        if config.rays:
            self.ray_embedding = nn.Linear(config.ray_channels, width, bias=False)
            nn.init.zeros_(self.ray_embedding.weight)
        if config.camera_vector:
            last = nn.Linear(width, width)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.camera_embedding = nn.Sequential(nn.Linear(CAMERA_DIM, width), nn.SiLU(), last)

    @property
    def can_be_graphed(self) -> bool:
        return not self.config.use_checkpoint

    def load_weights(self, path: str | Path, *, option: str, new_parts: Sequence[str] = ()) -> int | None:
        """Load a weight file of ours, or the transformer of a published folder; see `Backbone.load_weights`."""
        if self.config.published_files(str(path), option=option) is None:
            return super().load_weights(path, option=option, new_parts=new_parts)
        folder = part_folder(path, TRANSFORMER, option=option)
        load_transformer(self, folder, option=option, new_parts=NEW_PARTS)
        return None

    def parts_to_compile(self) -> list[nn.Module]:
        return list(self.blocks)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor,
        *,
        camera_data: Tensor | None = None,
        fps: Tensor | None = None,
    ) -> Tensor:
        """Predict the velocity.

        Args:
            x: noisy latents (B, C, F, H, W); known views have no noise.
            t: timesteps (B, F), 0 for known views, or (B,).
            y: text tokens (B, S, text_dim).
            camera_data: camera condition (B, V, 16), see utils.cameras.camera_condition; None for images without
                cameras.
            fps: not used; the views of an orbit have no frame rate.

        Raises:
            ValueError: shapes do not fit.
        """
        own = self.config
        check_shapes(x, camera_data, own, channels=own.in_dim)
        _, _, F, H, W = x.shape
        c2w_BV44 = None if camera_data is None else self._cameras(camera_data)
        h_BFLC = self._tokens(x, c2w_BV44)
        time_BFC = self._time(t if t.dim() == 2 else t[:, None].expand(-1, F), c2w_BV44).type_as(h_BFLC)
        embedder = self.condition_embedder
        changes_BF6C = embedder.time_proj(embedder.act_fn(time_BFC)).unflatten(-1, (6, -1))
        words_BSC = embedder.text_embedder(y.to(embedder.text_embedder.linear_1.weight.dtype))
        arguments = (words_BSC, changes_BF6C, *self._rotation(F, H, W, x.device))
        recomputes = own.use_checkpoint and self.training and torch.is_grad_enabled()
        for block in self.blocks:
            if recomputes:
                h_BFLC = checkpoint(block, h_BFLC, *arguments, use_reentrant=False)
            else:
                h_BFLC = block(h_BFLC, *arguments)
        shift, scale = (self.scale_shift_table + time_BFC[:, :, None]).chunk(2, dim=2)
        out_BFLC = self.proj_out((self.norm_out(h_BFLC.float()) * (1 + scale) + shift).type_as(h_BFLC))
        p = own.patch
        return rearrange(out_BFLC, "b v (h w) (p q c) -> b c v (h p) (w q)", h=H // p, p=p, q=p)

    def _cameras(self, camera_data_BV16: Tensor) -> Tensor:
        """Return poses with OpenGL axes, (B, V, 4, 4) float32, in the frame that the network sees."""
        c2w_BV44 = camera_data_BV16.float().unflatten(-1, (4, 4))
        return without_first_azimuth(c2w_BV44) if self.config.relative_azimuth else c2w_BV44

    def _tokens(self, x: Tensor, c2w_BV44: Tensor | None) -> Tensor:
        """Embed patches of the latents and of their rays: (B, F, L, C)."""
        weight, bias, p = self.patch_embedding.weight, self.patch_embedding.bias, self.config.patch
        patches = rearrange(x, "b c v (h p) (w q) -> b v (h w) (c p q)", p=p, q=p)
        h_BFLC = functional.linear(patches.to(weight.dtype), weight.flatten(1), bias)
        if not self.config.rays:
            return h_BFLC
        if c2w_BV44 is None:
            # so that the layer has gradients, of zero
            rays = patches.new_zeros(*patches.shape[:3], self.config.ray_channels)
        else:
            rays = plucker_rays(c2w_BV44.flatten(0, 1), fov_deg=self.config.fov_deg, size=x.shape[3:])
            rays = self.config.layout.by_frame(rays.unflatten(0, c2w_BV44.shape[:2]))
            rays = rearrange(rays, "b f n c (h p) (w q) -> b f (h w) (n c p q)", p=p, q=p)
        return h_BFLC + self.ray_embedding(rays.to(weight.dtype)).type_as(h_BFLC)

    def _time(self, t_BF: Tensor, c2w_BV44: Tensor | None) -> Tensor:
        """Embed timestep and camera of each frame: (B, F, C)."""
        embedder = self.condition_embedder
        waves = embedder.timesteps_proj(t_BF.flatten()).unflatten(0, t_BF.shape)
        time_BFC = embedder.time_embedder(waves.to(embedder.time_proj.weight.dtype))
        if not self.config.camera_vector:
            return time_BFC
        cameras_BV16 = time_BFC.new_zeros(*t_BF.shape, CAMERA_DIM) if c2w_BV44 is None else c2w_BV44.flatten(-2)
        return time_BFC + self.camera_embedding(cameras_BV16.to(time_BFC.dtype))

    def _rotation(self, F: int, H: int, W: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return cosines and sines of the rotary embedding, (1 or F, L, D / 2) float32 each."""
        p, D = self.config.patch, self.config.head_dim
        side = 2 * (D // 6)
        frames = torch.arange(F if self.config.temporal_rope else 1, device=device)
        places = torch.meshgrid(
            frames, torch.arange(H // p, device=device), torch.arange(W // p, device=device), indexing="ij"
        )
        angles = []
        for place, width in zip(places, (D - 2 * side, side, side), strict=True):
            steps = torch.arange(0, width, 2, device=device, dtype=torch.float64) / width
            angles.append(place.flatten(1)[..., None] / ROPE_BASE**steps)
        angles_FLD = torch.cat(angles, dim=-1)
        return angles_FLD.cos().float(), angles_FLD.sin().float()
