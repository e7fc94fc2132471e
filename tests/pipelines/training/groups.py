"""Trainings of several processes whose start takes no seconds: forked from one that has imported everything."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path
from typing import TextIO

from tests.conftest import ROOT

PATHS = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": PATHS}


def group_variables(num: int) -> list[dict[str, str]]:
    """What a launcher tells each process of a new group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": str(num), "LOCAL_WORLD_SIZE": str(num), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [group | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(num)]


def forked(file: Path, output: Path, **variables: str) -> multiprocessing.Process:
    """Start `train_net.py --cfg file`, at the head of a process group of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.pipelines.training.preloaded"])
    before = dict(os.environ)
    os.environ.update(ENVIRONMENT)  # of the process that they are forked from
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    process = context.Process(target=_train, args=(file, output, variables, multiprocessing.get_start_method()))
    process.start()
    return process


@contextmanager
def group(file: Path, *, num: int) -> Iterator[tuple[list[multiprocessing.Process], TextIO]]:
    """A training of several processes and what they print, line by line."""
    pipe = file.with_suffix(".pipe")
    pipe.unlink(missing_ok=True)
    os.mkfifo(pipe)
    processes = [forked(file, pipe, **variables) for variables in (group_variables(num) if num > 1 else [{}])]
    try:
        with pipe.open() as printed:
            yield processes, printed
    finally:
        for process in processes:
            process.kill()
            process.join()


@contextmanager
def training(file: Path) -> Iterator[tuple[multiprocessing.Process, TextIO]]:
    """A training of one process and what it prints, line by line."""
    with group(file, num=1) as ([process], printed):
        yield process, printed


def train_in_group(file: Path, *, num: int, exit_code: int = 0) -> str:
    """Train as a launcher's processes do, until all end with an exit code; what they print."""
    printed = file.with_suffix(".out")
    processes = [forked(file, printed, **variables) for variables in group_variables(num)]
    for process in processes:
        process.join()
    output = printed.read_text()
    assert [process.exitcode for process in processes] == [exit_code] * num, output
    return output


def _train(file: Path, output: Path, variables: dict[str, str], start_method: str) -> None:
    from train_net import main
    from utils.script import run_script

    multiprocessing.set_start_method(start_method, force=True)  # for workers; it is that of this process else
    os.setsid()
    with output.open("a") as printed:
        for number in (1, 2):
            os.dup2(printed.fileno(), number)
    # the streams before were files, which this may not be
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))
    os.environ.update(variables)
    os.chdir(file.parent)
    sys.argv = ["train_net.py", "--cfg", str(file)]
    run_script(main)
