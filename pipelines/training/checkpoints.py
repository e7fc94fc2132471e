"""The weight files of a training: on the way in the published format, in the end as safetensors."""

from __future__ import annotations

import logging
from pathlib import Path

from models.weights import save_published, save_safetensors
from pipelines.training.objectives.base import Objective
from pipelines.training.optimization import MovingAverage
from pipelines.training.parallel import put_together
from pipelines.training.saving import Writer
from pipelines.training.state import old_states
from utils.files import remove_folder

log = logging.getLogger(__name__)


def checkpoint_path(folder: Path, objective: Objective, step: int) -> Path:
    """Of the weights to sample with."""
    return folder / "checkpoints" / f"{objective.stem}_{step:08d}.pth"


def _trained_path(path: Path) -> Path:
    """Of the trained weights beside averaged ones."""
    return path.with_name(f"non_ema_{path.name}")


def make_room(folder: Path, objective: Objective, *, keep: int, every: int) -> None:
    """Remove states that are too old (see `old_states`), and the weight files that were written with each.

    What has no state in `log_dir/state` stays: another training wrote it. The state goes last, so that after a kill in
    between both are found again.
    """
    for step, state in old_states(folder / "state", keep=keep, every=every).items():
        path = checkpoint_path(folder, objective, step)
        for file in (path, _trained_path(path)):
            file.unlink(missing_ok=True)
        remove_folder(state)


def save_checkpoint(
    folder: Path, objective: Objective, average: MovingAverage | None, step: int, *, writer: Writer
) -> None:
    """Write the weights to sample with; with a moving average also the trained ones, as `non_ema_...`."""
    path = checkpoint_path(folder, objective, step)
    if average:
        _save(_trained_path(path), objective, step, writer)
        with average.in_place():
            _save(path, objective, step, writer)
    else:
        _save(path, objective, step, writer)


def _save(path: Path, objective: Objective, step: int, writer: Writer) -> None:
    content = put_together(objective.checkpoint_state())
    writer(lambda: save_published(path, content, step))


def final_path(folder: Path, objective: Objective) -> Path:
    """Of the finished network."""
    return folder / f"{objective.stem}.safetensors"


def save_final(folder: Path, objective: Objective, step: int, *, writer: Writer) -> None:
    """Write the finished network."""
    path, content = final_path(folder, objective), put_together(objective.final_state())

    def write() -> None:
        save_safetensors(path, content, metadata={"step": step, **objective.metadata()})
        log.info("wrote %s (%.2f MB)", path, path.stat().st_size / 1e6)

    writer(write)
