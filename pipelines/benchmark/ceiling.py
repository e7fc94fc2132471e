"""The maximum speed of the device: large matrix products in each precision, and copies."""

from __future__ import annotations

from typing import Any

import torch

from pipelines.benchmark.case import Bench
from pipelines.benchmark.timing import median_ms
from utils.torch_settings import float32_products

CUDA_SIZE, CPU_SIZE = 8192, 1024
CUDA_COPY_BYTES, CPU_COPY_BYTES = 2**32, 2**28
WITH_TF32 = "float32 (TF32)"


def measure_ceiling(bench: Bench) -> list[dict[str, Any]]:
    """Measure TFLOP/s of square products, also for `bench.ceilings`, and GB/s (read and written) of a copy."""
    on_gpu = bench.device.type == "cuda"
    size = CUDA_SIZE if on_gpu else CPU_SIZE
    kinds = {"bfloat16": torch.bfloat16, "float32": torch.float32}
    if on_gpu:
        kinds |= {"float16": torch.float16, WITH_TF32: torch.float32}
    rows = []
    for name, dtype in kinds.items():
        with float32_products("high" if name == WITH_TF32 else "highest"):
            bench.ceilings[name] = _product_tflops(size, dtype, bench)
        rows.append({"what": f"matrix product of {size}, {name}", "tflops": bench.ceilings[name]})
    return [*rows, _copy(bench)]


def ceiling_for(bench: Bench, dtype: torch.dtype) -> float | None:
    """Return the ceiling of a precision, or None if it was not measured.

    For float32 it is that of TF32 if available, because the convolutions of cuDNN use TF32.
    """
    if not bench.ceilings:
        measure_ceiling(bench)
    name = str(dtype).removeprefix("torch.")
    return bench.ceilings.get(WITH_TF32 if name == "float32" else name, bench.ceilings.get(name))


def _product_tflops(size: int, dtype: torch.dtype, bench: Bench) -> float:
    a, b = (torch.randn(size, size, device=bench.device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    ms = median_ms(lambda: torch.mm(a, b, out=out), device=bench.device, repeats=3 * bench.repeats, budget_s=2)
    return 2 * size**3 / ms / 1e9


def _copy(bench: Bench) -> dict[str, Any]:
    num_bytes = CUDA_COPY_BYTES if bench.device.type == "cuda" else CPU_COPY_BYTES
    source = torch.ones(num_bytes, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    ms = median_ms(lambda: target.copy_(source), device=bench.device, repeats=3 * bench.repeats, budget_s=2)
    return {"what": f"copy of {num_bytes / 2**30:g} GiB", "gb_per_s": 2 * num_bytes / ms / 1e6}
