"""Runs jobs in parallel processes. A job that fails, or whose process dies, does not stop the others."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from tqdm import tqdm

from utils.errors import DataError, WriteError
from utils.files import is_full_disk, no_room_for

# Some writers of pictures do not say why they failed; with less than this, the disk is full.
LEAST_FREE_BYTES = 1 << 18
WAKE_S = 0.5  # Ctrl-C is seen at least this often, also if it came just before a wait began and did not end it


def run_jobs(
    function: Callable[..., Any],
    jobs: Iterable[tuple[Any, ...]],
    *,
    workers: int,
    total: int,
    unit: str,
    out: Path | None = None,
) -> Iterator[tuple[Any, str | None]]:
    """Run `function(*job)` for every job in processes, with a progress bar.

    Args:
        out: the folder that the jobs write to, if they do.

    Yields:
        (result, None) or (None, error message in one line), in the order in which jobs finish.

    Raises:
        WriteError: a job failed because the disk of `out` is full.
        KeyboardInterrupt: the processes were ended before.
    """
    with tqdm(total=total, unit=unit, smoothing=0.05, mininterval=0.5) as progress:
        waiting = list(jobs)
        while waiting:
            lost: list[tuple[Any, ...]] = []
            for job, result, error in _in_pool(function, waiting, workers=workers):
                if isinstance(error, BrokenProcessPool):
                    lost.append(job)
                    continue
                progress.update()
                yield (None if error else result), _line(error, out)
            # A dead process ends the whole pool. The pool starts jobs in order and holds back one more than it has
            # processes, so the job that killed it is one of these; they are tried one by one.
            suspects, waiting = lost[: 2 * workers + 1], lost[2 * workers + 1 :]
            for job in suspects:
                for _, result, error in _in_pool(function, [job], workers=1):
                    progress.update()
                    if isinstance(error, BrokenProcessPool):
                        error = DataError(f"{job[0]}: its process was killed (is there enough memory?)")
                    yield (None if error else result), _line(error, out)


def _in_pool(
    function: Callable[..., Any], jobs: list[tuple[Any, ...]], *, workers: int
) -> Iterator[tuple[tuple[Any, ...], Any, BaseException | None]]:
    """Run jobs in one pool: (job, result, error) as they finish; the processes end with this generator."""
    # fork shares loaded data with the processes; other systems do not have it or it is unsafe there
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        max_workers=min(workers, len(jobs)), mp_context=context, initializer=_start, initargs=(os.getpid(),)
    )
    with pool:
        try:
            futures: dict[Future[Any], tuple[Any, ...]] = {}
            with _interrupts_held():
                for job in jobs:
                    try:
                        futures[pool.submit(function, *job)] = job
                    except BrokenProcessPool as err:  # a process died while jobs were still being handed out
                        dead: Future[Any] = Future()
                        dead.set_exception(err)
                        futures[dead] = job
            order = {job: number for number, job in enumerate(map(id, jobs))}
            broken = []
            for future in _finished(futures):
                job, error = futures[future], future.exception()
                if isinstance(error, BrokenProcessPool):
                    broken.append((job, None, error))
                else:
                    yield job, (None if error else future.result()), error
            yield from sorted(broken, key=lambda row: order[id(row[0])])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in set(multiprocessing.active_children()) - before:
                child.kill()
            raise


def _finished(futures: Iterable[Future[Any]]) -> Iterator[Future[Any]]:
    """The futures as they finish."""
    done: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
    waiting = 0
    for future in futures:
        future.add_done_callback(done.put)
        waiting += 1
    while waiting:
        try:
            future = done.get(timeout=WAKE_S)
        except queue.Empty:
            continue
        waiting -= 1
        yield future


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back while processes start: one that is not yet registered would not be ended.

    Forked processes inherit this, until they ignore Ctrl-C themselves.

    Raises:
        KeyboardInterrupt: at the end, if Ctrl-C was pressed.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone gets Ctrl-C
        yield
        return
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.default_int_handler)
    if pressed:
        raise KeyboardInterrupt


def check_disk(error: BaseException, out: Path | None) -> None:
    """Find out whether something failed because the disk of `out` is full.

    Raises:
        WriteError: it is.
    """
    if isinstance(error, WriteError):
        raise error
    if is_full_disk(error) or (out is not None and out.exists() and shutil.disk_usage(out).free < LEAST_FREE_BYTES):
        raise WriteError(no_room_for(out or "the output", error)) from error


def _line(error: BaseException | None, out: Path | None) -> str | None:
    """An error as one line; a full disk ends everything."""
    if error is None:
        return None
    check_disk(error, out)
    text = " ".join(str(error).split())
    return text if isinstance(error, (DataError, OSError)) else f"{type(error).__name__}: {text}"


def _start(parent: int) -> None:
    """One OpenCV thread per process, because the processes already use all cores; Ctrl-C is the parent's business."""
    import cv2

    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process when its parent was killed; otherwise it would wait for jobs for ever."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
