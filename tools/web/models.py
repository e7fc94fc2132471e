"""The loaded models of the app, and what a step of each costs on this machine."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipelines import ViewsPipeline
from pipelines.sampling.inference import check_sampling
from utils.background import background_remover
from utils.config import load_config
from utils.errors import ConfigError, DataError
from utils.registry import INFER_ENGINE
from utils.settings.run import RunConfig
from utils.stopwatch import synchronize

log = logging.getLogger(__name__)

DECODED_AT_ONCE = 4  # views of the measurement


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds on this machine, measured when the app starts.

    Attributes:
        step_s: a denoising step of one orbit.
        guided_step_s: a step with guidance.
        view_s: decoding a view.
    """

    step_s: float
    guided_step_s: float
    view_s: float


@dataclass(frozen=True, kw_only=True)
class Model:
    """One configuration with its loaded networks.

    Attributes:
        path: the configuration file, as the command line named it.
        cfg: its settings, the defaults of every request.
        pipeline: the networks.
        costs: what they cost here.
    """

    path: str
    cfg: RunConfig
    pipeline: ViewsPipeline
    costs: Costs

    @property
    def name(self) -> str:
        """Name on the page: the file without folder and suffix."""
        return Path(self.path).stem

    @property
    def takes_pictures(self) -> bool:
        """Whether it makes orbits of pictures."""
        return self.cfg.takes_images

    @property
    def takes_sentences(self) -> bool:
        """Whether it makes orbits of sentences."""
        return self.cfg.takes_prompts or not self.cfg.takes_images

    @property
    def has_head(self) -> bool:
        """Whether it makes Gaussians, and so can sample 3D-aware."""
        return self.pipeline.reconstruction is not None

    @property
    def estimates_elevation(self) -> bool:
        """Whether it can estimate the elevation of a picture."""
        return bool(self.cfg.elevation and self.cfg.elevation.pretrained)

    def seconds(self, *, num_steps: int, guided: bool, num_views: int) -> float:
        """Expected time from the start to the views; steps are taken as proportional to the number of views."""
        costs, own_views = self.costs, len(self.cfg.cameras.c2w())
        step_s = costs.guided_step_s if guided else costs.step_s
        return num_views / own_views * num_steps * step_s + num_views * costs.view_s


def load_model(path: str) -> Model:
    """Load the networks of a configuration for sampling and measure them.

    Raises:
        ConfigError, DataError: it is not a configuration for sampling, or a file does not fit.
    """
    cfg = load_config(path)
    if cfg.TASK_TYPE not in INFER_ENGINE.names():
        raise ConfigError(
            f"--cfg {path}: TASK_TYPE={cfg.TASK_TYPE} does not sample; use e.g. configs/mini/real_infer.yaml"
        )
    check_sampling(cfg)
    pipeline = ViewsPipeline.from_config(cfg)
    costs = measure(pipeline)
    log.info(
        "%s: %.2f s a step, %.2f s with guidance, %.3f s for decoding a view",
        path, costs.step_s, costs.guided_step_s, costs.view_s,
    )  # fmt: skip
    return Model(path=path, cfg=cfg, pipeline=pipeline, costs=costs)


def load_models(paths: Sequence[str]) -> list[Model]:
    """Load several configurations; see `load_model`.

    Raises:
        ConfigError: two of them have the same name on the page.
    """
    names = [Path(path).stem for path in paths]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"--cfg: two files are named {twice[0]}; give files with different names")
    return [load_model(path) for path in paths]


@torch.no_grad()
def measure(pipeline: ViewsPipeline) -> Costs:
    """Measure a denoising step with and without guidance, and decoding, for one orbit of the configuration."""
    cfg = pipeline.cfg
    width, height = cfg.resolution
    c2w_V44 = cfg.cameras.c2w()
    given: Any = {"prompts": "an object"} if not cfg.takes_images else {"inputs": torch.ones(3, height, width)}
    run = pipeline.prepare(**given, seeds=0, c2w_V44=c2w_V44)
    generators = [torch.Generator().manual_seed(0)]
    noise = pipeline.draw_noise(generators, num_views=len(c2w_V44), resolution=cfg.resolution)
    noise = noise.to(pipeline.placement.device)
    middle = pipeline.diffusion.num_timesteps // 2

    def seconds(call: Callable[[], Any]) -> float:
        synchronize(pipeline.placement.device)
        started = time.perf_counter()
        call()
        synchronize(pipeline.placement.device)
        return time.perf_counter() - started

    seconds(lambda: run.predict_x0(noise, middle, guided=False))  # the first call is slower
    step_s = min(seconds(lambda: run.predict_x0(noise, middle, guided=False)) for _ in range(2))
    guided_step_s = seconds(lambda: run.predict_x0(noise, middle, guided=True))
    few = noise[:, :, :DECODED_AT_ONCE]
    num_decoded = pipeline.autoencoder.layout.num_views(few.shape[2])
    return Costs(step_s=step_s, guided_step_s=guided_step_s, view_s=seconds(lambda: pipeline.decode(few)) / num_decoded)


def can_remove_backgrounds() -> bool:
    """Whether a package that removes backgrounds is installed."""
    try:
        background_remover()
    except DataError:
        return False
    return True
