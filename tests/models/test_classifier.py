import pytest
import torch

import models  # noqa: F401 - registers
from models.weights import save_safetensors
from utils.errors import ConfigError, DataError
from utils.registry import MODEL


def build(**options):
    return MODEL.build({"type": "ViewClassifier", **options})


def test_a_file_brings_its_names(tmp_path):
    model = build(kinds=["mug", "car"], colors=["red"], width=8)
    path = tmp_path / "classifier.safetensors"
    save_safetensors(path, model.state_dict(), metadata=model.metadata(), dtype=torch.float32)
    again = build(pretrained=str(path), width=8)
    assert (again.kinds, again.colors) == (["mug", "car"], ["red"])
    images = torch.rand(2, 3, 40, 40)
    torch.testing.assert_close(again(images).kind, model(images).kind)


def test_it_is_small():
    model = build(kinds=[str(n) for n in range(40)], colors=[str(n) for n in range(12)])
    assert sum(parameter.numel() for parameter in model.parameters()) < 0.5e6


def test_names_are_needed(tmp_path):
    with pytest.raises(ConfigError, match=r"classifier\.kinds or classifier\.colors is empty"):
        build()
    save_safetensors(tmp_path / "x.safetensors", {"a": torch.zeros(1)})
    with pytest.raises(DataError, match="is not a classifier"):
        build(pretrained=str(tmp_path / "x.safetensors"))
