"""Train the network that estimates the elevation of a picture, on single views with their own cameras.

Letters: B batch, N orbits, V views, C channels, H W pixels, A angles of the distribution.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from models.elevation import median_deg
from pipelines.training.data.orbits_in_memory import OrbitPixels, load_orbits
from pipelines.training.objectives.base import Objective
from utils.cameras import camera_elevations_deg
from utils.errors import ConfigError
from utils.registry import ENGINE
from utils.settings.run import RunConfig


@ENGINE.register(name="train_elevation_entrance")
class EstimateElevations(Objective):
    """Cross-entropy of the elevation, spread over neighbouring angles, on augmented views.

    A distribution is a robust target: a view from which the elevation cannot be seen pulls the estimates of the others
    less than a squared error would.
    """

    stem = "elevation"

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """
        Attributes:
            zoom: maximum factor by which a view is made smaller or larger.
            shift: maximum shift of a view, as a fraction of its width and height.
            exposure: maximum standard deviation of the logarithm of a factor for each colour channel.
            noise: maximum standard deviation of the noise that is added to pixels.
            ramp_steps: number of steps over which the changes above grow from none to their full strength; 0: they have
                it from the start. With full changes from the start, the network learned nothing in its first 250
                steps of 64 views (a held-out median error of 14 degrees, instead of 7 after 550 without them).
            spread_deg: standard deviation of the target distribution, in degrees.
        """

        zoom: float = 1.25
        shift: float = 0.05
        exposure: float = 0.1
        noise: float = 0.02
        ramp_steps: int = 1500
        spread_deg: float = 3.0

        def __post_init__(self) -> None:
            if self.zoom < 1:
                raise ConfigError(f"zoom must be >= 1, got {self.zoom}")
            if not 0 <= self.shift < 0.5:
                raise ConfigError(f"shift must lie in [0, 0.5), got {self.shift}")
            for name in ("exposure", "noise", "ramp_steps"):
                if getattr(self, name) < 0:
                    raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")
            if not self.spread_deg > 0:
                raise ConfigError(f"spread_deg must be positive, got {self.spread_deg}")

    @classmethod
    def weight_files(cls, options: Config, cfg: RunConfig) -> dict[str, str | None]:
        return super().weight_files(options, cfg) | {"elevation.pretrained": cfg.elevation.pretrained}

    def __init__(self, config: Config, *, cfg: RunConfig, device: torch.device) -> None:
        super().__init__(cfg, device=device, num_views=1)
        self.config = config
        self.network = cfg.elevation.build()
        self.orbits = load_orbits(cfg.vid_dataset.build(), device=device)
        size, (height, width) = self.network.config.size, self.orbits.rgba_NVHW4.shape[2:4]
        if (height, width) != (size, size):
            raise ConfigError(
                f"elevation.size={size}, but vid_dataset.resolution is [{width}, {height}]; set elevation.size, or "
                f"render views with --size {size}"
            )
        self.elevation_deg_NV = camera_elevations_deg(self.orbits.c2w_NV44).float().to(device)
        self._check_range()

    def _check_range(self) -> None:
        options = self.network.config
        low, high = self.elevation_deg_NV.min().item(), self.elevation_deg_NV.max().item()
        if low < options.lowest_deg - 0.5 or high > options.highest_deg + 0.5:
            raise ConfigError(
                f"elevation.lowest_deg={options.lowest_deg:g} and highest_deg={options.highest_deg:g}, but vid_dataset "
                f"has views from {low:.1f} to {high:.1f} degrees; widen the range, or render other views"
            )

    @property
    def sample_source(self) -> OrbitPixels:
        return self.orbits

    def batches(self, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        for orbits_B, views_B in self.global_batch.single_views(
            self.orbits.num_orbits, self.orbits.num_views, start=start
        ):
            images_B3HW, _ = self.orbits.views(orbits_B, views_B)
            yield (
                self.disturb(images_B3HW),
                self.elevation_deg_NV[orbits_B.to(self.device), views_B.to(self.device)],
            )

    def disturb(self, images_B3HW: Tensor) -> Tensor:
        """Mirror, scale, shift, blur, recolour and add noise, at random for each image; white comes in from outside.

        None of these changes the elevation. A rotation in the image plane would look like another camera, so there is
        none.
        """
        B, *_, side = images_B3HW.shape
        random_B7 = self.global_batch.rand(B, 7)
        strength = self.strength
        scale_B = self.config.zoom ** (strength * (2 * random_B7[:, 0] - 1))
        mirror_B = torch.where(random_B7[:, 1] < 0.5, -1.0, 1.0)
        theta_B23 = images_B3HW.new_zeros(B, 2, 3)
        theta_B23[:, 0, 0], theta_B23[:, 1, 1] = scale_B * mirror_B, scale_B
        theta_B23[:, :, 2] = 2 * strength * self.config.shift * (2 * random_B7[:, 2:4] - 1)  # the image spans -1 to 1
        grid = functional.affine_grid(theta_B23, list(images_B3HW.shape), align_corners=False)
        dark_B3HW = 1 - images_B3HW  # white is zero, as are the pixels outside
        dark_B3HW = functional.grid_sample(dark_B3HW, grid, padding_mode="zeros", align_corners=False)
        small = functional.interpolate(dark_B3HW, size=side // 2, mode="bilinear", antialias=True)
        soft = functional.interpolate(small, size=dark_B3HW.shape[-2:], mode="bilinear")
        dark_B3HW = torch.lerp(dark_B3HW, soft, strength * random_B7[:, 4, None, None, None])
        shade_B3 = strength * self.config.exposure * random_B7[:, 5:6] * self.global_batch.randn(B, 3)
        dark_B3HW = dark_B3HW * shade_B3.exp()[:, :, None, None]
        noise_B3HW = self.global_batch.randn(*dark_B3HW.shape) * random_B7[:, 6, None, None, None]
        return (1 - dark_B3HW + strength * self.config.noise * noise_B3HW).clamp(0, 1)

    @property
    def strength(self) -> float:
        """Strength of the changes at this step, in [0, 1]."""
        return min(1.0, self.global_batch.number / self.config.ramp_steps) if self.config.ramp_steps else 1.0

    def forward(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        images_B3HW, elevation_deg_B = batch
        angles_deg_A = self.network.angles_deg_A
        logits_BA = self.network(images_B3HW).float()
        offset_BA = (angles_deg_A - elevation_deg_B[:, None]) / self.config.spread_deg
        target_BA = (-0.5 * offset_BA.square()).softmax(dim=1)
        loss = functional.cross_entropy(logits_BA, target_BA)
        error_B = (median_deg(logits_BA.detach().softmax(dim=1), angles_deg_A) - elevation_deg_B).abs()
        return loss, {"error_deg": error_B.mean()}
