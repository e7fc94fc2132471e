"""Chooses the implementation of the fused operations."""

from __future__ import annotations

import importlib.util
from types import ModuleType
from typing import Any

import torch

from models.fused.kernels import reference

KERNELS_SINCE = (8, 0)  # compute capability; older GPUs have no bfloat16, and Triton no longer supports all of them


def operations(device: torch.device, dtype: torch.dtype) -> ModuleType | Any:
    """The Triton kernels if `has_kernels` (with gradients enabled, those with a backward pass); else the reference."""
    if not has_kernels(device, dtype):
        return reference
    from models.fused.kernels import (
        autograd,
        triton_forward,
    )  # imported here, because Triton is missing on other machines

    return autograd if torch.is_grad_enabled() else triton_forward


def has_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the Triton kernels can run: half precision, a CUDA device that they were written for, and Triton."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return False
    if torch.cuda.get_device_capability(device) < KERNELS_SINCE:
        return False
    return importlib.util.find_spec("triton") is not None
