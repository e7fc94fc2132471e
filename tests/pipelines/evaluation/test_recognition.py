"""Recognition figures: closed forms, and the command on tiny files."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from models.weights import save_safetensors
from pipelines.evaluation.held_out import open_held_out
from pipelines.evaluation.recognition import (
    Recognition,
    evaluate_recognition,
    hit_rate,
    labels_of,
    recognise,
    recognition_table,
    recognition_text,
    shuffled_rate,
)
from tests.tiny import write_config, write_family, write_head, write_image_family
from tests.tiny_orbits import SIZE, write_orbits, write_turning_orbits
from utils.config import load_config
from utils.errors import ConfigError, DataError
from utils.registry import MODEL


class ByMeanColor(torch.nn.Module):
    """Names an image by its strongest channel; red is a square, blue is a disc."""

    kinds, colors = ["square", "none", "disc"], ["red", "green", "blue"]

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images):
        mean = images.mean(dim=(2, 3))
        return Recognition(kind=mean, color=mean)


def test_views_vote_by_their_mean():
    views = torch.zeros(3, 3, 4, 4)
    views[0, 0], views[1:, 2] = 1.0, 0.6  # one strong red view against two blue ones
    found = recognise(ByMeanColor(), [views, views[:1]])
    assert found.kind.tolist() == [2, 0]


def test_rates_in_closed_form():
    true = torch.tensor([0, 1, 2, 0])
    found = torch.tensor([0, 1, 1, 0])
    assert hit_rate(found, true) == 0.75
    # of the 12 pairs of different objects, found 0 meets true 0 twice, and the wrong 1 meets the true 1 once
    assert shuffled_rate(found, true) == pytest.approx(3 / 12)


def test_both_needs_kind_and_colour():
    true = Recognition(kind=torch.tensor([0, 1]), color=torch.tensor([1, 0]))
    found = Recognition(kind=torch.tensor([0, 0]), color=torch.tensor([1, 0]))
    table = recognition_table(generated=found, rendered=true, true=true)
    assert (table["kind"]["generated"], table["color"]["generated"], table["both"]["generated"]) == (0.5, 1.0, 0.5)
    assert table["both"]["ceiling"] == 1.0
    assert table["kind"]["of_ceiling"] == 0.5


def test_unknown_names_are_refused():
    with pytest.raises(DataError, match="does not know kind 'car'"):
        labels_of(ByMeanColor(), [{"kind": "car", "color": "red"}])


def test_sampling_and_measuring_end_to_end(tmp_path):
    config = write_family(tmp_path)
    held_out = write_orbits(tmp_path / "held_out", copies=1)
    network = MODEL.build({"type": "ViewClassifier", "kinds": ["disc", "square"], "colors": ["blue", "red"]})
    save_safetensors(tmp_path / "classifier.safetensors", network.state_dict(), metadata=network.metadata())
    cfg = load_config(write_config(tmp_path / "run.yaml", config))
    options = {"held_out": held_out, "classifier": str(tmp_path / "classifier.safetensors"), "out": tmp_path / "out"}
    result = evaluate_recognition(cfg, **options, runs=None, num_objects=3)
    assert result["num_prompts"] == 3
    assert json.loads((tmp_path / "out" / "recognition.json").read_text()) == result
    assert {sample["prompt"] for sample in result["samples"]} == {"a red square", "a blue square", "a red disc"}
    again = evaluate_recognition(cfg, **options, runs=tmp_path / "out" / "runs", num_objects=10)
    assert again["rates"] == result["rates"]
    assert "3 held-out prompts" in recognition_text(again)
    assert again["rates_of_other_results"] == {}
    for sample in (tmp_path / "out" / "runs").glob("*/views"):
        shutil.copytree(sample, sample.with_name("views_gs"))
    both = evaluate_recognition(cfg, **options, runs=tmp_path / "out" / "runs", num_objects=10)
    assert both["rates_of_other_results"] == {"views_gs": result["rates"]}
    assert "\nviews_gs:\nkind " in recognition_text(both)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="contains no samples"):
        evaluate_recognition(cfg, **options, runs=tmp_path / "empty", num_objects=3)
    (tmp_path / "empty" / "other").mkdir()
    (tmp_path / "empty" / "other" / "result.json").write_text('{"prompt": "a cat"}')
    with pytest.raises(DataError, match="no sample has a prompt"):
        evaluate_recognition(cfg, **options, runs=tmp_path / "empty", num_objects=3)


def test_a_model_that_takes_prompts_and_images_is_measured_from_prompts_alone(tmp_path):
    config = write_image_family(tmp_path) | {"images": [str(tmp_path / "disc.png")], "image_prompt": "a toy"}
    held_out = write_orbits(tmp_path / "held_out", copies=1)
    network = MODEL.build({"type": "ViewClassifier", "kinds": ["disc", "square"], "colors": ["blue", "red"]})
    save_safetensors(tmp_path / "classifier.safetensors", network.state_dict(), metadata=network.metadata())
    options = {"held_out": held_out, "classifier": str(tmp_path / "classifier.safetensors"), "out": tmp_path / "out"}
    cfg = load_config(write_config(tmp_path / "run.yaml", config))
    with pytest.raises(ConfigError, match="is an image model; set takes_prompts=true"):
        evaluate_recognition(cfg, **options, runs=None, num_objects=3)
    cfg = load_config(tmp_path / "run.yaml", ["takes_prompts=true"])
    result = evaluate_recognition(cfg, **options, runs=None, num_objects=3)
    assert {sample["prompt"] for sample in result["samples"]} == {"a red square", "a blue square", "a red disc"}
    results = [json.loads(path.read_text()) for path in (tmp_path / "out" / "runs").glob("*/result.json")]
    assert [("prompt" in one, "image" in one) for one in results] == [(True, False)] * 3


def test_samples_to_be_measured_get_no_files_of_the_object(tmp_path):
    config = write_family(tmp_path) | write_head(tmp_path)
    attributes = {"kind": "disc", "color": "red"}
    held_out = write_turning_orbits(tmp_path / "held_out", elevations=(10.0,), attributes=attributes)
    network = MODEL.build({"type": "ViewClassifier", "kinds": ["disc", "square"], "colors": ["blue", "red"]})
    save_safetensors(tmp_path / "classifier.safetensors", network.state_dict(), metadata=network.metadata())
    cfg = load_config(write_config(tmp_path / "run.yaml", config), ["sampler.num_steps=1", "assets.glb=false"])
    options = {"held_out": held_out, "classifier": str(tmp_path / "classifier.safetensors"), "out": tmp_path / "out"}
    evaluate_recognition(cfg, **options, runs=None, num_objects=1)
    [folder] = (path.parent for path in (tmp_path / "out" / "runs").glob("*/result.json"))
    files = {path.name for path in folder.iterdir()}
    assert files == {"orbit.mp4", "sheet.png", "views", "transforms.json", "result.json"}


def test_true_renders_come_in_the_size_of_the_samples(tmp_path):
    cfg = load_config(write_config(tmp_path / "run.yaml", write_family(tmp_path)))
    dataset, attributes = open_held_out(write_orbits(tmp_path / "held_out", copies=1), cfg)
    assert dataset[0]["views_VCHW"].shape == (3, 3, SIZE, SIZE)
    assert attributes[0] == {"kind": "square", "color": "red"}
    with pytest.raises(DataError, match=r"no attributes\.json"):
        open_held_out(tmp_path, cfg)
