"""The weight files of a training: checkpoints in the published format, final weights as safetensors."""

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
from utils.errors import DataError, WriteError, first_line
from utils.files import remove_folder
from utils.processes import is_main, largest


@contextmanager
def saving(log_dir: Path, what: str, *, only_files: bool = False) -> Iterator[None]:
    """Turn errors of writing files into one line.

    Args:
        only_files: the block does other work too, whose RuntimeErrors are not errors of the disk.

    Raises:
        DataError: the disk is full or cannot be written. Existing files do not change.
    """
    try:
        yield
    except torch.OutOfMemoryError:  # also a RuntimeError, but not an error of the disk
        raise
    except (OSError, RuntimeError, SafetensorError, WriteError) as err:
        if only_files and not isinstance(err, OSError | WriteError):
            raise
        err = err.__cause__ if isinstance(err, WriteError) and err.__cause__ else err
        # safetensors and torch.save have their own errors for a full disk
        last, free_mb = latest(log_dir / "state"), shutil.disk_usage(log_dir).free / 1e6
        raise DataError(
            f"log_dir={log_dir}: {what} cannot be saved ({first_line(err)}; {free_mb:.0f} MB are free); "
            f"{f'{last} is complete' if last else 'there is no earlier state'}; free disk space and run the same "
            "command again"
        ) from err


class MainProcessWriter:
    """Writes on the main process what all processes have gathered.

    After a failure it writes nothing more, but gathering continues to its end. If one process stopped early, the other
    processes would wait for it forever.
    """

    def __init__(self, log_dir: Path, what: str) -> None:
        self.log_dir, self.what = log_dir, what
        self.problem: DataError | None = None

    def __call__(self, write: Callable[[], None]) -> None:
        """Write, if this is the main process and nothing has failed before."""
        if not is_main() or self.problem:
            return
        try:
            with saving(self.log_dir, self.what):
                write()
        except DataError as err:
            self.problem = err

    def raise_if_failed(self) -> None:
        """Raise an error on all processes if one could not write; all processes must call this together.

        Raises:
            DataError: something could not be written.
        """
        if any(largest(self.problem is not None)):
            raise self.problem or DataError(f"{self.what} was not saved; see the error message of the main process")


log = logging.getLogger(__name__)


def checkpoint_path(folder: Path, objective: Objective, step: int) -> Path:
    """Path of the weights for sampling."""
    return folder / "checkpoints" / f"{objective.stem}_{step:08d}.pth"


def _trained_path(path: Path) -> Path:
    """Path of the trained weights, if `path` has the averaged ones."""
    return path.with_name(f"non_ema_{path.name}")


def make_room(folder: Path, objective: Objective, *, keep: int, every: int) -> None:
    """Remove states that are too old (see `old_states`), and the weight files of the same steps.

    Weight files without a state in `log_dir/state` are kept, because another training wrote them. The state is removed
    last, so that after an interruption the next call finds both again.
    """
    for step, state in old_states(folder / "state", keep=keep, every=every).items():
        path = checkpoint_path(folder, objective, step)
        for file in (path, _trained_path(path)):
            file.unlink(missing_ok=True)
        remove_folder(state)


def save_checkpoint(
    folder: Path, objective: Objective, average: MovingAverage | None, step: int, *, writer: MainProcessWriter
) -> None:
    """Write the weights for sampling; with a moving average also the trained weights, as `non_ema_...`."""
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
    """Path of the finished network."""
    return folder / f"{objective.stem}.safetensors"


def save_final(folder: Path, objective: Objective, step: int, *, writer: MainProcessWriter) -> None:
    """Write the finished network."""
    path, content = final_path(folder, objective), put_together(objective.final_state())

    def write() -> None:
        save_safetensors(path, content, metadata={"step": step, **objective.metadata()})
        log.info("wrote %s (%.2f MB)", path, path.stat().st_size / 1e6)

    writer(write)
