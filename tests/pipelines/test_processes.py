"""Several processes on the CPU (gloo) train as one does."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from pipelines.training_state import latest, read_state
from tests.conftest import ROOT
from tests.tiny import write_config
from tests.tiny_orbits import training_config, write_orbits

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
# one AdamW step moves a weight by lr times the sign of its gradient, however small: plain descent shows the gradient
STEP_SIZE = 1e-3


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


def test_one_global_batch_gives_one_gradient(folder):
    cases = {
        "one": {"batch_sizes": {"3": 8}},
        "two": {"batch_sizes": {"3": 4}, "num_processes": 2},
        "two_by_two": {"batch_sizes": {"3": 2}, "num_processes": 2, "grad_accumulation": 2},
        "parts": {"batch_sizes": {"3": 2}, "grad_accumulation": 4},
    }
    if os.environ.get("VIDEOMV_SLOW_TESTS"):
        cases["four"] = {"batch_sizes": {"3": 2}, "num_processes": 4}
    diffusion = {"type": "DiffusionDDIM", "noise_strength": 0.1}
    for name, changes in cases.items():
        sampled = {**training_config(folder)["auto_encoder"], "posterior": "sample"}
        given = {"num_steps": 1, "p_zero": 0.4, "auto_encoder": sampled, "Diffusion": diffusion, "grad_clip": 0.1}
        train(ROOT / "train_net.py", "--cfg", config_file(folder, name, **given, **changes), folder=folder)
    one = gradients(folder, "one")
    largest = max(float(value.abs().max()) for value in one.values())
    assert largest > 1e-4
    for name in cases:
        # sums in another order: float32 rounding
        torch.testing.assert_close(gradients(folder, name), one, atol=1e-5 * largest, rtol=1e-3, msg=name)
