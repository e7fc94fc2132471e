"""States that are not what they were, and two trainings in one folder."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipelines.training import progress
from pipelines.training.state import latest, read_numbers, read_state
from pipelines.training.trainer import Trainer, train
from tests.conftest import ROOT
from tests.pipelines.training.test_training import load
from tests.tiny_orbits import write_orbits
from utils.errors import DataError
from utils.files import sole_use, writable_folder

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSIFIER = {"TASK_TYPE": "train_classifier_entrance", "classifier": {"type": "ViewClassifier", "width": 8}}


@pytest.fixture
def folder(tmp_path):
    write_orbits(tmp_path / "orbits", copies=2)
    return tmp_path


@pytest.fixture
def two_states(folder):
    """A training of two steps with the states of both."""
    train(load(folder, **CLASSIFIER, num_steps=2, save_ckp_interval=1, use_ema=True))
    return folder


def change_numbers(state: Path, **changes) -> None:
    file = state / "state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def flip(file: Path) -> None:
    """Flip the lowest bit of a byte in the middle of the largest tensor."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def edit_optimizer(state: Path, change) -> None:
    content = torch.load(state / "optimizer.pt", weights_only=True)
    change(content)
    torch.save(content, state / "optimizer.pt")


DAMAGES = {
    "step -5": lambda state: change_numbers(state, step=-5),
    "step 10**9": lambda state: change_numbers(state, step=10**9),
    "step text": lambda state: change_numbers(state, step="x"),
    "step true": lambda state: change_numbers(state, step=True),
    "step of another": lambda state: change_numbers(state, step=1),
    "settings null": lambda state: change_numbers(state, settings=None),
    "num_samples null": lambda state: change_numbers(state, num_samples=None),
    "num_samples negative": lambda state: change_numbers(state, num_samples=-1),
    "num_averaged null": lambda state: change_numbers(state, num_averaged=None),
    "elapsed NaN": lambda state: change_numbers(state, elapsed_s=float("nan")),
    "elapsed infinite": lambda state: change_numbers(state, elapsed_s=float("inf")),
    "scaler list": lambda state: change_numbers(state, scaler=[1]),
    "per_step text": lambda state: change_numbers(state, per_step="4"),
    "list": lambda state: (state / "state.json").write_text("[]"),
    "deep": lambda state: (state / "state.json").write_text("[" * 100_000),
    "latin": lambda state: (state / "state.json").write_bytes(b'{"layout": "\xe9"}'),
    "huge number": lambda state: (state / "state.json").write_text('{"layout": 1, "step": 1' + "0" * 5000 + "}"),
    "model bit": lambda state: flip(state / "model.safetensors"),
    "average bit": lambda state: flip(state / "average.safetensors"),
    "optimizer stub": lambda state: (state / "optimizer.pt").write_bytes(b"\x80\x02."),
    "optimizer list": lambda state: torch.save([1], state / "optimizer.pt"),
    "optimizer text": lambda state: torch.save({"a": 1}, state / "optimizer.pt"),
    "optimizer without moments": lambda state: torch.save({0: {"step": torch.ones(())}}, state / "optimizer.pt"),
    "optimizer NaN": lambda state: edit_optimizer(state, lambda content: content[0]["exp_avg"].fill_(torch.nan)),
    "optimizer NaN step": lambda state: edit_optimizer(state, lambda content: content[0]["step"].fill_(torch.nan)),
    "optimizer value": lambda state: edit_optimizer(state, lambda content: content[0]["exp_avg_sq"].add_(1e-3)),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_state_is_told_in_one_line(two_states, name):
    state = latest(two_states / "run" / "state")
    DAMAGES[name](state)
    with pytest.raises(DataError, match=f"resume: {state}.*resume=never") as caught:
        read_state(state)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("name", ["step 10**9", "settings null", "model bit", "optimizer NaN step"])
def test_training_goes_on_from_the_state_before_a_damaged_one(two_states, name, caplog):
    run = two_states / "run"
    whole = copy.deepcopy(read_state(run / "state" / "step_00000002"))  # not the file's memory
    DAMAGES[name](latest(run / "state"))
    train(load(two_states, **CLASSIFIER, num_steps=2, save_ckp_interval=1, use_ema=True))
    assert "step_00000002 is damaged: resume: " in caplog.text
    assert "training goes on from the state before, step_00000001" in caplog.text
    assert sorted(path.name for path in (run / "state").iterdir()) == [
        "damaged_step_00000002", "step_00000001", "step_00000002",
    ]  # fmt: skip
    again = read_state(run / "state" / "step_00000002")  # the same step as before, bit for bit
    torch.testing.assert_close(again.model, whole.model, atol=0, rtol=0)
    torch.testing.assert_close(again.optimizer, whole.optimizer, atol=0, rtol=0)


def test_states_that_are_all_damaged_are_refused(two_states):
    for state in (two_states / "run" / "state").iterdir():
        flip(state / "model.safetensors")
    with pytest.raises(DataError, match=r"step_00000002: the model has changed since it was written .*resume=never"):
        train(load(two_states, **CLASSIFIER, num_steps=3, use_ema=True))
    named = str(two_states / "run" / "state" / "step_00000001")
    with pytest.raises(DataError, match="has changed since it was written"):
        train(load(two_states, **CLASSIFIER, num_steps=3, log_dir=str(two_states / "new"), resume=named))


def test_a_state_of_an_earlier_version_has_no_checksums(two_states):
    file = latest(two_states / "run" / "state") / "state.json"
    numbers = json.loads(file.read_text())
    assert set(numbers["checksums"]) == {"model", "average", "optimizer"}
    del numbers["checksums"]
    file.write_text(json.dumps(numbers))
    assert read_numbers(file.parent)["checksums"] == {}
    train(load(two_states, **CLASSIFIER, num_steps=3, use_ema=True))
    assert latest(two_states / "run" / "state").name == "step_00000003"


def test_another_division_of_the_batch_goes_on_where_the_first_stopped(folder, caplog):
    caplog.set_level("INFO")
    train(load(folder, **CLASSIFIER, batch_sizes={"1": 4}, num_steps=1))
    train(load(folder, **CLASSIFIER, batch_sizes={"1": 2}, grad_accumulation=2, num_steps=2))
    state = read_state(latest(folder / "run" / "state"))
    assert (state.step, state.num_samples, state.per_step) == (2, 8, 4)
    assert "global batch" not in caplog.text  # the product is the same
    train(load(folder, **CLASSIFIER, batch_sizes={"1": 8}, num_steps=3))
    assert "the global batch size is now 8, but was 4 in the state" in caplog.text
    file = latest(folder / "run" / "state") / "state.json"
    numbers = json.loads(file.read_text())
    numbers["settings"]["batch_sizes"] = {"1": 4}  # earlier versions have it among the settings that identify a run
    file.write_text(json.dumps(numbers))
    train(load(folder, **CLASSIFIER, batch_sizes={"1": 8}, num_steps=4))
    assert latest(folder / "run" / "state").name == "step_00000004"


def test_a_second_training_in_one_folder_is_refused(folder):
    run = writable_folder(folder / "run", option="log_dir")
    code = (
        "import sys\nfrom pathlib import Path\nfrom utils.files import sole_use\n"
        f"with sole_use(Path({str(run)!r}), option='log_dir'):\n print('held', flush=True)\n sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(
            DataError, match=rf"log_dir=.*run is used by another run \(process {holder.pid} on .*another log_dir"
        ):
            train(load(folder, **CLASSIFIER, num_steps=1))
        assert not (folder / "run" / "state").exists()
    finally:
        holder.kill()
        holder.communicate()
    train(load(folder, **CLASSIFIER, num_steps=1))  # a killed holder leaves no lock
    assert not (folder / "run" / ".in_use").exists()
    with sole_use(folder / "run", option="log_dir"):
        pass


def test_a_preview_that_cannot_be_written_does_not_stop_a_training(folder, monkeypatch, caplog):
    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipelines.training.objectives.classifier.NameViews.preview", full)
    assert train(load(folder, **CLASSIFIER, num_steps=3, viz_interval=1, save_ckp_interval=1)).is_file()
    lines = [line for line in caplog.messages if "were not written" in line]
    assert len(lines) == 3
    assert lines[0] == ("previews of step 1 were not written ([Errno 28] No space left on device); training goes on")


def test_the_remaining_time_after_a_resume_counts_what_the_clock_has_used(folder, monkeypatch, caplog):
    """Half of max_minutes is used, and few steps are done: the rest takes as long as the clock says."""
    caplog.set_level("INFO")
    given = CLASSIFIER | {"num_steps": 1000, "max_minutes": 60, "log_interval": 1}
    train(load(folder, **CLASSIFIER, num_steps=1))
    change_numbers(latest(folder / "run" / "state"), elapsed_s=1800)
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    step = Trainer.train_step

    def slow_step(self, batches):
        step(self, batches)
        now[0] += 600

    monkeypatch.setattr(Trainer, "train_step", slow_step)
    train(load(folder, **given))
    shown = [record.getMessage().split("ETA ")[1] for record in caplog.records if "ETA" in record.getMessage()]
    assert shown[-3:] == ["0:20:00", "0:10:00", "0:00:00"]
