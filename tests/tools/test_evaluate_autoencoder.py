"""How well an autoencoder restores views: the figures of the command, and its mistakes in one line."""

import json

import pytest
import torch

from pipelines.evaluation.networks import restoring
from tests.tiny import write_config
from tests.tiny_orbits import NUM_VIEWS, training_config, write_orbits
from tools import evaluate_autoencoder
from utils.errors import ConfigError
from utils.registry import Section


@pytest.fixture
def line(tmp_path):
    write_orbits(tmp_path / "orbits", copies=1)
    config = training_config(tmp_path, cameras={"num_views": NUM_VIEWS, "elevation_deg": 15, "distance": 2.0})
    return ["--cfg", str(write_config(tmp_path / "run.yaml", config)), "--data", str(tmp_path / "orbits")]


def test_figures_by_attribute(line, tmp_path, monkeypatch, capsys):
    """A network that makes everything a tenth darker is 20 dB from the truth, and 25.5 off in colour."""
    monkeypatch.setattr(restoring, "_restored", lambda autoencoder, views, *, chunk: views - 0.1)
    monkeypatch.setattr(restoring, "score_views", lambda views, true, **options: scored(views.clamp_min(-1), true))
    monkeypatch.setattr(Section, "pretrained", "some.safetensors", raising=False)
    build = Section.build
    networks = {"auto_encoder": lambda: torch.nn.Identity()}
    monkeypatch.setattr(Section, "build", lambda section: networks.get(section.where, lambda: build(section))())
    out = ["--json", str(tmp_path / "found.json"), "--sheet", str(tmp_path / "sheet.png"), "--by", "color"]
    assert evaluate_autoencoder.main([*line, *out]) == 0
    rows = json.loads((tmp_path / "found.json").read_text())
    assert list(rows) == ["orbits", "orbits, color blue", "orbits, color red"]
    assert [row["objects"] for row in rows.values()] == [4, 2, 2]
    for row in rows.values():
        assert row["psnr"] == pytest.approx(20, abs=1e-3)
        assert row["color_shift"] == pytest.approx(25.5, abs=1e-3)
    assert "orbits, color red" in capsys.readouterr().out
    assert (tmp_path / "sheet.png").is_file()


def scored(views, true):
    psnr_OV = -10 * (views - true).square().mean(dim=(1, 2, 3)).log10()[None]
    return restoring.ViewScores(psnr_OV=psnr_OV, masked_psnr_OV=psnr_OV, ssim_OV=psnr_OV, lpips_OV=None)


def test_weights_must_be_named(line):
    with pytest.raises(ConfigError, match=r"auto_encoder\.pretrained"):
        evaluate_autoencoder.main(line)


def test_a_color_shift_is_that_of_the_object_alone():
    true, masks = torch.ones(2, 3, 8, 8), torch.zeros(2, 1, 8, 8)
    masks[0, :, 2:4, 2:4] = 1
    views = true.clone()
    views[:, 0] -= 0.3 * masks[:, 0]
    views[:, :, 6:] = 0  # the background does not count, nor a view without the object
    assert restoring.color_shift(views, true, masks) == pytest.approx(255 * 0.1)
