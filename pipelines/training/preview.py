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
            prompts: prompts for a text model, or an image model with takes_prompts=true; empty: no previews of them.
            images: image files for an image model; empty: no previews of them.
            guide_scale: guidance scale of the previews.
        """

        prompts: list[str] = field(default_factory=list)
        images: list[str] = field(default_factory=list)
        guide_scale: float = 9.0

    def __init__(self, config: Config) -> None:
        self.config = config

    def write(self, folder: Path, step: int, *, cfg: RunConfig, **parts: Any) -> None:
        """Sample each prompt and each image and write `{input}_{step}.png` and `.mp4`.

        Args:
            parts: unet, autoencoder, embedder and diffusion, as in `ViewsPipeline`.
        """
        of_images = parts["unet"].config.takes_images
        prompts = self.config.prompts if cfg.takes_prompts or not of_images else []
        images = self.config.images if of_images else []
        if self.config.prompts and not prompts:
            log.warning("visual_train.prompts are left out, because takes_prompts=false for this image model")
        if self.config.images and not images:
            log.warning("visual_train.images are left out, because UNet.type=%s is a text model", cfg.UNet.type)
        if not prompts and not images:
            return
        pipeline = ViewsPipeline(cfg, sampler=cfg.sampler.build(), **parts)
        kinds = [{"prompts": prompts}] * bool(prompts) + [{"inputs": images}] * bool(images)
        orbits = [pipeline(**inputs, guide_scale=self.config.guide_scale) for inputs in kinds]
        if not is_main():  # all processes must sample, because FSDP gathers layers from all of them
            return
        slugs = [*map(slug_of, prompts), *(slug_of(Path(image).stem) for image in images)]
        for number, views_VCHW in enumerate(view for one in orbits for view in one.views_BVCHW):
            same = slugs[:number].count(slugs[number])  # a prompt and an image may have the same name
            stem = f"{slugs[number]}{f'-{same + 1}' * bool(same)}_{step:08d}"
            save_png(folder / f"{stem}.png", contact_sheet(views_VCHW))
            save_video(folder / f"{stem}.mp4", views_VCHW, fps=cfg.target_fps)
        log.info("wrote previews of step %d to %s", step, folder)
