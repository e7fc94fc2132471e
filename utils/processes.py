"""The processes of a run that was started on several devices, as seen from one of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, distributed, nn

from utils.errors import DataError


def num_processes() -> int:
    """How many processes train together; 1 without a process group."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def process_rank() -> int:
    """The number of this process, from 0; 0 without a process group."""
    return distributed.get_rank() if num_processes() > 1 else 0


def is_main() -> bool:
    """Whether this process writes files and messages."""
    return process_rank() == 0


def on_one_machine() -> bool:
    """Whether all processes are known to run on one machine: their launcher says how many it started there."""
    return os.environ.get("LOCAL_WORLD_SIZE") == str(num_processes())


def wait_for_all() -> None:
    """Go on when all processes have come here."""
    if num_processes() > 1:
        distributed.barrier()


@torch.no_grad()
def take_from_main(network: nn.Module) -> None:
    """Give all processes the weights that the main one has. All of them call together."""
    if num_processes() == 1:
        return
    for tensor in (*network.parameters(), *network.buffers()):
        distributed.broadcast(tensor.data, src=0)


@contextmanager
def main_first() -> Iterator[None]:
    """The main process goes through the block before the others do.

    Raises:
        DataError: in the others, when the main process fails in it.
    """
    if not is_main() and any(largest(False)):
        raise DataError("the main process cannot begin, and says why")
    failed = True
    try:
        yield
        failed = False
    finally:
        if is_main():
            largest(failed)


def mean_over_processes(values: Tensor) -> Tensor:
    """The mean of a tensor that all processes have. All of them call together."""
    if num_processes() == 1:
        return values
    shared = values.clone()
    distributed.all_reduce(shared)
    return shared / num_processes()


def largest(*values: float) -> tuple[float, ...]:
    """The largest value of each over all processes. On the CPU, so that nothing waits for a GPU."""
    if num_processes() == 1:
        return values
    shared = torch.tensor(values, dtype=torch.float64)
    distributed.all_reduce(shared, op=distributed.ReduceOp.MAX)
    return tuple(shared.tolist())


def seen_by_all(path: str | Path) -> bool:
    """Whether a path is there for all processes, which may run on several machines. All of them call together."""
    return not any(largest(not Path(path).exists()))
