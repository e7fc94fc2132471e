"""The only place that reads or writes weight files.

Published files are pickles (`.pth`, `.bin`): only tensors are taken from them, no code is ever run. Our own files are
safetensors. Whatever the format, a file loads whole and strictly or not at all, and says in one line why.
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
STARTS = (b"PK", b"\x80")  # of what torch.save writes: an archive, long ago a pickle
SLICE_NAME = re.compile(r"(ema_\d+_rank)(\d+)\.pth")
WHERE_FROM = (
    "the authors of VideoMV (arXiv:2403.12010) link the published weights from their project page; {config} needs none"
)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What a weight file holds.

    Attributes:
        state: tensors by parameter name, on the CPU.
        head: those of the Gaussian head that was tuned along, without their prefix; empty when there is none.
        step: the training step at which the file was written; None when neither content nor name says so.
    """

    state: dict[str, Tensor]
    head: dict[str, Tensor]
    step: int | None


def read_weights(path: str | Path, *, option: str) -> Weights:
    """Read a `.pth`, `.bin` or `.safetensors` file.

    Args:
        path: the file; of a moving average that the original wrote in slices, `ema_XXXXXXXX_rankXXXX.pth`, any one.
        option: the setting that named it, for the error message.

    Raises:
        DataError: the file is missing, cut off, carries code, or holds something else than tensors; or slices are
            missing or overlap.
    """
    path = Path(path)
    content, step = _read_content(path, option=option)
    for other in _other_slices(path, option=option):
        part, _ = _read_content(other, option=option)
        twice = sorted(content.keys() & part.keys())
        if twice:
            raise DataError(
                f"{option}={path}: {len(twice)} keys of {other.name} are in another of its slices too (first: "
                f"{twice[0]}); leave only slices of one training in the folder"
            )
        content |= part
    head = {key.removeprefix(HEAD_PREFIX): value for key, value in content.items() if key.startswith(HEAD_PREFIX)}
    state = {key: value for key, value in content.items() if not key.startswith(HEAD_PREFIX)}
    return Weights(state=state, head=head, step=step if step is not None else step_from_name(path))


def check_files(paths: Mapping[str, str | None], *, config: str) -> None:
    """Refuse weight files that are not there, all of them in one line, or no files; none is read.

    Args:
        paths: by the setting that names each; None and "" are left out.
        config: a configuration that needs no published weights, for the error message.

    Raises:
        DataError: see above.
    """
    named = {option: Path(path) for option, path in paths.items() if path}
    missing = [f"{option}={path}" for option, path in named.items() if not path.exists()]
    if missing:
        files = "file" if len(missing) == 1 else "files"
        raise DataError(f"{', '.join(missing)}: no such {files}; {WHERE_FROM.format(config=config)}")
    for option, path in named.items():
        _check_file(path, option=option)


def _read_content(path: Path, *, option: str) -> tuple[dict[str, Tensor], int | None]:
    """Tensors by name, and the step if the file says it."""
    _check_file(path, option=option)
    if path.suffix == ".safetensors":
        content, step = _read_safetensors(path, option=option)
    else:
        content, step = _split_step(_read_pickle(path, option=option))
    if not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise DataError(f"{option}={path} holds no state dict of tensors; expected a file of the published layout")
    return content, step


def _other_slices(path: Path, *, option: str) -> list[Path]:
    """The files beside a slice that make it whole: in the original each process wrote its share of the keys."""
    own = SLICE_NAME.fullmatch(path.name)
    if not own:
        return []
    names = (SLICE_NAME.fullmatch(file.name) for file in path.parent.iterdir())
    slices = {int(name[2]): path.with_name(name[0]) for name in names if name and name[1] == own[1]}
    missing = sorted(set(range(max(slices))) - slices.keys())
    if missing:
        raise DataError(
            f"{option}={path} is a slice of a moving average, and the one of rank {missing[0]} is not beside it "
            f"({len(missing)} missing); put the slices of all processes into one folder"
        )
    return [file for rank, file in sorted(slices.items()) if rank != int(own[2])]


def load_strict(
    module: nn.Module, path: str | Path, *, option: str, prefix: str = "", new_parts: Sequence[str] = ()
) -> int | None:
    """Load a whole file into a module.

    Args:
        option: the setting that named the file.
        prefix: when keys of the file begin so, only these are taken, without the prefix.
        new_parts: members of the module that the file may lack altogether; they keep their values then.

    Returns:
        The step of the file, if it is known.

    Raises:
        DataError: the file cannot be read, or its names or shapes are not exactly the module's.
    """
    weights = read_weights(path, option=option)
    state = weights.state
    if prefix and any(key.startswith(prefix) for key in state):
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    for part in new_parts:
        if not any(key.startswith(f"{part}.") for key in state):
            fresh = {key: value for key, value in module.state_dict().items() if key.startswith(f"{part}.")}
            if fresh:
                log.info("%s is not in %s and starts fresh", part, path)
            state = {**state, **fresh}
    load_state(module, state, source=f"{option}={path}")
    return weights.step


def load_head(module: nn.Module, path: str | Path, *, option: str) -> int | None:
    """Load the Gaussian head from its own file, or from one of a generator that holds it under HEAD_PREFIX.

    Returns:
        The step of the file, if it is known.

    Raises:
        DataError: see `load_strict`; or a generator's file holds no head.
    """
    weights = read_weights(path, option=option)
    if not weights.head and not any(key.startswith("conv.") for key in weights.state):
        raise DataError(
            f"{option}={path} holds no Gaussian head (no {HEAD_PREFIX}*); name its own file, model.safetensors"
        )
    load_state(module, weights.head or weights.state, source=f"{option}={path}")
    return weights.step


def load_state(module: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Load tensors into a module after comparing every name and shape.

    A module on the meta device takes the tensors themselves, in its own precision: those of a file are read when they
    are used, and copying 10 GB of them first would double the time of a start. `placed` brings them to where they work.

    Args:
        source: where the tensors come from, as the error message should call it.

    Raises:
        DataError: one line with the counts and the first missing, unexpected and misshapen key.
    """
    own = module.state_dict()
    check_tensors(state, own, source=source, owner=type(module).__name__)
    on_meta = any(value.is_meta for value in own.values())
    if on_meta:
        state = {key: value.to(own[key].dtype) for key, value in state.items()}
    module.load_state_dict(dict(state), strict=True, assign=on_meta)


def placed(module: Module, device: torch.device, dtype: torch.dtype | None = None) -> Module:
    """Bring a module to a device, in place, tensor by tensor; nothing stays in the mapped memory of a file.

    Args:
        dtype: of floating-point tensors; None keeps theirs.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        floating = tensor.is_floating_point()
        tensor.data = tensor.data.to(device, dtype if floating and dtype else tensor.dtype, copy=True)
    return module


def check_tensors(state: Mapping[str, Tensor], own: Mapping[str, Tensor], *, source: str, owner: str) -> None:
    """Compare names and shapes.

    Args:
        own: what is to be filled.
        source, owner: what error messages call the two.

    Raises:
        DataError: as `load_state` says.
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
        remedy = "use the config that the weights were trained with"
        raise DataError(f"{source} does not fit {owner}: {'; '.join(found)}; {remedy}")


def step_from_name(path: str | Path) -> int | None:
    """The last `_`-separated number of a file name: 333000 for `t2v_00333000.pth`."""
    numbers = re.findall(r"_(\d+)(?=_|$)", Path(path).stem)
    return int(numbers[-1]) if numbers else None


def save_published(path: str | Path, state: Mapping[str, Tensor], step: int) -> None:
    """Write `{"state_dict", "step"}` as published, whole or not at all."""
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
    """Write tensors as safetensors, floating ones as `dtype`, whole or not at all.

    Args:
        metadata: kept in the file's header as strings; `step` is read back by `read_weights`.
    """
    tensors = {
        key: value.detach().to("cpu", dtype if value.is_floating_point() else value.dtype).clone().contiguous()
        for key, value in state.items()
    }
    with atomic_path(path) as part:
        save_file(tensors, part, metadata={key: str(value) for key, value in (metadata or {}).items()})


def read_metadata(path: str | Path, *, option: str) -> dict[str, str]:
    """The header strings of a safetensors file.

    Raises:
        DataError: the file is missing or no safetensors file.
    """
    _check_file(Path(path), option=option)
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as err:
        raise DataError(f"{option}={path} is no readable safetensors file ({err}); fetch it again") from err


def _check_file(path: Path, *, option: str) -> None:
    """Refuse what is no file, or an empty one."""
    if path.is_dir():
        raise DataError(f"{option}={path} is a folder; name a weight file, one in it if there are any")
    if not path.is_file():
        raise DataError(f"{option}={path}: no such file; {WHERE_FROM.format(config='configs/mini/t2v_infer.yaml')}")
    if not path.stat().st_size:
        raise DataError(f"{option}={path} is empty (zero bytes); fetch it again")


def _read_safetensors(path: Path, *, option: str) -> tuple[dict[str, Tensor], int | None]:
    step = read_metadata(path, option=option).get("step")
    try:
        return load_file(path), int(step) if step is not None else None
    except (SafetensorError, OSError, ValueError) as err:
        raise DataError(f"{option}={path} is no readable safetensors file ({err}); fetch it again") from err


def _read_pickle(path: Path, *, option: str) -> Any:
    with path.open("rb") as file:
        start = file.read(16)
    if not start.startswith(STARTS):
        raise DataError(f"{option}={path} is no weight file: it begins with {start!r}; fetch it again")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as err:
        raise DataError(
            f"{option}={path} is refused: its pickle holds more than tensors, and loading it could run code; "
            "use a file that holds only a state dict"
        ) from err
    except (RuntimeError, EOFError, OSError, KeyError, ValueError) as err:
        raise DataError(f"{option}={path} cannot be read ({first_line(err)}); fetch it again") from err


def _split_step(content: Any) -> tuple[dict[str, Any], int | None]:
    """Take apart `{"state_dict", "step"}`; a bare state dict has no step."""
    if not isinstance(content, Mapping):
        return {}, None
    if not isinstance(content.get("state_dict"), Mapping):
        return dict(content), None
    step = content.get("step")
    return dict(content["state_dict"]), int(step) if isinstance(step, int | float) else None
