"""torch.compile by region: quick to start, and shared between blocks of one class and shape."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

# A UNet has about a dozen shapes of each block; PyTorch gives up after 8 unless told otherwise.
NUM_SHAPES = 64


def compile_parts(parts: Iterable[nn.Module], *, only_forward: bool = False) -> None:
    """Compile each module by itself, in place. Static shapes: a dynamic one has failed to compile in torch 2.10.

    Args:
        only_forward: leave the module's hooks out, those that FSDP adds later too.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, NUM_SHAPES)
    for part in parts:
        if only_forward:
            part.forward = torch.compile(part.forward, dynamic=False)
        else:
            part.compile(dynamic=False)
