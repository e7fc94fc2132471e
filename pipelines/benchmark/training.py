"""Measure a training step of the generator, always with the same random batch.

Letters: B batch, V views, C channels, L tokens.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from torch import Tensor

from models.random_weights import fill_randomly
from pipelines.benchmark.case import Bench, Case
from pipelines.benchmark.steps import unet_arguments
from pipelines.benchmark.timing import median_ms, peak_gib, reset_peak
from pipelines.training.data.orbit_batches import DiffusionBatch
from pipelines.training.objectives.base import Objective
from pipelines.training.objectives.diffusion import OrbitDenoising
from pipelines.training.trainer import Trainer
from utils.settings.run import RunConfig
from utils.torch_settings import channels_last, float32_products

WARMUP = 2  # before those of median_ms
BUDGET_S = 20.0  # a step of a large model takes seconds; then fewer steps are enough


class RandomOrbits(OrbitDenoising):
    """The training objective without data and encoders: latents and text tokens are random numbers."""

    def __init__(self, cfg: RunConfig, *, device: torch.device) -> None:
        Objective.__init__(self, cfg, device=device, num_views=cfg.frame_lens[0])
        self.of_images = cfg.takes_images
        self.options, self.images = self.Config(image=self.of_images), None
        self.diffusion = cfg.Diffusion.build()
        with torch.device("meta"):
            network = cfg.UNet.build()
        self.network = fill_randomly(network, seed=0, device=device, dtype=torch.float32)
        if cfg.channels_last:
            channels_last(self.network)
        with torch.device(device):
            shapes = unet_arguments(cfg, batch=self.batch_size, num_views=cfg.frame_lens[0])
            self.inputs = {name: torch.randn(value.shape) for name, value in shapes.items()}

    def load_base(self) -> None:
        """Keep the random weights."""

    def batches(self, start: int = 0) -> Iterator[DiffusionBatch]:
        """Yield the same batch without end."""
        inputs = self.inputs
        ids_BL = torch.zeros(inputs["y"].shape[:2], dtype=torch.long, device=self.device)
        while True:
            yield DiffusionBatch(inputs["x"], ids_BL, inputs["camera_data"], inputs.get("image"))

    def words(self, batch: DiffusionBatch, drop_B: Tensor) -> Tensor:
        """Return random text tokens, the same for every caption."""
        return self.inputs["y"]


def measure_train(bench: Bench, case: Case) -> list[dict[str, Any]]:
    """Measure forward pass, backward pass and AdamW with the settings of `cfg`.

    Encoding is left out, because training usually uses cached latents.
    """
    bench.clear()
    forget_precision()
    pretrain = case.cfg.Pretrain.changed(resume_checkpoint=None) if case.cfg.Pretrain else {}
    cfg = dataclasses.replace(case.cfg, Pretrain=pretrain, tracker="none")
    try:
        with tempfile.TemporaryDirectory() as folder, float32_products("high"):  # as train_net.py
            return [_row(bench, case, cfg, Path(folder))]
    finally:
        forget_precision()


def forget_precision() -> None:
    """Reset accelerate, which otherwise keeps the precision of the first training and raises an error for another."""
    AcceleratorState._reset_state(reset_partial_state=True)


def _row(bench: Bench, case: Case, cfg: RunConfig, folder: Path) -> dict[str, Any]:
    held = reset_peak(bench.device)
    objective = RandomOrbits(cfg, device=bench.device)
    trainer, batches = Trainer(cfg, objective, folder=folder), objective.batches()

    def step() -> None:
        trainer.train_step(batches)

    for _ in range(WARMUP):
        step()
    row = {**case.row, "weights": "random", "batch": objective.batch_size, "views": cfg.frame_lens[0]}
    row["train_ms"] = median_ms(step, device=bench.device, repeats=2 * bench.repeats, budget_s=BUDGET_S)
    return row | {"held_gib": held, "peak_gib": peak_gib(bench.device)}
