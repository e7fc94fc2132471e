"""Jobs in processes: a failure is one line, a dead process costs one job, Ctrl-C ends at once."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT
from utils.errors import DataError, WriteError
from utils.jobs import _interrupts_held, run_jobs


def job(number: int, how: str) -> int:
    if how == "data":
        raise DataError(f"{number}: broken\nand more")
    if how == "program":
        raise IndexError(f"index {number}")
    if how == "dead":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "full":
        raise OSError(errno.ENOSPC, "No space left on device")
    return number


@pytest.mark.parametrize("workers", [1, 2])
def test_every_failure_is_one_line_and_the_others_are_done(workers):
    jobs = [(k, {2: "data", 4: "program", 5: "dead"}.get(k, "good")) for k in range(12)]
    rows = list(run_jobs(job, jobs, workers=workers, total=len(jobs), unit="job"))
    assert sorted(result for result, error in rows if error is None) == [0, 1, 3, 6, 7, 8, 9, 10, 11]
    assert sorted(error for _, error in rows if error) == [
        "2: broken and more",
        "5: its process was killed (is there enough memory?)",
        "IndexError: index 4",
    ]


def test_a_full_disk_ends_the_run(tmp_path):
    with pytest.raises(WriteError, match=rf"{tmp_path} cannot be written \(No space left on device\); free some space"):
        list(run_jobs(job, [(0, "full"), (1, "good")], workers=1, total=2, unit="job", out=tmp_path))


SLEEPER = """
import signal, sys, time
from pathlib import Path
from utils.jobs import _interrupts_held, run_jobs
from utils.script import run_script

signal.signal(signal.SIGINT, signal.default_int_handler)  # tests may run in the background of a shell, which ignores it

def sleep(path):
    Path(path).write_text("started")
    time.sleep(60)

run_script(lambda: list(run_jobs(sleep, [(sys.argv[1],), (sys.argv[1],)], workers=2, total=2, unit="job")))
"""


def test_ctrl_c_waits_until_the_processes_are_registered():
    before, steps = signal.getsignal(signal.SIGINT), []

    def start():
        with _interrupts_held():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
            steps.append("registered")
        steps.append("too late")

    with pytest.raises(KeyboardInterrupt):
        start()
    assert steps == ["registered"]
    assert signal.getsignal(signal.SIGINT) is before


UNNOTICED = """
import _thread, threading

def press():
    while not Path(sys.argv[1]).exists():
        time.sleep(0.01)
    time.sleep(0.5)  # by then, the main thread waits for the jobs
    _thread.interrupt_main()  # which ends no wait

threading.Thread(target=press, daemon=True).start()
"""


def test_ctrl_c_that_ends_no_wait_is_seen(tmp_path):
    code = SLEEPER.replace("\nrun_script", UNNOTICED + "\nrun_script")
    line = [sys.executable, "-c", code, str(tmp_path / "started")]
    started = time.monotonic()
    found = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=40, check=False)
    assert time.monotonic() - started < 30  # the jobs take 60 seconds
    assert found.returncode == 130


@pytest.mark.parametrize("how", ["Ctrl-C", "kill -9 of the parent"])
def test_a_stopped_run_leaves_no_process(tmp_path, how):
    started = tmp_path / "started"
    line = [sys.executable, "-c", SLEEPER, str(started)]
    process = subprocess.Popen(line, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while not started.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    pressed = time.monotonic()
    if how == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process
    else:
        process.kill()
    _, said = process.communicate(timeout=20)  # ends when the last process has closed its end
    assert time.monotonic() - pressed < 10
    assert process.returncode == (130 if how == "Ctrl-C" else -signal.SIGKILL)
    assert "Traceback" not in said
    if how == "Ctrl-C":
        assert said.strip().splitlines()[-1].startswith("stopped")
