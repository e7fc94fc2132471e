"""The Gaussian head: predicts 3D Gaussians from four posed views, with the published names (LGM, arXiv:2402.05054).

Letters: B batch, V views, C channels, H W pixels, N Gaussians, F = B·V images, L tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from einops import rearrange
from torch import Tensor, nn

from models.attention import attention, check_backend
from models.gaussians.scene import ANCHORS, ROTATION_RULES, Gaussians, activate
from utils.cameras import plucker_rays
from utils.errors import ConfigError
from utils.registry import MODEL
from utils.torch_settings import GroupNorm

IN_CHANNELS = 9  # RGB with the normalisation of ImageNet, and six Plücker channels
GAUSSIAN_CHANNELS = 14
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
NUM_HEADS = 16
# Untrained heads begin with half transparent Gaussians of about a pixel, on a plane through the object. With random
# sizes and opacities, thousands of Gaussians would cover each pixel.
FIRST_GUESS = (*(0.0,) * 3, -1.0, *(-2.0,) * 3, 1.0, *(0.0,) * 6)
# Every residual sum is scaled by this, so that its variance does not grow with depth.
SKIP_SCALE = math.sqrt(0.5)


class ResnetBlock(nn.Module):
    """Two convolutions with norms, added to the input."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = GroupNorm(32, in_dim), GroupNorm(32, out_dim)
        self.conv1 = nn.Conv2d(in_dim, out_dim, 3, padding=1)
        self.conv2 = nn.Conv2d(out_dim, out_dim, 3, padding=1)
        self.shortcut = nn.Identity() if in_dim == out_dim else nn.Conv2d(in_dim, out_dim, 1)

    def forward(self, x_FCHW: Tensor) -> Tensor:
        h = self.conv1(functional.silu(self.norm1(x_FCHW)))
        h = self.conv2(functional.silu(self.norm2(h)))
        return (h + self.shortcut(x_FCHW)) * SKIP_SCALE


class ViewsAttention(nn.Module):
    """Self-attention over all tokens of all input views."""

    def __init__(self, dim: int, backend: str) -> None:
        super().__init__()
        self.backend = backend
        self.norm = GroupNorm(32, dim)
        self.attn = nn.Module()
        self.attn.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.attn.proj = nn.Linear(dim, dim)

    def forward(self, x_FCHW: Tensor, num_views: int) -> Tensor:
        height, width = x_FCHW.shape[-2:]
        tokens_BLC = rearrange(self.norm(x_FCHW), "(b v) c h w -> b (v h w) c", v=num_views)
        q, k, v = rearrange(self.attn.qkv(tokens_BLC), "b l (three n d) -> three b l n d", three=3, n=NUM_HEADS)
        tokens_BLC = self.attn.proj(attention(q, k, v, backend=self.backend).flatten(2))
        h = rearrange(tokens_BLC, "b (v h w) c -> (b v) c h w", v=num_views, h=height, w=width)
        return (h + x_FCHW) * SKIP_SCALE


class Level(nn.Module):
    """The blocks of one resolution. As published, `attns` is missing if the level has no attention."""

    def __init__(self, widths: list[tuple[int, int]], *, attends: bool, backend: str) -> None:
        super().__init__()
        self.nets = nn.ModuleList([ResnetBlock(in_dim, out_dim) for in_dim, out_dim in widths])
        self.attns = nn.ModuleList(
            [ViewsAttention(out_dim, backend) if attends else _Nothing() for _, out_dim in widths]
        )


class _Nothing(nn.Module):
    """Replaces attention in levels that have none."""

    def forward(self, x_FCHW: Tensor, num_views: int) -> Tensor:
        return x_FCHW


class HeadUNet(nn.Module):
    """A UNet over all views together: (F, 9, H, W) to (F, 14, h, w)."""

    def __init__(self, config: LGM.Config) -> None:
        super().__init__()
        down, up, backend = config.down_channels, config.up_channels, config.attention
        self.conv_in = nn.Conv2d(IN_CHANNELS, down[0], 3, padding=1)
        self.down_blocks, skips, width = nn.ModuleList(), [down[0]], down[0]
        for index, (out, attends) in enumerate(zip(down, config.down_attention, strict=True)):
            level = Level([(width, out), (out, out)], attends=attends, backend=backend)
            skips += [out, out]
            if index < len(down) - 1:
                level.downsample = nn.Conv2d(out, out, 3, stride=2, padding=1)
                skips.append(out)
            self.down_blocks.append(level)
            width = out
        self.mid_block = nn.Module()
        self.mid_block.nets = nn.ModuleList([ResnetBlock(width, width), ResnetBlock(width, width)])
        self.mid_block.attns = nn.ModuleList([ViewsAttention(width, backend) if config.mid_attention else _Nothing()])
        self.up_blocks = nn.ModuleList()
        for index, (out, attends) in enumerate(zip(up, config.up_attention, strict=True)):
            widths = [((width if net == 0 else out) + skips.pop(), out) for net in range(3)]
            level = Level(widths, attends=attends, backend=backend)
            if index < len(up) - 1:
                level.upsample = nn.Conv2d(out, out, 3, padding=1)
            self.up_blocks.append(level)
            width = out
        self.norm_out = GroupNorm(32, width)
        self.conv_out = nn.Conv2d(width, GAUSSIAN_CHANNELS, 3, padding=1)

    def forward(self, x_FCHW: Tensor, num_views: int) -> Tensor:
        x = self.conv_in(x_FCHW)
        skips = [x]
        for level in self.down_blocks:
            for net, attend in zip(level.nets, level.attns, strict=True):
                x = attend(net(x), num_views)
                skips.append(x)
            if hasattr(level, "downsample"):
                x = level.downsample(x)
                skips.append(x)
        first, second = self.mid_block.nets
        x = second(self.mid_block.attns[0](first(x), num_views))
        for level in self.up_blocks:
            for net, attend in zip(level.nets, level.attns, strict=True):
                x = attend(net(torch.cat([x, skips.pop()], dim=1)), num_views)
            if hasattr(level, "upsample"):
                x = level.upsample(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        # In bfloat16, positions would be wrong by a hundredth, so the last layers are in float32.
        with torch.autocast(x.device.type, enabled=False):
            return self.conv_out(functional.silu(self.norm_out(x.to(self.norm_out.weight.dtype))))


@MODEL.register
class LGM(nn.Module):
    """Predicts Gaussians from posed views. The defaults are the published size "big".

    Attributes:
        twin: fused network (models.fused.head), used where no gradients are needed; pipelines.placement sets it.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Sizes of the network.

        Attributes:
            input_size: H = W of the input views.
            splat_size: a view has splat_size squared Gaussians; the channels determine it, and it is checked.
            num_input_views: V.
            rotation: `over_gaussians` for the published VideoMV weights, `per_gaussian` for later LGM weights.
            anchor: `none` as published, or `pixels`: steps from the input pixels, see models.gaussians.scene.
            attention: backend of models.attention.
        """

        input_size: int = 256
        splat_size: int = 128
        num_input_views: int = 4
        down_channels: tuple[int, ...] = (64, 128, 256, 512, 1024, 1024)
        down_attention: tuple[bool, ...] = (False, False, False, True, True, True)
        mid_attention: bool = True
        up_channels: tuple[int, ...] = (1024, 1024, 512, 256, 128)
        up_attention: tuple[bool, ...] = (True, True, True, False, False)
        rotation: str = "over_gaussians"
        anchor: str = "none"
        attention: str = "sdpa"

        def __post_init__(self) -> None:
            if self.rotation not in ROTATION_RULES:
                raise ConfigError(f"rotation={self.rotation} is unknown; valid: {', '.join(ROTATION_RULES)}")
            if self.anchor not in ANCHORS:
                raise ConfigError(f"anchor={self.anchor} is unknown; valid: {', '.join(ANCHORS)}")
            if len(self.up_channels) >= len(self.down_channels) + 1 or self.num_input_views < 1:
                raise ConfigError(
                    f"up_channels must be at most as long as down_channels, num_input_views={self.num_input_views} >= 1"
                )
            halvings = len(self.down_channels) - len(self.up_channels)
            if self.splat_size != self.input_size // 2**halvings:
                raise ConfigError(
                    f"splat_size={self.splat_size} must be {self.input_size // 2**halvings} for these channels"
                )
            check_backend(self.attention)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.twin: Callable[[Tensor, int], Tensor] | None = None
        self.unet = HeadUNet(config)
        self.conv = nn.Conv2d(GAUSSIAN_CHANNELS, GAUSSIAN_CHANNELS, 1)
        if config.anchor == "pixels":
            with torch.no_grad():
                self.conv.bias.copy_(torch.tensor(FIRST_GUESS))

    def forward(self, views_BV9HW: Tensor) -> Gaussians:
        """Predict the Gaussians of a batch.

        Args:
            views_BV9HW: normalised RGB and Plücker rays of each view.

        Raises:
            ValueError: the number of views, channels or pixels differs from the configuration.
        """
        B, V = views_BV9HW.shape[:2]
        wanted = (self.config.num_input_views, IN_CHANNELS, self.config.input_size, self.config.input_size)
        if tuple(views_BV9HW.shape[1:]) != wanted:
            raise ValueError(
                f"views of shape {tuple(views_BV9HW.shape)} do not fit the head, which needs (B, {wanted})"
            )
        unet = self.unet if self.twin is None or torch.is_grad_enabled() else self.twin
        features_FCHW = unet(views_BV9HW.flatten(0, 1), V)
        with torch.autocast(features_FCHW.device.type, enabled=False):
            raw_BNC = rearrange(self.conv(features_FCHW).float(), "(b v) c h w -> b (v h w) c", b=B)
            return activate(raw_BNC, rotation=self.config.rotation, pixels_BN9=self._pixels(views_BV9HW))

    def _pixels(self, views_BV9HW: Tensor) -> Tensor | None:
        """Mean colour and ray of the pixels of each Gaussian, (B, N, 9), for anchor `pixels`."""
        if self.config.anchor == "none":
            return None
        pixels_FCHW = functional.adaptive_avg_pool2d(views_BV9HW.flatten(0, 1).float(), self.config.splat_size)
        pixels_BN9 = rearrange(pixels_FCHW, "(b v) c h w -> b (v h w) c", b=len(views_BV9HW))
        mean, std = (pixels_BN9.new_tensor(value) for value in (IMAGENET_MEAN, IMAGENET_STD))
        return torch.cat([pixels_BN9[..., :3] * std + mean, pixels_BN9[..., 3:]], dim=-1)

    def parts_to_compile(self) -> list[nn.Module]:
        """Modules that are worth compiling."""
        return [part for part in self.modules() if isinstance(part, ResnetBlock | ViewsAttention)]


def head_input(views_BVCHW: Tensor, poses_BV44: Tensor, *, fov_deg: float) -> Tensor:
    """The input of the head: normalised colours and Plücker rays, (B, V, 9, H, W).

    Args:
        views_BVCHW: RGB in [0, 1], square.
        poses_BV44: camera to world with OpenGL axes in the head's frame (`utils.cameras.head_cameras`).
        fov_deg: field of view of the views.

    Source: arXiv:2402.05054, section 3.2.
    """
    mean, std = (views_BVCHW.new_tensor(value)[:, None, None] for value in (IMAGENET_MEAN, IMAGENET_STD))
    size = views_BVCHW.shape[-1]
    rays_BV6HW = plucker_rays(poses_BV44.flatten(0, 1), fov_deg=fov_deg, size=size).unflatten(0, poses_BV44.shape[:2])
    return torch.cat([(views_BVCHW - mean) / std, rays_BV6HW.to(views_BVCHW)], dim=2)


def evenly_spaced(num_views: int, num_input_views: int) -> list[int]:
    """The default input views of a head in an orbit: 0, 6, 12, 18 of 24."""
    return [round(index * num_views / num_input_views) for index in range(num_input_views)]
