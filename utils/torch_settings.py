"""Settings of PyTorch that affect speed: compilation, memory layout, precision of matrix products.

Each repeated block is compiled separately: this is fast, and blocks of the same class and shape share the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

# A UNet has about a dozen shapes of each block; by default PyTorch stops compiling after 8.
NUM_SHAPES = 64


def compile_parts(parts: Iterable[nn.Module], *, only_forward: bool = False) -> None:
    """Compile each module separately, in place, with static shapes: dynamic ones failed to compile in torch 2.10.

    Args:
        only_forward: compile without the hooks of the module, such as those that FSDP adds later.
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
    """Store convolution weights channels last, in place; names, shapes and values do not change.

    A convolution converts its weights at every call if their layout differs from that of its input. On an H200 these
    conversions took 10 of the 82 ms of a full-size bfloat16 step.
    """
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() in FORMATS:
                parameter.data = parameter.data.contiguous(memory_format=FORMATS[parameter.dim()])
    return module


class GroupNorm(nn.GroupNorm):
    """A group norm that is also fast on a CPU where groups are narrow and images are channels_last.

    For such images, PyTorch 2.10 normalises groups of fewer than 8 channels one pixel at a time: (6, 64, 16, 16) takes
    1.9 ms instead of 0.2 ms on one core. Forward passes do so below 1,024 pixels, backward passes at any size.
    """

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if not self._slow(x_BCHW):
            return super().forward(x_BCHW)
        return super().forward(x_BCHW.contiguous()).contiguous(memory_format=torch.channels_last)

    def _slow(self, x_BCHW: Tensor) -> bool:
        narrow = x_BCHW.device.type == "cpu" and self.num_channels < 8 * self.num_groups
        if not narrow or x_BCHW.dim() != 4 or x_BCHW.is_contiguous():
            return False
        return x_BCHW[0, 0].numel() < 1024 or (torch.is_grad_enabled() and x_BCHW.requires_grad)


def replace_group_norms(module: Module) -> Module:
    """Make the group norms of another library ours, in place; names and values do not change."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.GroupNorm:
                norm = GroupNorm(child.num_groups, child.num_channels, eps=child.eps, device="meta")
                norm.weight, norm.bias = child.weight, child.bias
                setattr(parent, name, norm)
    return module


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """Precision of float32 products in the block: `highest` is float32, `high` allows TensorFloat-32 on a GPU."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
