"""Workers that read samples: they outlast signals that the training gets too, and never the training itself."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import Process
from typing import TextIO

import pytest

from datasets.base import TrainingData
from pipelines.training.data.reading import _leave_signals_to_training, num_cores, read_samples
from pipelines.training.state import latest
from tests.pipelines.training.groups import training
from tests.pipelines.training.test_processes import config_file
from tests.tiny_orbits import write_files, write_orbits

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@contextmanager
def running(folder) -> Iterator[tuple[Process, TextIO, list[int]]]:
    """A training after its second step, what it prints from there, and its workers."""
    write_orbits(folder / "orbits", copies=2)
    section = write_files(folder / "files")
    file = config_file(folder, "run", vid_dataset=section, num_workers=2, num_steps=10**6)
    with training(file) as (process, printed):
        for line in printed:
            if line.startswith("step 2:"):
                break
        yield process, printed, [pid for pid in group_of(process.pid) if pid != process.pid]


def group_of(leader: int) -> list[int]:
    """Processes of a group that have not ended."""
    found = []
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and os.getpgid(int(entry)) == leader:
                with open(f"/proc/{entry}/stat") as file:
                    found += [int(entry)] if file.read().rpartition(")")[2].split()[0] != "Z" else []
        except OSError:  # it has just ended
            continue
    return found


def wait_for_end(leader: int, *, seconds: float = 20) -> list[int]:
    """Who is left of a group after a while: workers look every five seconds whether the training is there."""
    end = time.monotonic() + seconds
    while (left := group_of(leader)) and time.monotonic() < end:
        time.sleep(0.1)
    return left


@pytest.mark.slow
def test_a_signal_to_the_whole_group_saves_and_leaves(tmp_path):
    with running(tmp_path) as (process, printed, workers):
        assert len(workers) == min(2, num_cores())
        os.killpg(process.pid, signal.SIGTERM)
        rest = printed.read()
        process.join()
    assert process.exitcode == 0, rest
    step = int(re.search(r"stopped at step (\d+)", rest)[1])
    assert latest(tmp_path / "run" / "state").name == f"step_{step:08d}"
    assert wait_for_end(process.pid) == []


def test_workers_do_not_outlive_a_training_that_is_killed(tmp_path):
    with running(tmp_path) as (process, _, workers):
        assert len(workers) == min(2, num_cores())
        process.kill()
        assert wait_for_end(process.pid) == []


def test_the_training_may_still_end_a_worker():
    """As multiprocessing does with those that are left when the interpreter ends."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()

    def work():
        _leave_signals_to_training(0)
        ready.set()
        time.sleep(60)

    worker = context.Process(target=work)
    worker.start()
    try:
        assert ready.wait(60)
        worker.terminate()
        worker.join(10)
        assert worker.exitcode == 0
    finally:
        worker.kill()
        worker.join()


class Empty(TrainingData):
    """Four samples without content."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return {}


def test_there_are_no_more_workers_than_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0})
    options = {"replace": False, "max_bad": 0, "tool": "", "prefetch_factor": 2, "pin_memory": False}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PyTorch's, about too many
        batches = list(read_samples(Empty(), [[0], [1], [2], [3]], num_workers=8, **options))
    assert [batch["index"].item() for batch in batches] == [0, 1, 2, 3]
