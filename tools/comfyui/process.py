"""Starts the worker and sends it requests, from within ComfyUI."""

from __future__ import annotations

import atexit
import importlib.util
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from .messages import read_message, write_message

WORKER = "tools.comfyui.worker"
# Names another Python, with the requirements of this repository, than that of ComfyUI.
PYTHON_VARIABLE = "VIDEOMV_PYTHON"
POLL_S = 0.2
Message = tuple[dict[str, Any], dict[str, Tensor]]


class WorkerError(RuntimeError):
    """A request cannot be done. The message is one line for the user."""


def place_of_code(file: Path) -> tuple[str, Path]:
    """Find the code that belongs to these nodes.

    Args:
        file: this file, as ComfyUI imported it.

    Returns:
        The worker's module, and the folder from which it can be imported.

    Raises:
        WorkerError: the folder is a copy, and the package `videomv` is not installed.
    """
    root = file.resolve().parents[2]
    if (root / "pipelines").is_dir():
        installed = (root / "__init__.py").is_file()  # the installed package `videomv`, in which this folder lies too
        return (f"{root.name}.{WORKER}", root.parent) if installed else (WORKER, root)
    found = importlib.util.find_spec("videomv")
    if found is None or found.origin is None:
        raise WorkerError(
            f"{file.parent} is a copy without the rest of the repository; link the folder tools/comfyui instead, or "
            "install the repository with `python -m pip install .`"
        )
    return f"videomv.{WORKER}", Path(found.origin).parents[1]


class Worker:
    """The process of the worker, which is started for the first request and again after it has ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: queue.Queue[Message | None] = queue.Queue()
        self._lock = threading.Lock()
        atexit.register(self.stop)

    def request(
        self,
        kind: str,
        header: dict[str, Any],
        tensors: dict[str, Tensor] | None = None,
        *,
        on_step: Callable[[int, int], None],
        check_stopped: Callable[[], None],
    ) -> Message:
        """Send a request and wait for its answer.

        Args:
            kind: method of the worker.
            on_step: called with the number of the finished step and of all steps.
            check_stopped: called several times a second; what it raises ends the worker, with its unfinished work.

        Raises:
            WorkerError: the request was refused, or the process ended.
        """
        with self._lock:
            try:
                process = self._running()
                write_message(process.stdin, {"kind": kind, **header}, tensors)
                while True:
                    check_stopped()
                    try:
                        message = self._answers.get(timeout=POLL_S)
                    except queue.Empty:
                        continue
                    if message is None:
                        raise EOFError
                    answer, results = message
                    if answer["kind"] == "progress":
                        on_step(answer["step"], answer["num_steps"])
                    elif answer["kind"] == "error":
                        raise WorkerError(answer["message"])
                    else:
                        return answer, results
            except (EOFError, BrokenPipeError) as err:
                code = self._process.wait() if self._process else None
                self.stop()
                raise WorkerError(
                    f"the process of VideoMV ended with code {code}; ComfyUI's log has its last words (is there enough "
                    f"memory, and are the requirements installed in {_python()}?)"
                ) from err
            except WorkerError:
                raise
            except BaseException:  # the user stopped it; the rest of the answer must not reach the next request
                self.stop()
                raise

    def stop(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            module, folder = place_of_code(Path(__file__))
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            try:
                self._process = subprocess.Popen([_python(), "-m", module], cwd=folder, **pipes)
            except OSError as err:
                raise WorkerError(
                    f"{PYTHON_VARIABLE}={_python()} cannot be started ({err.strerror}); correct it"
                ) from err
            self._answers = queue.Queue()
            threading.Thread(target=_read_all, args=(self._process.stdout, self._answers), daemon=True).start()
        return self._process


def _python() -> str:
    return os.environ.get(PYTHON_VARIABLE) or sys.executable


def _read_all(stream: Any, answers: queue.Queue[Message | None]) -> None:
    """Read messages in a thread, so that the node can look at the stop button meanwhile; None is the end."""
    try:
        while True:
            answers.put(read_message(stream))
    except (EOFError, ValueError, OSError):
        answers.put(None)
