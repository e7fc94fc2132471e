"""Fit a fixed number of 3D Gaussians to views with known cameras.

A scene starts from points in the views' visual hull and is optimised by Adam on the difference of renders and views.
Nothing is added or removed on the way, so that every scene has the same capacity and costs the same.

Letters: B scenes, V views of each, K of them in a step, C channels, H W pixels, N Gaussians, M candidate points.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor

from models.gaussians.rendering import render
from models.gaussians.scene import Gaussians
from utils.cameras import intrinsics
from utils.errors import ConfigError

BALL_RADIUS = 0.87  # no object reaches farther from the origin
FOREGROUND = 0.05  # difference to the background, in any channel, that counts as object
CANDIDATES = 32  # points drawn for each Gaussian
# Adam's steps at the start, by the size of each parameter: world units, logarithms and logits.
LEARNING_RATES = {"means": 3e-3, "log_scales": 2e-2, "quats": 2e-2, "opacity_logits": 5e-2, "color_logits": 3e-2}
LAST_RATE = 0.05  # as a share of the first


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How a scene is fitted.

    Attributes:
        num_gaussians: N.
        num_steps: of Adam.
        views_per_step: K, at most the views there are.
        seed: of the points and of the order of views.
        rasterizer: see models.gaussians.rendering.
    """

    num_gaussians: int = 2048
    num_steps: int = 300
    views_per_step: int = 4
    seed: int = 0
    rasterizer: str = "auto"

    def __post_init__(self) -> None:
        for name in ("num_gaussians", "num_steps", "views_per_step"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} of a fit must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Shots:
    """Views of B scenes and how they were taken.

    Attributes:
        views_BVCHW: in [0, 1].
        c2w_BV44: cameras.
        fov_deg: field of view, of all.
        background: grey that the objects stand before.
    """

    views_BVCHW: Tensor
    c2w_BV44: Tensor
    fov_deg: float
    background: float

    @property
    def size(self) -> tuple[int, int]:
        """Height and width; square."""
        return tuple(self.views_BVCHW.shape[-2:])


def render_scenes(
    gaussians: Gaussians,
    c2w_BV44: Tensor,
    *,
    fov_deg: float,
    size: tuple[int, int],
    background: float,
    rasterizer: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Every scene from its own cameras: colours (B, V, 3, H, W) and alphas (B, V, 1, H, W)."""
    K_33 = intrinsics(fov_deg, size[1])
    drawn = render(gaussians, c2w_BV44, K_33, size=size, background=background, backend=rasterizer)
    return drawn.colors_BV3HW, drawn.alphas_BV1HW


def fit(shots: Shots, options: FitOptions, *, on_step: Callable[[], object] | None = None) -> Gaussians:
    """Gaussians that render as the views show; the scenes of a batch do not influence each other.

    Args:
        shots: on the device where the fit runs, float32.
        on_step: called after every step.
    """
    generator = torch.Generator().manual_seed(options.seed)
    parameters = start_values(shots, options, generator=generator)
    optimizer = torch.optim.Adam(
        [{"params": [value], "lr": LEARNING_RATES[name]} for name, value in parameters.items()], eps=1e-15
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * step / options.num_steps)) / 2
    )
    num_views = shots.views_BVCHW.shape[1]
    for _ in range(options.num_steps):
        pick = torch.randperm(num_views, generator=generator)[: options.views_per_step].to(shots.views_BVCHW.device)
        colors, _ = render_scenes(
            activated(parameters),
            shots.c2w_BV44[:, pick],
            fov_deg=shots.fov_deg,
            size=shots.size,
            background=shots.background,
            rasterizer=options.rasterizer,
        )
        # The sum over the scenes of each one's mean: no scene's gradient depends on how many there are.
        loss = (colors - shots.views_BVCHW[:, pick]).abs().mean(dim=(1, 2, 3, 4)).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if on_step:
            on_step()
    with torch.no_grad():
        return activated(parameters)


def activated(parameters: dict[str, Tensor]) -> Gaussians:
    """Parameters as Gaussians."""
    return Gaussians(
        means_BN3=parameters["means"],
        opacities_BN1=parameters["opacity_logits"].sigmoid(),
        scales_BN3=parameters["log_scales"].exp(),
        quats_BN4=functional.normalize(parameters["quats"], dim=-1),
        colors_BN3=parameters["color_logits"].sigmoid(),
    )


@torch.no_grad()
def start_values(shots: Shots, options: FitOptions, *, generator: torch.Generator) -> dict[str, Tensor]:
    """Points inside the visual hull, with the mean colour of the pixels that they fall on."""
    views_BVCHW, N = shots.views_BVCHW, options.num_gaussians
    points_M3 = _ball(CANDIDATES * N, generator=generator).to(views_BVCHW)
    means, colors, log_scales = [], [], []
    for views_VCHW, c2w_V44 in zip(views_BVCHW, shots.c2w_BV44, strict=True):
        votes_M, colors_M3 = _look_up(points_M3, views_VCHW, c2w_V44, shots)
        # Where the views agree, the best N lie in the hull; where they do not, in what most views call object.
        best = votes_M.argsort(descending=True, stable=True)[:N]
        share = (votes_M >= votes_M[best[-1]]).float().mean()
        spacing = BALL_RADIUS * (4 / 3 * math.pi * share / N) ** (1 / 3)
        means.append(points_M3[best])
        colors.append(colors_M3[best])
        log_scales.append((0.5 * spacing).log().expand(N, 3))
    B = len(views_BVCHW)
    values = {
        "means": torch.stack(means),
        "log_scales": torch.stack(log_scales),
        "quats": torch.tensor([1.0, 0, 0, 0], device=views_BVCHW.device).repeat(B, N, 1),
        "opacity_logits": torch.zeros(B, N, 1, device=views_BVCHW.device),
        "color_logits": torch.stack(colors).clamp(0.02, 0.98).logit(),
    }
    return {name: value.clone().requires_grad_() for name, value in values.items()}


def _ball(num_points: int, *, generator: torch.Generator) -> Tensor:
    """Evenly distributed points of a ball: (M, 3)."""
    direction_M3 = functional.normalize(torch.randn(num_points, 3, generator=generator), dim=-1)
    return BALL_RADIUS * direction_M3 * torch.rand(num_points, 1, generator=generator) ** (1 / 3)


def _look_up(points_M3: Tensor, views_VCHW: Tensor, c2w_V44: Tensor, shots: Shots) -> tuple[Tensor, Tensor]:
    """For each point, in how many views it falls on the object, and the mean colour where it falls."""
    height, width = shots.size
    focal = intrinsics(shots.fov_deg, width)[0, 0].item()
    votes_M, colors_M3 = torch.zeros_like(points_M3[:, 0]), torch.zeros_like(points_M3)
    for view_CHW, c2w_44 in zip(views_VCHW, c2w_V44, strict=True):
        x, y, z = ((points_M3 - c2w_44[:3, 3]) @ c2w_44[:3, :3]).unbind(-1)
        column = (focal * x / z + width / 2).floor().long()
        row = (focal * y / z + height / 2).floor().long()
        inside_M = (z > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        colors = view_CHW[:, row.clamp(0, height - 1), column.clamp(0, width - 1)].T
        votes_M += inside_M & ((colors - shots.background).abs().amax(dim=-1) > FOREGROUND)
        colors_M3 += colors
    return votes_M, colors_M3 / len(views_VCHW)
