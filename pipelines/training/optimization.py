"""The learning rate, the parameter groups and the moving average of weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pipelines.training.parallel import local
from utils.settings.run import RunConfig


def learning_rate(cfg: RunConfig, *, own_step: int, first_step: int, time_share: float = 0.0) -> float:
    """Compute the learning rate of a step.

    As in the original code, warm-up and decay count only the steps of this run, but `num_steps` also includes the steps
    of the checkpoint. Fine-tuning therefore starts at `lr` and ends before the decay is complete. With
    `decay_over: own_steps` the decay ends with the run. LambdaLR is not used, because it counts only steps, but a run
    may also end by time.

    Args:
        own_step: number of steps since the checkpoint.
        first_step: number of steps of the checkpoint.
        time_share: elapsed fraction of `max_minutes`, in [0, 1]; the decay uses the larger of both fractions.
    """
    warmup = min(1.0, (own_step + 1) / cfg.warmup_steps) if cfg.warmup_steps > 0 else 1.0
    total = cfg.num_steps - first_step if cfg.decay_over == "own_steps" else cfg.num_steps
    progress = min(max(own_step / total, time_share), 1.0)
    decay = {"cosine": 0.5 * (1 + math.cos(math.pi * progress)), "linear": 1 - progress, "constant": 1.0}
    return cfg.lr * warmup * decay[cfg.decay_mode]


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Group the trainable parameters for AdamW; weight decay does not apply to gains, biases and other vectors."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trainable if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.dim() <= 1], "weight_decay": 0.0},
    ]


class MovingAverage:
    """A moving average of a module's trainable parameters in float32, sharded like the parameters.

    AveragedModel of torch is not used, because it copies the whole module, including frozen parts and fused forward
    passes.

    At the start the average covers only a few steps, so that it forgets the random initialisation.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.num_updates = decay, 0
        named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
        self._names, self._parameters = [name for name, _ in named], [parameter for _, parameter in named]
        self._averages = [parameter.detach().float().clone() for parameter in self._parameters]

    def tensors(self) -> dict[str, Tensor]:
        """Return the averages by parameter name, without a copy: writing to them changes the average."""
        return dict(zip(self._names, self._averages, strict=True))

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the present weights."""
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
        """Use the averaged weights in the module within a `with` block."""
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
