"""What a training says about itself."""

from __future__ import annotations

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import pipelines.training.progress
from pipelines.training.progress import ProgressReport
from pipelines.training.trainer import train
from tests.pipelines.training.test_training import load, losses
from tests.tiny_orbits import write_orbits
from utils.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folder(tmp_path):
    write_orbits(tmp_path / "orbits")
    return tmp_path


def test_tensorboard_and_the_bar_have_what_the_log_says(folder, caplog, monkeypatch, capsys):
    caplog.set_level("INFO")
    monkeypatch.setattr(pipelines.training.progress, "memory_gb", lambda: {"peak_memory": 44.8})
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    train(load(folder, TASK_TYPE="train_t2v_entrance", tracker="tensorboard", num_steps=4, log_interval=2))
    events = EventAccumulator(str(folder / "run" / "log")).Reload()
    written = [(event.step, event.value) for event in events.Scalars("loss")]
    assert [step for step, _ in written] == [2, 4]
    assert [value for _, value in written] == pytest.approx(losses(caplog), abs=1e-4)
    assert {"lr", "views_per_second", "peak_memory_gb"} <= set(events.Tags()["scalars"])
    bar = capsys.readouterr().err
    assert "views/s, peak memory 44.80 GB" in bar
    assert "4/4" in bar


def test_the_time_left_counts_from_where_this_run_began(folder, caplog, monkeypatch):
    """A run that begins at step 50 of 100 and does ten steps in 20 s needs 80 s more."""
    caplog.set_level("INFO")
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    cfg = load(folder, TASK_TYPE="train_t2v_entrance", num_steps=100)
    with ProgressReport(cfg, views_per_batch=12, first_step=50, first_progress=50 / cfg.num_steps) as report:
        for _ in range(10):
            report.add({"loss": torch.tensor(0.5)})
        now[0] += 20
        report.write(60, lr=1e-3, progress=0.6, summary=dict)
    assert "6.0 views/s, ETA 0:01:20" in caplog.text


def test_a_tracker_that_is_not_there_is_refused(folder, monkeypatch):
    monkeypatch.setattr("pipelines.training.launch.get_available_trackers", list)
    with pytest.raises(ConfigError, match="tracker=wandb is not installed; run `pip install wandb`"):
        train(load(folder, TASK_TYPE="train_t2v_entrance", tracker="wandb"))
    assert not (folder / "run").exists()
    with pytest.raises(ConfigError, match="tracker"):
        load(folder, tracker="wandbb")
