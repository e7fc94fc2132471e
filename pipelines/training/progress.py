"""Progress of a training: log lines, a progress bar, and the check for NaN losses."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from utils.processes import is_main, mean_over_processes
from utils.settings.run import RunConfig

log = logging.getLogger(__name__)


class ProgressReport:
    """Writes a log line at intervals, and shows a progress bar on a terminal.

    Args:
        first_step: number of steps that are done already.
        first_progress: fraction of the training that is done already, by steps or by `max_minutes`.
    """

    def __init__(self, cfg: RunConfig, *, views_per_batch: float, first_step: int, first_progress: float) -> None:
        self.views_per_batch = views_per_batch
        self.bar = tqdm(
            total=cfg.num_steps, initial=first_step, unit="step", disable=not (is_main() and sys.stderr.isatty())
        )
        self.sums: dict[str, Tensor] = {}
        self.num_added, self.since = 0, time.monotonic()
        self.started, self.first_progress = self.since, first_progress

    def __enter__(self) -> ProgressReport:
        return self

    def __exit__(self, *_error: object) -> None:
        self.bar.close()

    def add(self, figures: dict[str, Tensor], *, step_ends: bool = True) -> None:
        """Add the figures of one batch, without waiting for the device."""
        for name, value in figures.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.num_added += 1
        if step_ends:
            self.bar.update()

    def write(
        self, step: int, *, lr: float, progress: float, summary: Callable[[dict[str, float]], dict[str, float]]
    ) -> dict[str, float]:
        """Log the means since the last call, over all processes, and return them.

        Args:
            summary: turns the means into the figures of the log.
        """
        names = sorted(self.sums)
        means = mean_over_processes(torch.stack([self.sums[name].float() for name in names]) / self.num_added)
        figures = summary(dict(zip(names, means.tolist(), strict=True)))
        figures = {"loss": figures["loss"], **figures}
        now = time.monotonic()
        speed = self.views_per_batch * self.num_added / (now - self.since)
        done = progress - self.first_progress
        eta = timedelta(seconds=round((now - self.started) * max(0.0, 1 - progress) / done)) if done > 0 else "?"
        shown = " ".join(f"{name} {value:.4f}" for name, value in figures.items())
        memory = memory_gb()
        peaks = "".join(f", {name.replace('_', ' ')} {value:.2f} GB" for name, value in memory.items())
        self.bar.clear()
        log.info("step %d: %s, lr %.2e, %.1f views/s%s, ETA %s", step, shown, lr, speed, peaks, eta)
        self.bar.set_postfix_str(f"{shown}, {speed:.0f} views/s{peaks}")
        self.sums, self.num_added, self.since = {}, 0, now
        return {**figures, "lr": lr, "views_per_second": speed, **{f"{name}_gb": memory[name] for name in memory}}


def memory_gb() -> dict[str, float]:
    """Return the peak device memory in GB, of tensors and as reserved by the allocator; empty on a CPU."""
    if not torch.cuda.is_initialized():
        return {}
    peaks = {"peak_memory": torch.cuda.max_memory_allocated(), "peak_reserved": torch.cuda.max_memory_reserved()}
    return {name: value / 1e9 for name, value in peaks.items()}


class BadLoss(NamedTuple):
    """The place of the first NaN or infinite loss: step, number of the global batch, part of the step, process."""

    step: int
    number: int
    part: int
    rank: int

    def message(self, names: list[str], *, last_state: Path | None) -> str:
        """Return the error message with step, samples and remedy."""
        shown = ", ".join(names[:16]) + (f" and {len(names) - 16} more" if len(names) > 16 else "")
        way_on = (
            f"continue with resume={last_state} and another log_dir"
            if last_state
            else "start again; no state was saved"
        )
        return (
            f"the loss became NaN or infinite at step {self.step}, with the samples {shown}; check them, lower lr or "
            f"set precision=float32, and {way_on}"
        )


class LossWatch:
    """Stores the losses since the last check, so that training does not wait for the device in between."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.losses: list[Tensor] = []
        self.places: list[tuple[int, int, int]] = []

    def add(self, loss: Tensor, *, step: int, number: int, part: int) -> None:
        """Store the loss of one part of a step."""
        self.losses.append(loss.detach().float())
        self.places.append((step, number, part))

    def check(self) -> BadLoss | None:
        """Return the place of the first NaN or infinite loss on any process; all processes must call this together."""
        if not self.losses:
            return None
        losses_PN = self.accelerator.gather(torch.stack(self.losses)[None]).tolist()
        places, self.losses, self.places = self.places, [], []
        for number, place in enumerate(places):
            for rank, losses_N in enumerate(losses_PN):
                if not math.isfinite(losses_N[number]):
                    return BadLoss(*place, rank)
        return None
