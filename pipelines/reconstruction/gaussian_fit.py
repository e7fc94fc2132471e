"""Fit a fixed number of 3D Gaussians to views with known cameras.

A scene starts from points in the visual hull of the views. Adam then minimises the difference between renders and
views. No Gaussians are added or removed, so that every scene has the same capacity and the same cost.

Letters: B scenes, V views per scene, K views per step, C channels, H W pixels, N Gaussians, M candidate points.
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
from utils.cameras import BALL_RADIUS, intrinsics
from utils.errors import ConfigError

FOREGROUND = 0.05  # a pixel with a larger difference to the background, in any channel, shows the object
CANDIDATES = 32  # candidate points per Gaussian
# Initial learning rates of Adam, for parameters in world units, logarithms and logits.
LEARNING_RATES = {"means": 3e-3, "log_scales": 2e-2, "quats": 2e-2, "opacity_logits": 5e-2, "color_logits": 3e-2}
LAST_RATE = 0.05  # the final learning rate as a fraction of the initial one


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """Options of a fit.

    Attributes:
        num_gaussians: N.
        num_steps: number of steps of Adam.
        views_per_step: K; at most V views are used.
        seed: seed for the candidate points and the order of views.
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
    """Views of B scenes with their cameras.

    Attributes:
        views_BVCHW: images in [0, 1].
        c2w_BV44: cameras.
        fov_deg: field of view of all views.
        background: grey value behind the objects.
    """

    views_BVCHW: Tensor
    c2w_BV44: Tensor
    fov_deg: float
    background: float

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, which are equal."""
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
    """Render every scene from its own cameras: colours (B, V, 3, H, W) and alphas (B, V, 1, H, W)."""
    K_33 = intrinsics(fov_deg, size[1])
    drawn = render(gaussians, c2w_BV44, K_33, size=size, background=background, backend=rasterizer)
    return drawn.colors_BV3HW, drawn.alphas_BV1HW


def fit(shots: Shots, options: FitOptions, *, on_step: Callable[[], object] | None = None) -> Gaussians:
    """Fit Gaussians to the views; the scenes of a batch do not influence each other.

    Args:
        shots: the views, float32, on the device of the fit.
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
        # The mean within a scene, the sum over scenes: the gradient of a scene does not depend on the batch size.
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
    """Convert the optimised parameters to Gaussians."""
    return Gaussians(
        means_BN3=parameters["means"],
        opacities_BN1=parameters["opacity_logits"].sigmoid(),
        scales_BN3=parameters["log_scales"].exp(),
        quats_BN4=functional.normalize(parameters["quats"], dim=-1),
        colors_BN3=parameters["color_logits"].sigmoid(),
    )


@torch.no_grad()
def start_values(shots: Shots, options: FitOptions, *, generator: torch.Generator) -> dict[str, Tensor]:
    """Return start values: points inside the visual hull, with the mean colour of their pixels in all views."""
    views_BVCHW, N = shots.views_BVCHW, options.num_gaussians
    points_M3 = _ball(CANDIDATES * N, generator=generator).to(views_BVCHW)
    means, colors, log_scales = [], [], []
    for views_VCHW, c2w_V44 in zip(views_BVCHW, shots.c2w_BV44, strict=True):
        votes_M, colors_M3 = _look_up(points_M3, views_VCHW, c2w_V44, shots)
        # If the views agree, the best N points lie in the hull; if not, they lie where most views show the object.
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
    """Draw points from a uniform distribution in the ball: (M, 3)."""
    direction_M3 = functional.normalize(torch.randn(num_points, 3, generator=generator), dim=-1)
    return BALL_RADIUS * direction_M3 * torch.rand(num_points, 1, generator=generator) ** (1 / 3)


def _look_up(points_M3: Tensor, views_VCHW: Tensor, c2w_V44: Tensor, shots: Shots) -> tuple[Tensor, Tensor]:
    """Return for each point the number of views in which it lies on the object, and its mean colour over all views."""
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
