"""Jobs of visitors and the one worker that does them in order, because all share the loaded networks."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from utils.errors import ConfigError, DataError

log = logging.getLogger(__name__)

MOST_WAITING = 64
FAULT = "the program failed with an error of its own; the server's log has the details"


class Stopped(Exception):
    """The visitor stopped the job."""


class Job:
    """One orbit or one fit, with everything that its visitor sees while it works.

    Args:
        title: what is made, for the log.
        work: does the job and returns its result; it calls `tell` and `step` of the job, which end it when the visitor
            stops it.
        estimate_s: expected seconds, for the visitors behind it.
        on_over: called once, when nothing will change any more.

    Attributes:
        state: waiting, working, done, failed or stopped.
        stage: what is done now, for the visitor.
        done, total: steps.
        after_s: expected seconds after the last step, a part of the ETA.
        preview: pictures of the orbit so far, as a data URL.
        early: a part of the result that is ready before the rest.
        result: what `work` returned.
        error: why it failed, one line for the visitor.
        version: grows with every change.
    """

    def __init__(
        self,
        title: str,
        work: Callable[[Job], Any],
        *,
        estimate_s: float,
        on_over: Callable[[Job], None] = lambda job: None,
    ) -> None:
        self.title, self.work, self.estimate_s, self.on_over = title, work, estimate_s, on_over
        self.state, self.stage, self.error = "waiting", "waiting", ""
        self.done, self.total, self.after_s = 0, 0, 0.0
        self.preview, self.early, self.result = "", None, None
        self.version = 0
        self.started = self._first_step = 0.0
        self._stop = threading.Event()

    @property
    def is_over(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in ("done", "failed", "stopped")

    def stop(self) -> None:
        """Let the job end at its next step."""
        self._stop.set()
        self.version += 1

    def end(self, state: str) -> None:
        """Set the last state."""
        self.on_over(self)
        self.state = state
        self.version += 1

    def tell(self, **changes: Any) -> None:
        """Change attributes, and end the job if it was stopped.

        Raises:
            Stopped: it was.
        """
        for name, value in changes.items():
            setattr(self, name, value)
        self.version += 1
        if self._stop.is_set():
            raise Stopped

    def step(self, done: int, total: int) -> None:
        """Note a finished step; see `tell`."""
        if done == 1:
            self._first_step = time.monotonic()
        self.tell(done=done, total=total)

    @property
    def is_stopping(self) -> bool:
        """Whether the job was stopped but has not ended."""
        return self._stop.is_set() and not self.is_over

    @property
    def left_s(self) -> float | None:
        """Expected seconds until the end, from the speed of the steps; None before the second step."""
        if self.state != "working" or self.done < 2:
            return None
        per_step = (time.monotonic() - self._first_step) / (self.done - 1)
        return per_step * (self.total - self.done) + self.after_s


class Worker:
    """A thread that does jobs one after another, so that visitors cannot disturb each other's results."""

    def __init__(self) -> None:
        self._waiting: deque[Job] = deque()
        self._current: Job | None = None
        self._changed = threading.Condition()
        self._ends = False
        self._thread = threading.Thread(target=self._loop, name="worker", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> Job:
        """Append a job to the queue.

        Raises:
            ConfigError: too many jobs wait.
        """
        with self._changed:
            if len(self._waiting) >= MOST_WAITING:
                raise ConfigError(f"{MOST_WAITING} requests are already waiting; try again in a few minutes")
            self._waiting.append(job)
            self._changed.notify()
        return job

    def stop(self, job: Job) -> None:
        """Stop a job: at once if it waits, else at its next step."""
        with self._changed:
            job.stop()
            waited = job in self._waiting
            if waited:
                self._waiting.remove(job)
            self._tell_all()
        if waited:
            job.end("stopped")

    def ahead(self, job: Job) -> tuple[int, float]:
        """Number of jobs before a waiting job, and the seconds that they are expected to take."""
        with self._changed:
            before = list(self._waiting)
            before = before[: before.index(job)] if job in before else []
            now = [self._current] if self._current else []
        seconds = sum(one.estimate_s for one in before)
        for one in now:
            seconds += max(0.0, one.estimate_s - (time.monotonic() - one.started)) if one.left_s is None else one.left_s
        return len(before) + len(now), seconds

    def close(self) -> None:
        """Stop all jobs and end the thread."""
        with self._changed:
            self._ends = True
            waiting = list(self._waiting)
            self._waiting.clear()
            if self._current:
                self._current.stop()
            self._changed.notify()
        for job in waiting:
            job.end("stopped")
        self._thread.join()

    def _loop(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._ends)
                if self._ends:
                    return
                job = self._current = self._waiting.popleft()
                self._tell_all()
            self._do(job)
            with self._changed:
                self._current = None

    def _do(self, job: Job) -> None:
        job.started = time.monotonic()
        try:
            job.tell(state="working", stage="starting")
            job.result = job.work(job)
            job.end("done")
        except Stopped:
            job.end("stopped")
        except (ConfigError, DataError) as err:
            job.error = str(err)
            job.end("failed")
        except Exception:  # one visitor's job must not end the worker
            log.exception("job %r failed", job.title)
            job.error = FAULT
            job.end("failed")
        log.info("%s: %s after %.1f s", job.title, job.state, time.monotonic() - job.started)

    def _tell_all(self) -> None:
        for job in self._waiting:  # their places have changed
            job.version += 1
