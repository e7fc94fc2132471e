"""The interface of a training objective."""

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
    """A network, its data and its loss. The trainer controls the steps.

    It is a module, so that one call is one forward pass in any wrapper (precision, several devices).

    Args:
        cfg: the run's configuration.
        device: device of the batches.
        num_views: number of views of one sample; `cfg.batch_sizes` has the batch size for this number.

    Attributes:
        stem: first part of the names of weight files.
        network: the network that is trained and saved.
        can_be_sharded: whether `use_fsdp` is possible, which needs forward passes of the network as a whole.
        reaches_all: whether every trainable parameter has a gradient.
        global_batch: the rows of this process, and random numbers for them.
        generator: random numbers for this process only, on the device.
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
        """Return the weight files that training loads, by setting; None or "" if the setting is empty.

        Args:
            options: options of the objective.
        """
        return {"Pretrain.resume_checkpoint": cfg.checkpoint}

    def batches(self, start: int = 0) -> Iterator[Any]:
        """Yield batches on the device without end; a step uses `cfg.grad_accumulation` of them.

        Args:
            start: number of earlier steps, whose data are skipped.
        """
        raise NotImplementedError

    def sample_names(self, number: int, part: int, rank: int) -> list[str]:
        """Return the object ids of a process in one part of a step, including skipped samples."""
        dataset = self.sample_source
        if dataset is None:
            return []
        return [dataset.object_ids[index] for index in self.global_batch.samples_at(len(dataset), number, part, rank)]

    @property
    def sample_source(self) -> Any:
        """The object with the `object_ids` of the samples, or None."""
        raise NotImplementedError

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch, and figures for the log."""
        raise NotImplementedError

    def summary(self, figures: dict[str, float]) -> dict[str, float]:
        """Turn means over all batches of an interval into the figures of the log."""
        return figures

    def parts_to_compile(self) -> list[nn.Module]:
        """List the modules whose forward pass is compiled."""
        return [self.network]

    @property
    def can_be_graphed(self) -> bool:
        """Whether the forward and backward passes can be CUDA graphs, see `Backbone.can_be_graphed`."""
        return False

    def adapt(self) -> None:
        """Change the network once, after its first weights are loaded and before training.

        Raises:
            ConfigError: a setting does not fit this objective.
        """
        if self.cfg.lora.rank:
            raise ConfigError(
                f"lora.rank={self.cfg.lora.rank}, but TASK_TYPE={self.cfg.TASK_TYPE} trains no UNet; set lora.rank=0"
            )

    def checkpoint_state(self) -> dict[str, Tensor]:
        """Return the weights for checkpoints."""
        return self.network.state_dict()

    def finish(self) -> None:
        """Change the trained network once, before the final file is written."""

    @property
    def pretrained_part(self) -> nn.Module:
        """The module to which the section Pretrain applies."""
        return self.network

    def final_state(self) -> dict[str, Tensor]:
        """Return the weights for the final file."""
        return self.checkpoint_state()

    def metadata(self) -> dict[str, str]:
        """Return strings for the header of the final file."""
        return {}

    def preview(self, folder: Path, step: int) -> None:
        """Write images that show the progress of training."""


def batch_size_for(cfg: RunConfig, num_views: int) -> int:
    """Return the batch size of samples with this number of views.

    Raises:
        ConfigError: the config has no such batch size.
    """
    size = cfg.batch_sizes.get(str(num_views), 0)
    if size < 1:
        raise ConfigError(f"batch_sizes has no positive entry for {num_views} views; add `'{num_views}': 8`")
    return size
