"""Train the dense head to reconstruct objects from any number of true views.

Letters: B batch, V views of an orbit, I views that the head is given, K views in the loss, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from models.gaussians.lgm import evenly_spaced
from pipelines.reconstruction.dense import MAX_VIEWS, DenseReconstruction
from pipelines.training.data.orbits_in_memory import OrbitPixels, composite, load_orbits
from pipelines.training.objectives.base import Objective
from pipelines.training.objectives.head import HeadBatch, check_fovs, frozen_autoencoder, through_autoencoder
from pipelines.training.objectives.head_augment import (
    FlawConfig,
    damage_views,
    disturb_views,
    jitter_poses,
    recolor_views,
)
from pipelines.training.objectives.head_loss import HeadLoss, head_options
from utils.errors import ConfigError
from utils.images import save_png
from utils.registry import ENGINE
from utils.settings.run import RunConfig

NUM_PREVIEWS = 6
PREVIEW_INPUTS = 8


@ENGINE.register(name="train_dense_head_entrance")
class ObjectFromAnyViews(Objective):
    """Reconstruction from a random number of views, with a loss at some of these and at others.

    Given views get the flaws of generated ones: bent, recoloured, seen from slightly other cameras, blurred by the
    autoencoder, and some of them wrong.
    """

    stem = "head"
    reaches_all = False  # a step has either few or many views, and each has its own last layer

    @dataclass(frozen=True, kw_only=True)
    class Config(FlawConfig):
        """
        Attributes:
            num_input_views: numbers of given views; each step draws one. A number that is listed twice is drawn twice
                as often.
            p_even: fraction of samples whose given views are evenly spaced; the others are random.
            opacity_weight: weight of the mean opacity, so that Gaussians that are not needed disappear.
            color_jitter: standard deviation of each view's factor of red, green and blue.
            p_damaged: fraction of samples in which up to three views, and at most a quarter, are wrong.
        """

        num_input_views: list[int] = field(default_factory=lambda: [2, 4, 6, 8, 12, 16, 24])
        p_even: float = 0.5
        opacity_weight: float = 2.0e-3
        p_distort: float = 0.3
        p_jitter: float = 0.3
        jitter_deg: float = 1.0
        color_jitter: float = 0.03
        p_autoencoded: float = 0.3
        p_damaged: float = 0.3

        def __post_init__(self) -> None:
            super().__post_init__()
            if not self.num_input_views or not all(1 <= number <= MAX_VIEWS for number in self.num_input_views):
                raise ConfigError(
                    f"num_input_views must be numbers from 1 to {MAX_VIEWS}, got {list(self.num_input_views)}"
                )
            for name in ("opacity_weight", "color_jitter"):
                if getattr(self, name) < 0:
                    raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")

    @classmethod
    def weight_files(cls, options: Config, cfg: RunConfig) -> dict[str, str | None]:
        found = super().weight_files(options, cfg)
        if options.p_autoencoded:
            found["auto_encoder.pretrained"] = cfg.auto_encoder.pretrained
        return found

    def __init__(self, config: Config, *, cfg: RunConfig, device: torch.device) -> None:
        super().__init__(cfg, device=device, num_views=cfg.frame_lens[0])
        self.config = config
        self.head = head_options(cfg, DenseReconstruction.Config)
        if self.head.head_config.num_layers == 0:
            raise ConfigError("reconstruction.head.num_layers=0 has no weights to train; set it to 10, for example")
        dataset = cfg.vid_dataset.build()
        num_views = dataset.config.num_views
        if obstacle := self.head.obstacle(num_views=min(num_views, MAX_VIEWS), resolution=tuple(cfg.resolution)):
            raise ConfigError(f"{obstacle}; change this setting")
        if max([*config.num_input_views, config.num_output_views]) > num_views:
            raise ConfigError(
                f"objective.num_input_views={list(config.num_input_views)} and num_output_views="
                f"{config.num_output_views} must not be larger than the data's {num_views} views"
            )
        check_fovs(dataset, self.head.fov)
        self.loss = HeadLoss(
            config, fov_deg=self.head.fov, size=cfg.resolution[0], rasterizer=cfg.rasterizer, device=device
        )
        self.network = self.head.head_section.build()
        self.autoencoder = frozen_autoencoder(cfg, device) if config.p_autoencoded else None
        self.orbits = load_orbits(dataset, device=device)
        self.c2w_NV44 = self.orbits.c2w_NV44.to(device)
        self.views_per_step = self.batch_size * config.num_output_views

    @property
    def sample_source(self) -> OrbitPixels:
        return self.orbits

    def batches(self, start: int = 0) -> Iterator[HeadBatch]:
        for orbits_B in self.global_batch.order(self.orbits.num_orbits, start=start):
            yield HeadBatch(self.orbits.rgba(orbits_B), self.c2w_NV44[orbits_B.to(self.device)])

    def forward(self, batch: HeadBatch) -> tuple[Tensor, dict[str, Tensor]]:
        numbers = self.config.num_input_views
        # a random number of the CPU generator avoids waiting for the device
        num_given = numbers[int(torch.randint(len(numbers), ()))]
        order_BV = self._draw_order(*batch.c2w_BK44.shape[:2], num_given)
        rows_B1 = torch.arange(len(order_BV), device=self.device)[:, None]
        given_BI = order_BV[:, :num_given]
        rgba_BIHW4, poses_BI44 = batch.rgba_BKHW4[rows_B1, given_BI], self.head.head_poses(batch.c2w_BK44)
        views_BICHW, poses_given_BI44 = self._flawed(rgba_BIHW4, poses_BI44[rows_B1, given_BI])
        gaussians = self.head.predicted(self.network, views_BICHW, poses_given_BI44)
        shown_BK, num_shown_given = self._shown(order_BV, num_given)
        loss, figures = self.loss(
            gaussians,
            poses_BI44[rows_B1, shown_BK],
            batch.rgba_BKHW4[rows_B1, shown_BK],
            num_given=num_shown_given,
            generator=self.generator,
        )
        opacity = gaussians.opacities_BN1.mean()
        return loss + self.config.opacity_weight * opacity, figures | {"opacity": opacity.detach()}

    def _draw_order(self, B: int, V: int, num_given: int) -> Tensor:
        """Draw an order of the views (B, V); the first ones are given."""
        random_BV = torch.rand(B, V, generator=self.generator, device=self.device)
        start_B1 = torch.randint(V, (B, 1), generator=self.generator, device=self.device)
        even_BI = (start_B1 + torch.tensor(evenly_spaced(V, num_given), device=self.device)) % V
        even_BI = even_BI.gather(1, random_BV[:, :num_given].argsort(dim=1))
        is_even_B1 = torch.rand(B, 1, generator=self.generator, device=self.device) < self.config.p_even
        first_BV = random_BV.scatter(1, even_BI, 2 + random_BV.gather(1, even_BI))
        return torch.where(is_even_B1, first_BV, random_BV).argsort(dim=1, descending=True)

    def _shown(self, order_BV: Tensor, num_given: int) -> tuple[Tensor, int]:
        """Choose the views of the loss, half of them given if there are enough others: (B, K), number of given ones."""
        K, V = self.config.num_output_views, order_BV.shape[1]
        num_others = min(V - num_given, max(K // 2, K - num_given))
        return torch.cat(
            [order_BV[:, : K - num_others], order_BV[:, num_given : num_given + num_others]], dim=1
        ), K - num_others

    def _flawed(self, rgba_BIHW4: Tensor, poses_BI44: Tensor) -> tuple[Tensor, Tensor]:
        """Make the head's input: views over the generator's background and their cameras, with flaws."""
        config, generator, background = self.config, self.generator, self.orbits.background
        views_BICHW, _ = composite(rgba_BIHW4, background)
        if self.autoencoder is not None and float(torch.rand(())) < config.p_autoencoded:
            views_BICHW = through_autoencoder(self.autoencoder, views_BICHW)
        if config.p_distort:
            views_BICHW = disturb_views(
                views_BICHW, fraction=config.p_distort, strength=config.distortion, generator=generator
            )
        if config.color_jitter:
            views_BICHW = recolor_views(
                views_BICHW, strength=config.color_jitter, background=background, generator=generator
            )
        if config.p_damaged:
            views_BICHW = damage_views(
                views_BICHW, fraction=config.p_damaged, background=background, generator=generator
            )
        if config.p_jitter:
            poses_BI44 = jitter_poses(
                poses_BI44, fraction=config.p_jitter, angle_deg=config.jitter_deg, generator=generator
            )
        return views_BICHW, poses_BI44

    def parts_to_compile(self) -> list[nn.Module]:
        return self.network.parts_to_compile()

    @torch.no_grad()
    def preview(self, folder: Path, step: int) -> None:
        """Write an image of true views that are not the head's input, with the renders of the head below."""
        V = self.orbits.num_views
        given = evenly_spaced(V, min(PREVIEW_INPUTS, V))
        shown = [view for view in range(V) if view not in given][::3] or given
        numbers_B = torch.linspace(0, self.orbits.num_orbits - 1, NUM_PREVIEWS).round().long().unique()
        rgba_BVHW4, c2w_BV44 = self.orbits.rgba(numbers_B), self.c2w_NV44[numbers_B.to(self.device)]
        views_BICHW, _ = composite(rgba_BVHW4[:, given], self.orbits.background)
        poses_BV44 = self.head.head_poses(c2w_BV44)
        gaussians = self.head.predicted(self.network, views_BICHW, poses_BV44[:, given])
        unseen = (poses_BV44[:, shown], rgba_BVHW4[:, shown])
        picture = self.loss.comparison(gaussians, *unseen, background=self.orbits.background)
        save_png(folder / f"head_{step:08d}.png", picture)
