"""The weight files of a training: on the way in the published format, in the end as safetensors."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from models.weights import save_published, save_safetensors
from pipelines.training.objectives.base import Objective
from pipelines.training.optimization import MovingAverage
from pipelines.training.parallel import put_together
from pipelines.training.state import latest, old_states
from utils.errors import DataError, first_line
from utils.files import remove_folder
from utils.processes import is_main, largest


@contextmanager
def saving(log_dir: Path, what: str) -> Iterator[None]:
    """Say in one line why files could not be written.

    Raises:
        DataError: the disk is full or cannot be written. What was there before is untouched.
    """
    try:
        yield
    except torch.OutOfMemoryError:  # a RuntimeError that no disk is to blame for
        raise
    except (OSError, RuntimeError, SafetensorError) as err:
        # safetensors and torch.save report a full disk by errors of their own
        last, free_mb = latest(log_dir / "state"), shutil.disk_usage(log_dir).free / 1e6
        raise DataError(
            f"log_dir={log_dir}: {what} cannot be saved ({first_line(err)}; {free_mb:.0f} MB are free); "
            f"{f'{last} is whole' if last else 'nothing was saved before'}; make room and run the same command again"
        ) from err


class MainProcessWriter:
    """Writes on the main process what all have gathered.

    After a failure it writes no more, but gathering goes on to its end: a process that gave up in between would leave
    the others waiting for it.
    """

    def __init__(self, log_dir: Path, what: str) -> None:
        self.log_dir, self.what = log_dir, what
        self.problem: DataError | None = None

    def __call__(self, write: Callable[[], None]) -> None:
        """Write, unless this is another process or something failed before."""
        if not is_main() or self.problem:
            return
        try:
            with saving(self.log_dir, self.what):
                write()
        except DataError as err:
            self.problem = err

    def raise_if_failed(self) -> None:
        """Tell all processes how it went; all of them call together.

        Raises:
            DataError: something could not be written.
        """
        if any(largest(self.problem is not None)):
            raise self.problem or DataError(f"{self.what} was not saved: the main process says why")


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
    folder: Path, objective: Objective, average: MovingAverage | None, step: int, *, writer: MainProcessWriter
) -> None:
    """Write the weights to sample with; with a moving average also the trained ones, as `non_ema_...`."""
    path = checkpoint_path(folder, objective, step)
    if average:
        _save(_trained_path(path), objective, step, writer)
        with average.in_place():
            _save(path, objective, step, writer)
    else:
        _save(path, objective, step, writer)


def _save(path: Path, objective: Objective, step: int, writer: MainProcessWriter) -> None:
    content = put_together(objective.checkpoint_state())
    writer(lambda: save_published(path, content, step))


def final_path(folder: Path, objective: Objective) -> Path:
    """Of the finished network."""
    return folder / f"{objective.stem}.safetensors"


def save_final(folder: Path, objective: Objective, step: int, *, writer: MainProcessWriter) -> None:
    """Write the finished network."""
    path, content = final_path(folder, objective), put_together(objective.final_state())

    def write() -> None:
        save_safetensors(path, content, metadata={"step": step, **objective.metadata()})
        log.info("wrote %s (%.2f MB)", path, path.stat().st_size / 1e6)

    writer(write)
