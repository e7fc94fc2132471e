"""The queue behind the web app: one job at a time, in order; a job stops within a step."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from tools.web.jobs import FAULT, MOST_WAITING, Job, Worker
from tools.web.results import Result
from tools.web.visits import MOST_RESULTS, Visits
from utils.errors import ConfigError, DataError


@pytest.fixture
def worker():
    one = Worker()
    yield one
    one.close()


def wait(*jobs, seconds=20.0):
    end = time.monotonic() + seconds
    while not all(job.is_over for job in jobs):
        assert time.monotonic() < end, [job.state for job in jobs]
        time.sleep(0.005)


def result(folder: Path, number: int = 1) -> Result:
    nothing = dict.fromkeys(("strip", "sheet", "viewer", "mesh", "video"))
    return Result(number=number, title="a mug", folder=folder, downloads=(), facts=(), command="", **nothing)


class Steps:
    """Work that waits at every step until the test lets it go on."""

    def __init__(self, num: int = 100) -> None:
        self.num, self.go, self.done = num, threading.Semaphore(0), 0

    def __call__(self, job):
        for step in range(1, self.num + 1):
            self.go.acquire()
            self.done = step
            job.step(step, self.num)
        return "whole"


def test_jobs_are_done_one_at_a_time_in_order(worker):
    running, most, order = [], [], []

    def work(number):
        def do(job):
            running.append(number)
            most.append(len(running))
            time.sleep(0.01)
            order.append(running.pop())
            return number

        return do

    jobs = [worker.submit(Job("job", work(number), estimate_s=1.0)) for number in range(20)]
    wait(*jobs)
    assert [job.result for job in jobs] == order == list(range(20))
    assert max(most) == 1


def test_a_job_stops_at_its_next_step(worker):
    steps = Steps()
    job = worker.submit(Job("job", steps, estimate_s=1.0))
    for _ in range(3):
        steps.go.release()
    while job.done < 3:
        time.sleep(0.005)
    worker.stop(job)
    assert job.is_stopping
    steps.go.release()
    wait(job)
    assert (job.state, job.result, steps.done) == ("stopped", None, 4)


def test_a_waiting_job_stops_at_once_and_the_others_move_up(worker):
    first, over = Steps(1), []
    jobs = [Job("job", first, estimate_s=7.0)]
    jobs += [Job("job", lambda job: "made", estimate_s=5.0, on_over=over.append) for _ in range(2)]
    for job in jobs:
        worker.submit(job)
    while jobs[0].state != "working":
        time.sleep(0.005)
    assert [worker.ahead(job)[0] for job in jobs[1:]] == [1, 2]
    assert worker.ahead(jobs[2])[1] == pytest.approx(12.0, abs=1.0)
    worker.stop(jobs[1])
    assert jobs[1].state == "stopped"
    assert over == [jobs[1]]
    assert worker.ahead(jobs[2])[0] == 1
    first.go.release()
    wait(*jobs)
    assert jobs[2].result == "made"


@pytest.mark.parametrize(
    ("error", "message"), [(DataError("a.png: no"), "a.png: no"), (RuntimeError("secret /root/path"), FAULT)]
)
def test_a_failed_job_has_one_line_and_the_worker_goes_on(worker, error, message):
    def fail(job):
        raise error

    bad, good = (worker.submit(Job("job", work, estimate_s=0.0)) for work in (fail, lambda job: 1))
    wait(bad, good)
    assert (bad.state, bad.error) == ("failed", message)
    assert good.result == 1


def test_too_long_a_queue_is_refused(worker):
    steps = Steps(1)
    jobs = [worker.submit(Job("job", steps, estimate_s=0.0))]
    while jobs[0].state != "working":
        time.sleep(0.005)
    for _ in range(MOST_WAITING):
        worker.submit(Job("job", lambda job: 1, estimate_s=0.0))
    with pytest.raises(ConfigError, match=f"{MOST_WAITING} requests are already waiting; try again"):
        worker.submit(Job("job", steps, estimate_s=0.0))
    steps.go.release()


def test_the_time_left_follows_the_steps(worker, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("tools.web.jobs.time.monotonic", lambda: now[0])
    job = Job("job", lambda job: None, estimate_s=0.0)
    job.state, job.after_s = "working", 5.0
    for done in (1, 2, 3):
        now[0] += 2.0
        job.step(done, 10)
        assert job.left_s == (None if done == 1 else 2.0 * (10 - done) + 5.0)


def test_a_page_that_is_left_loses_its_folder_after_its_job(worker, tmp_path):
    visits, steps = Visits(tmp_path, worker=worker), Steps(2)
    visit = visits.of("page", is_page=True)
    number, folder = visit.new_folder()
    job = Job("job", steps, estimate_s=0.0, on_over=lambda job: visits.finished(visit, job))
    visit.jobs.append(worker.submit(job))
    while job.state != "working":
        time.sleep(0.005)
    visits.leave("page")
    assert folder.is_dir()  # the job may still write there
    steps.go.release()
    wait(job)
    assert job.state == "stopped"
    assert not visit.folder.exists()
    assert visits.of("page") is not visit
    assert number == 1


def test_the_files_of_programs_stay_until_their_age(worker, tmp_path, monkeypatch):
    visits = Visits(tmp_path, worker=worker, max_age_s=60.0)
    visit = visits.of("program")
    _, folder = visit.new_folder()
    visits.leave("program")
    visits.sweep()
    assert folder.is_dir()
    later = time.monotonic() + 61.0
    monkeypatch.setattr("tools.web.visits.time.monotonic", lambda: later)
    visits.sweep()
    assert not folder.exists()


def test_a_visit_keeps_its_last_results(worker, tmp_path):
    visits = Visits(tmp_path, worker=worker)
    visit = visits.of("page", is_page=True)
    for _ in range(MOST_RESULTS + 2):
        number, folder = visit.new_folder()
        job = Job("job", lambda job: None, estimate_s=0.0)
        job.result = result(folder, number)
        visit.jobs.append(job)
        visits.finished(visit, job)
    assert [one.number for one in visit.results] == list(range(3, MOST_RESULTS + 3))
    assert len(list(visit.folder.iterdir())) == MOST_RESULTS
    assert visit.result(2) is None
    assert visit.result(3) is visit.results[0]


def test_no_two_visits_share_a_folder_and_no_session_becomes_a_path(worker, tmp_path):
    visits = Visits(tmp_path, worker=worker)
    folders = [visits.of(session).new_folder()[1] for session in ("a", "../../b", "/etc", None)]
    assert len({folder.parent for folder in folders}) == 4
    assert all(folder.parent.parent == tmp_path for folder in folders)
