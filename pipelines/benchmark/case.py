"""The case of a row in a table: a configuration, a setting, and their pipeline.

Letters: B batch, V views, L text tokens, C channels, H W pixels or latent pixels.
"""

from __future__ import annotations

import copy
import dataclasses
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.encoders import Embedder
from models.random_weights import fill_randomly
from pipelines.benchmark.timing import free_memory
from pipelines.parts import Parts, check_fit, published_files
from pipelines.sampling.conditioner import OrbitInput, texts_of
from pipelines.sampling.pipeline import Orbits, ViewsPipeline
from utils.devices import pick_device, pick_dtype, resting_place
from utils.errors import DataError
from utils.settings.run import RunConfig

PROMPT = "a red mug with a white handle"
WARMUP_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class Case:
    """Model and setting of one row.

    Attributes:
        model: name of the configuration file.
        setting: the overrides; empty for the plain configuration.
        cfg: the configuration with the setting.
        plain_cfg: the configuration without the setting.
    """

    model: str
    setting: str
    cfg: RunConfig
    plain_cfg: RunConfig

    @property
    def takes_images(self) -> bool:
        """Whether the model is an image model."""
        return self.cfg.takes_images

    @property
    def row(self) -> dict[str, Any]:
        """The first columns of its rows."""
        setting = self.setting or "as configured"
        return {"model": self.model, "setting": setting, "weights": "files" if has_files(self.cfg) else "random"}

    @property
    def reference_cfg(self) -> RunConfig:
        """The reference for a setting: the plain configuration in float32, not compiled."""
        return dataclasses.replace(self.plain_cfg, precision="float32", compile=False)


@dataclass(kw_only=True)
class Bench:
    """Shared objects of all measures in a run.

    Attributes:
        device: device of all measures.
        out: output folder of tables and images.
        repeats: maximum number of calls for a median.
        num_samples: number of inputs for the comparison of solvers.
        ceilings: TFLOP/s of matrix products in each precision; see pipelines.benchmark.ceiling.
        references: reference results, by configuration.
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
        """Return the pipeline of a configuration; only the last one is kept in memory.

        Args:
            head: include the Gaussian head; if false, nothing is reconstructed and the head needs no memory.
        """
        cfg = cfg if head else without_head(cfg)
        if self._held is None or self._held[0] != cfg:
            self.clear()
            self._held = (cfg, build_pipeline(cfg))
        return self._held[1]

    def shared_pipeline(self, cfg: RunConfig, *, role: str, head: bool = False) -> ViewsPipeline:
        """Return a pipeline that shares its parts with the previous one, if only the sampling differs.

        Args:
            role: one pipeline is kept for each role, until `pipeline` or `clear` is called.
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
        """Delete the pipelines and their compiled code."""
        self._held = None
        self._shared.clear()
        torch.compiler.reset()
        free_memory(self.device)


def without_head(cfg: RunConfig) -> RunConfig:
    """Return the configuration without reconstruction, for plain views only."""
    return dataclasses.replace(cfg, reconstruction={}, refine=False)


def parts_only(cfg: RunConfig) -> RunConfig:
    """Return the configuration with only the settings that change the parts, without those of a call."""
    return dataclasses.replace(cfg, sampler={}, guide_range=(0.0, 1.0))


def build_pipeline(cfg: RunConfig) -> ViewsPipeline:
    """Build a pipeline from the weight files if all exist, else with random weights that are made on the device.

    Raises:
        ConfigError, DataError: see `ViewsPipeline.from_config`.
    """
    if has_files(cfg):
        return ViewsPipeline.from_config(cfg)
    device, rest = pick_device(cfg.device), resting_place(cfg)
    check_fit(cfg, device)
    return ViewsPipeline.from_parts(cfg, random_parts(cfg, device=device, rest=rest, dtype=pick_dtype(cfg)))


def has_files(cfg: RunConfig) -> bool:
    """Whether all weight files of the configuration exist."""
    paths = [cfg.test_model, cfg.auto_encoder.pretrained, cfg.embedder.pretrained]
    if cfg.reconstruction.pretrained:
        paths.append(cfg.reconstruction.pretrained)
    return all(path and Path(path).exists() for path in paths)


def random_parts(cfg: RunConfig, *, device: torch.device, rest: torch.device, dtype: torch.dtype) -> Parts:
    """Build the parts of a configuration with random weights; see models.random_weights.

    Args:
        device: device for drawing the random numbers, which is fast on a GPU.
        rest: device of the parts.
        dtype: precision of the UNet and the autoencoder.
    """
    of_folder = published_files(cfg, "embedder.pretrained", cfg.embedder.pretrained) is not None
    with torch.device("meta"):
        unet = cfg.UNet.build()
        autoencoder = cfg.auto_encoder.changed(pretrained=None).build()
        reconstruction = cfg.reconstruction
        head = reconstruction.cls.build_network(reconstruction.options) if reconstruction else None

    def filled(module: nn.Module, seed: int, dtype: torch.dtype) -> nn.Module:
        return fill_randomly(module, seed=seed, device=device, dtype=dtype).to(rest).eval()

    with torch.device(device), torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(3)  # for open_clip's own initialisation
        section = cfg.embedder if of_folder else cfg.embedder.changed(pretrained=None)
        embedder = (section.build() if can_encode(cfg) else RandomWords(section.options)).to(rest).eval()
    return Parts(
        unet=filled(unet, 0, dtype),
        autoencoder=filled(autoencoder, 1, dtype),
        embedder=embedder,
        head=None if head is None else filled(head, 2, torch.float32).requires_grad_(False),
    )


def can_encode(cfg: RunConfig) -> bool:
    """Whether the embedder can encode the prompt; one that is only loaded to encode needs its files or its cache."""
    try:
        cfg.embedder.options.check_prompts(texts_of(cfg, [PROMPT]))
    except DataError:
        return False
    return True


class RandomWords(Embedder):
    """Random words in the place of an encoder whose files are missing; each prompt has its own."""

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        L, C = self.config.words_shape()
        seeds = [zlib.crc32(prompt.encode()) for prompt in prompts]
        return torch.stack([torch.randn(L, C, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def example_input(pipeline: ViewsPipeline) -> OrbitInput:
    """Return the input of a measurement: a prompt, or for an image model an image of random patches."""
    if not pipeline.cfg.takes_images:
        return PROMPT
    width, height = pipeline.cfg.resolution
    patches = torch.rand(1, 3, height // 8, width // 8, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(patches, (height, width), mode="bilinear")[0]


def with_sampler(pipeline: ViewsPipeline, **options: Any) -> ViewsPipeline:
    """Return a pipeline with the same parts and other options of the sampler."""
    other = copy.copy(pipeline)
    other.sampler = pipeline.cfg.sampler.changed(**options).build()
    return other


def sample(pipeline: ViewsPipeline, **options: Any) -> Orbits:
    """Sample one orbit of the example input, by default without 3D-aware sampling."""
    return pipeline(example_input(pipeline), **{"results": "plain", **options})


def warm_up(pipeline: ViewsPipeline, **options: Any) -> None:
    """Run a few steps, so that one-time work is done."""
    sample(with_sampler(pipeline, num_steps=WARMUP_STEPS), **options)
