"""Read samples from single files in worker processes; broken samples are skipped, counted and named."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from datasets.base import TrainingData
from utils.errors import DataError

log = logging.getLogger(__name__)

# With this number of consecutive broken samples, the whole folder is considered broken.
MAX_TRIES = 100


# Parts of a sample that no training reads. They would be 27 % of the bytes that travel from a worker.
UNREAD = ("masks_V1HW", "first_frame_CHW")


class WholeSamples(Dataset):
    """The samples of a data set, or the problems of broken ones.

    Args:
        replace: replace a broken sample with the next good one, so that all batches have the same size; if false, the
            sample is left out.
    """

    def __init__(self, dataset: TrainingData, *, replace: bool) -> None:
        self.dataset, self.replace = dataset, replace

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[dict[str, Any] | None, list[str]]:
        """Return the sample with its `index`, and one line for each broken sample that was found."""
        problems: list[str] = []
        for _ in range(min(MAX_TRIES, len(self)) if self.replace else 1):
            try:
                sample = {name: value for name, value in self.dataset[index].items() if name not in UNREAD}
                return {**sample, "index": index}, problems + self.dataset.take_problems()
            except DataError as err:
                problems.append(str(err))
            index = self.dataset.instead_of(index)
        return None, problems + self.dataset.take_problems()


class BadSamples:
    """Logs each broken sample once, and raises an error when there are too many.

    Args:
        limit: maximum number of skipped samples.
        tool: a command that finds all broken samples before training.
    """

    def __init__(self, *, limit: int, tool: str) -> None:
        self.limit, self.tool = limit, tool
        self.seen: set[str] = set()

    def note(self, problems: Iterable[str]) -> None:
        """Log and count new problems.

        Raises:
            DataError: there are more than `limit`.
        """
        for problem in problems:
            if problem in self.seen:
                continue
            self.seen.add(problem)
            if len(self.seen) > self.limit:
                raise DataError(
                    f"{problem} (broken sample {len(self.seen)}, max_bad_samples={self.limit}); find all of them with "
                    f"{self.tool}, or raise max_bad_samples"
                )
            log.warning("skipped broken sample %d (max_bad_samples=%d): %s", len(self.seen), self.limit, problem)


def read_samples(
    dataset: TrainingData,
    order: Iterable[list[int]],
    *,
    replace: bool,
    max_bad: int,
    tool: str,
    num_workers: int,
    prefetch_factor: int,
    pin_memory: bool,
) -> Iterator[dict[str, Any]]:
    """Yield batches of samples in a given order; for `replace` see WholeSamples, for `tool` see BadSamples.

    Args:
        num_workers: maximum number of workers; there are never more than cores.

    Raises:
        DataError: more than `max_bad` samples are broken, or no good sample is found.
    """
    bad = BadSamples(limit=max_bad, tool=tool)
    num_workers = min(num_workers, num_cores())
    loader = DataLoader(
        WholeSamples(dataset, replace=replace),
        batch_sampler=order,
        collate_fn=_collate,
        num_workers=num_workers,
        prefetch_factor=prefetch_factor if num_workers else None,
        pin_memory=pin_memory,
        worker_init_fn=_leave_signals_to_training,
        # Without its own generator, the first batch after every start would draw from the one of dropout.
        generator=torch.Generator(),
    )
    for batch, problems, num_missing in loader:
        bad.note(problems)
        if replace and num_missing:
            tries = min(MAX_TRIES, len(dataset))
            raise DataError(f"{problems[-1]} ({tries} broken samples in a row); check with {tool}")
        if batch is not None:
            yield batch


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux only
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _collate(samples: list[tuple[dict[str, Any] | None, list[str]]]) -> tuple[Any, list[str], int]:
    whole = [sample for sample, _ in samples if sample is not None]
    problems = [problem for _, found in samples for problem in found]
    return default_collate(whole) if whole else None, problems, len(samples) - len(whole)


def _leave_signals_to_training(_worker: int) -> None:
    """Ignore Ctrl-C and SIGTERM (of `timeout`, systemd or Slurm) in workers; training decides when they end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # macOS lacks it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_by_training, daemon=True).start()


def _end_by_training() -> None:
    """Accept SIGTERM only from the training process, which uses it for workers that do not end otherwise."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
