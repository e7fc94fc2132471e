"""A training that is killed again and again ends as the one that was left alone.

One kill while a state is being written; with `--slow` or `--kills 20` more, every second one at a random moment.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
import torch

from models.weights import read_weights
from pipelines.training.state import latest, read_state
from pipelines.training.trainer import train
from tests.pipelines.training.groups import training
from tests.tiny import write_config
from tests.tiny_orbits import training_config, write_orbits
from utils.config import load_config

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS_A_KILL = 2


def config_file(folder: Path, name: str, *, num_steps: int) -> Path:
    changes = {"TASK_TYPE": "train_t2v_entrance", "use_ema": True, "cache_latents": True, "save_ckp_interval": 1}
    changes |= {"log_dir": str(folder / name), "num_steps": num_steps, "log_interval": 1, "keep_states": 3}
    changes |= {"batch_sizes": {"3": 1}}
    return write_config(folder / f"{name}.yaml", training_config(folder, **changes))


def kill_once(file: Path, states: Path, *, draw: random.Random, while_saving: bool) -> None:
    """Start the training, let it take some steps, and kill it."""
    steps = draw.randint(1, STEPS_A_KILL)
    with training(file) as (process, printed):
        seen = 0
        for line in printed:
            seen += line.startswith("step ")
            if seen == steps:
                break
        else:
            raise AssertionError("it ended by itself")
        end = time.monotonic() + (10 if while_saving else draw.uniform(0, 0.4))
        while time.monotonic() < end and not (while_saving and list(states.glob(".*.part"))):
            time.sleep(0.0005)
        process.kill()


def test_a_kill_storm_changes_nothing(tmp_path, request):
    num_kills = request.config.getoption("--kills") or (4 if request.config.getoption("--slow") else 1)
    write_orbits(tmp_path / "orbits", copies=2)
    num_steps = (STEPS_A_KILL + 2) * num_kills
    train(load_config(config_file(tmp_path, "alone", num_steps=num_steps)))
    file, states = config_file(tmp_path, "killed", num_steps=num_steps), tmp_path / "killed" / "state"
    draw, half_written = random.Random(5), 0
    for kill in range(num_kills):
        kill_once(file, states, draw=draw, while_saving=kill % 2 == 0)
        half_written += bool(list(states.glob(".*.part")))
        for path in states.glob("step_*"):
            read_state(path)
        for path in (tmp_path / "killed" / "checkpoints").glob("[!.]*.pth"):  # what is half written is hidden
            read_weights(path, option="test")
    assert half_written > 0
    with training(file) as (process, printed):
        rest = printed.read()
        process.join()
    assert process.exitcode == 0, rest
    one, two = (read_state(latest(tmp_path / name / "state")) for name in ("alone", "killed"))
    assert one.step == two.step == num_steps
    for name in ("model", "average", "optimizer"):
        torch.testing.assert_close(getattr(one, name), getattr(two, name), atol=0, rtol=0)
    exported = [read_weights(tmp_path / name / "t2v.safetensors", option="test").state for name in ("alone", "killed")]
    torch.testing.assert_close(*exported, atol=0, rtol=0)
    names = [sorted(path.name for path in (tmp_path / name).rglob("*")) for name in ("alone", "killed")]
    assert names[0] == names[1]
