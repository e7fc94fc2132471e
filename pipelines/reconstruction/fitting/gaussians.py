"""Fit 3D Gaussians to the views of an object (arXiv:2308.04079), with a fixed number of them.

They start on the surface of the visual hull with the colours that the views show there. Gaussians that have become
transparent are moved to places where opaque ones are, which keeps the rendered image almost the same ("3D Gaussian
splatting as Markov chain Monte Carlo", arXiv:2404.09591; its noise of positions is left out).

Letters: V views, K views per step, H W pixels, N Gaussians, M moved Gaussians.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as functional
import trimesh
from torch import Tensor, nn

from datasets.views.posed_views import PosedViews
from models.gaussians.harmonics import NUM_COEFFICIENTS
from models.gaussians.rendering import Rendering, render
from models.gaussians.scene import Gaussians
from pipelines.reconstruction.fitting.base import FitConfig, ObjectFit, PixelBatch, Prediction
from pipelines.reconstruction.fitting.hull import Hull
from utils.errors import ConfigError
from utils.registry import FITS
from utils.settings.typed import NEWER

# Initial learning rates of Adam, for parameters in world units, logarithms and logits.
RATES = {"means": 3e-3, "log_scales": 2e-2, "quats": 2e-2, "opacity_logits": 5e-2, "color_logits": 3e-2}
HARMONICS_RATE = 2e-3  # of the coefficients beyond the constant one, in units of colour
DEAD = 0.005  # Gaussians with a lower opacity are moved
MAX_COPIES = 50  # largest number of Gaussians at one place after a move
FLATNESS = 0.3  # initial thickness relative to the width of a Gaussian on the surface


@FITS.register(name="gs")
class GaussianFit(ObjectFit):
    """3D Gaussians, with one colour each or with a colour that depends on the direction of view."""

    @dataclass(frozen=True, kw_only=True)
    class Config(FitConfig):
        """Options of the fit, in addition to those of all methods.

        num_gaussians: N, fixed during the fit.
        views_per_step: K; at most V views are used.
        relocate_every: steps between two moves of transparent Gaussians; 0: never.
        relocate_until: fraction of the steps after which nothing is moved.
        opacity_penalty: weight of the mean opacity.
        scale_penalty: weight of the mean size in world units.
        sh_degree: degree of the spherical harmonics of the colours, 0 or 1.
        rasterizer: see models.gaussians.rendering.
        """

        num_steps: int = 400
        num_gaussians: int = 5000
        views_per_step: int = 2
        relocate_every: int = 25
        relocate_until: float = 0.8
        opacity_penalty: float = 1e-3
        scale_penalty: float = 1e-2
        rasterizer: str = "auto"
        sh_degree: int = field(default=0, metadata=NEWER)

        def __post_init__(self) -> None:
            super().__post_init__()
            for name, least in (("num_gaussians", 32), ("views_per_step", 1), ("relocate_every", 0)):
                if getattr(self, name) < least:
                    raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}")
            if self.sh_degree not in (0, 1):
                raise ConfigError(f"sh_degree must be 0 or 1, got {self.sh_degree}")

    config: Config

    def __init__(self, config: Config, *, views: PosedViews, hull: Hull) -> None:
        super().__init__(config, views=views, hull=hull)
        start = self.start_values(views, hull)
        if config.sh_degree:
            start["harmonics"] = torch.zeros_like(start["means"])[:, None].repeat(
                1, NUM_COEFFICIENTS[config.sh_degree], 1
            )
        self.values = nn.ParameterDict({name: nn.Parameter(value) for name, value in start.items()})

    def start_values(self, views: PosedViews, hull: Hull) -> dict[str, Tensor]:
        """Return the first values of the parameters, by the names in RATES."""
        return on_hull(views, hull, num_gaussians=self.config.num_gaussians)

    def parameter_groups(self) -> list[dict[str, Any]]:
        rates = RATES | ({"harmonics": HARMONICS_RATE} if self.config.sh_degree else {})
        return [{"params": [self.values[name]], "lr": rate, "name": name} for name, rate in rates.items()]

    def draw(self, step: int, generator: torch.Generator) -> PixelBatch:
        """Choose whole views, anew in each step."""
        num_views, (height, width) = len(self.drawn_views), self.views.size
        count = min(self.config.views_per_step, num_views)
        order = torch.randperm(num_views, generator=generator)[:count]
        pick = self.drawn_views[order.to(self.drawn_views.device)]
        view, row, column = torch.meshgrid(
            pick, torch.arange(height).to(pick), torch.arange(width).to(pick), indexing="ij"
        )
        return PixelBatch(
            view_R=view.flatten(), row_R=row.flatten(), column_R=column.flatten(), patch=(count, height, width)
        )

    def predict(self, pixels: PixelBatch, step: int, generator: torch.Generator) -> Prediction:
        count, height, width = pixels.patch
        pick = pixels.view_R.view(pixels.patch)[:, 0, 0]
        gaussians = self.gaussians()
        drawn = render(
            gaussians,
            self.views.c2w_V44[None, pick],
            self.views.K_V33[pick],
            size=(height, width),
            background=0.0,
            backend=self.config.rasterizer,
        )
        penalty = self.config.opacity_penalty * gaussians.opacities_BN1.mean()
        penalty = penalty + self.config.scale_penalty * gaussians.scales_BN3.mean()
        return Prediction(
            colors_R3=drawn.colors_BV3HW[0].movedim(1, -1).reshape(-1, 3),
            alphas_R1=drawn.alphas_BV1HW[0].reshape(-1, 1),
            penalty=penalty,
        )

    @torch.no_grad()
    def render(self, c2w_V44: Tensor, K_V33: Tensor, *, size: tuple[int, int], background: float) -> Rendering:
        return render(
            self.gaussians(), c2w_V44[None], K_V33, size=size, background=background, backend=self.config.rasterizer
        )

    def gaussians(self) -> Gaussians:
        values = self.values
        return Gaussians(
            means_BN3=values["means"][None],
            opacities_BN1=values["opacity_logits"].sigmoid()[None],
            scales_BN3=values["log_scales"].exp()[None],
            quats_BN4=functional.normalize(values["quats"], dim=-1)[None],
            colors_BN3=values["color_logits"].sigmoid()[None],
            harmonics_BNK3=values["harmonics"][None] if self.config.sh_degree else None,
        )

    @torch.no_grad()
    def after_step(self, step: int, optimizer: torch.optim.Adam, generator: torch.Generator) -> None:
        config = self.config
        if step >= config.relocate_until * config.num_steps:
            return
        if config.relocate_every and step % config.relocate_every == config.relocate_every - 1:
            self._relocate(optimizer, generator)

    def _relocate(self, optimizer: torch.optim.Adam, generator: torch.Generator) -> None:
        """Move transparent Gaussians to opaque ones; the sum of the copies renders like the original (equation 9)."""
        opacity_N = self.values["opacity_logits"].sigmoid()[:, 0]
        dead_M = (opacity_N < DEAD).nonzero()[:, 0]
        alive = (opacity_N >= DEAD).nonzero()[:, 0]
        if not len(dead_M) or not len(alive):
            return
        drawn_M = torch.multinomial(opacity_N[alive].cpu(), len(dead_M), replacement=True, generator=generator)
        source_M = alive[drawn_M.to(alive.device)]
        copies_N = torch.bincount(source_M, minlength=len(opacity_N)) + 1
        changed = source_M.unique()
        opacity, shrink = shared(opacity_N[changed], copies_N[changed].clamp_max(MAX_COPIES))
        self.values["opacity_logits"][changed] = opacity.clamp(DEAD, 1 - 1e-6).logit()[:, None]
        self.values["log_scales"][changed] += shrink.log()[:, None]
        for value in self.values.values():
            value[dead_M] = value[source_M]
            moments = optimizer.state[value]
            for key in ("exp_avg", "exp_avg_sq"):
                moments[key][dead_M] = 0
                moments[key][changed] = 0


def shared(opacity_M: Tensor, copies_M: Tensor) -> tuple[Tensor, Tensor]:
    """Return the opacity of each of n equal Gaussians, and the factor of their size, so that together they render like
    one of the given opacity (arXiv:2404.09591, equation 9).

    Args:
        opacity_M: in [0, 1].
        copies_M: n, at least 1.
    """
    each_M = 1 - (1 - opacity_M) ** (1 / copies_M)
    total_M = torch.zeros_like(opacity_M, dtype=torch.float64)
    for i in range(1, int(copies_M.max()) + 1):
        inner_M = torch.zeros_like(total_M)
        for k in range(i):
            inner_M += math.comb(i - 1, k) * (-1) ** k / math.sqrt(k + 1) * each_M.double() ** (k + 1)
        total_M += torch.where(i <= copies_M, inner_M, 0.0)
    return each_M, (opacity_M / total_M.to(opacity_M)).clamp(1e-3, 1.0)


@torch.no_grad()
def on_hull(views: PosedViews, hull: Hull, *, num_gaussians: int) -> dict[str, Tensor]:
    """Place flat Gaussians on the surface of the hull, with the colours that the views show there."""
    surface = hull.surface()
    mesh = trimesh.Trimesh(surface.points_N3, surface.faces_F3, process=False)
    points_N3, faces_N = trimesh.sample.sample_surface(mesh, num_gaussians, seed=0)
    device = views.c2w_V44.device
    means_N3 = torch.from_numpy(points_N3).float().to(device)
    normals_N3 = torch.from_numpy(mesh.face_normals[faces_N].copy()).float().to(device)
    spacing = math.sqrt(float(mesh.area) / num_gaussians)
    colors_N3 = colors_of(means_N3, normals_N3, views)
    return {
        "means": means_N3,
        "log_scales": (torch.tensor([1.0, 1.0, FLATNESS], device=device) * 0.7 * spacing)
        .log()
        .expand(len(means_N3), 3)
        .clone(),
        "quats": turned_to(normals_N3),
        "opacity_logits": torch.full((len(means_N3), 1), 0.5, device=device).logit() + 0.5,
        "color_logits": colors_N3.clamp(0.02, 0.98).logit(),
    }


def turned_to(normals_N3: Tensor) -> Tensor:
    """Return quaternions that turn the z axis to the normals: (N, 4), w first."""
    x, y, z = normals_N3.unbind(-1)
    quats_N4 = torch.stack([1 + z, -y, x, torch.zeros_like(z)], dim=-1)
    down_N1 = (z < -1 + 1e-6)[:, None]  # a half turn; any horizontal axis is right
    return functional.normalize(torch.where(down_N1, torch.tensor([0.0, 1.0, 0.0, 0.0]).to(quats_N4), quats_N4), dim=-1)


def colors_of(points_N3: Tensor, normals_N3: Tensor, views: PosedViews) -> Tensor:
    """Return the colours of surface points: the mean over the views that face them, weighted by the squared cosine."""
    total_N3, weight_N1 = torch.zeros_like(points_N3), torch.full_like(points_N3[:, :1], 1e-6)
    height, width = views.colors_V3HW.shape[-2:]
    for color_3HW, mask_1HW, c2w_44, K_33 in zip(
        views.colors_V3HW, views.masks_V1HW, views.c2w_V44, views.K_V33, strict=True
    ):
        camera_N3 = (points_N3 - c2w_44[:3, 3]) @ c2w_44[:3, :3]
        pixel_N3 = camera_N3 @ K_33.T
        at_N2 = 2 * pixel_N3[:, :2] / pixel_N3[:, 2:] / torch.tensor([width, height]).to(pixel_N3) - 1
        seen = functional.grid_sample(
            torch.cat([color_3HW * mask_1HW, mask_1HW])[None], at_N2[None, None], align_corners=False
        )[0, :, 0].T
        facing_N1 = functional.cosine_similarity(c2w_44[:3, 3] - points_N3, normals_N3, dim=-1)[:, None].clamp_min(0)
        weight_N1 += facing_N1.square() * seen[:, 3:]
        total_N3 += facing_N1.square() * seen[:, :3]
    grey = views.over(0.5).mean()
    return torch.where(weight_N1 > 1e-3, total_N3 / weight_N1, grey)
