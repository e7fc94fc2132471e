"""The visits: each has a folder with an unguessable name, which is removed when the visitor leaves or after a time."""

from __future__ import annotations

import itertools
import logging
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tools.web.jobs import Job, Worker
from tools.web.results import Result

log = logging.getLogger(__name__)

MOST_RESULTS = 20  # of one visit; older ones are removed
SWEEP_S = 60.0


@dataclass(kw_only=True, eq=False)
class Visit:
    """One visitor with a page, or one program.

    Attributes:
        folder: of the results; only its visitor learns the name.
        is_page: whether a page belongs to it, so that its folder can go when the page is closed. The files of programs
            stay until their age, because a program may fetch them after its call.
        results: finished ones, oldest first.
        jobs: those that are not over.
        has_left: the folder goes when the last job is over.
        used: time of the last request, monotonic seconds.
    """

    folder: Path
    is_page: bool = False
    results: list[Result] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)
    used: float = 0.0
    has_left: bool = False
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def new_folder(self) -> tuple[int, Path]:
        """Make a folder for the next result; returns its number too."""
        number = next(self.numbers)
        folder = self.folder / f"{number:03d}"
        folder.mkdir(parents=True)
        return number, folder

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder for the time of one answer."""
        folder = self.folder / f"scratch_{secrets.token_hex(4)}"
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def result(self, number: int | None) -> Result | None:
        """Find a result by its number; None if it is gone."""
        return next((one for one in self.results if one.number == number), None)


class Visits:
    """All visits, by the session of the browser or program.

    Args:
        root: folder of all visits, which belongs to this program alone.
        worker: stops the jobs of visitors who leave.
        max_age_s: a visit without a request for this long is forgotten.
    """

    def __init__(self, root: Path, *, worker: Worker, max_age_s: float = 7200.0) -> None:
        self.root, self.worker, self.max_age_s = root, worker, max_age_s
        self._visits: dict[str, Visit] = {}
        self._lock = threading.Lock()
        self._ends = threading.Event()
        threading.Thread(target=self._sweep_often, name="sweeper", daemon=True).start()

    def of(self, session: str | None, *, is_page: bool = False) -> Visit:
        """Return the visit of a session, a new one if there is none."""
        with self._lock:
            key = session or "none"  # only a dictionary's key: a program may send any text
            visit = self._visits.get(key)
            if visit is None:
                visit = self._visits[key] = Visit(folder=self.root / secrets.token_hex(16), is_page=is_page)
            visit.is_page |= is_page
            visit.used = time.monotonic()
            return visit

    def _add(self, visit: Visit, result: Result) -> None:
        with self._lock:
            visit.results.append(result)
            gone, visit.results = visit.results[:-MOST_RESULTS], visit.results[-MOST_RESULTS:]
        for one in gone:
            shutil.rmtree(one.folder, ignore_errors=True)

    def leave(self, session: str | None) -> None:
        """A visitor has left: stop the jobs and, if it was a page, remove the folder."""
        with self._lock:
            visit = self._visits.get(session or "none")
            if visit is None:
                return
            if visit.is_page:
                visit.has_left = True
                del self._visits[session or "none"]
            jobs = list(visit.jobs)
        for job in jobs:
            self.worker.stop(job)
        if visit.has_left and not jobs:
            self._remove(visit)

    def finished(self, visit: Visit, job: Job) -> None:
        """A job of a visit is over; its result may be added now."""
        with self._lock:
            visit.jobs.remove(job)
            visit.used = time.monotonic()
        if job.result is not None:
            self._add(visit, job.result)
        if visit.has_left and not visit.jobs:
            self._remove(visit)

    def sweep(self) -> None:
        """Forget the visits that nobody used for long."""
        now = time.monotonic()
        with self._lock:
            old = {
                key: visit
                for key, visit in self._visits.items()
                if now - visit.used > self.max_age_s and not visit.jobs
            }
            for key in old:
                del self._visits[key]
        for visit in old.values():
            self._remove(visit)

    def close(self) -> None:
        """Remove everything."""
        self._ends.set()
        shutil.rmtree(self.root, ignore_errors=True)

    def _sweep_often(self) -> None:
        while not self._ends.wait(min(SWEEP_S, self.max_age_s)):
            self.sweep()

    def _remove(self, visit: Visit) -> None:
        log.info("visit %s: removed with %d results", visit.folder.name[:6], len(visit.results))
        shutil.rmtree(visit.folder, ignore_errors=True)
