"""Train the Gaussian head to reconstruct objects from a few true views.

Letters: B batch, K views of a sample, the first I of which are the head's input, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from datasets.base import OrbitData
from models.gaussians.lgm import head_input
from pipelines.reconstruction.lgm import GaussianReconstruction
from pipelines.training.data.orbits_in_memory import OrbitPixels, composite, load_orbits
from pipelines.training.objectives.base import Objective
from pipelines.training.objectives.head_augment import FlawConfig, disturb_views, jitter_poses
from pipelines.training.objectives.head_loss import HeadLoss, draw_views, head_options, preview_views
from utils.cameras import head_cameras
from utils.errors import ConfigError
from utils.images import save_png
from utils.registry import ENGINE
from utils.settings.run import RunConfig
from utils.torch_settings import channels_last

NUM_PREVIEWS = 6
FOV_TOLERANCE_DEG = 0.1


class HeadBatch(NamedTuple):
    """The data of one step: bytes with straight alpha, and cameras; the first I views are the input."""

    rgba_BKHW4: Tensor
    c2w_BK44: Tensor


@ENGINE.register(name="train_head_entrance")
class ObjectFromViews(Objective):
    """Reconstruction from evenly spaced input views with a random start, with a loss at these and other views."""

    stem = "head"

    Config = FlawConfig

    @classmethod
    def weight_files(cls, options: FlawConfig, cfg: RunConfig) -> dict[str, str | None]:
        found = super().weight_files(options, cfg)
        if options.p_autoencoded:
            found["auto_encoder.pretrained"] = cfg.auto_encoder.pretrained
        return found

    def __init__(self, config: FlawConfig, *, cfg: RunConfig, device: torch.device) -> None:
        super().__init__(cfg, device=device, num_views=cfg.frame_lens[0])
        self.config = config
        self.head = head_options(cfg, GaussianReconstruction.Config)
        self.fov_deg, self.num_inputs = self.head.fov, self.head.head_config.num_input_views
        dataset = cfg.vid_dataset.build()
        self._check(dataset, input_size=self.head.head_config.input_size)
        self.loss = HeadLoss(
            config,
            fov_deg=self.fov_deg,
            size=cfg.resolution[0],
            rasterizer=cfg.rasterizer,
            device=device,
        )
        self.network = self.head.head_section.build()
        self.autoencoder = frozen_autoencoder(cfg, device) if config.p_autoencoded else None
        if device.type == "cuda" and cfg.channels_last:
            channels_last(self.network)
        self.orbits = load_orbits(dataset, device=device)
        self.c2w_NV44 = self.orbits.c2w_NV44.to(device)
        self.views_per_step = self.batch_size * config.num_output_views

    def _check(self, dataset: OrbitData, *, input_size: int) -> None:
        width, height = self.cfg.resolution
        if width != height or width != input_size:
            raise ConfigError(
                f"resolution={[width, height]}, but the head takes {input_size} x {input_size}; set "
                "reconstruction.head.input_size or resolution"
            )
        self.config.check_views(num_inputs=self.num_inputs, num_views=dataset.config.num_views)
        check_fovs(dataset, self.fov_deg)

    @property
    def sample_source(self) -> OrbitPixels:
        return self.orbits

    def batches(self, start: int = 0) -> Iterator[HeadBatch]:
        for orbits_B in self.global_batch.order(self.orbits.num_orbits, start=start):
            views_BK = draw_views(
                len(orbits_B),
                num_views=self.orbits.num_views,
                num_inputs=self.num_inputs,
                num_outputs=self.config.num_output_views,
                even=True,
                generator=self.generator,
            )
            yield self.draw(orbits_B, views_BK)

    def draw(self, orbits_B: Tensor, views_BK: Tensor) -> HeadBatch:
        """Return the images and cameras of these views."""
        orbits_BK = orbits_B[:, None].expand_as(views_BK)
        cameras = (orbits_BK.to(self.device), views_BK.to(self.device))
        return HeadBatch(self.orbits.rgba(orbits_BK, views_BK), self.c2w_NV44[cameras])

    def forward(self, batch: HeadBatch) -> tuple[Tensor, dict[str, Tensor]]:
        poses_BK44 = head_cameras(batch.c2w_BK44, fov_deg=self.fov_deg).poses_V44
        gaussians = self.network(self.inputs(batch, poses_BK44))
        return self.loss(gaussians, poses_BK44, batch.rgba_BKHW4, num_given=self.num_inputs, generator=self.generator)

    def inputs(self, batch: HeadBatch, poses_BK44: Tensor) -> Tensor:
        """Make the head's input: views over the generator's background, with flaws like those of generated views."""
        config, num_inputs = self.config, self.num_inputs
        views_BICHW, _ = composite(batch.rgba_BKHW4[:, :num_inputs], self.orbits.background)
        poses_BI44 = poses_BK44[:, :num_inputs]
        # a random number of the CPU generator avoids waiting for the device
        if self.autoencoder is not None and float(torch.rand(())) < config.p_autoencoded:
            views_BICHW = through_autoencoder(self.autoencoder, views_BICHW)
        if config.p_distort:
            views_BICHW = disturb_views(
                views_BICHW, fraction=config.p_distort, strength=config.distortion, generator=self.generator
            )
        if config.p_jitter:
            poses_BI44 = jitter_poses(
                poses_BI44, fraction=config.p_jitter, angle_deg=config.jitter_deg, generator=self.generator
            )
        return head_input(views_BICHW, poses_BI44, fov_deg=self.fov_deg)

    def parts_to_compile(self) -> list[nn.Module]:
        return self.network.parts_to_compile()

    @torch.no_grad()
    def preview(self, folder: Path, step: int) -> None:
        """Write an image of true views that are not the head's input, with the renders of the head below."""
        inputs, shown = preview_views(self.orbits.num_views, self.num_inputs)
        numbers_B = torch.linspace(0, self.orbits.num_orbits - 1, NUM_PREVIEWS).round().long().unique()
        batch = self.draw(numbers_B, torch.tensor([inputs + shown]).expand(len(numbers_B), -1))
        views_BICHW, _ = composite(batch.rgba_BKHW4[:, : len(inputs)], self.orbits.background)
        poses_BK44 = head_cameras(batch.c2w_BK44, fov_deg=self.fov_deg).poses_V44
        gaussians = self.network(head_input(views_BICHW, poses_BK44[:, : len(inputs)], fov_deg=self.fov_deg))
        unseen = (poses_BK44[:, len(inputs) :], batch.rgba_BKHW4[:, len(inputs) :])
        picture = self.loss.comparison(gaussians, *unseen, background=self.orbits.background)
        save_png(folder / f"head_{step:08d}.png", picture)


def check_fovs(dataset: OrbitData, fov_deg: float) -> None:
    """Check that the data have the head's field of view.

    Raises:
        ConfigError: they do not.
    """
    for rendered_deg in dataset.fovs:
        if abs(rendered_deg - fov_deg) > FOV_TOLERANCE_DEG:
            raise ConfigError(
                f"reconstruction.fov_deg={fov_deg:.4g}, but vid_dataset was rendered with {rendered_deg:.4g}; set both "
                "to the same value"
            )


def frozen_autoencoder(cfg: RunConfig, device: torch.device) -> Any:
    """Build the autoencoder through which views go, with its weights."""
    return cfg.auto_encoder.build().requires_grad_(False).to(device).eval()


@torch.no_grad()
def through_autoencoder(autoencoder: Any, views_BICHW: Tensor) -> Tensor:
    """Encode and decode views, because a generator's views are decoded too."""
    mean_FCHW = autoencoder.encode(views_BICHW.flatten(0, 1) * 2 - 1).mean
    restored_FCHW = autoencoder.decode(mean_FCHW).float() / 2 + 0.5
    return restored_FCHW.clamp(0, 1).view_as(views_BICHW)
