"""Measure time and memory of calls on one device, with CUDA events or the clock of the CPU."""

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
    """Time marks in the work of a device, and the intervals between them.

    On a GPU a mark is an event in its queue, which needs no time and does not wait.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self._marks = device, []

    def mark(self) -> None:
        """Add a mark, in the order of the device's work."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self.device))
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def intervals_ms(self) -> list[float]:
        """Return the milliseconds between consecutive marks; this waits for the last mark."""
        synchronize(self.device)
        pairs = itertools.pairwise(self._marks)
        if self.device.type == "cuda":
            return [first.elapsed_time(second) for first, second in pairs]
        return [1000 * (second - first) for first, second in pairs]


def median_ms(call: Callable[[], object], *, device: torch.device, repeats: int = 10, budget_s: float = 10.0) -> float:
    """Measure the median time of a call, after up to three warm-up calls.

    Args:
        call: the function to measure.
        repeats: number of measured calls.
        budget_s: stop after this time, but not before three calls if `repeats` allows them.
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
    """Reset the peak of the memory; returns the memory in use in GiB, or None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device) / GIB


def peak_gib(device: torch.device) -> float | None:
    """Return the peak memory of tensors since `reset_peak` in GiB, or None on a CPU."""
    return torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else None


def free_memory(device: torch.device) -> None:
    """Free unused memory."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
