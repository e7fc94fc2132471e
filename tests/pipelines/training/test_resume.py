"""A training that is stopped and started again ends as the one that was left alone."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch

from pipelines.training import checkpoints
from pipelines.training import state as training_state
from pipelines.training.resume import find_state
from pipelines.training.state import latest, read_state
from pipelines.training.trainer import train
from tests.pipelines.training.test_training import load
from tests.tiny_orbits import write_files, write_orbits
from utils.errors import DataError

pytestmark = pytest.mark.usefixtures("one_thread")

T2V = {"TASK_TYPE": "train_t2v_entrance", "decay_mode": "constant", "log_interval": 1}
AUTOENCODER = {
    "TASK_TYPE": "train_autoencoder_entrance", "objective": {"num_whitening": 0}, "batch_sizes": {"1": 2}
}  # fmt: skip
CLASSIFIER = {"TASK_TYPE": "train_classifier_entrance", "classifier": {"type": "ViewClassifier", "width": 8}}


@pytest.fixture
def folder(tmp_path):
    write_orbits(tmp_path / "orbits", copies=2)
    return tmp_path


def final_state(folder, name):
    return read_state(latest(folder / name / "state"))


def stopped_after(folder, step, *, of, as_):
    """A second log_dir that has what a training left when it was killed right after it had saved a step."""
    state = f"state/step_{step:08d}"
    shutil.copytree(folder / of / state, folder / as_ / state)


def assert_same_training(folder, first, second):
    """Everything but the time that it took."""
    one, two = (final_state(folder, name) for name in (first, second))
    assert (one.step, one.num_samples, one.num_averaged) == (two.step, two.num_samples, two.num_averaged)
    for name in ("model", "average", "optimizer"):
        torch.testing.assert_close(getattr(one, name), getattr(two, name), atol=0, rtol=0)


@pytest.mark.parametrize(
    "changes",
    [
        {**T2V, "use_ema": True, "cache_latents": True, "grad_accumulation": 2, "UNet.dropout": 0.1},
        {**T2V, "files": True, "num_workers": 2, "UNet.dropout": 0.1, "auto_encoder.posterior": "sample"},
        pytest.param({**T2V, "use_ema": True, "cache_latents": True}, marks=pytest.mark.slow),
        pytest.param({**T2V, "use_ema": True, "UNet.dropout": 0.1}, marks=pytest.mark.slow),
        pytest.param({**T2V, "files": True, "num_workers": 2}, marks=pytest.mark.slow),
        pytest.param({**T2V, "grad_accumulation": 2, "auto_encoder.posterior": "sample"}, marks=pytest.mark.slow),
        AUTOENCODER | {"decay_mode": "constant"},
        CLASSIFIER | {"decay_mode": "constant"},
    ],
    ids=[
        "cached-accumulated-dropout",
        "files-workers-dropout-sampled",
        "cached",
        "packed-dropout",
        "files-workers",
        "accumulated-sampled",
        "autoencoder",
        "classifier",
    ],
)
def test_four_steps_are_two_and_two_more(folder, changes):
    overrides = {key: changes[key] for key in changes if "." not in key and key != "files"}
    deeper = [f"{key}={changes[key]}" for key in changes if "." in key]
    if "files" in changes:
        overrides["vid_dataset"] = write_files(folder / "files")
    train(load(folder, *deeper, **overrides, num_steps=4, save_ckp_interval=2, log_dir=str(folder / "whole")))
    halves = {**overrides, "log_dir": str(folder / "halves")}
    if changes.get("TASK_TYPE") == "train_classifier_entrance":  # the quickest, so it also ends after two steps
        train(load(folder, **halves, num_steps=2))
    else:
        stopped_after(folder, 2, of="whole", as_="halves")
    train(load(folder, *deeper, **halves, num_steps=4))
    assert final_state(folder, "halves").step == 4
    assert_same_training(folder, "whole", "halves")


def test_old_states_make_room_with_their_weight_files(folder):
    run = folder / "run"
    keep = {"save_ckp_interval": 1, "keep_states": 2, "keep_every": 3}
    train(load(folder, **CLASSIFIER, **keep, num_steps=7, use_ema=True))
    found = sorted(path.name for path in (run / "state").iterdir())
    assert found == [f"step_{step:08d}" for step in (3, 6, 7)]
    found = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert found == [f"{kind}classifier_{step:08d}.pth" for kind in ("", "non_ema_") for step in (3, 6, 7)]


def test_weight_files_of_another_training_stay(folder):
    run = folder / "run"
    train(load(folder, **CLASSIFIER, num_steps=6, save_ckp_interval=2, keep_states=3))
    (run / "checkpoints" / "mine_00000001.pth").touch()
    train(load(folder, **CLASSIFIER, num_steps=3, save_ckp_interval=1, keep_states=1, resume="never"))
    found = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert found == [*(f"classifier_{step:08d}.pth" for step in (3, 4, 6)), "mine_00000001.pth"]


def test_a_kill_while_making_room_leaves_what_the_next_save_removes(folder, monkeypatch):
    run = folder / "run"
    given = CLASSIFIER | {"save_ckp_interval": 1, "keep_states": 2, "use_ema": True}
    with monkeypatch.context() as patch:

        def killed(path):
            raise KeyboardInterrupt

        patch.setattr(checkpoints, "remove_folder", killed)
        with pytest.raises(KeyboardInterrupt):
            train(load(folder, **given, num_steps=5))
    assert read_state(run / "state" / "step_00000001").step == 1
    train(load(folder, **given, num_steps=5))
    assert sorted(path.name for path in (run / "state").iterdir()) == ["step_00000004", "step_00000005"]
    assert len(list((run / "checkpoints").iterdir())) == 4


def test_the_clock_goes_on(folder):
    train(load(folder, **CLASSIFIER, num_steps=2, max_minutes=60))
    state = latest(folder / "run" / "state")
    numbers = json.loads((state / "state.json").read_text())
    (state / "state.json").write_text(json.dumps(numbers | {"elapsed_s": 3600}))
    train(load(folder, **CLASSIFIER, num_steps=100, max_minutes=60))
    assert final_state(folder, "run").step == 2


def test_a_state_of_other_settings_is_refused(folder):
    train(load(folder, **CLASSIFIER, num_steps=1))
    wider = {**CLASSIFIER, "classifier": {"type": "ViewClassifier", "width": 16}}
    with pytest.raises(
        DataError, match=r"another run \(classifier.width is 8 in the state, 16 now\).*resume=never"
    ) as caught:
        train(load(folder, **wider, num_steps=2))
    assert "\n" not in str(caught.value)
    state = latest(folder / "run" / "state")
    with pytest.raises(DataError, match=rf"resume: {state} does not fit ViewClassifier: \d+ misshapen") as caught:
        train(load(folder, **wider, num_steps=2, resume=str(state), log_dir=str(folder / "other")))
    assert "\n" not in str(caught.value)


def test_a_named_state_goes_on_with_other_settings(folder):
    train(load(folder, **CLASSIFIER, num_steps=1))
    for steps in (2, 3):  # the second time from its own state
        given = {"lr": 1e-5, "resume": str(folder / "run"), "log_dir": str(folder / "other")}
        train(load(folder, **CLASSIFIER, num_steps=steps, **given))
    assert final_state(folder, "other").step == 3
    assert final_state(folder, "other").settings["lr"] == 1e-5


def test_an_average_begins_with_the_weights_of_a_state_without(folder, caplog):
    caplog.set_level("INFO")
    train(load(folder, **CLASSIFIER, num_steps=2))
    given = {"resume": str(folder / "run"), "log_dir": str(folder / "other"), "lr": 1e-9}  # the weights stay
    train(load(folder, **CLASSIFIER, **given, num_steps=3, use_ema=True))
    assert "contains no moving average, so it starts with the weights" in caplog.text
    state = final_state(folder, "other")
    assert state.num_averaged == 1
    for name, value in state.average.items():
        torch.testing.assert_close(value, state.model[name], atol=1e-6, rtol=0)


def test_another_global_batch_is_said(folder, caplog):
    caplog.set_level("INFO")
    given = CLASSIFIER | {"batch_sizes": {"1": 2}}
    train(load(folder, **given, num_steps=2))
    train(load(folder, **given, num_steps=3))
    assert "global batch" not in caplog.text
    train(load(folder, **given, num_steps=4, grad_accumulation=2))
    assert "the global batch size is now 4, but was 2 in the state" in caplog.text
    assert (final_state(folder, "run").num_samples, final_state(folder, "run").per_step) == (10, 4)
    state = latest(folder / "run" / "state") / "state.json"
    numbers = json.loads(state.read_text())
    del numbers["per_step"]  # a state of before
    state.write_text(json.dumps(numbers))
    train(load(folder, **given, num_steps=5))
    assert final_state(folder, "run").step == 5


def test_never_puts_the_old_states_aside(folder):
    for _ in range(2):
        train(load(folder, **CLASSIFIER, num_steps=1, resume="never"))
    assert latest(folder / "run" / "state_before_1").name == latest(folder / "run" / "state").name == "step_00000001"
    with pytest.raises(DataError, match="contains no state; use a folder step_"):
        find_state(load(folder, resume=str(folder / "orbits")), folder)


class Shout:
    """Runs code when it is unpickled by something that allows that."""

    def __reduce__(self):
        return (Path.touch, (Path("shouted"),))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: (state / "optimizer.pt").write_bytes(pickle.dumps(Shout())), "could run code"),
        (lambda state: torch.save({0: Shout()}, state / "optimizer.pt"), "could run code"),
        (lambda state: (state / "optimizer.pt").write_bytes(b""), "cannot be read"),
        (lambda state: os.truncate(state / "model.safetensors", 1000), "cannot be read"),
        (lambda state: (state / "average.safetensors").unlink(), "cannot be read"),
        (lambda state: (state / "state.json").write_text("{"), "cannot be read"),
    ],
    ids=["pickle", "zip", "empty", "cut", "missing", "no-json"],
)
def test_damaged_states_are_refused(folder, monkeypatch, damage, message):
    monkeypatch.chdir(folder)
    train(load(folder, **CLASSIFIER, num_steps=1))
    damage(latest(folder / "run" / "state"))
    with pytest.raises(DataError, match=f"resume: .*{message}") as caught:
        train(load(folder, **CLASSIFIER, num_steps=2))
    assert "\n" not in str(caught.value)
    assert not (folder / "shouted").exists()


def test_a_full_disk_leaves_the_last_state(folder, monkeypatch):
    train(load(folder, **CLASSIFIER, num_steps=1))
    before = {path: path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:

        def full(tensors, path):
            Path(path).write_bytes(b"some of it")
            raise OSError(28, "No space left on device")

        patch.setattr(training_state, "save_file", full)
        with pytest.raises(DataError, match=r"step 2 cannot be saved .*No space left.*step_00000001 is complete"):
            train(load(folder, **CLASSIFIER, num_steps=2))
    for path in set(before) - {folder / "run" / "config.yaml"}:
        assert path.read_bytes() == before[path]
    assert not list((folder / "run").rglob("*.part*"))
    train(load(folder, **CLASSIFIER, num_steps=2))
    assert final_state(folder, "run").step == 2


def test_memory_that_runs_out_while_saving_is_not_the_disk(folder, monkeypatch):
    def too_much(*_args, **_options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(training_state, "save_file", too_much)
    with pytest.raises(torch.OutOfMemoryError):
        train(load(folder, **CLASSIFIER, num_steps=1))


@pytest.mark.parametrize("limit", [2_000, 20_000, 60_000])
def test_files_that_cannot_grow_are_a_full_disk(folder, limit):
    resource = pytest.importorskip("resource")
    train(load(folder, **CLASSIFIER, num_steps=1))
    cfg = load(folder, **CLASSIFIER, num_steps=2)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        with pytest.raises(DataError, match="cannot be saved") as caught:
            train(cfg)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert "\n" not in str(caught.value)
    assert not list((folder / "run").rglob("*.part*"))
    assert final_state(folder, "run").step == 1


def test_a_bad_loss_keeps_the_last_good_state(folder, monkeypatch):
    from pipelines.training.objectives.classifier import NameViews

    calls, forward = [], NameViews.forward

    def breaks(self, batch):
        calls.append(0)
        loss, figures = forward(self, batch)
        return (loss * float("nan") if len(calls) == 3 else loss), figures

    monkeypatch.setattr(NameViews, "forward", breaks)
    cfg = load(folder, **CLASSIFIER, num_steps=9, save_ckp_interval=2, batch_sizes={"1": 2}, log_interval=50)
    with pytest.raises(DataError, match=r"at step 3, with the samples (0/\d), (0/\d);.*step_00000002") as caught:
        train(cfg)
    state = final_state(folder, "run")
    assert state.step == 2
    assert all(value.isfinite().all() for value in state.model.values())
    names = re.search(r"samples (0/\d), (0/\d);", str(caught.value)).groups()
    objective = NameViews(NameViews.Config(), cfg=cfg, device=torch.device("cpu"))
    index_B = next(objective.global_batch.order(8, start=2)).tolist()
    assert [objective.orbits.object_ids[index] for index in index_B] == list(names)
