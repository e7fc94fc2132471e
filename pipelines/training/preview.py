"""Previews during training: orbits of fixed prompts or images with fixed seeds."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.sampling.inputs import slug_of
from pipelines.sampling.pipeline import ViewsPipeline
from utils.images import contact_sheet, save_png, save_video
from utils.processes import is_main
from utils.registry import VISUAL
from utils.settings.run import RunConfig

log = logging.getLogger(__name__)


@VISUAL.register
class VisualTrainTextImageToVideo:
    """Samples some inputs with the network in training, and writes a contact sheet and a video for each."""

    retired_keys = {
        "partial_keys": "the conditioner always uses all conditions of the network",
        "use_offset_noise": "sampling starts from noise without an offset",
    }

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """
        Attributes:
            prompts: prompts for a text model; empty: no previews.
            images: image files for an image model; empty: no previews.
            guide_scale: guidance scale of the previews.
        """

        prompts: list[str] = field(default_factory=list)
        images: list[str] = field(default_factory=list)
        guide_scale: float = 9.0

    def __init__(self, config: Config) -> None:
        self.config = config

    def write(self, folder: Path, step: int, *, cfg: RunConfig, **parts: Any) -> None:
        """Sample and write `{input}_{step}.png` and `.mp4`.

        Args:
            parts: unet, autoencoder, embedder and diffusion, as in `ViewsPipeline`.
        """
        of_images = parts["unet"].config.takes_images
        inputs = self.config.images if of_images else self.config.prompts
        if not inputs:
            return
        pipeline = ViewsPipeline(cfg, sampler=cfg.sampler.build(), **parts)
        orbits = pipeline(inputs, guide_scale=self.config.guide_scale)
        if not is_main():  # all processes must sample, because FSDP gathers layers from all of them
            return
        for text, views_VCHW in zip(inputs, orbits.views_BVCHW, strict=True):
            stem = f"{slug_of(Path(text).stem if of_images else text)}_{step:08d}"
            save_png(folder / f"{stem}.png", contact_sheet(views_VCHW))
            save_video(folder / f"{stem}.mp4", views_VCHW, fps=cfg.target_fps)
        log.info("wrote previews of step %d to %s", step, folder)
