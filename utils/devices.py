"""The device and the precision of a run."""

from __future__ import annotations

import torch

from utils.errors import ConfigError
from utils.settings.run import RunConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: str) -> torch.device:
    """The device of a name; `auto` is CUDA if there is a GPU, else the CPU.

    This creates no CUDA context, which would waste GPU memory in a process that only starts others.

    Raises:
        ConfigError: the device does not exist here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type != "cuda":
            torch.empty(0, device=device)
        elif not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count():
            raise RuntimeError(f"there are {torch.cuda.device_count()} CUDA devices")
    except (RuntimeError, AssertionError) as err:
        raise ConfigError(f"device={name} is not available here; use auto or cpu") from err
    return device


def resting_place(cfg: RunConfig) -> torch.device:
    """The device of idle networks: that of the run, or with `low_memory` the CPU."""
    return torch.device("cpu") if cfg.low_memory else pick_device(cfg.device)


def pick_dtype(cfg: RunConfig) -> torch.dtype:
    """The dtype of `precision`; `auto` is bfloat16 on a GPU and float32 on a CPU."""
    if cfg.precision == "auto":
        return torch.bfloat16 if pick_device(cfg.device).type == "cuda" else torch.float32
    return DTYPES[cfg.precision]
