"""What a row of a table is measured on: a configuration, a setting, and the pipeline that they describe.

Letters: B batch, V views, C channels, H W pixels or latent pixels.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.random_weights import fill_randomly
from pipelines.benchmark.timing import free_memory
from pipelines.parts import Parts, check_fit
from pipelines.sampling.conditioner import OrbitInput
from pipelines.sampling.pipeline import Orbits, ViewsPipeline
from utils.devices import pick_device, pick_dtype, resting_place
from utils.settings.run import RunConfig

log = logging.getLogger(__name__)

PROMPT = "a red mug with a white handle"
WARMUP_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row's model and setting.

    Attributes:
        model: name of the configuration file.
        setting: the overrides as they were given; empty for the configuration as it is.
        cfg: the configuration with the setting.
        plain_cfg: the configuration without it.
    """

    model: str
    setting: str
    cfg: RunConfig
    plain_cfg: RunConfig

    @property
    def takes_images(self) -> bool:
        """Whether it is an image model."""
        return self.cfg.takes_images

    @property
    def row(self) -> dict[str, Any]:
        """How its rows begin."""
        setting = self.setting or "as configured"
        return {"model": self.model, "setting": setting, "weights": "files" if has_files(self.cfg) else "random"}

    @property
    def reference_cfg(self) -> RunConfig:
        """What a setting is compared with: the same, in float32 and not compiled."""
        return dataclasses.replace(self.plain_cfg, precision="float32", compile=False)


@dataclass(kw_only=True)
class Bench:
    """What all measures of a run share.

    Attributes:
        device: of all of them.
        out: folder of the tables, and of pictures beside them.
        repeats: calls that a median is taken of, at most.
        num_samples: inputs of the configuration's list that solvers are compared on.
        ceilings: matrix products of each precision in TFLOP/s; see pipelines.benchmark.ceiling.
        references: what results are compared with, by configuration.
    """

    device: torch.device
    out: Path
    repeats: int = 10
    num_samples: int = 4
    ceilings: dict[str, float] = field(default_factory=dict)
    references: dict[str, Any] = field(default_factory=dict)
    _held: tuple[RunConfig, ViewsPipeline] | None = None
    _shared: dict[str, ViewsPipeline] = field(default_factory=dict)

    def pipeline(self, cfg: RunConfig, *, head: bool = False) -> ViewsPipeline:
        """The pipeline of a configuration; one is held at a time.

        Args:
            head: with its Gaussian head; without, nothing is reconstructed and the head takes no memory.
        """
        cfg = cfg if head else without_head(cfg)
        if self._held is None or self._held[0] != cfg:
            self.clear()
            self._held = (cfg, build_pipeline(cfg))
        return self._held[1]

    def shared_pipeline(self, cfg: RunConfig, *, role: str, head: bool = False) -> ViewsPipeline:
        """The same for measures that need many: configurations that differ only in how they sample share their parts.

        Args:
            role: one pipeline is held for each, until `pipeline` or `clear` is called.
        """
        cfg = cfg if head else without_head(cfg)
        self._held = None
        pipeline = self._shared.pop(role, None)
        if pipeline is None or parts_only(pipeline.cfg) != parts_only(cfg):
            del pipeline
            free_memory(self.device)
            pipeline = build_pipeline(cfg)
        pipeline = copy.copy(pipeline)
        pipeline.cfg, pipeline.sampler = cfg, cfg.sampler.build()
        self._shared[role] = pipeline
        return pipeline

    def clear(self) -> None:
        """Forget the pipelines and everything that was compiled for them."""
        self._held = None
        self._shared.clear()
        torch.compiler.reset()
        free_memory(self.device)


def without_head(cfg: RunConfig) -> RunConfig:
    """The same, for plain views only."""
    return dataclasses.replace(cfg, reconstruction={}, refine=False)


def parts_only(cfg: RunConfig) -> RunConfig:
    """What decides how the parts are built: all but what a call of the pipeline reads."""
    return dataclasses.replace(cfg, sampler={}, guide_range=(0.0, 1.0))


def build_pipeline(cfg: RunConfig) -> ViewsPipeline:
    """From the configuration's files if all are there, else with random weights made on the device.

    Raises:
        ConfigError, DataError: see `ViewsPipeline.from_config`.
    """
    if has_files(cfg):
        return ViewsPipeline.from_config(cfg)
    device, rest = pick_device(cfg.device), resting_place(cfg)
    check_fit(cfg, device)
    return ViewsPipeline.from_parts(cfg, random_parts(cfg, device=device, rest=rest, dtype=pick_dtype(cfg)))


def has_files(cfg: RunConfig) -> bool:
    """Whether every weight file that the configuration names is there."""
    paths = [cfg.test_model, cfg.auto_encoder.pretrained, cfg.embedder.pretrained]
    if cfg.reconstruction.pretrained:
        paths.append(cfg.reconstruction.pretrained)
    return all(path and Path(path).is_file() for path in paths)


def random_parts(cfg: RunConfig, *, device: torch.device, rest: torch.device, dtype: torch.dtype) -> Parts:
    """The parts that a configuration describes, untrained; see models.random_weights.

    Args:
        device: where the numbers are made: quickly on a GPU.
        rest: where the parts are left.
        dtype: of the UNet and the autoencoder.
    """
    with torch.device("meta"):
        unet = cfg.UNet.build()
        autoencoder = cfg.auto_encoder.changed(pretrained=None).build()
        reconstruction = cfg.reconstruction
        head = reconstruction.cls.build_network(reconstruction.options) if reconstruction else None

    def filled(module: nn.Module, seed: int, dtype: torch.dtype) -> nn.Module:
        return fill_randomly(module, seed=seed, device=device, dtype=dtype).to(rest).eval()

    with torch.device(device), torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(3)  # for open_clip's own initialisation
        embedder = cfg.embedder.changed(pretrained=None).build().to(rest).eval()
    return Parts(
        unet=filled(unet, 0, dtype),
        autoencoder=filled(autoencoder, 1, dtype),
        embedder=embedder,
        head=None if head is None else filled(head, 2, torch.float32).requires_grad_(False),
    )


def example_input(pipeline: ViewsPipeline) -> OrbitInput:
    """What to sample from: a prompt, or for an image model a picture of random patches."""
    if not pipeline.cfg.takes_images:
        return PROMPT
    width, height = pipeline.cfg.resolution
    patches = torch.rand(1, 3, height // 8, width // 8, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(patches, (height, width), mode="bilinear")[0]


def with_sampler(pipeline: ViewsPipeline, **options: Any) -> ViewsPipeline:
    """The same parts, other options of the sampler."""
    other = copy.copy(pipeline)
    other.sampler = pipeline.cfg.sampler.changed(**options).build()
    return other


def sample(pipeline: ViewsPipeline, **options: Any) -> Orbits:
    """One orbit of the example, by default without 3D-aware sampling."""
    return pipeline(example_input(pipeline), **{"results": "plain", **options})


def warm_up(pipeline: ViewsPipeline, **options: Any) -> None:
    """A few steps, for everything that is done once."""
    sample(with_sampler(pipeline, num_steps=WARMUP_STEPS), **options)
