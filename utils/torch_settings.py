"""Settings of PyTorch that decide speed: compilation, memory layout, precision of products.

torch.compile works by region: it starts quickly, and blocks of one class and shape share what was compiled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

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


FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
Module = TypeVar("Module", bound=nn.Module)


def channels_last(module: Module) -> Module:
    """Lay out convolution weights channels last, in place; names, shapes and values stay.

    A convolution whose weights are not laid out like its input converts them at every call: on an H200 these
    conversions took 10 of the 82 ms of a full-size bfloat16 step.
    """
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() in FORMATS:
                parameter.data = parameter.data.contiguous(memory_format=FORMATS[parameter.dim()])
    return module


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """Within the block: `highest` is full float32, `high` may use TensorFloat-32 on a GPU."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
