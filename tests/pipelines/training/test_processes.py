"""Several processes on the CPU (gloo) train as one does."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pipelines.training import launch, resume
from pipelines.training.data.global_batch import GlobalBatch
from pipelines.training.launch import processes_to_start
from pipelines.training.state import latest, read_state
from pipelines.training.trainer import train as train_here
from tests.conftest import ROOT
from tests.pipelines.training.groups import ENVIRONMENT, group, group_variables, train_in_group
from tests.pipelines.training.test_training import load
from tests.tiny import write_config
from tests.tiny_orbits import training_config, write_files, write_orbits
from utils.config import load_config
from utils.errors import ConfigError, DataError

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
# The launcher's way to several processes of one machine is called so on CPUs too; port 0: a free one.
ACCELERATE = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folder(tmp_path):
    write_orbits(tmp_path / "orbits", copies=2)
    return tmp_path


def config_file(folder, name, **changes):
    given = {"TASK_TYPE": "train_t2v_entrance", "num_steps": 2, "log_interval": 1, "log_dir": str(folder / name)}
    return write_config(folder / f"{name}.yaml", training_config(folder, **(given | changes)))


def start(*command, folder):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, *command], cwd=folder, env=ENVIRONMENT, **pipes)


def train(*command, folder):
    with start(*command, folder=folder) as process:
        output = process.stdout.read()
    assert process.returncode == 0, output
    return output


def gradients(folder, name):
    """The first moments after one step are (1 - beta1) times the gradient."""
    state = read_state(latest(folder / name / "state"))
    assert state.step == 1
    return {number: kept["exp_avg"] for number, kept in state.optimizer.items()}


def test_one_global_batch_gives_one_gradient(folder, request):
    cases = {
        "one": {"batch_sizes": {"3": 8}},
        "two_by_two": {"batch_sizes": {"3": 2}, "num_processes": 2, "grad_accumulation": 2},
        "after_the_pass": {"batch_sizes": {"3": 2}, "num_processes": 2, "grad_accumulation": 2, "use_ddp": False},
    }
    if request.config.getoption("--slow"):
        cases["parts"] = {"batch_sizes": {"3": 2}, "grad_accumulation": 4}
        cases["started_here"] = cases["two_by_two"]
        cases["two"] = {"batch_sizes": {"3": 4}, "num_processes": 2}
        cases["four"] = {"batch_sizes": {"3": 2}, "num_processes": 4}
        cases["torchrun"] = cases["accelerate"] = {"batch_sizes": {"3": 4}}
    launchers = {"torchrun": TORCHRUN, "accelerate": ACCELERATE}
    diffusion = {"type": "DiffusionDDIM", "noise_strength": 0.1}
    for name, changes in cases.items():
        sampled = {**training_config(folder)["auto_encoder"], "posterior": "sample"}
        given = {"num_steps": 1, "p_zero": 0.4, "auto_encoder": sampled, "Diffusion": diffusion, "grad_clip": 0.1}
        file = config_file(folder, name, **given, **changes)
        if name in ("two_by_two", "after_the_pass"):
            train_in_group(file, num=2)
        elif name in launchers or "num_processes" in changes:
            train(*launchers.get(name, ()), ROOT / "train_net.py", "--cfg", file, folder=folder)
        else:
            train_here(load_config(file))
    one = gradients(folder, "one")
    largest = max(float(value.abs().max()) for value in one.values())
    assert largest > 1e-4
    for name in cases:
        # sums in another order: float32 rounding
        torch.testing.assert_close(gradients(folder, name), one, atol=1e-5 * largest, rtol=1e-3, msg=name)


def test_processes_go_on_where_one_stopped(folder, request):
    """Another number of processes deals the same samples on, if the global batch has the same size."""
    files = {"vid_dataset": write_files(folder / "files"), "num_workers": 1, "decay_mode": "constant"}
    whole = config_file(folder, "whole", **files, batch_sizes={"3": 4}, num_steps=3, save_ckp_interval=1, keep_states=3)
    train_here(load_config(whole))
    state = folder / "whole" / "state" / "step_00000001"
    second = config_file(folder, "second", **files, batch_sizes={"3": 2}, num_steps=3, resume=str(state))
    if request.config.getoption("--slow"):
        output = train(*TORCHRUN, ROOT / "train_net.py", "--cfg", second, folder=folder)
    else:
        output = train_in_group(second, num=2)
    assert output.count("wrote ") == 1
    one, two = (read_state(latest(folder / name / "state")) for name in ("whole", "second"))
    assert one.num_samples == two.num_samples == 12
    # AdamW divides by tiny gradients, so rounding shows; three steps of 2e-3 that went other ways would be 6e-3 off
    off = [float((one.model[name] - two.model[name]).abs().mean()) for name in one.model]
    assert max(off) < 1e-4


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.slow
@pytest.mark.parametrize("at_once", [False, True], ids=["to-the-launcher", "to-all-at-once"])
def test_a_signal_reaches_all_processes(folder, at_once):
    """From the launcher, which passes it on; and as Slurm sends it, to all of them beside that."""
    file = config_file(folder, "run", num_processes=2, num_steps=10**6)
    with start(ROOT / "train_net.py", "--cfg", file, folder=folder) as process:
        for line in process.stdout:
            if line.startswith("step 2:"):
                children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
                assert len(children) == 2
                for pid in (process.pid, *(map(int, children) if at_once else ())):
                    os.kill(pid, signal.SIGTERM)
                break
        rest = process.stdout.read()
    assert process.returncode == 0, rest
    step = int(re.search(r"stopped at step (\d+)", rest)[1])
    assert latest(folder / "run" / "state").name == f"step_{step:08d}"


def test_a_signal_to_all_processes_saves_once(folder):
    file = config_file(folder, "run", num_steps=10**6)
    with group(file, num=2) as (processes, printed):
        for line in printed:
            if line.startswith("step 2:"):
                for process in processes:
                    os.kill(process.pid, signal.SIGTERM)
                break
        rest = printed.read()
        for process in processes:
            process.join()
    assert [process.exitcode for process in processes] == [0, 0], rest
    [step] = re.findall(r"stopped at step (\d+)", rest)
    assert latest(folder / "run" / "state").name == f"step_{int(step):08d}"


def test_a_signal_that_comes_twice_is_one(monkeypatch):
    monkeypatch.setattr(launch, "REPEAT_S", 0.3)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    with launch.watch_signals() as received:
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert received == [signal.SIGINT, signal.SIGTERM]
        time.sleep(0.4)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.signal(signal.SIGINT, before) == signal.default_int_handler


@pytest.mark.parametrize(
    "launched", [pytest.param(True, marks=pytest.mark.slow, id="launched"), pytest.param(False, id="forked")]
)
def test_one_failing_process_ends_all_in_one_line(folder, launched):
    section = write_files(folder / "files")
    for number in range(8):
        (folder / "files" / f"0/{number}/campos_512_v4/00000/00000.png").write_bytes(b"")
    file = config_file(folder, "run", num_processes=2, vid_dataset=section)
    if launched:
        with start(ROOT / "train_net.py", "--cfg", file, folder=folder) as process:
            output = process.stdout.read()
        assert process.returncode == 2
    else:
        output = train_in_group(file, num=2, exit_code=2)
    assert "error: object 0/" in output
    assert "Traceback" not in output


@pytest.mark.slow
@pytest.mark.parametrize("divided", [False, True])
def test_a_full_disk_ends_all_in_one_line_each(folder, divided):
    given = {"use_ema": True, "use_fsdp": divided, "num_processes": 2, "save_ckp_interval": 1, "num_steps": 3}
    file = config_file(folder, "run", **given)
    limited = f'ulimit -f 20; exec "{sys.executable}" "{ROOT / "train_net.py"}" --cfg "{file}"'  # files of 20 kB
    done = subprocess.run(["bash", "-c", limited], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    errors = sorted(line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert len(errors) == 2
    assert re.search(
        r"step 1 cannot be saved \(.* MB are free\); there is no earlier state; free disk space", errors[0]
    )
    assert errors[1] == "error: step 1 was not saved; see the error message of the main process"
    assert not list((folder / "run").rglob("*.part*"))


def on_two_machines(folder, *files):
    """Two processes with a configuration each, as if their folders had the same names; what each says."""
    processes = []
    for variables, file in zip(group_variables(2), files, strict=True):
        command = [sys.executable, ROOT / "train_net.py", "--cfg", file]
        environment = ENVIRONMENT | variables | {"LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        processes.append(subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True))
    said = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], said
    return said


def test_processes_that_go_on_from_different_steps_are_refused(folder, monkeypatch):
    train_here(load_config(config_file(folder, "one", num_steps=1)))
    found = latest(folder / "one" / "state")
    # as if another process had found the state of step 0
    monkeypatch.setattr(resume, "largest", lambda *values: tuple(max(value, 0) for value in values))
    with pytest.raises(DataError, match=r"find the state of step 1, others the one of step 0; use a log_dir on a disk"):
        resume.check_agreement(found, folder / "one")
    monkeypatch.setattr(resume, "largest", lambda *values: values)
    resume.check_agreement(found, folder / "one")


@pytest.mark.slow
def test_a_log_dir_that_machines_do_not_share_is_refused(folder):
    first, second = (config_file(folder, name, num_steps=3) for name in ("first", "second"))
    train_here(load_config(config_file(folder, "one", num_steps=1, log_dir=str(folder / "first"))))
    for said in on_two_machines(folder, first, second):
        assert "some processes find the state of step 1, others none; use a log_dir on a disk that all" in said
        assert "Traceback" not in said


@pytest.mark.slow
def test_a_cache_dir_that_machines_do_not_share_is_refused(folder):
    caches = [config_file(folder, n, cache_latents=True, cache_dir=str(folder / f"cache_{n}")) for n in "ab"]
    for said in on_two_machines(folder, *caches):
        assert re.search(r"error: cache_dir=.*: not all processes see begun.json; put it on a disk", said)
        assert "Traceback" not in said


def test_rows_of_a_global_batch_do_not_depend_on_who_has_them(monkeypatch):
    def shares(processes, parts, size):
        for part in range(parts):
            for rank in range(processes):
                share = GlobalBatch(size=size, parts=parts, seed=3, device=torch.device("cpu"))
                share.num_processes, share.rank = processes, rank
                share.begin(7, part)
                yield share

    drawn = []
    for processes, parts, size in ((1, 1, 8), (2, 2, 2), (4, 1, 2), (1, 4, 2)):
        rows = [
            (one.randn(size, 3), one.rand(size), one.randint(9, size), torch.stack(
                [torch.randn(2, generator=generator) for generator in one.row_generators()]))
            for one in shares(processes, parts, size)
        ]  # fmt: skip
        drawn.append([torch.cat(column) for column in zip(*rows, strict=True)])
    for other in drawn[1:]:
        for values, expected in zip(other, drawn[0], strict=True):
            assert torch.equal(values, expected)


def test_looking_for_a_device_does_not_touch_it(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "empty", None)  # what would create a context
    assert processes_to_start(load(folder, device="cuda")) == 2
    assert processes_to_start(load(folder, device="cuda:1")) == 1
    with pytest.raises(ConfigError, match="device=cuda:2 is not available here"):
        processes_to_start(load(folder, device="cuda:2"))
    assert not torch.cuda.is_initialized()


def test_numbers_of_processes(folder, monkeypatch):
    assert processes_to_start(load(folder)) == 1
    assert processes_to_start(load(folder, num_processes=3)) == 3
    with monkeypatch.context() as by_accelerate:
        by_accelerate.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
        assert processes_to_start(load(folder)) == 1
        assert processes_to_start(load(folder, num_processes=3)) == 3
        by_accelerate.setenv("ACCELERATE_USE_FSDP", "true")
        with pytest.raises(ConfigError, match="ACCELERATE_USE_FSDP; launch without it and set use_fsdp=true instead"):
            processes_to_start(load(folder))
    monkeypatch.setenv("RANK", "0")
    assert processes_to_start(load(folder, num_processes=3)) == 1
    with pytest.raises(ConfigError, match="num_processes must not be negative"):
        load(folder, num_processes=-1)
