"""Softmax attention. All networks of the project compute it with this function.

Letters: B batch, L query tokens, S key tokens, N heads, D channels of a head.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from utils.errors import ConfigError

BACKENDS = ("sdpa", "xformers")


def check_backend(name: str) -> str:
    """Return `name` if this machine can run it.

    Raises:
        ConfigError: the name is unknown, or xformers cannot be imported.
    """
    if name not in BACKENDS:
        raise ConfigError(f"UNet.attention={name} is unknown; valid: {', '.join(BACKENDS)}")
    if name == "xformers":
        try:
            import xformers.ops  # noqa: F401
        except ImportError as err:
            raise ConfigError(f"UNet.attention=xformers: xformers cannot be loaded here ({err}); use sdpa") from err
    return name


def attention(q_BLND: Tensor, k_BSND: Tensor, v_BSND: Tensor, *, backend: str = "sdpa") -> Tensor:
    """Compute softmax attention.

    Args:
        q_BLND: queries, with any strides.
        k_BSND: keys.
        v_BSND: values.
        backend: "sdpa" (PyTorch) or "xformers".

    Returns:
        (B, L, N, D).
    """
    if backend == "xformers":
        import xformers.ops

        return xformers.ops.memory_efficient_attention(q_BLND, k_BSND, v_BSND)
    out = F.scaled_dot_product_attention(q_BLND.transpose(1, 2), k_BSND.transpose(1, 2), v_BSND.transpose(1, 2))
    return out.transpose(1, 2)
