"""Gradients averaged over all processes after the backward pass instead of by DDP; pipelines/training/network_setup.py
says when.

DDP exchanges them while they come, hung on nodes of the backward pass, which a CUDA graph has not: under DDP every
kernel is started by itself. This exchange comes on top of the pass, but needs no memory beside the gradients.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, distributed, nn

from utils.errors import ConfigError
from utils.processes import num_processes
from utils.settings.run import RunConfig

BUCKET = 32 << 20  # elements that travel together, at least


def check_exchange(cfg: RunConfig) -> None:
    """Refuse `use_ddp=false` where processes may have gradients of other parameters.

    Raises:
        ConfigError: see above.
    """
    if cfg.is_joint and cfg.use_ddp is False:
        raise ConfigError(
            f"use_ddp=false does not go with frame_lens={list(cfg.frame_lens)}: images leave layers over views out; "
            "set use_ddp=null"
        )


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace gradients by their means over all processes, in place; all have gradients of the same parameters."""
    before = None
    for bucket in _buckets([_as_stored(parameter.grad) for parameter in parameters if parameter.grad is not None]):
        joined = torch.cat(bucket)
        work = distributed.all_reduce(joined, async_op=True)
        if before:  # is spread while this one travels
            _spread(*before)
        before = work, joined, bucket
    if before:
        _spread(*before)


def _buckets(gradients: list[Tensor]) -> Iterator[list[Tensor]]:
    bucket, size = [], 0
    for gradient in gradients:
        bucket.append(gradient)
        size += len(gradient)
        if size >= BUCKET:
            yield bucket
            bucket, size = [], 0
    if bucket:
        yield bucket


def _spread(work: distributed.Work, joined: Tensor, bucket: list[Tensor]) -> None:
    work.wait()
    joined /= num_processes()
    torch._foreach_copy_(bucket, list(joined.split([len(gradient) for gradient in bucket])))


def _as_stored(gradient: Tensor) -> Tensor:
    """The same memory as one row of numbers, in the order in which they lie there."""
    by_stride = sorted(range(gradient.dim()), key=gradient.stride, reverse=True)
    return gradient.permute(by_stride).view(-1)
