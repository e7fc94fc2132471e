"""The full state of a training in one folder: `log_dir/state/step_00001000/`.

A folder is written under another name and then renamed, so that every visible folder is complete. The order of the data
and random numbers are functions of seed and step (pipelines/training/data/global_batch.py), so the state contains only
these numbers. Tensors are safetensors, or are read with `weights_only`, so that no code in a file can run. `state.json`
has a checksum of the tensors in each file; states of earlier versions have none.
"""

from __future__ import annotations

import json
import logging
import math
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.checksums import checksum_of, first_not_finite
from models.weights import check_tensors
from pipelines.training.optimization import MovingAverage
from pipelines.training.parallel import like, put_together
from utils.errors import DataError, first_line
from utils.files import atomic_folder, write_json

log = logging.getLogger(__name__)

LAYOUT = 1  # increase it when the content of the folder changes
LARGEST_NUMBER = 10**12


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """The full state of a training.

    Attributes:
        step: number of completed steps.
        num_samples: number of used samples, which is the position in the data.
        elapsed_s: elapsed time in seconds, for `max_minutes`.
        model: trained parameters and buffers, by name.
        average: moving averages by parameter name; empty without a moving average.
        num_averaged: number of updates of the average.
        optimizer: the optimizer's state of each parameter.
        scaler: the gradient scaler's state dict; empty unless precision is float16.
        settings: the settings that identify the run, see pipelines/training/resume.py.
        per_step: number of samples in the last step; 0: unknown.
    """

    step: int
    num_samples: int
    elapsed_s: float
    model: dict[str, Tensor]
    average: dict[str, Tensor]
    num_averaged: int
    optimizer: dict[int, Any]
    scaler: dict[str, Any]
    settings: dict[str, Any]
    per_step: int = 0


MOMENTS = ("exp_avg", "exp_avg_sq")  # moments of AdamW; each has the shape of its parameter
NUMBERS = ("step", "num_samples", "elapsed_s", "num_averaged", "scaler", "settings", "per_step")


def snapshot(
    network: nn.Module, optimizer: Any, average: MovingAverage | None, *, scaler: Any, **numbers: Any
) -> TrainingState:
    """Take the present state, complete on the main process; with FSDP, all processes must call this together.

    Args:
        scaler: the gradient scaler, or None.
        numbers: step, num_samples, elapsed_s, settings and per_step.
    """
    return TrainingState(
        model=put_together(_tensors_of(network)),
        average=put_together(average.tensors()) if average else {},
        num_averaged=average.num_updates if average else 0,
        optimizer=put_together(optimizer.state_dict()["state"]),
        scaler=scaler.state_dict() if scaler else {},
        **numbers,
    )


@torch.no_grad()
def restore(
    state: TrainingState, network: nn.Module, optimizer: Any, average: MovingAverage | None, *, source: str
) -> None:
    """Copy a state into network, optimizer and average.

    Args:
        source: name of the state in error messages.

    Raises:
        DataError: the state belongs to another architecture, or to a run with other trainable parts.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    # parameters without a gradient have no optimizer state
    kept = {f"{name} of parameter {number}": entries[name] for number, name, entries in _moments(state.optimizer)}
    wanted = {
        f"{name} of parameter {number}": parameters[number]
        for number, name, _ in _moments(state.optimizer)
        if number < len(parameters)
    }
    check_tensors(state.model, _tensors_of(network), source=source, owner=type(network).__name__)
    check_tensors(kept, wanted, source=source, owner="the optimizer")
    for name, tensor in _tensors_of(network).items():
        tensor.copy_(like(state.model[name], tensor))
    moments = {
        number: {name: like(value, parameters[number]) if name in MOMENTS else value for name, value in entries.items()}
        for number, entries in state.optimizer.items()
    }
    # param_groups keep the settings of this run
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    if average:
        _restore_average(state, average, source=source)


def _restore_average(state: TrainingState, average: MovingAverage, *, source: str) -> None:
    found = state.average
    if not found:  # the earlier run had use_ema=false
        log.info("%s contains no moving average, so it starts with the weights", source)
        found = {name: state.model[name] for name in average.tensors()}
    check_tensors(found, average.tensors(), source=source, owner="the moving average")
    for name, tensor in average.tensors().items():
        tensor.copy_(like(found[name], tensor))
    average.num_updates = state.num_averaged


def _tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """Return all tensors that training changes; frozen parameters are loaded from their own files again."""
    trained = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    return trained | dict(network.named_buffers())


def state_path(folder: Path, step: int) -> Path:
    """Folder of the state of a step, in `log_dir/state`."""
    return folder / f"step_{step:08d}"


def save_state(folder: Path, state: TrainingState) -> None:
    """Write `folder/step_XXXXXXXX`, unless it already exists.

    Args:
        folder: `log_dir/state`.
    """
    target = state_path(folder, state.step)
    if target.is_dir():
        return
    with atomic_folder(target) as part:
        save_file({name: _own(value) for name, value in state.model.items()}, part / "model.safetensors")
        save_file({name: _own(value) for name, value in state.average.items()}, part / "average.safetensors")
        torch.save(state.optimizer, part / "optimizer.pt")
        numbers = {name: getattr(state, name) for name in NUMBERS}
        checksums = {name: checksum_of(tensors) for name, tensors in _tensors_by_file(state).items()}
        write_json(part / "state.json", {"layout": LAYOUT, **numbers, "checksums": checksums})
        _to_disk(part)


def old_states(folder: Path, *, keep: int, every: int) -> dict[int, Path]:
    """List the states to remove, by step.

    Args:
        folder: `log_dir/state`.
        keep: number of newest states to keep.
        every: also keep the states of every Nth step; 0: none.
    """
    old = {step_of(path): path for path in _steps(folder)[:-keep]}
    return {step: path for step, path in old.items() if not every or step % every}


REMEDY = "delete this state, or set resume=never to start again"


def read_state(folder: Path, *, device: torch.device | str = "cpu", verify: bool = True) -> TrainingState:
    """Read a state.

    Args:
        verify: compare the checksums and look for values that are not finite, which reads everything. Without it, files
            are mapped into memory, and a process reads only what it copies.

    Raises:
        DataError: it is missing, broken or changed, was written by another version, or contains code.
    """
    numbers = read_numbers(folder)
    checksums = numbers.pop("checksums")
    try:
        archive = zipfile.is_zipfile(folder / "optimizer.pt")
        state = TrainingState(
            model=load_file(folder / "model.safetensors", device=str(device)),
            average=load_file(folder / "average.safetensors", device=str(device)),
            optimizer=torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True, mmap=archive),
            **numbers,
        )
    except pickle.UnpicklingError as err:
        raise DataError(
            f"resume: {folder / 'optimizer.pt'} is not loaded, because its pickle contains more than tensors and could "
            f"run code; {REMEDY}"
        ) from err
    except Exception as err:  # a damaged pickle raises almost any error
        raise DataError(f"resume: {folder} cannot be read ({first_line(err)}); {REMEDY}") from err
    if not _is_optimizer_state(state.optimizer):
        raise DataError(f"resume: {folder / 'optimizer.pt'} is not the state of AdamW; {REMEDY}")
    for name, tensors in _tensors_by_file(state).items() if verify else ():
        if name in checksums and checksums[name] != checksum_of(tensors):
            raise DataError(
                f"resume: {folder}: the {name} has changed since it was written (its checksum differs); {REMEDY}"
            )
        if bad := first_not_finite(tensors):
            raise DataError(f"resume: {folder}: {bad} of the {name} is not finite (NaN or infinite); {REMEDY}")
    return state


def read_numbers(folder: Path) -> dict[str, Any]:
    """Read and check `state.json`: all fields of TrainingState that are not tensors, and `checksums`.

    Raises:
        DataError: it is missing or broken, a number is out of range, or another version wrote it.
    """
    file = folder / "state.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as err:
        raise DataError(f"resume: {file} cannot be read ({first_line(err)}); {REMEDY}") from err
    if not isinstance(found, dict):
        raise DataError(f"resume: {file} is not a JSON object; {REMEDY}")
    if found.get("layout") != LAYOUT:
        raise DataError(f"resume: {folder} was written by another version; set resume=never to start again")
    numbers = {"per_step": 0, **{name: found[name] for name in NUMBERS if name in found}}
    for name in NUMBERS:
        value = numbers.get(name)
        if name in ("settings", "scaler"):
            fits = isinstance(value, dict)
        elif name == "elapsed_s":
            fits = isinstance(value, int | float) and 0 <= value <= LARGEST_NUMBER and math.isfinite(value)
        else:
            fits = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_NUMBER
        if not fits:
            raise DataError(f"resume: {file} cannot be read ({name}={str(value)[:40]} is out of range); {REMEDY}")
    if step_of(folder) not in (-1, numbers["step"]):
        raise DataError(f"resume: {file} cannot be read (step={numbers['step']} is not that of its folder); {REMEDY}")
    checksums = found.get("checksums")
    return {**numbers, "checksums": checksums if isinstance(checksums, dict) else {}}


def set_aside(folder: Path) -> Path:
    """Rename a damaged state, so that training can write that step again; return the new path."""
    number, aside = 1, folder.with_name(f"damaged_{folder.name}")
    while aside.exists():
        number += 1
        aside = folder.with_name(f"damaged_{number}_{folder.name}")
    return folder.rename(aside)


def states_in(folder: Path) -> list[Path]:
    """List the states in a folder of states, the newest first."""
    return _steps(folder)[::-1]


def latest(folder: Path) -> Path | None:
    """Return the newest state in a folder of states, or None."""
    return (_steps(folder) or [None])[-1]


def _steps(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("step_*") if step_of(path) >= 0), key=step_of)


def step_of(path: Path) -> int:
    """The step of a state from the name of its folder; -1 for another folder."""
    found = re.fullmatch(r"step_(\d+)", path.name)
    return int(found[1]) if found else -1


def _own(value: Tensor) -> Tensor:
    """Copy a tensor to the CPU with its own memory, because safetensors refuses tensors that share memory."""
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)


def _to_disk(folder: Path) -> None:
    """Flush files to the disk, so that they are complete after the rename even if the power fails."""
    for path in folder.iterdir():
        with path.open("r+b") as file:
            os.fsync(file.fileno())


def _moments(optimizer: Mapping[int, Any]) -> list[tuple[int, str, Any]]:
    return [(number, name, entries) for number, entries in optimizer.items() for name in MOMENTS]


def _is_optimizer_state(content: Any) -> bool:
    """Whether this is the state of AdamW: by number of the parameter, its moments and its step."""
    return isinstance(content, Mapping) and all(
        isinstance(number, int)
        and isinstance(entries, Mapping)
        and all(isinstance(entries.get(name), Tensor) for name in MOMENTS)
        for number, entries in content.items()
    )


def _tensors_by_file(state: TrainingState) -> dict[str, dict[str, Tensor]]:
    """All tensors by the file that holds them."""
    entries = (
        (f"{name} of parameter {number}", value)
        for number, parts in state.optimizer.items()
        for name, value in parts.items()
    )
    optimizer = {name: value for name, value in entries if isinstance(value, Tensor)}
    return {"model": state.model, "average": state.average, "optimizer": optimizer}
