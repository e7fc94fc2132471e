"""Reads and writes weight files. No other module does.

Published files are pickles (`.pth`, `.bin`); only tensors are read from them, and code in them is never run. Our own
files are safetensors. A file must match the network exactly; otherwise nothing is loaded, and the error is one line.
"""

from __future__ import annotations

import logging
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from utils.errors import DataError, first_line
from utils.files import atomic_path

log = logging.getLogger(__name__)

Module = TypeVar("Module", bound=nn.Module)

HEAD_PREFIX = "lgm_big."
STARTS = (b"PK", b"\x80")  # of files of torch.save: an archive, or in old versions a pickle
SLICE_NAME = re.compile(r"(ema_\d+_rank)(\d+)\.pth")
WHERE_FROM = (
    "the authors of VideoMV (arXiv:2403.12010) link the published weights from their project page; {config} needs none"
)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Contents of a weight file.

    Attributes:
        state: tensors by parameter name, on the CPU.
        head: tensors of a Gaussian head in the same file, without their prefix; empty if there is none.
        step: training step at which the file was written; None if neither content nor name has it.
    """

    state: dict[str, Tensor]
    head: dict[str, Tensor]
    step: int | None


def read_weights(path: str | Path, *, option: str) -> Weights:
    """Read a `.pth`, `.bin` or `.safetensors` file.

    Args:
        path: the file; for a moving average in slices (`ema_XXXXXXXX_rankXXXX.pth`), any one of them.
        option: the setting that names the file, for the error message.

    Raises:
        DataError: the file is missing or truncated, contains code or no tensors; or slices are missing or overlap.
    """
    path = Path(path)
    content, step = _read_content(path, option=option)
    for other in _other_slices(path, option=option):
        part, _ = _read_content(other, option=option)
        twice = sorted(content.keys() & part.keys())
        if twice:
            raise DataError(
                f"{option}={path}: {len(twice)} keys of {other.name} are also in another slice (first: "
                f"{twice[0]}); keep only slices of one training in the folder"
            )
        content |= part
    head = {key.removeprefix(HEAD_PREFIX): value for key, value in content.items() if key.startswith(HEAD_PREFIX)}
    state = {key: value for key, value in content.items() if not key.startswith(HEAD_PREFIX)}
    return Weights(state=state, head=head, step=step if step is not None else step_from_name(path))


def check_files(paths: Mapping[str, str | None], *, config: str) -> None:
    """Check that weight files exist, without reading them; one error message lists all that are missing.

    Args:
        paths: from the setting to the file that it names; None and "" are ignored.
        config: a configuration that needs no published weights, for the error message.

    Raises:
        DataError: a file is missing or is not a file.
    """
    named = {option: Path(path) for option, path in paths.items() if path}
    missing = [f"{option}={path}" for option, path in named.items() if not path.exists()]
    if missing:
        files = "file" if len(missing) == 1 else "files"
        raise DataError(f"{', '.join(missing)}: no such {files}; {WHERE_FROM.format(config=config)}")
    for option, path in named.items():
        _check_file(path, option=option)


def _read_content(path: Path, *, option: str) -> tuple[dict[str, Tensor], int | None]:
    """Tensors by name, and the step if the file has one."""
    _check_file(path, option=option)
    if path.suffix == ".safetensors":
        content, step = _read_safetensors(path, option=option)
    else:
        content, step = _split_step(_read_pickle(path, option=option))
    if not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise DataError(f"{option}={path} contains no state dict of tensors; use a file in the published layout")
    return content, step


def _other_slices(path: Path, *, option: str) -> list[Path]:
    """The other slices of a slice: in the original each process wrote a part of the keys."""
    own = SLICE_NAME.fullmatch(path.name)
    if not own:
        return []
    names = (SLICE_NAME.fullmatch(file.name) for file in path.parent.iterdir())
    slices = {int(name[2]): path.with_name(name[0]) for name in names if name and name[1] == own[1]}
    missing = sorted(set(range(max(slices))) - slices.keys())
    if missing:
        raise DataError(
            f"{option}={path} is a slice of a moving average, but the slice of rank {missing[0]} is not in its folder "
            f"({len(missing)} missing); put the slices of all processes into one folder"
        )
    return [file for rank, file in sorted(slices.items()) if rank != int(own[2])]


def load_strict(
    module: nn.Module, path: str | Path, *, option: str, prefix: str = "", new_parts: Sequence[str] = ()
) -> int | None:
    """Load a complete file into a module.

    Args:
        option: the setting that names the file, for the error message.
        prefix: if keys of the file begin with it, only these are used, without the prefix.
        new_parts: members of the module that may be missing in the file; then they keep their values.

    Returns:
        The step of the file, if it is known.

    Raises:
        DataError: the file cannot be read, or its names or shapes differ from those of the module.
    """
    weights = read_weights(path, option=option)
    state = weights.state
    if prefix and any(key.startswith(prefix) for key in state):
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    for part in new_parts:
        if not any(key.startswith(f"{part}.") for key in state):
            fresh = {key: value for key, value in module.state_dict().items() if key.startswith(f"{part}.")}
            if fresh:
                log.info("%s is not in %s, so it starts untrained", part, path)
            state = {**state, **fresh}
    load_state(module, state, source=f"{option}={path}")
    return weights.step


def load_head(module: nn.Module, path: str | Path, *, option: str) -> int | None:
    """Load the Gaussian head from its own file, or from a generator file that contains it under HEAD_PREFIX.

    Returns:
        The step of the file, if it is known.

    Raises:
        DataError: as in `load_strict`; or a generator file contains no head.
    """
    weights = read_weights(path, option=option)
    if not weights.head and not any(key.startswith("conv.") for key in weights.state):
        raise DataError(
            f"{option}={path} contains no Gaussian head (no {HEAD_PREFIX}*); name its own file, model.safetensors"
        )
    load_state(module, weights.head or weights.state, source=f"{option}={path}")
    return weights.step


def load_state(module: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Load tensors into a module after comparing every name and shape.

    A module on the meta device keeps the tensors themselves, in its own precision. Tensors of a file are read when they
    are used; copying 10 GB of them first would double the time of a start. `placed` moves them to their device.

    Args:
        source: origin of the tensors, for the error message.

    Raises:
        DataError: keys are missing, unexpected or of another shape; the message has their number and the first.
    """
    own = module.state_dict()
    check_tensors(state, own, source=source, owner=type(module).__name__)
    on_meta = any(value.is_meta for value in own.values())
    if on_meta:
        state = {key: value.to(own[key].dtype) for key, value in state.items()}
    module.load_state_dict(dict(state), strict=True, assign=on_meta)


def placed(module: Module, device: torch.device, dtype: torch.dtype | None = None) -> Module:
    """Move a module to a device, in place, tensor by tensor, out of the mapped memory of a file.

    Args:
        dtype: new dtype of floating-point tensors; None keeps their dtype.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        floating = tensor.is_floating_point()
        tensor.data = tensor.data.to(device, dtype if floating and dtype else tensor.dtype, copy=True)
    return module


def check_tensors(state: Mapping[str, Tensor], own: Mapping[str, Tensor], *, source: str, owner: str) -> None:
    """Compare names and shapes.

    Args:
        own: tensors of the module.
        source, owner: names of file and module in error messages.

    Raises:
        DataError: as in `load_state`.
    """
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    misshapen = [key for key in own if key in state and own[key].shape != state[key].shape]
    found = []
    if missing:
        found.append(f"{len(missing)} missing (first: {missing[0]})")
    if unexpected:
        found.append(f"{len(unexpected)} unexpected (first: {unexpected[0]})")
    if misshapen:
        key = misshapen[0]
        sizes = f"{list(state[key].shape)} in the file, {list(own[key].shape)} in the model"
        found.append(f"{len(misshapen)} misshapen (first: {key}, {sizes})")
    if found:
        remedy = "use the configuration that the weights were trained with"
        raise DataError(f"{source} does not fit {owner}: {'; '.join(found)}; {remedy}")


def step_from_name(path: str | Path) -> int | None:
    """The last `_`-separated number of a file name: 333000 for `t2v_00333000.pth`."""
    numbers = re.findall(r"_(\d+)(?=_|$)", Path(path).stem)
    return int(numbers[-1]) if numbers else None


def save_published(path: str | Path, state: Mapping[str, Tensor], step: int) -> None:
    """Write `{"state_dict", "step"}` as published, completely or not at all."""
    content = {"state_dict": {key: value.detach().cpu() for key, value in state.items()}, "step": int(step)}
    with atomic_path(path) as part:
        torch.save(content, part)


def save_safetensors(
    path: str | Path,
    state: Mapping[str, Tensor],
    *,
    metadata: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write tensors as safetensors, floating ones as `dtype`, completely or not at all.

    Args:
        metadata: stored in the header of the file as strings; `step` is read back by `read_weights`.
    """
    tensors = {
        key: value.detach().to("cpu", dtype if value.is_floating_point() else value.dtype).clone().contiguous()
        for key, value in state.items()
    }
    with atomic_path(path) as part:
        save_file(tensors, part, metadata={key: str(value) for key, value in (metadata or {}).items()})


def read_metadata(path: str | Path, *, option: str) -> dict[str, str]:
    """The strings in the header of a safetensors file.

    Raises:
        DataError: the file is missing or is not a safetensors file.
    """
    _check_file(Path(path), option=option)
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as err:
        raise DataError(f"{option}={path} is not a readable safetensors file ({err}); download it again") from err


def _check_file(path: Path, *, option: str) -> None:
    """Check that a path is a file that is not empty."""
    if path.is_dir():
        raise DataError(f"{option}={path} is a folder; name a weight file in it")
    if not path.is_file():
        raise DataError(f"{option}={path}: no such file; {WHERE_FROM.format(config='configs/mini/t2v_infer.yaml')}")
    if not path.stat().st_size:
        raise DataError(f"{option}={path} is empty (zero bytes); download it again")


def _read_safetensors(path: Path, *, option: str) -> tuple[dict[str, Tensor], int | None]:
    step = read_metadata(path, option=option).get("step")
    try:
        return load_file(path), int(step) if step is not None else None
    except (SafetensorError, OSError, ValueError) as err:
        raise DataError(f"{option}={path} is not a readable safetensors file ({err}); download it again") from err


def _read_pickle(path: Path, *, option: str) -> Any:
    with path.open("rb") as file:
        start = file.read(16)
    if not start.startswith(STARTS):
        raise DataError(f"{option}={path} is not a weight file (it begins with {start!r}); download it again")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as err:
        raise DataError(
            f"{option}={path} is not loaded, because its pickle contains more than tensors and could run code; "
            "use a file that contains only a state dict"
        ) from err
    except (RuntimeError, EOFError, OSError, KeyError, ValueError) as err:
        raise DataError(f"{option}={path} cannot be read ({first_line(err)}); download it again") from err


def _split_step(content: Any) -> tuple[dict[str, Any], int | None]:
    """Split `{"state_dict", "step"}`; a bare state dict has no step."""
    if not isinstance(content, Mapping):
        return {}, None
    if not isinstance(content.get("state_dict"), Mapping):
        return dict(content), None
    step = content.get("step")
    return dict(content["state_dict"]), int(step) if isinstance(step, int | float) else None
