"""Gradients averaged over all processes after the backward pass instead of by DDP, chosen by `use_ddp=false`.

DDP exchanges them while they come, hung on nodes of the backward pass, which a CUDA graph has not: under DDP every
kernel is started by itself. This exchange comes on top of the pass, but needs no memory beside the gradients.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, distributed, nn

from utils.errors import ConfigError
from utils.processes import num_processes
from utils.run_config import RunConfig

LARGE = 1 << 20  # elements; gradients with fewer travel together


def check_exchange(cfg: RunConfig) -> None:
    """Refuse `use_ddp=false` where processes may have gradients of other parameters.

    Raises:
        ConfigError: see above.
    """
    if cfg.is_joint and not cfg.use_ddp:
        raise ConfigError(
            f"use_ddp=false does not go with frame_lens={list(cfg.frame_lens)}: images leave layers over views out; "
            "set use_ddp=true"
        )


def exchanges_afterwards(cfg: RunConfig) -> bool:
    """Whether `average_gradients` is what makes several processes one."""
    return num_processes() > 1 and not (cfg.use_ddp or cfg.use_fsdp)


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace gradients by their means over all processes, in place; all have gradients of the same parameters."""
    gradients = [_as_stored(parameter.grad) for parameter in parameters if parameter.grad is not None]
    large = [gradient for gradient in gradients if len(gradient) >= LARGE]
    small = [gradient for gradient in gradients if len(gradient) < LARGE]
    waiting = [distributed.all_reduce(gradient, async_op=True) for gradient in large]
    if small:
        joined = torch.cat(small)
        distributed.all_reduce(joined)
        torch._foreach_copy_(small, list(joined.split([len(gradient) for gradient in small])))
    for one in waiting:
        one.wait()
    if gradients:
        torch._foreach_div_(gradients, num_processes())


def _as_stored(gradient: Tensor) -> Tensor:
    """The same memory as one row of numbers, in the order in which they lie there."""
    by_stride = sorted(range(gradient.dim()), key=gradient.stride, reverse=True)
    return gradient.permute(by_stride).view(-1)
