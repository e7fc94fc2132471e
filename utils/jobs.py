"""Runs jobs in parallel processes."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

from tqdm import tqdm

from utils.errors import DataError


def run_jobs(
    function: Callable[..., Any], jobs: Iterable[tuple[Any, ...]], *, workers: int, total: int, unit: str
) -> Iterable[tuple[Any, str | None]]:
    """Run `function(*job)` for every job in processes, with a progress bar.

    Yields:
        (result, None) or (None, error message in one line), in the order in which jobs finish.
    """
    # fork shares loaded data with the processes; other systems do not have it or it is unsafe there
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    progress = tqdm(total=total, unit=unit, smoothing=0.05, mininterval=0.5)
    pool = ProcessPoolExecutor(max_workers=workers, mp_context=context, initializer=_one_thread)
    with progress, pool:
        futures = [pool.submit(function, *job) for job in jobs]
        try:
            for future in as_completed(futures):
                error = future.exception()
                if error is not None and not isinstance(error, (DataError, OSError, MemoryError)):
                    raise error
                line = None if error is None else " ".join(str(error).split())
                progress.update()
                yield (None if error else future.result()), line
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _one_thread() -> None:
    """Use one OpenCV thread per process, because the processes already use all cores."""
    import cv2

    cv2.setNumThreads(0)
