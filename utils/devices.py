"""The device, the precision and the memory of a run."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import torch

from utils.errors import ConfigError
from utils.settings.run import RunConfig

BFLOAT16_SINCE = (8, 0)  # compute capability; V100 has 7.0, T4 and RTX 20 have 7.5, A100 has 8.0
# With these instructions of a CPU a step of the small text model took 772 ms in bfloat16 and 1,034 in float32 (two
# cores). Without them PyTorch converts every value, and bfloat16 is slower: see pipelines/benchmark/README.md.
BFLOAT16_INSTRUCTIONS = ("amx_bf16",)
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
    """The dtype of `precision` in sampling.

    `auto` is `fast_dtype` of the device, but bfloat16 on a CPU with `BFLOAT16_INSTRUCTIONS`.
    """
    if cfg.precision != "auto":
        return DTYPES[cfg.precision]
    device = pick_device(cfg.device)
    if device.type == "cpu" and any(name in cpu_instructions() for name in BFLOAT16_INSTRUCTIONS):
        return torch.bfloat16
    return fast_dtype(device)


@functools.cache
def cpu_instructions() -> frozenset[str]:
    """The instruction sets of the CPU, as Linux names them; empty on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return frozenset()
    flags = next((line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))), "")
    return frozenset(flags.split())


def fast_dtype(device: torch.device) -> torch.dtype:
    """The half precision that a GPU computes in hardware: bfloat16, float16 on older ones. A CPU has float32."""
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= BFLOAT16_SINCE else torch.float16


def free_memory() -> int | None:
    """Bytes that this process can still use: of the machine, its container and its own limit. None if unknown."""
    found = [_free_in_machine(), _free_in_container(), _free_in_limit()]
    return min((one for one in found if one is not None), default=None)


def _free_in_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        values = {name: 1024 * int(rest.split()[0]) for name, rest in (line.split(":") for line in lines)}
        return values["MemAvailable"] + values["SwapFree"]
    except (OSError, KeyError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # all of it; what is free is not known here
    except (AttributeError, OSError, ValueError):
        return None


def _free_in_container() -> int | None:
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            return int(Path(limit).read_text(encoding="ascii")) - int(Path(used).read_text(encoding="ascii"))
        except (OSError, ValueError):  # ValueError: "max"
            continue
    return None


def _free_in_limit() -> int | None:
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    except (ImportError, OSError, ValueError, IndexError):
        return None
    return None if limit == resource.RLIM_INFINITY else limit - used


def peak_memory(device: torch.device) -> int:
    """Return the largest memory of the process in bytes, on a GPU that of the GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on every system

    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
