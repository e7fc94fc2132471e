"""The full state of a training in one folder: `log_dir/state/step_00001000/`.

A folder is written under another name and then renamed, so that every visible folder is complete. The order of the data
and random numbers are functions of seed and step (pipelines/training/data/global_batch.py), so the state contains only
these numbers. Tensors are safetensors, or are read with `weights_only`, so that no code in a file can run.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.weights import check_tensors
from pipelines.training.optimization import MovingAverage
from pipelines.training.parallel import like, put_together
from utils.errors import DataError, first_line
from utils.files import atomic_folder, write_json

log = logging.getLogger(__name__)

LAYOUT = 1  # increase it when the content of the folder changes


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
    kept = {f"of parameter {number}": value["exp_avg"] for number, value in state.optimizer.items()}
    # parameters without a gradient have no optimizer state
    wanted = {
        name: parameters[number] for number, name in zip(state.optimizer, kept, strict=True) if number < len(parameters)
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
        write_json(part / "state.json", {"layout": LAYOUT, **numbers})
        _to_disk(part)


def old_states(folder: Path, *, keep: int, every: int) -> dict[int, Path]:
    """List the states to remove, by step.

    Args:
        folder: `log_dir/state`.
        keep: number of newest states to keep.
        every: also keep the states of every Nth step; 0: none.
    """
    old = {_step_of(path): path for path in _steps(folder)[:-keep]}
    return {step: path for step, path in old.items() if not every or step % every}


def read_state(folder: Path, *, device: torch.device | str = "cpu") -> TrainingState:
    """Read a state.

    Raises:
        DataError: it is missing or broken, was written by another version, or contains code.
    """
    remedy = "delete it to continue from the previous state, or set resume=never to start again"
    try:
        numbers = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        if numbers.pop("layout") != LAYOUT:
            raise DataError(f"resume: {folder} was written by another version; set resume=never to start again")
        return TrainingState(
            model=load_file(folder / "model.safetensors", device=str(device)),
            average=load_file(folder / "average.safetensors", device=str(device)),
            optimizer=torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True),
            **numbers,
        )
    except pickle.UnpicklingError as err:
        raise DataError(
            f"resume: {folder / 'optimizer.pt'} is not loaded, because its pickle contains more than tensors and could "
            f"run code; {remedy}"
        ) from err
    except (OSError, RuntimeError, SafetensorError, EOFError, KeyError, TypeError, json.JSONDecodeError) as err:
        raise DataError(f"resume: {folder} cannot be read ({first_line(err)}); {remedy}") from err


def latest(folder: Path) -> Path | None:
    """Return the newest state in a folder of states, or None."""
    return (_steps(folder) or [None])[-1]


def _steps(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("step_*") if _step_of(path) >= 0), key=_step_of)


def _step_of(path: Path) -> int:
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
