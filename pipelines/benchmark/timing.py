"""Time and memory of calls on one device: CUDA events there, the clock on a CPU; medians after a warm-up."""

from __future__ import annotations

import gc
import itertools
import statistics
import time
from collections.abc import Callable

import torch

from utils.stopwatch import synchronize

GIB = 2**30
MIN_REPEATS = 3


class Marks:
    """Moments in the work of a device, and the times between them.

    On a GPU a mark is an event in its queue: it takes no time and waits for nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self._marks = device, []

    def mark(self) -> None:
        """Now, in the order of the device's work."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self.device))
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def intervals_ms(self) -> list[float]:
        """Milliseconds between marks that follow each other; waits for the last."""
        synchronize(self.device)
        pairs = itertools.pairwise(self._marks)
        if self.device.type == "cuda":
            return [first.elapsed_time(second) for first, second in pairs]
        return [1000 * (second - first) for first, second in pairs]


def median_ms(call: Callable[[], object], *, device: torch.device, repeats: int = 10, budget_s: float = 10.0) -> float:
    """Median time of a call, after up to three that do not count.

    Args:
        call: what is measured.
        repeats: calls that count.
        budget_s: after that time fewer do, but at least three if `repeats` allows it.
    """
    for _ in range(min(MIN_REPEATS, repeats)):
        call()
    started, marks = time.perf_counter(), Marks(device)
    marks.mark()
    for number in range(1, repeats + 1):
        call()
        marks.mark()
        if number >= MIN_REPEATS and time.perf_counter() - started > budget_s:
            break
    return statistics.median(marks.intervals_ms())


def reset_peak(device: torch.device) -> float | None:
    """Begin to watch memory anew; what is held now, in GiB, on a GPU."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device) / GIB


def peak_gib(device: torch.device) -> float | None:
    """The most memory that tensors took since `reset_peak`, in GiB; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else None


def free_memory(device: torch.device) -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
