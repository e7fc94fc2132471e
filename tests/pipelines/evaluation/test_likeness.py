"""Likeness: closed forms, and samples that are their own or another object."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from pipelines.evaluation.held_out import TrueOrbits
from pipelines.evaluation.likeness import LikenessOptions, evaluate_likeness, likeness_text, overlap, silhouettes
from pipelines.evaluation.samples import write_sample
from tests.tiny import write_config, write_family
from tests.tiny_orbits import NUM_VIEWS, SIZE, write_files, write_orbits
from utils.config import load_config
from utils.errors import DataError
from utils.files import write_json


def test_overlap_in_closed_form():
    views = torch.ones(2, 3, 4, 4)
    views[0, 1, :, :2] = 0.5  # one channel is enough: the left half
    mask = silhouettes(views, background=1.0)
    assert mask.sum(dim=(1, 2)).tolist() == [8, 0]
    other = torch.zeros(2, 4, 4, dtype=torch.bool)
    other[0, :2] = True  # the upper half: 4 of 12 pixels; two empty views agree
    assert overlap(mask, other) == pytest.approx((4 / 12 + 1) / 2)
    assert overlap(mask, mask) == 1


@pytest.fixture
def measure(tmp_path):
    """Samples of the captions of two orbits: a red square as it is, and a blue disc that became the square."""
    changes = {"cameras": {"num_views": NUM_VIEWS}, "resolution": [SIZE, SIZE], "prompt_suffix": ", 3d asset"}
    cfg = load_config(write_config(tmp_path / "run.yaml", write_family(tmp_path) | changes))
    write_orbits(tmp_path / "orbits", copies=1)
    write_files(tmp_path / "files")
    orbits = TrueOrbits(tmp_path / "orbits", cfg, limit=9, scratch=tmp_path, option="--held-out")
    captions = orbits.dataset.captions
    square, disc = (captions.index(name) for name in ("a red square", "a blue disc"))
    for number, made in ((square, orbits[square]), (disc, orbits[square])):
        record = {"prompt": captions[number] + ", 3d asset"}
        write_sample(tmp_path / "run" / str(number), {"views": made.views_VCHW}, orbit=orbits[number], record=record)

    def run(held_out, among):
        among = tmp_path / among if among else None
        options = LikenessOptions(
            held_out=tmp_path / held_out, among=among, runs=tmp_path / "run", num_objects=9, out=tmp_path / "out"
        )
        return evaluate_likeness(cfg, options)

    return run


def test_samples_are_held_against_what_their_captions_describe(measure, tmp_path):
    shutil.copytree(tmp_path / "orbits", tmp_path / "others")
    for held_out in ("orbits", "files"):
        result = measure(held_out, "others")
        by_prompt = {one["prompt"]: one for one in result["samples"]}
        assert set(by_prompt) == {"a red square", "a blue disc"}
        assert by_prompt["a red square"]["psnr"] > 50
        assert by_prompt["a blue disc"]["psnr"] < 15
        assert by_prompt["a red square"]["overlap"] == by_prompt["a blue disc"]["overlap_other"] == 1
        assert by_prompt["a blue disc"]["overlap"] < 0.9
        assert by_prompt["a blue disc"]["recognised"] == 0
    assert "recognised" in likeness_text(result)
    assert "recognised" not in likeness_text(measure("orbits", None))


def test_what_cannot_be_compared_is_refused(measure, tmp_path):
    (tmp_path / "files" / "captions.json").write_text('{"0/0": "a red square"}')
    with pytest.raises(DataError, match="no caption of 0/1"):
        measure("files", None)
    records = {file: json.loads(file.read_text()) for file in (tmp_path / "run").glob("*/result.json")}
    for file, record in records.items():
        write_json(file, {**record, "c2w": (torch.tensor(record["c2w"]) + 0.1).tolist()})
    with pytest.raises(DataError, match="its cameras differ from those"):
        measure("orbits", None)
    for file, record in records.items():
        write_json(file, {**record, "prompt": "a house"})
    with pytest.raises(DataError, match="no sample has a caption"):
        measure("orbits", None)
