"""The dense head: predicts 3D Gaussians from any number of posed views in one pass.

A transformer reads patches of all views with their rays. Blocks alternate between attention within a view and attention
over all views (as VGGT, arXiv:2503.11651); each token then predicts the Gaussians of its pixels (as GS-LRM,
arXiv:2404.19702), at a depth between the bounds of the object's ball. Only rays tell the views apart, so their order
does not matter.

Letters: B batch, I input views, C channels, H W pixels, h w patches, L tokens of a view, S key tokens of a view,
N Gaussians, Q Gaussians of a token, P patches of a batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from models.attention import attention, check_backend
from models.gaussians.scene import Gaussians, quaternion_product, quaternions_of
from utils.cameras import BALL_RADIUS, opencv_to_opengl, plucker_rays
from utils.errors import ConfigError
from utils.registry import MODEL

IN_CHANNELS = 9  # RGB in [-1, 1], and six Plücker channels
RAW_CHANNELS = 14  # depth 1, shift in the image 2, opacity 1, scale 3, rotation 4, colour 3
FINE_CELL, COARSE_CELL = 2, 4  # sides in pixels of the square that has one Gaussian
# Gaussians begin in the middle of their rays: rather transparent, round, a bit smaller than their cell.
FIRST_OPACITY, FIRST_SCALE = -1.5, 0.4
SCALE_RANGE = 2.5  # a scale is at most exp(this) times as large or as small as at first
MIN_CHORD = 0.25  # half of the shortest range of depths, as a fraction of the ball's radius
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
            num_layers: number of blocks; every second one attends over all views.
            ffn_ratio: inner width of the feed-forward part, divided by `width`.
            pool: side of the square of tokens whose mean is one key in attention over all views.
            fine_views: up to this number of views, a Gaussian covers 2 x 2 pixels, with more views 4 x 4.
            attention: backend of models.attention.
        """

        patch: int = 8
        width: int = 320
        head_dim: int = 64
        num_layers: int = 10
        ffn_ratio: float = 3.0
        pool: int = 2
        fine_views: int = 8
        attention: str = "sdpa"

        def __post_init__(self) -> None:
            if self.patch < COARSE_CELL or self.patch % COARSE_CELL:
                raise ConfigError(f"patch={self.patch} must be a positive multiple of {COARSE_CELL}")
            if self.head_dim < 1 or self.width < 1 or self.width % self.head_dim:
                raise ConfigError(f"width={self.width} must be a positive multiple of head_dim={self.head_dim}")
            if self.num_layers < 1 or self.pool < 1 or self.ffn_ratio <= 0:
                raise ConfigError(
                    f"num_layers={self.num_layers}, pool={self.pool} and ffn_ratio={self.ffn_ratio} must be positive"
                )
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
        width, patch = config.width, config.patch
        self.embed = nn.Linear(IN_CHANNELS * patch**2, width)
        self.blocks = nn.ModuleList(
            Block(config, over_views=index % 2 == 1, pool=config.pool) for index in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.out_coarse = nn.Linear(width, RAW_CHANNELS * (patch // COARSE_CELL) ** 2)
        self.out_fine = nn.Linear(width, RAW_CHANNELS * (patch // FINE_CELL) ** 2)
        for out in (self.out_coarse, self.out_fine):
            nn.init.zeros_(out.weight)
            nn.init.zeros_(out.bias)

    def forward(self, views_BI3HW: Tensor, poses_BI44: Tensor, *, fov_deg: float) -> Gaussians:
        """Predict the Gaussians of a batch, in the frame of the cameras.

        Args:
            views_BI3HW: RGB in [0, 1].
            poses_BI44: camera to world with OpenGL axes; the object is around the origin, and z is up.
            fov_deg: horizontal field of view of the views.

        Raises:
            ValueError: the shapes do not fit.
        """
        (B, V), (H, W), config = views_BI3HW.shape[:2], views_BI3HW.shape[-2:], self.config
        if poses_BI44.shape != (B, V, 4, 4) or views_BI3HW.shape[2] != 3:
            raise ValueError(f"views of {tuple(views_BI3HW.shape)} do not fit cameras of {tuple(poses_BI44.shape)}")
        if H % config.view_multiple or W % config.view_multiple:
            raise ValueError(f"views of {W} x {H} pixels must have sides that are multiples of {config.view_multiple}")
        rays_F6HW = plucker_rays(poses_BI44.flatten(0, 1).float(), fov_deg=fov_deg, size=(H, W))
        views_F3HW = views_BI3HW.flatten(0, 1).float()
        pixels_F9HW = torch.cat([2 * views_F3HW - 1, rays_F6HW], dim=1)
        p = config.patch
        patches = rearrange(pixels_F9HW, "(b i) c (h p) (w q) -> b i h w (c p q)", b=B, p=p, q=p)
        # In bfloat16, rays would be wrong by half a pixel, so the first and the last layer are in float32.
        with torch.autocast(patches.device.type, enabled=False):
            x_BIhwC = self.embed(patches)
        for block in self.blocks:
            x_BIhwC = block(x_BIhwC)
        cell = config.cell(V)
        with torch.autocast(x_BIhwC.device.type, enabled=False):
            raw = (self.out_fine if cell == FINE_CELL else self.out_coarse)(self.norm(x_BIhwC.float()))
            raw_BNC = rearrange(raw, "b i h w (p q c) -> b (i h p w q) c", p=p // cell, q=p // cell)
            return placed(raw_BNC, cell_means(views_F3HW, rays_F6HW, cell, B), poses_BI44, fov_deg=fov_deg, size=W)

    def parts_to_compile(self) -> list[nn.Module]:
        """Modules that are worth compiling."""
        return list(self.blocks)


def cell_means(views_F3HW: Tensor, rays_F6HW: Tensor, cell: int, batch: int) -> Tensor:
    """Mean colour and ray of each cell: (B, N, 9)."""
    cells_F9HW = functional.avg_pool2d(torch.cat([views_F3HW, rays_F6HW], dim=1), cell)
    return rearrange(cells_F9HW, "(b i) c h w -> b (i h w) c", b=batch)


def placed(raw_BNC: Tensor, cells_BN9: Tensor, poses_BI44: Tensor, *, fov_deg: float, size: int) -> Gaussians:
    """Turn raw numbers into Gaussians on the rays of their cells.

    Args:
        raw_BNC: the network's output; zeros give the first guess.
        cells_BN9: colour in [0, 1] and Plücker ray of each cell.
        poses_BI44: cameras with OpenGL axes; each has the same number of cells, in order.
        fov_deg: horizontal field of view.
        size: width of a view in pixels.
    """
    per_view = raw_BNC.shape[1] // poses_BI44.shape[1]
    cell = size / math.sqrt(per_view)
    depth, shift, opacity, scale, rotation, color = raw_BNC.split([1, 2, 1, 3, 4, 3], dim=-1)
    moment_BN3, direction_BN3 = cells_BN9[..., 3:].split(3, dim=-1)
    direction_BN3 = functional.normalize(direction_BN3, dim=-1)
    closest_BN3 = torch.linalg.cross(direction_BN3, moment_BN3)
    axes_BI33 = opencv_to_opengl(poses_BI44.float())[..., :3, :3]
    right_BN3, down_BN3 = (axes_BI33[..., column].repeat_interleave(per_view, dim=1) for column in (0, 1))
    centre_BN3 = poses_BI44[..., :3, 3].float().repeat_interleave(per_view, dim=1)
    # Half of the ray's part inside the ball; rays that miss it get a short range.
    half_BN1 = (BALL_RADIUS**2 - closest_BN3.square().sum(-1, keepdim=True)).clamp_min((MIN_CHORD * BALL_RADIUS) ** 2)
    middle_BN3 = closest_BN3 + half_BN1.sqrt() * depth.tanh() * direction_BN3
    distance_BN1 = (middle_BN3 - centre_BN3).norm(dim=-1, keepdim=True)
    footprint_BN1 = distance_BN1 * cell * 2 * math.tan(math.radians(fov_deg) / 2) / size
    across, downwards = (footprint_BN1 * shift.tanh()).split(1, dim=-1)
    first_14 = raw_BNC.new_tensor([1.0, 0.0, 0.0, 0.0])
    turned_BN4 = functional.normalize(rotation + first_14, dim=-1)
    cameras_BN4 = quaternions_of(axes_BI33).repeat_interleave(per_view, dim=1)
    colors = cells_BN9[..., :3].clamp(1e-6, 1 - 1e-6).logit().clamp(-MAX_COLOR_LOGIT, MAX_COLOR_LOGIT)
    return Gaussians(
        means_BN3=middle_BN3 + across * right_BN3 + downwards * down_BN3,
        opacities_BN1=(opacity + FIRST_OPACITY).sigmoid(),
        scales_BN3=FIRST_SCALE * footprint_BN1 * (SCALE_RANGE * (scale / SCALE_RANGE).tanh()).exp(),
        quats_BN4=quaternion_product(cameras_BN4, turned_BN4),
        colors_BN3=(colors + color).sigmoid(),
    )
