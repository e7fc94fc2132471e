"""Looks at the bytes of tensors: a fast checksum, whether values are finite, and a digest of a module's weights.

The first two read each byte once at several GB/s with NumPy, where torch's own functions need several passes.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# For each floating type: the integer type of its size, and the bits of its infinity. Larger bits are NaN.
BITS: dict[torch.dtype, tuple[str, int]] = {
    torch.float16: ("2", 0x7C00),
    torch.bfloat16: ("2", 0x7F80),
    torch.float32: ("4", 0x7F800000),
    torch.float64: ("8", 0x7FF0000000000000),
}
THREADS = 4
SMALL = 1 << 16  # bytes
CHUNK = 1 << 18  # bytes that stay in the cache between two looks


def checksum_of(tensors: Mapping[str, Any]) -> str:
    """Return a checksum of names and values; a single flipped bit always changes it.

    It is the sum of the 8-byte words of each tensor, times an odd number from its name, modulo 2**64. Values that are
    no tensors count as their text.
    """
    total = 0
    for name, value in tensors.items():
        content = _bytes_of(value) if isinstance(value, Tensor) else np.frombuffer(str(value).encode(), np.uint8)
        whole = len(content) // 8 * 8
        words = int(content[:whole].view(np.uint64).sum(dtype=np.uint64)) if whole else 0
        words += int.from_bytes(content[whole:].tobytes(), "little")
        total += words * (zlib.crc32(str(name).encode()) | 1)
    return f"{total % 2**64:016x}"


def digest_of(module: nn.Module, *, without: str | None = None) -> str:
    """Return the SHA-256 of a module's weights, equal on all devices; names starting with `without` are left out."""
    weights = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if without is None or not name.startswith(without):
            weights.update(name.encode())
            weights.update(value.detach().float().cpu().contiguous().numpy())
    return weights.hexdigest()


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor that has a NaN or infinite value, or None."""
    # Handing a tensor to a thread takes longer than a look at a small one.
    large = [name for name, value in tensors.items() if value.nbytes > SMALL]
    with ThreadPoolExecutor(THREADS) as pool:  # NumPy releases the interpreter
        looks = {name: pool.submit(_is_finite, tensors[name]) for name in large}
        finite = {name: _is_finite(value) for name, value in tensors.items() if name not in looks}
    finite |= {name: look.result() for name, look in looks.items()}
    return next((name for name in tensors if not finite[name]), None)


def _is_finite(value: Tensor) -> bool:
    if not value.is_floating_point() or not value.numel():
        return True
    if value.dtype not in BITS:
        return bool(value.float().isfinite().all())
    size, infinity = BITS[value.dtype]
    content = _bytes_of(value)
    for start in range(0, len(content), CHUNK):
        part = content[start : start + CHUNK]
        # As signed integers, positive values are ordered by their bits; as unsigned ones, negative values are.
        if part.view(f"i{size}").max() >= infinity:
            return False
        if part.view(f"u{size}").max() >= infinity + (1 << (8 * int(size) - 1)):
            return False
    return True


def _bytes_of(value: Tensor) -> np.ndarray:
    flat = value.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy()
