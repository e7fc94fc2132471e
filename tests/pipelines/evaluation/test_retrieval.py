"""Retrieval figures: closed forms, and the command on tiny files."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from models.weights import save_safetensors
from pipelines.evaluation.retrieval import (
    CEILING,
    FLOOR,
    evaluate_retrieval,
    load_encoder,
    ranks,
    rates,
    retrieval_text,
)
from tests.tiny import EMBEDDER_, load, write_family, write_image_family
from tests.tiny_orbits import write_orbits
from utils.errors import ConfigError, DataError
from utils.registry import EMBEDDER

pytestmark = pytest.mark.usefixtures("one_thread")


class MeanColor(torch.nn.Module):
    """Embeds an image as its mean colour."""

    def encode_image(self, images):
        return images.mean(dim=(2, 3))


def test_ranks_in_closed_form():
    text_MC = torch.eye(3)  # red, green, blue
    views = torch.zeros(2, 3, 4, 4)
    views[0, 0], views[1, 1] = 1.0, 0.6  # a red view and a green view: equally similar to both captions
    reddish = torch.tensor([0.9, 0.5, 0.1])[None, :, None, None].expand(2, -1, 4, 4)
    orbits = [reddish, reddish, reddish, views]
    assert ranks(MeanColor(), orbits, text_MC, [0, 1, 2, 0]).tolist() == [1, 2, 3, 2]  # of equal ones, the worse rank
    assert rates(torch.tensor([1, 1, 4, 9])) == {"first": 0.5, "among_first": 0.75, "median_rank": 2.5}


def second_encoder(tmp_path, seed=5):
    torch.manual_seed(seed)
    path = tmp_path / "second.safetensors"
    save_safetensors(path, EMBEDDER.build(EMBEDDER_).model.state_dict())
    return str(path)


def test_sampling_and_measuring_end_to_end(tmp_path):
    cfg = load(tmp_path, write_family(tmp_path), "sampler.num_steps=1")
    held_out = write_orbits(tmp_path / "held_out", copies=2)
    shared = {"held_out": held_out, "encoder": second_encoder(tmp_path), "out": tmp_path / "out"}
    result = evaluate_retrieval(cfg, **shared, runs=None, num_objects=2, num_captions=100)
    assert (result["num_prompts"], result["num_captions"]) == (2, 4)  # eight objects with four captions
    assert list(result["rows"]) == ["generated", CEILING, FLOOR]
    assert result["rows"][FLOOR] == {"first": 0.25, "among_first": 1.0, "median_rank": 2.5}
    assert json.loads((tmp_path / "out" / "retrieval.json").read_text()) == result
    text = retrieval_text(result)
    assert text.startswith("2 held-out prompts among 4 captions")
    for folder in (tmp_path / "out" / "runs").glob("*/views"):
        shutil.copytree(folder, folder.with_name("views_gs"))
    again = evaluate_retrieval(cfg, **shared, runs=tmp_path / "out" / "runs", num_objects=9, num_captions=3)
    assert again["num_captions"] == 3
    assert again["rows"]["generated (views_gs)"] == again["rows"]["generated"]
    assert [one["prompt"] for one in again["samples"]] == [one["prompt"] for one in result["samples"]]
    few = evaluate_retrieval(cfg, **shared, runs=tmp_path / "out" / "runs", num_objects=9, num_captions=2)
    assert few["rows"][FLOOR]["first"] == 0.5


def test_the_generators_own_encoder_is_refused(tmp_path):
    family = write_family(tmp_path)
    cfg = load(tmp_path, family)
    shutil.copyfile(family["embedder"]["pretrained"], tmp_path / "copy.safetensors")
    with pytest.raises(ConfigError, match="the generator is conditioned on these weights"):
        load_encoder(cfg, str(tmp_path / "copy.safetensors"))
    with pytest.raises(ConfigError, match="--measure retrieval needs --encoder FILE"):
        load_encoder(cfg, "")
    with pytest.raises(DataError, match="--encoder gone: no such file; train it with"):
        load_encoder(cfg, "gone")
    image = load(tmp_path, write_image_family(tmp_path))
    options = {"held_out": tmp_path, "encoder": "gone", "runs": None, "num_objects": 1, "num_captions": 9}
    with pytest.raises(ConfigError, match="is an image model; set takes_prompts=true"):
        evaluate_retrieval(image, **options, out=tmp_path / "out")
