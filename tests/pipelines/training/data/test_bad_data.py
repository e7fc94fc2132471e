"""Bad data: refused before training, or skipped, counted and named."""

from __future__ import annotations

import json
import os
import re

import pytest

from datasets.orbits.layout import view_file
from datasets.orbits.packed import shard_file
from models.weights import read_weights
from pipelines.training.data.latent_cache import CachedLatents
from pipelines.training.trainer import train
from tests.pipelines.training.test_training import load
from tests.tiny_orbits import training_config, write_files, write_orbits
from tools.index_dataset import main as index_dataset
from utils.errors import ConfigError, DataError

pytestmark = pytest.mark.usefixtures("one_thread")

BROKEN = ("0/2", "0/5", "0/6")


@pytest.fixture
def folder(tmp_path):
    write_orbits(tmp_path / "orbits", copies=2)
    return tmp_path


@pytest.fixture
def section(folder):
    """Eight objects; one lacks a view, one has a PNG of zero bytes, one has no caption."""
    section = write_files(folder / "files")
    view_file(folder / "files" / "0/2", 1).unlink()
    view_file(folder / "files" / "0/5", 2).write_bytes(b"")
    captions = json.loads((folder / "files" / "captions.json").read_text())
    del captions["0/6"]
    (folder / "files" / "captions.json").write_text(json.dumps(captions))
    return section


def config(folder, section, **changes):
    # one step shows all eight objects
    given = {"TASK_TYPE": "train_t2v_entrance", "num_steps": 2, "batch_sizes": {"3": 8}, "vid_dataset": section}
    return load(folder, **(given | changes))


@pytest.mark.parametrize("num_workers", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_broken_samples_are_skipped_and_named_once(folder, section, caplog, num_workers):
    final = train(config(folder, section, num_workers=num_workers))
    assert read_weights(final, option="test").step == 2
    lines = [record.getMessage() for record in caplog.records if "skipped broken sample" in record.getMessage()]
    assert len(lines) == 3
    for object_id, reason in zip(BROKEN, ("00001.png", "00002.png", "no caption"), strict=True):
        assert any(f"object {object_id}: " in line and reason in line for line in lines)


@pytest.mark.parametrize("cached", [False, True])
def test_too_many_broken_samples_stop(folder, section, cached):
    with pytest.raises(DataError, match=r"object 0/\d: .*broken sample 3, max_bad_samples=2.*index_dataset") as caught:
        train(config(folder, section, max_bad_samples=2, cache_latents=cached, num_workers=1))
    assert "\n" not in str(caught.value)


def test_broken_samples_are_not_cached(folder, section, caplog):
    train(config(folder, section, cache_latents=True))
    assert CachedLatents(folder / "latents").object_ids == [f"0/{n}" for n in range(8) if f"0/{n}" not in BROKEN]
    assert "3 broken orbits are not in" in caplog.text


def test_the_check_tool_finds_the_same_before(folder, section, capsys):
    captions = str(folder / "files" / "captions.json")
    assert index_dataset([str(folder / "files"), "--captions", captions, "--views", "3", "--strict"]) == 1
    assert set(re.findall(r"^object (\S+):", capsys.readouterr().out, re.M)) == set(BROKEN)
    train(config(folder, section, max_bad_samples=0))


def test_missing_folders_are_refused(folder, section):
    with pytest.raises(DataError, match=r"data_dir_list=nowhere: no such folder"):
        train(config(folder, {**section, "data_dir_list": ["nowhere"]}))
    packed = {"type": "PackedOrbits", "data_dir_list": ["nowhere"], "num_views": 3}
    with pytest.raises(DataError, match=r"data_dir_list=nowhere: no orbits_"):
        train(config(folder, packed))
    with pytest.raises(DataError, match=r"caption_dir=nowhere.json: no such file"):
        train(config(folder, {**section, "caption_dir": "nowhere.json"}))
    assert not (folder / "run" / "state").exists()


def test_half_a_shard_is_refused(folder):
    file = shard_file(folder / "orbits", 0)
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(DataError, match=r"orbits_00000.safetensors: not a complete shard") as caught:
        train(load(folder, TASK_TYPE="train_t2v_entrance"))
    assert "\n" not in str(caught.value)


def test_half_a_shard_of_latents_is_refused(folder):
    cfg = load(folder, TASK_TYPE="train_t2v_entrance", cache_latents=True, num_steps=1)
    train(cfg)
    shard = next((folder / "latents").glob("*.safetensors"))
    os.truncate(shard, shard.stat().st_size // 2)
    with pytest.raises(DataError, match=r"cache_dir=.*delete the folder to encode again") as caught:
        train(load(folder, TASK_TYPE="train_t2v_entrance", cache_latents=True, num_steps=2))
    assert "\n" not in str(caught.value)


def test_nothing_but_broken_samples_is_refused(folder, section):
    for number in range(8):
        view_file(folder / "files" / f"0/{number}", 0).write_bytes(b"")
    with pytest.raises(DataError, match="broken samples in a row"):
        train(config(folder, section, max_bad_samples=100))


def test_sizes_that_contradict_each_other_are_refused(folder):
    section = training_config(folder)["vid_dataset"]
    for changes, message in (
        ({"resolution": [64, 64]}, r"resolution=\[32, 32\], but vid_dataset.resolution=\[64, 64\]"),
        ({"num_views": 2}, r"frame_lens=\[3\], but vid_dataset.num_views=2"),
    ):
        with pytest.raises(ConfigError, match=message):
            train(load(folder, TASK_TYPE="train_t2v_entrance", vid_dataset={**section, **changes}))
