"""Fields along rays: which pixels and places a step looks at, and how values along a ray become a pixel.

Letters: V views, H W pixels, R rays, S samples of a ray, M samples with an object, X Y Z voxels.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from datasets.views.posed_views import PosedViews
from models.gaussians.rendering import Rendering
from pipelines.reconstruction.fitting.base import FitConfig, ObjectFit, PixelBatch, Prediction
from pipelines.reconstruction.fitting.hull import Hull
from utils.errors import ConfigError

OCCUPANCY_EVERY = 16  # steps between two updates of the occupancy grid
OCCUPANCY_MEMORY = 0.9  # of the grid's running maximum
LEAST_SHARE = 0.02  # of a bin in the distribution of samples, so that no place of the hull is forgotten
# Rays that are rendered at once after the fit; this limits memory. A chunk needs about 1,000 short operations on a GPU.
RENDER_RAYS = {"cpu": 1 << 14, "cuda": 1 << 17}
NOT_OPAQUE = 1e-7  # part of the light that passes an opaque sample
THIN = 1e-3  # samples with a smaller weight do not matter for the depth


class Rays(NamedTuple):
    """Rays and the interval of each that lies in the hull.

    Attributes:
        origins_R3: start.
        directions_R3: unit vectors.
        near_R: first place in the hull.
        far_R: last place in the hull; smaller than near_R for a ray that does not meet it.
    """

    origins_R3: Tensor
    directions_R3: Tensor
    near_R: Tensor
    far_R: Tensor


class Samples(NamedTuple):
    """Places on rays.

    Attributes:
        points_M3: positions.
        directions_M3: directions of their rays.
        widths_M: lengths of the ray that they stand for.
    """

    points_M3: Tensor
    directions_M3: Tensor
    widths_M: Tensor


class Shaded(NamedTuple):
    """A field's values at samples: opacity of the sample's part of the ray, colour, and penalties of the field."""

    alphas_M: Tensor
    colors_M3: Tensor
    penalty: Tensor


@dataclass(frozen=True, kw_only=True)
class RayFieldConfig(FitConfig):
    """Options of fits of fields, in addition to those of all methods.

    Attributes:
        rays_per_step: R.
        samples_per_ray: S.
        search_samples: number of places per ray at which the occupancy grid is read to find the S samples.
        patch: side of the patches that a step looks at once the structural term is on.
        distortion_penalty: weight of the spread of a ray's weights (arXiv:2111.12077, equation 15).
    """

    rays_per_step: int = 2048
    samples_per_ray: int = 16
    search_samples: int = 48
    patch: int = 16
    distortion_penalty: float = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("rays_per_step", 1), ("samples_per_ray", 2), ("search_samples", 2), ("patch", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}")


class RayField(ObjectFit):
    """A field that is rendered by samples along rays. A subclass has `shade` and `occupancy_at`."""

    Config = RayFieldConfig

    config: RayFieldConfig

    def __init__(self, config: RayFieldConfig, *, views: PosedViews | None, hull: Hull) -> None:
        super().__init__(config, views=views, hull=hull)
        self.register_buffer("occupancy_XYZ", (hull.distance_XYZ < hull.voxel).float())
        if views is None:
            return
        height, width = views.size
        every = _all_pixels(len(views), height, width, device=views.c2w_V44.device)
        rays = self.rays(views.c2w_V44[every.view_R], views.K_V33[every.view_R], every)
        met_R = rays.far_R > rays.near_R
        self._intervals_VHW2 = torch.stack([rays.near_R, rays.far_R], dim=-1).view(*every.patch, 2)
        # Pixels whose rays do not meet the hull are empty in every step, so that no step looks at them.
        self._met_R3 = torch.stack([every.view_R, every.row_R, every.column_R], dim=1)[met_R]
        self._drawn_R3 = self._met_R3

    def trust(self, weight_V: Tensor) -> None:
        super().trust(weight_V)
        self._drawn_R3 = self._met_R3[weight_V[self._met_R3[:, 0]] > 0]

    @abstractmethod
    def shade(self, samples: Samples, step: int) -> Shaded:
        """Return the field's opacity and colour at samples, with gradients."""

    @abstractmethod
    def occupancy_at(self, points_M3: Tensor, step: int) -> Tensor:
        """Return the opacity of a voxel of the hull's grid around each point: (M,) in [0, 1]. Without gradients."""

    def rays(self, c2w_R44: Tensor, K_R33: Tensor, pixels: PixelBatch, *, intervals_R2: Tensor | None = None) -> Rays:
        """Return the rays through the centres of pixels.

        Args:
            intervals_R2: near and far of each ray, if they are known.
        """
        x_R = (pixels.column_R + 0.5 - K_R33[:, 0, 2]) / K_R33[:, 0, 0]
        y_R = (pixels.row_R + 0.5 - K_R33[:, 1, 2]) / K_R33[:, 1, 1]
        local_R3 = torch.stack([x_R, y_R, torch.ones_like(x_R)], dim=-1)
        directions_R3 = nn.functional.normalize((c2w_R44[:, :3, :3] * local_R3[:, None]).sum(-1), dim=-1)
        origins_R3 = c2w_R44[:, :3, 3]
        if intervals_R2 is not None:
            return Rays(origins_R3, directions_R3, *intervals_R2.unbind(-1))
        return Rays(origins_R3, directions_R3, *self.hull.intervals(origins_R3, directions_R3))

    def draw(self, step: int, generator: torch.Generator) -> PixelBatch:
        """Choose pixels whose rays meet the hull; from the start of the structural term on, patches around such."""
        config, (height, width) = self.config, self.views.size
        structural = config.structural_weight > 0 and step >= config.structural_from * config.num_steps
        side = min(config.patch, height, width) if structural else 1
        count = max(1, config.rays_per_step // side**2)
        pick = torch.randint(len(self._drawn_R3), (count,), generator=generator).to(self._drawn_R3.device)
        view_P, row_P, column_P = self._drawn_R3[pick].unbind(-1)
        if side == 1:
            return PixelBatch(view_R=view_P, row_R=row_P, column_R=column_P, patch=(count, 1, 1))
        top_P = (row_P - side // 2).clamp(0, height - side)
        left_P = (column_P - side // 2).clamp(0, width - side)
        within = torch.arange(side, device=pick.device)
        row = (top_P[:, None, None] + within[:, None]).expand(count, side, side)
        column = (left_P[:, None, None] + within).expand(count, side, side)
        view = view_P[:, None, None].expand(count, side, side)
        return PixelBatch(
            view_R=view.flatten(), row_R=row.flatten(), column_R=column.flatten(), patch=(count, side, side)
        )

    def predict(self, pixels: PixelBatch, step: int, generator: torch.Generator) -> Prediction:
        rays = self.rays(
            self.views.c2w_V44[pixels.view_R],
            self.views.K_V33[pixels.view_R],
            pixels,
            intervals_R2=self._intervals_VHW2[pixels.view_R, pixels.row_R, pixels.column_R],
        )
        shift_RS = torch.rand(len(rays.near_R), self.config.samples_per_ray + 1, generator=generator).to(rays.near_R)
        shown = self._composite(rays, step=step, shift_RS=shift_RS)
        penalty = shown.penalty
        if self.config.distortion_penalty:
            penalty = penalty + self.config.distortion_penalty * distortion(shown.weights_RS, shown.edges_RS)
        return Prediction(colors_R3=shown.colors_R3, alphas_R1=shown.alphas_R1, penalty=penalty)

    @torch.no_grad()
    def render(self, c2w_V44: Tensor, K_V33: Tensor, *, size: tuple[int, int], background: float) -> Rendering:
        height, width = size
        K_V33 = K_V33.expand(len(c2w_V44), 3, 3)
        every = _all_pixels(len(c2w_V44), height, width, device=c2w_V44.device)
        colors, alphas, depths = [], [], []
        for chunk in torch.arange(len(every.view_R), device=c2w_V44.device).split(RENDER_RAYS[c2w_V44.device.type]):
            part = PixelBatch(
                view_R=every.view_R[chunk],
                row_R=every.row_R[chunk],
                column_R=every.column_R[chunk],
                patch=(len(chunk), 1, 1),
            )
            c2w_R44 = c2w_V44[part.view_R]
            rays = self.rays(c2w_R44, K_V33[part.view_R], part)
            met = (rays.far_R > rays.near_R).nonzero()[:, 0]  # most rays pass the object
            shown = self._composite(Rays(*(values[met] for values in rays)), step=self.config.num_steps)
            along_M = (rays.directions_R3[met] * c2w_R44[met, :3, 2]).sum(-1)
            color_R3, alpha_R1 = torch.zeros_like(rays.origins_R3), torch.zeros_like(rays.origins_R3[:, :1])
            color_R3[met], alpha_R1[met] = shown.colors_R3, shown.alphas_R1
            colors.append(color_R3 + (1 - alpha_R1) * background)
            alphas.append(alpha_R1)
            depths.append(torch.zeros_like(alpha_R1).index_put((met,), (shown.distance_R * along_M)[:, None]))
        return Rendering(
            **{
                name: torch.cat(parts).view(1, len(c2w_V44), height, width, -1).movedim(-1, 2)
                for name, parts in (("colors_BV3HW", colors), ("alphas_BV1HW", alphas), ("depths_BV1HW", depths))
            }
        )

    @torch.no_grad()
    def after_step(self, step: int, optimizer: torch.optim.Adam, generator: torch.Generator) -> None:
        if step % OCCUPANCY_EVERY != OCCUPANCY_EVERY - 1:
            return
        inside_M3 = (self.hull.distance_XYZ < self.hull.voxel).nonzero()
        shift_M3 = torch.rand(inside_M3.shape, generator=generator).to(self.hull.low_3) - 0.5
        points_M3 = self.hull.low_3 + self.hull.voxel * (inside_M3 + shift_M3)
        now_M = torch.cat([self.occupancy_at(points, step) for points in points_M3.split(1 << 18)])
        at = inside_M3.unbind(-1)
        self.occupancy_XYZ[at] = torch.maximum(OCCUPANCY_MEMORY * self.occupancy_XYZ[at], now_M)

    def _composite(self, rays: Rays, *, step: int, shift_RS: Tensor | None = None) -> _Shown:
        """Render rays; samples are at the centres of their bins without `shift_RS`."""
        rays = rays._replace(far_R=torch.maximum(rays.near_R, rays.far_R))  # a ray that meets no hull has no length
        edges_RS = self._edges(rays, shift_RS)
        middles_RS, widths_RS = (edges_RS[:, 1:] + edges_RS[:, :-1]) / 2, edges_RS[:, 1:] - edges_RS[:, :-1]
        points_RS3 = rays.origins_R3[:, None] + middles_RS[..., None] * rays.directions_R3[:, None]
        directions_RS3 = rays.directions_R3[:, None].expand_as(points_RS3)
        inside_RS = self.hull.contains(points_RS3)  # the field is empty outside
        if self.shades_all(points_RS3):
            samples = Samples(points_RS3.flatten(0, 1), directions_RS3.flatten(0, 1), widths_RS.flatten())
            shaded = self.shade(samples, step)
            alphas_RS = torch.where(inside_RS, shaded.alphas_M.view_as(middles_RS), 0.0)
            colors_RS3 = shaded.colors_M3.view_as(points_RS3)
        else:
            shaded = self.shade(Samples(points_RS3[inside_RS], directions_RS3[inside_RS], widths_RS[inside_RS]), step)
            alphas_RS = torch.zeros_like(middles_RS).index_put((inside_RS,), shaded.alphas_M)
            colors_RS3 = torch.zeros_like(points_RS3).index_put((inside_RS,), shaded.colors_M3)
        weights_RS = visible(alphas_RS)
        alphas_R1 = weights_RS.sum(1, keepdim=True)
        return _Shown(
            colors_R3=(weights_RS[..., None] * colors_RS3).sum(1),
            alphas_R1=alphas_R1,
            distance_R=(weights_RS * middles_RS).sum(1) / alphas_R1[:, 0].clamp_min(THIN),
            weights_RS=weights_RS,
            edges_RS=edges_RS - rays.near_R[:, None],
            penalty=shaded.penalty,
        )

    def shades_all(self, points_RS3: Tensor) -> bool:
        """Whether samples outside the hull are computed too, and ignored.

        In a step on a GPU this costs less than to choose the others, because their number is known only when all
        operations before are done.
        """
        return points_RS3.is_cuda and torch.is_grad_enabled()

    @torch.no_grad()
    def _edges(self, rays: Rays, shift_RS: Tensor | None) -> Tensor:
        """Return the edges of the samples' bins: (R, S + 1), dense where the occupancy grid shows a visible surface."""
        config, hull = self.config, self.hull
        num_bins = config.search_samples
        bins = torch.arange(num_bins + 1, device=rays.near_R.device) / num_bins
        places_RB = rays.near_R[:, None] + (rays.far_R - rays.near_R)[:, None] * (bins[1:] + bins[:-1]) / 2
        points_RB3 = rays.origins_R3[:, None] + places_RB[..., None] * rays.directions_R3[:, None]
        in_voxel_RB = self.occupancy_XYZ[hull.voxels_of(points_RB3)]
        step_R1 = ((rays.far_R - rays.near_R) / (num_bins * hull.voxel))[:, None]  # bins in voxels
        alphas_RB = 1 - (1 - in_voxel_RB.clamp(0, 0.99)) ** step_R1
        weights_RB = visible(alphas_RB)
        # neighbours of a visible bin get samples too, because the grid is coarse and late
        wide_RB = nn.functional.max_pool1d(weights_RB[:, None], 3, stride=1, padding=1)[:, 0]
        weights_RB = wide_RB + LEAST_SHARE * wide_RB.sum(1, keepdim=True).clamp_min(1e-3)
        total_RB = torch.cat([torch.zeros_like(weights_RB[:, :1]), weights_RB.cumsum(1)], dim=1)
        total_RB = total_RB / total_RB[:, -1:]
        S = config.samples_per_ray
        quantiles = torch.arange(S + 1, device=bins.device) / S
        wanted_RS = quantiles.expand(len(total_RB), -1).contiguous()
        if shift_RS is not None:
            inner = (shift_RS[:, 1:-1] - 0.5) / S
            wanted_RS = torch.cat([wanted_RS[:, :1], wanted_RS[:, 1:-1] + inner, wanted_RS[:, -1:]], dim=1)
        upper_RS = torch.searchsorted(total_RB, wanted_RS.contiguous()).clamp(1, num_bins)
        low_RS, high_RS = total_RB.gather(1, upper_RS - 1), total_RB.gather(1, upper_RS)
        share_RS = (upper_RS - 1 + (wanted_RS - low_RS) / (high_RS - low_RS).clamp_min(1e-9)) / num_bins
        return rays.near_R[:, None] + (rays.far_R - rays.near_R)[:, None] * share_RS.clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """Rendered rays; edges are measured from the near side of the hull."""

    colors_R3: Tensor
    alphas_R1: Tensor
    distance_R: Tensor
    weights_RS: Tensor
    edges_RS: Tensor
    penalty: Tensor


def visible(alphas_RS: Tensor) -> Tensor:
    """Return the weight of each sample of a ray: its opacity, behind all samples before it.

    The backward pass of a cumulative product would ask the device for zeros in every step.
    """
    log_RS = torch.log(1 - alphas_RS + NOT_OPAQUE)
    return alphas_RS * torch.exp(log_RS.cumsum(1) - log_RS)


def distortion(weights_RS: Tensor, edges_RS: Tensor) -> Tensor:
    """Return how far the weights of a ray are spread, the mean over rays (arXiv:2111.12077, equation 15)."""
    middles_RS, widths_RS = (edges_RS[:, 1:] + edges_RS[:, :-1]) / 2, edges_RS[:, 1:] - edges_RS[:, :-1]
    apart_RSS = (middles_RS[:, :, None] - middles_RS[:, None, :]).abs()
    between_R = ((weights_RS[:, None, :] * apart_RSS).sum(-1) * weights_RS).sum(-1)
    return (between_R + (weights_RS.square() * widths_RS).sum(-1) / 3).mean()


def _all_pixels(num_views: int, height: int, width: int, *, device: torch.device) -> PixelBatch:
    view, row, column = torch.meshgrid(
        *(torch.arange(count, device=device) for count in (num_views, height, width)), indexing="ij"
    )
    return PixelBatch(
        view_R=view.flatten(), row_R=row.flatten(), column_R=column.flatten(), patch=(num_views, height, width)
    )
