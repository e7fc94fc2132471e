"""Learning rate over the steps, and the moving average of weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pipelines.sharding import local


def lr_factor(progress: float, step: int, *, warmup_steps: int, decay_mode: str) -> float:
    """What the learning rate is multiplied by.

    Args:
        progress: share of the training that is done, in [0, 1].
        step: steps done; the first `warmup_steps` rise linearly.
        decay_mode: `cosine` or `linear` to zero, or `constant`.
    """
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps > 0 else 1.0
    progress = min(max(progress, 0.0), 1.0)
    if decay_mode == "cosine":
        return warmup * 0.5 * (1 + math.cos(math.pi * progress))
    if decay_mode == "linear":
        return warmup * (1 - progress)
    return warmup


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Trainable parameters for AdamW; gains, biases and other vectors do not decay."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trainable if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.dim() <= 1], "weight_decay": 0.0},
    ]


class MovingAverage:
    """A moving average of a module's trainable parameters in float32, divided among processes as they are.

    Early on the average looks back over few steps only, so that it forgets the random start.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.num_updates = decay, 0
        named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
        self._names, self._parameters = [name for name, _ in named], [parameter for _, parameter in named]
        self._averages = [parameter.detach().float().clone() for parameter in self._parameters]

    def tensors(self) -> dict[str, Tensor]:
        """The averages themselves by parameter name; whoever fills them goes on from there."""
        return dict(zip(self._names, self._averages, strict=True))

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the present weights."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        present = [local(parameter.detach()).float() for parameter in self._parameters]
        torch._foreach_lerp_([local(average) for average in self._averages], present, 1 - decay)

    @torch.no_grad()
    def write(self) -> None:
        """Overwrite the module's weights with the average."""
        _copy(self._averages, self._parameters)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the block the module has the averaged weights."""
        with torch.no_grad():
            trained = [parameter.detach().clone() for parameter in self._parameters]
            self.write()
            try:
                yield
            finally:
                _copy(trained, self._parameters)


def _copy(source: list[Tensor], target: list[Tensor]) -> None:
    for value, parameter in zip(source, target, strict=True):
        parameter.copy_(value)
