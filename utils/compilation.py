"""torch.compile by region: quick to start, and shared between blocks of one class and shape."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

# A UNet has about a dozen shapes of each block; PyTorch gives up after 8 unless told otherwise.
NUM_SHAPES = 64


def compile_parts(parts: Iterable[nn.Module]) -> None:
    """Compile each module by itself, in place. Static shapes: a dynamic one has failed to compile in torch 2.10."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, NUM_SHAPES)
    for part in parts:
        part.compile(dynamic=False)
