"""Functions for runs with several processes. Each one also works in a run with a single process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, distributed, nn

from utils.errors import DataError


def num_processes() -> int:
    """Number of processes in the group; 1 without a process group."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def process_rank() -> int:
    """Index of this process, from 0; 0 without a process group."""
    return distributed.get_rank() if num_processes() > 1 else 0


def is_main() -> bool:
    """Whether this process writes files and messages."""
    return process_rank() == 0


def on_one_machine() -> bool:
    """Whether all processes run on one machine. The launcher sets the number that it started there."""
    return os.environ.get("LOCAL_WORLD_SIZE") == str(num_processes())


def wait_for_all() -> None:
    """Wait until all processes have called this."""
    if num_processes() > 1:
        distributed.barrier()


@torch.no_grad()
def take_from_main(network: nn.Module) -> None:
    """Copy the weights of the main process to all others. All processes must call this."""
    if num_processes() == 1:
        return
    for tensor in (*network.parameters(), *network.buffers()):
        distributed.broadcast(tensor.data, src=0)


@contextmanager
def main_first() -> Iterator[None]:
    """Run the block in the main process first, then in the others.

    Raises:
        DataError: raised in the others if the main process fails in the block.
    """
    if not is_main() and any(largest(False)):
        raise DataError("the main process failed; see its error message")
    failed = True
    try:
        yield
        failed = False
    finally:
        if is_main():
            largest(failed)


def mean_over_processes(values: Tensor) -> Tensor:
    """Mean of a tensor over all processes. All processes must call this."""
    if num_processes() == 1:
        return values
    shared = values.clone()
    distributed.all_reduce(shared)
    return shared / num_processes()


def largest(*values: float) -> tuple[float, ...]:
    """The largest value of each argument over all processes. On the CPU, so that nothing waits for a GPU."""
    if num_processes() == 1:
        return values
    shared = torch.tensor(values, dtype=torch.float64)
    distributed.all_reduce(shared, op=distributed.ReduceOp.MAX)
    return tuple(shared.tolist())


def seen_by_all(path: str | Path) -> bool:
    """Whether a path exists for all processes, also on several machines. All processes must call this."""
    return not any(largest(not Path(path).exists()))
