"""Files of a training that cannot be written: said in one line, and by all processes together."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from pipelines.training.state import latest
from utils.errors import DataError, first_line
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


class Writer:
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

    def end(self) -> None:
        """Tell all processes how it went; all of them call together.

        Raises:
            DataError: something could not be written.
        """
        if any(largest(self.problem is not None)):
            raise self.problem or DataError(f"{self.what} was not saved: the main process says why")
