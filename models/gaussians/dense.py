"""The dense head: predicts 3D Gaussians from any number of posed views in one pass.

A transformer reads patches of all views with their rays and with what all views agree on along these rays
(models.gaussians.first_guess). Blocks alternate between attention within a view and attention over all views (as VGGT,
arXiv:2503.11651); each token then predicts the Gaussians of its pixels (as GS-LRM, arXiv:2404.19702). They begin where
their rays enter the visual hull, and stay inside the object's ball. Only rays tell the views apart, so their order does
not matter.

Letters: B batch, I input views, C channels, H W pixels, h w patches, L tokens of a view, S key tokens of a view,
N Gaussians, one for each cell of pixels, D depths of a ray.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from models.attention import attention, check_backend
from models.gaussians.first_guess import COARSE_CELL, FINE_CELL, SWEEP, FirstGuess, chords, compared
from models.gaussians.scene import Gaussians, quaternion_product, quaternions_of
from utils.cameras import opencv_to_opengl, plucker_rays
from utils.errors import ConfigError
from utils.registry import MODEL

IN_CHANNELS = 9  # RGB in [-1, 1], and six Plücker channels
RAW_CHANNELS = 14  # depth 1, shift in the image 2, opacity 1, scale 3, rotation 4, colour 3
# Standard deviation in pixels of the round Gaussians of the first guess; of 0.5, 0.7 and 1 the best from 24 views.
FIRST_SCALE = 0.7
SCALE_RANGE = 2.5  # a scale is at most exp(this) times as large or as small as at first
MAX_DEPTH = 0.95  # of a first guess, so that offsets can change it
MAX_COLOR_LOGIT = 4.0  # colours of pixels are at least 1.8 % away from black and white, so that offsets can change them


class Block(nn.Module):
    """Attention and a feed-forward part; both are zero at first.

    Args:
        over_views: tokens attend to the tokens of all views; if false, only to those of their own view.
        pool: side of the square of tokens whose mean is one key, in attention over views.
    """

    def __init__(self, config: DenseHead.Config, *, over_views: bool, pool: int) -> None:
        super().__init__()
        width, inner = config.width, round(config.width * config.ffn_ratio)
        self.over_views, self.pool, self.heads, self.backend = over_views, pool, config.num_heads, config.attention
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q, self.to_kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.norm_q, self.norm_k = nn.RMSNorm(config.head_dim, eps=1e-6), nn.RMSNorm(config.head_dim, eps=1e-6)
        self.proj = nn.Linear(width, width)
        self.ffn = nn.Sequential(nn.Linear(width, inner), nn.GELU(approximate="tanh"), nn.Linear(inner, width))
        for last in (self.proj, self.ffn[2]):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, x_BIhwC: Tensor) -> Tensor:
        x_BIhwC = x_BIhwC + self._attended(self.norm1(x_BIhwC))
        return x_BIhwC + self.ffn(self.norm2(x_BIhwC))

    def _attended(self, x_BIhwC: Tensor) -> Tensor:
        keys_BIhwC = x_BIhwC
        if self.over_views and self.pool > 1:
            keys_BIhwC = rearrange(x_BIhwC, "b i (h p) (w q) c -> b i h w (p q) c", p=self.pool, q=self.pool).mean(4)
        merge = "b i h w (n d) -> b (i h w) n d" if self.over_views else "b i h w (n d) -> (b i) (h w) n d"
        q = rearrange(self.to_q(x_BIhwC), merge, n=self.heads)
        k, v = (rearrange(values, merge, n=self.heads) for values in self.to_kv(keys_BIhwC).chunk(2, dim=-1))
        out = attention(self.norm_q(q).type_as(v), self.norm_k(k).type_as(v), v, backend=self.backend)
        return self.proj(out.flatten(2).reshape(x_BIhwC.shape))


@MODEL.register
class DenseHead(nn.Module):
    """Predicts Gaussians from any number of views with known cameras around the origin."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Sizes of the network.

        Attributes:
            patch: side in pixels of the square that becomes a token, a multiple of 4.
            width: channels of a token, a multiple of `head_dim`.
            head_dim: channels of a head of the attention.
            num_layers: number of blocks; every second one attends over all views. With 0 there is no network and
                nothing to train: the Gaussians are the first guess.
            ffn_ratio: inner width of the feed-forward part, divided by `width`.
            pool: side of the square of tokens whose mean is one key in attention over all views.
            fine_views: up to this number of views, a Gaussian covers 2 x 2 pixels, with more views 4 x 4.
            grid: voxels along a side of the grid in which views are compared.
            depths: points on a ray at which this grid is read.
            attention: backend of models.attention.
        """

        patch: int = 8
        width: int = 320
        head_dim: int = 64
        num_layers: int = 10
        ffn_ratio: float = 3.0
        pool: int = 2
        fine_views: int = 8
        grid: int = 64
        depths: int = 48
        attention: str = "sdpa"

        def __post_init__(self) -> None:
            if self.patch < COARSE_CELL or self.patch % COARSE_CELL:
                raise ConfigError(f"patch={self.patch} must be a positive multiple of {COARSE_CELL}")
            if self.head_dim < 1 or self.width < 1 or self.width % self.head_dim:
                raise ConfigError(f"width={self.width} must be a positive multiple of head_dim={self.head_dim}")
            for name in ("pool", "ffn_ratio", "grid", "depths"):
                if getattr(self, name) <= 0:
                    raise ConfigError(f"{name} must be positive, got {getattr(self, name)}")
            if self.num_layers < 0:
                raise ConfigError(f"num_layers must not be negative, got {self.num_layers}; 0 is the first guess alone")
            check_backend(self.attention)

        @property
        def num_heads(self) -> int:
            """Heads of each attention."""
            return self.width // self.head_dim

        @property
        def view_multiple(self) -> int:
            """Height and width of the views must be multiples of this number of pixels."""
            return self.patch * self.pool

        def cell(self, num_views: int) -> int:
            """Side in pixels of the square that has one Gaussian."""
            return FINE_CELL if num_views <= self.fine_views else COARSE_CELL

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        if config.num_layers == 0:
            return
        width, patch = config.width, config.patch
        inputs = IN_CHANNELS * patch**2 + (config.depths + len(SWEEP) + 2) * (patch // COARSE_CELL) ** 2
        self.embed = nn.Linear(inputs, width)
        # Fine detail of a patch goes past the blocks.
        self.detail = nn.Sequential(nn.Linear(inputs, 2 * width), nn.GELU())
        self.blocks = nn.ModuleList(
            Block(config, over_views=index % 2 == 1, pool=config.pool) for index in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.out_coarse = nn.Linear(3 * width, RAW_CHANNELS * (patch // COARSE_CELL) ** 2)
        self.out_fine = nn.Linear(3 * width, RAW_CHANNELS * (patch // FINE_CELL) ** 2)
        for out in (self.out_coarse, self.out_fine):
            nn.init.zeros_(out.weight)
            nn.init.zeros_(out.bias)

    def forward(self, views_BI3HW: Tensor, poses_BI44: Tensor, *, fov_deg: float, background: float) -> Gaussians:
        """Predict the Gaussians of a batch, in the frame of the cameras.

        Args:
            views_BI3HW: RGB in [0, 1].
            poses_BI44: camera to world with OpenGL axes; the object is around the origin, and z is up.
            fov_deg: horizontal field of view of the views.
            background: grey value of the plain background of the views.

        Raises:
            ValueError: the shapes do not fit.
        """
        (B, V), (H, W), config = views_BI3HW.shape[:2], views_BI3HW.shape[-2:], self.config
        if poses_BI44.shape != (B, V, 4, 4) or views_BI3HW.shape[2] != 3:
            raise ValueError(f"views of {tuple(views_BI3HW.shape)} do not fit cameras of {tuple(poses_BI44.shape)}")
        if H % config.view_multiple or W % config.view_multiple:
            raise ValueError(f"views of {W} x {H} pixels must have sides that are multiples of {config.view_multiple}")
        # In bfloat16, rays would be wrong by half a pixel, so everything but the blocks is in float32.
        with torch.autocast(views_BI3HW.device.type, enabled=False):
            views_BI3HW, poses_BI44 = views_BI3HW.float(), poses_BI44.float()
            rays_BI6HW = plucker_rays(poses_BI44.flatten(0, 1), fov_deg=fov_deg, size=(H, W)).unflatten(0, (B, V))
            seen = compared(
                torch.cat([views_BI3HW, rays_BI6HW], dim=2),
                poses_BI44,
                grid=config.grid,
                depths=config.depths,
                cell=config.cell(V),
                fov_deg=fov_deg,
                background=background,
            )
        cell = config.cell(V)
        if config.num_layers == 0:
            raw_BNC = views_BI3HW.new_zeros(*seen.first.depths_BN1.shape[:2], RAW_CHANNELS)
        else:
            raw_BNC = self._raw(torch.cat([2 * views_BI3HW - 1, rays_BI6HW], dim=2), seen.evidence_BIhwC, cell)
        with torch.autocast(raw_BNC.device.type, enabled=False):
            return placed(raw_BNC, seen.first, poses_BI44, fov_deg=fov_deg, size=W)

    def _raw(self, pixels_BI9HW: Tensor, evidence_BIhwC: Tensor, cell: int) -> Tensor:
        """The raw numbers of the Gaussians, RAW_CHANNELS for each cell."""
        p, q = self.config.patch, self.config.patch // COARSE_CELL
        patches = rearrange(pixels_BI9HW, "b i c (h p) (w q) -> b i h w (c p q)", p=p, q=p)
        evidence = rearrange(evidence_BIhwC, "b i (h p) (w q) c -> b i h w (c p q)", p=q, q=q)
        inputs = torch.cat([patches, evidence], dim=-1)
        device = inputs.device.type
        with torch.autocast(device, enabled=False):
            x_BIhwC = self.embed(inputs)
        for block in self.blocks:
            x_BIhwC = block(x_BIhwC)
        with torch.autocast(device, enabled=False):
            last = torch.cat([self.norm(x_BIhwC.float()), self.detail(inputs)], dim=-1)
            raw = self.out_fine(last) if cell == FINE_CELL else self.out_coarse(last)
        return rearrange(raw, "b i h w (p q c) -> b (i h p w q) c", p=p // cell, q=p // cell)

    def parts_to_compile(self) -> list[nn.Module]:
        """Modules that are worth compiling."""
        return list(self.blocks) if self.config.num_layers else []


def placed(raw_BNC: Tensor, first: FirstGuess, poses_BI44: Tensor, *, fov_deg: float, size: int) -> Gaussians:
    """Turn raw numbers into Gaussians on the rays of their cells.

    Args:
        raw_BNC: the network's output; zeros give the first guess.
        first: where the Gaussians begin.
        poses_BI44: cameras with OpenGL axes; each has the same number of cells, in order.
        fov_deg: horizontal field of view.
        size: width of a view in pixels.
    """
    per_view = raw_BNC.shape[1] // poses_BI44.shape[1]
    cell = size / math.sqrt(per_view)
    depth, shift, opacity, scale, rotation, color = raw_BNC.split([1, 2, 1, 3, 4, 3], dim=-1)
    closest_BN3, direction_BN3, half_BN1 = chords(first.rays_BN6)
    axes_BI33 = opencv_to_opengl(poses_BI44)[..., :3, :3]
    right_BN3, down_BN3 = (axes_BI33[..., column].repeat_interleave(per_view, dim=1) for column in (0, 1))
    centre_BN3 = poses_BI44[..., :3, 3].repeat_interleave(per_view, dim=1)
    place_BN1 = (depth + first.depths_BN1.clamp(-MAX_DEPTH, MAX_DEPTH).atanh()).tanh()
    middle_BN3 = closest_BN3 + half_BN1 * place_BN1 * direction_BN3
    distance_BN1 = (middle_BN3 - centre_BN3).norm(dim=-1, keepdim=True)
    pixel_BN1 = distance_BN1 * 2 * math.tan(math.radians(fov_deg) / 2) / size
    across, downwards = (cell * pixel_BN1 * shift.tanh()).split(1, dim=-1)
    turned_BN4 = functional.normalize(rotation + raw_BNC.new_tensor([1.0, 0.0, 0.0, 0.0]), dim=-1)
    cameras_BN4 = quaternions_of(axes_BI33).repeat_interleave(per_view, dim=1)
    colors = first.colors_BN3.clamp(1e-6, 1 - 1e-6).logit().clamp(-MAX_COLOR_LOGIT, MAX_COLOR_LOGIT)
    return Gaussians(
        means_BN3=middle_BN3 + across * right_BN3 + downwards * down_BN3,
        opacities_BN1=(opacity + first.opacities_BN1).sigmoid(),
        scales_BN3=FIRST_SCALE * pixel_BN1 * (SCALE_RANGE * (scale / SCALE_RANGE).tanh()).exp(),
        quats_BN4=quaternion_product(cameras_BN4, turned_BN4),
        colors_BN3=(colors + color).sigmoid(),
    )
