"""Reads and writes weight files. No other module does.

Published files are pickles (`.pth`, `.bin`); only tensors are read from them, and code in them is never run. Our own
files are safetensors. The content of a file decides how it is read, not its suffix. A file must match the network
exactly, and its values must be finite; otherwise nothing is loaded, and the error is one line. Files written here have
a checksum, which is compared when they are read.
"""

from __future__ import annotations

import logging
import math
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

from models.checksums import checksum_of, first_not_finite
from models.weight_kinds import is_safetensors, kind_of_archive, kind_of_content, kind_of_file, kind_of_names
from utils.errors import DataError, first_line
from utils.files import atomic_path

log = logging.getLogger(__name__)

Module = TypeVar("Module", bound=nn.Module)

HEAD_PREFIX = "lgm_big."
STARTS = (b"PK", b"\x80")  # of files of torch.save: an archive, or in old versions a pickle
OUTER_WRAPPERS = ("module.", "base_model.model.")  # prefixes that DDP and peft add to all names
# What torch.compile, FSDP, activation checkpointing and Lightning Fabric add anywhere in a name.
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_forward_module.")
SLICE_NAME = re.compile(r"(ema_\d+_rank)(\d+)\.pth")
LARGEST_STEP = 10**12
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


def read_weights(path: str | Path, *, option: str, verify: bool = True) -> Weights:
    """Read a `.pth`, `.bin` or `.safetensors` file.

    Args:
        path: the file; for a moving average in slices (`ema_XXXXXXXX_rankXXXX.pth`), any one of them.
        option: the setting that names the file, for the error message.
        verify: compare the checksum, if the file has one; this reads all of it.

    Raises:
        DataError: the file is missing, truncated or changed, contains code or no tensors; or slices are missing or
            overlap.
    """
    path = Path(path)
    content, step = _read_content(path, option=option, verify=verify)
    for other in _other_slices(path, option=option):
        part, _ = _read_content(other, option=option, verify=verify)
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


def has_head(path: str | Path, *, option: str) -> bool:
    """Whether a weight file contains a Gaussian head under HEAD_PREFIX; raises as `read_weights`."""
    return bool(read_weights(path, option=option, verify=False).head)


def _read_content(path: Path, *, option: str, verify: bool) -> tuple[dict[str, Tensor], int | None]:
    """Tensors by name, and the step if the file has one."""
    _check_file(path, option=option)
    source = f"{option}={path}"
    if is_safetensors(path):
        content, header = _read_safetensors(path, option=option)
    else:
        content, header = _split_header(_read_pickle(path, option=option))
    _check_content(content, source=source)
    if verify and (written := header.get("checksum")) and str(written) != checksum_of(content):
        raise DataError(f"{source} has changed since it was written (its checksum differs); copy or download it again")
    return _without_wrappers(content, source=source), _step_in(header, source=source)


def _check_content(content: Mapping[Any, Any], *, source: str) -> None:
    """Check that the content is a state dict of plain tensors with names."""
    named = all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())
    if not content or not named:
        found = kind_of_content(content)
        raise DataError(
            f"{source} contains no state dict of tensors{f' ({found})' if found else ''}; use a file in the published "
            "layout"
        )
    for name, value in content.items():
        if value.layout != torch.strided or value.is_quantized or value.is_complex() or value.is_meta:
            raise DataError(
                f"{source}: {name} is not a plain tensor ({value.dtype}, {value.layout}); use a file of dense "
                "floating-point tensors"
            )


def _without_wrappers(content: dict[str, Tensor], *, source: str) -> dict[str, Tensor]:
    """Remove from the names what wrappers of a network have added, and log it."""
    names, removed = list(content), []
    while found := _wrapper_in(names):
        if found in OUTER_WRAPPERS:
            names = [name.removeprefix(found) for name in names]
        else:
            names = [f".{name}".replace(f".{found}", ".")[1:] for name in names]
        removed.append(found)
    if not removed or len(set(names)) < len(names):
        return content
    log.info("%s: %s in the names is from a wrapper of the network; read without it", source, ", ".join(removed))
    return dict(zip(names, content.values(), strict=True))


def _wrapper_in(names: Sequence[str]) -> str | None:
    outer = (wrapper for wrapper in OUTER_WRAPPERS if all(name.startswith(wrapper) for name in names))
    inner = (wrapper for wrapper in WRAPPERS if any(f".{wrapper}" in f".{name}" for name in names))
    return next(outer, None) or next(inner, None)


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
        DataError: keys are missing, unexpected or of another shape or kind; the message has their number and the
            first. Or a value is not finite.
    """
    own = module.state_dict()
    state = _without_prefix(state, own, source=source)
    check_tensors(state, own, source=source, owner=type(module).__name__)
    check_finite(state, source=source)
    on_meta = any(value.is_meta for value in own.values())
    if on_meta:
        state = {key: value.to(own[key].dtype) for key, value in state.items()}
    module.load_state_dict(dict(state), strict=True, assign=on_meta)


def _without_prefix(state: Mapping[str, Tensor], own: Mapping[str, Tensor], *, source: str) -> Mapping[str, Tensor]:
    """Remove a prefix under which the file holds the whole network, as of a network inside another, and log it."""
    if not own or state.keys() & own.keys():
        return state
    longest = max(own, key=len)
    prefixes = [name.removesuffix(longest) for name in state if name.endswith(f".{longest}")]
    whole = [prefix for prefix in prefixes if all(prefix + name in state for name in own)]
    if len(whole) != 1:
        return state
    rest = len(state) - len(own)
    others = f", and {rest} other names are not read" if rest else ""
    log.info("%s: the names begin with %s; read without it%s", source, whole[0], others)
    return {name: state[whole[0] + name] for name in own}


def check_finite(state: Mapping[str, Tensor], *, source: str) -> None:
    """Check that no value is NaN or infinite. This reads the tensors once, at several GB/s.

    Raises:
        DataError: a tensor has such a value; the message has its name.
    """
    if name := first_not_finite(state):
        raise DataError(
            f"{source}: {name} contains values that are not finite (NaN or infinite); use an intact file, such as an "
            "earlier checkpoint"
        )


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
        DataError: as in `load_state`, apart from values.
    """
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    misshapen = [key for key in own if key in state and own[key].shape != state[key].shape]
    other_kind = [key for key in own if key in state and own[key].is_floating_point() != state[key].is_floating_point()]
    found = []
    if (missing or unexpected) and not state.keys() & own.keys() and (kind := kind_of_names(state)):
        found.append(f"it contains {kind}")
    if missing:
        found.append(f"{len(missing)} missing (first: {missing[0]})")
    if unexpected:
        found.append(f"{len(unexpected)} unexpected (first: {unexpected[0]})")
    if misshapen:
        key = misshapen[0]
        sizes = f"{list(state[key].shape)} in the file, {list(own[key].shape)} in the model"
        found.append(f"{len(misshapen)} misshapen (first: {key}, {sizes})")
    if other_kind:
        key = other_kind[0]
        found.append(f"{len(other_kind)} of another kind of number (first: {key}, {state[key].dtype} in the file)")
    if found:
        remedy = "use the configuration that the weights were trained with"
        raise DataError(f"{source} does not fit {owner}: {'; '.join(found)}; {remedy}")


def step_from_name(path: str | Path) -> int | None:
    """The last `_`-separated number of a file name: 333000 for `t2v_00333000.pth`."""
    numbers = re.findall(r"_(\d+)(?=_|$)", Path(path).stem)
    return int(numbers[-1]) if numbers else None


def save_published(path: str | Path, state: Mapping[str, Tensor], step: int) -> None:
    """Write `{"state_dict", "step"}` as published, completely or not at all."""
    state = {key: value.detach().cpu() for key, value in state.items()}
    content = {"state_dict": state, "step": int(step), "checksum": checksum_of(state)}
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
    header = {**(metadata or {}), "checksum": checksum_of(tensors)}
    with atomic_path(path) as part:
        save_file(tensors, part, metadata={key: str(value) for key, value in header.items()})


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


def _read_safetensors(path: Path, *, option: str) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    header = read_metadata(path, option=option)
    try:
        return load_file(path), header
    except (SafetensorError, OSError, ValueError) as err:
        raise DataError(f"{option}={path} is not a readable safetensors file ({err}); download it again") from err


def _read_pickle(path: Path, *, option: str) -> Any:
    with path.open("rb") as file:
        start = file.read(16)
    if not start.startswith(STARTS):
        kind = kind_of_file(path)
        found = f"it begins with {start!r}{f', {kind}' if kind else ''}"
        raise DataError(f"{option}={path} is not a weight file ({found}); download it again")
    archive = zipfile.is_zipfile(path)
    if archive and (kind := kind_of_archive(path)):
        raise DataError(f"{option}={path} is not a weight file: it is {kind}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except pickle.UnpicklingError as err:
        raise DataError(
            f"{option}={path} is not loaded, because its pickle contains more than tensors and could run code; "
            "use a file that contains only a state dict"
        ) from err
    except Exception as err:  # a damaged pickle raises almost any error, such as AttributeError and IndexError
        raise DataError(f"{option}={path} cannot be read ({first_line(err)}); download it again") from err


def _split_header(content: Any) -> tuple[dict[Any, Any], Mapping[str, Any]]:
    """Split `{"state_dict", "step", "checksum"}`; a bare state dict has neither step nor checksum."""
    if not isinstance(content, Mapping):
        return {}, {}
    if not isinstance(content.get("state_dict"), Mapping):
        return dict(content), {}
    return dict(content["state_dict"]), {key: content[key] for key in ("step", "checksum") if key in content}


def _step_in(header: Mapping[str, Any], *, source: str) -> int | None:
    """The step of a file; None if it has none."""
    step = header.get("step")
    if step is None:
        return None
    try:
        number = float(step)
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if not 0 <= number <= LARGEST_STEP:
        raise DataError(f"{source}: its step {str(step)[:40]} is not a number of steps; use an intact file")
    return int(number)
