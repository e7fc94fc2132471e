"""Scores of views: closed forms, and agreement with torchmetrics."""

from __future__ import annotations

import logging
import math

import pytest
import torch
import torchvision

from models.perceptual import Lpips, find_lpips
from pipelines.evaluation.image_metrics import MAX_PSNR_DB, ViewScores, join, near_object, pooled_psnr, score_views
from utils.errors import ConfigError

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


def scores(psnr_OV, **changes):
    psnr_OV = torch.tensor(psnr_OV)
    return ViewScores(
        **{"psnr_OV": psnr_OV, "masked_psnr_OV": None, "ssim_OV": psnr_OV / 100, "lpips_OV": None} | changes
    )


def test_psnr_of_a_known_error():
    true = torch.full((2, 3, 16, 16), 0.5)
    found = score_views(true + torch.tensor([0.1, 0.0])[:, None, None, None], true)
    assert found.psnr_OV[0].tolist() == pytest.approx([20.0, MAX_PSNR_DB], abs=1e-4)
    assert found.ssim_OV[0, 1] == pytest.approx(1, abs=1e-5)
    assert found.masked_psnr_OV is None
    assert found.lpips_OV is None


def test_an_orbit_is_worse_than_the_mean_of_its_views():
    psnr_OV = torch.tensor([[10.0, 30.0], [20.0, 20.0]])
    assert pooled_psnr(psnr_OV).tolist() == pytest.approx([-10 * math.log10((0.1 + 0.001) / 2), 20.0], abs=1e-4)
    found = scores([[10.0, 30.0], [20.0, 20.0]]).over([0, 1])
    assert found["psnr_of_views"] == pytest.approx(20.0)
    assert found["psnr"] == pytest.approx((12.967 + 20) / 2, abs=1e-3)
    assert found["ssim"] == pytest.approx(0.2)
    assert (found["masked_psnr"], found["lpips"]) == (None, None)
    assert set(scores([[10.0]]).over([]).values()) == {None}


def test_the_mask_takes_what_is_near_the_object():
    masks = torch.zeros(1, 1, 64, 64)
    masks[..., 20, 30] = 0.01
    near = near_object(masks)
    assert near.sum() == 25  # 64 / 32 = 2 pixels to each side
    assert near[0, 0, 18:23, 28:33].min() == 1
    true = torch.full((1, 3, 64, 64), 0.5)
    views = true.clone()
    views[..., 0, 0] = 1  # far away
    views[..., 18:23, 28:33] += 0.1
    found = score_views(views, true, masks_V1HW=masks)
    assert found.masked_psnr_OV.item() == pytest.approx(20, abs=1e-3)
    assert found.psnr_OV.item() > 30


def test_a_metric_that_one_object_lacks_is_left_out():
    both = join([scores([[10.0, 20.0]], masked_psnr_OV=torch.ones(1, 2)), scores([[30.0, 40.0]])])
    assert both.psnr_OV.tolist() == [[10, 20], [30, 40]]
    assert both.masked_psnr_OV is None
    assert both.curves()["psnr"] == [20.0, 30.0]


def test_small_views_are_refused():
    with pytest.raises(ConfigError, match="too small for SSIM"):
        score_views(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))


def test_lpips_needs_weights_that_are_there(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert find_lpips(device=CPU) is None
    [record] = caplog.records
    assert "LPIPS is not measured" in record.message
    assert str(tmp_path) in record.message
    torch.manual_seed(0)
    weights = torchvision.models.squeezenet1_1(weights=None).state_dict()
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(weights, folder / "squeezenet1_1-b8a52dc0.pth")
    lpips = find_lpips(device=CPU)
    assert isinstance(lpips, Lpips)
    assert lpips.network == "squeeze"
    views = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    others = torch.cat([views[:2], 1 - views[2:]])
    found = score_views(views, others, lpips=lpips).lpips_OV
    assert found.shape == (1, 3)
    assert found[0, :2].abs().max() < 1e-6
    assert found[0, 2] > 1e-3
