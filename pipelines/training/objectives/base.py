"""What the trainer asks of everything that can be trained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.training.data.global_batch import GlobalBatch
from utils.errors import ConfigError
from utils.settings.run import RunConfig


class Objective(nn.Module):
    """A network, its data and its loss. The trainer owns the steps.

    A module, so that one call of it is one forward pass whatever wraps it (precision, several devices).

    Args:
        cfg: the run.
        device: where batches are made.
        num_views: of one sample; its batch size is `cfg.batch_sizes` of that number.

    Attributes:
        stem: begins the names of weight files.
        network: what trains and what is saved.
        can_be_sharded: whether `use_fsdp` may divide the network: forward passes call it as a whole.
        reaches_all: whether every trainable parameter has a part in the loss.
        global_batch: which rows of the global batch this process has, and random numbers for them.
        generator: draws for this process alone, on the device.
    """

    stem: str
    network: nn.Module
    reaches_all = True
    can_be_sharded = False

    def __init__(self, cfg: RunConfig, *, device: torch.device, num_views: int) -> None:
        super().__init__()
        self.cfg, self.device = cfg, device
        self.batch_size = batch_size_for(cfg, num_views)
        self.global_batch = GlobalBatch(size=self.batch_size, parts=cfg.grad_accumulation, seed=cfg.seed, device=device)
        self.generator = self.global_batch.own
        self.views_per_step = self.batch_size * num_views

    @classmethod
    def weight_files(cls, options: Any, cfg: RunConfig) -> dict[str, str | None]:
        """Weight files that training loads, by the setting that names each; None or "" where it names none.

        Args:
            options: the objective's own.
        """
        return {"Pretrain.resume_checkpoint": cfg.checkpoint}

    def batches(self, start: int = 0) -> Iterator[Any]:
        """Batches on the device, without end; `cfg.grad_accumulation` of them make a step.

        Args:
            start: how many steps of data to leave out: those that were made before.
        """
        raise NotImplementedError

    def sample_names(self, number: int, part: int, rank: int) -> list[str]:
        """Object ids of what a process had in one part of a step; a sample that was skipped is still named."""
        dataset = self.sample_source
        if dataset is None:
            return []
        return [dataset.object_ids[index] for index in self.global_batch.samples_at(len(dataset), number, part, rank)]

    @property
    def sample_source(self) -> Any:
        """What has the `object_ids` of the samples."""
        raise NotImplementedError

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and figures for the log."""
        raise NotImplementedError

    def summary(self, figures: dict[str, float]) -> dict[str, float]:
        """What the log says, out of means over all batches of an interval."""
        return figures

    def parts_to_compile(self) -> list[nn.Module]:
        """Modules whose forward pass is worth compiling."""
        return [self.network]

    @property
    def can_be_graphed(self) -> bool:
        """Whether both passes of the network can be CUDA graphs, see `Backbone.can_be_graphed`."""
        return False

    def adapt(self) -> None:
        """Change the network once, when its first weights are loaded, before training.

        Raises:
            ConfigError: a setting does not go with this objective.
        """
        if self.cfg.lora.rank:
            raise ConfigError(f"lora.rank={self.cfg.lora.rank}: TASK_TYPE={self.cfg.TASK_TYPE} trains no UNet; set 0")

    def checkpoint_state(self) -> dict[str, Tensor]:
        """What files written on the way hold."""
        return self.network.state_dict()

    def finish(self) -> None:
        """Change the trained network once, before the final file is written."""

    @property
    def pretrained_part(self) -> nn.Module:
        """What the section Pretrain loads and slows."""
        return self.network

    def final_state(self) -> dict[str, Tensor]:
        """What the final file holds."""
        return self.checkpoint_state()

    def metadata(self) -> dict[str, str]:
        """Strings for the header of the final file."""
        return {}

    def preview(self, folder: Path, step: int) -> None:
        """Write pictures that show how far training is."""


def batch_size_for(cfg: RunConfig, num_views: int) -> int:
    """The batch size of samples with so many views.

    Raises:
        ConfigError: the config has none.
    """
    size = cfg.batch_sizes.get(str(num_views), 0)
    if size < 1:
        raise ConfigError(f"batch_sizes has no positive entry for {num_views} views; add `'{num_views}': 8`")
    return size
