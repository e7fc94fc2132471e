"""Orbits at another scale: what moves where, that edges keep their colour, and that every way of reading agrees."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

import datasets  # noqa: F401 - registers
import pipelines  # noqa: F401 - registers
from datasets.orbits.packed import PackedOrbits
from datasets.orbits.zoom import scale_from_id, zoom
from pipelines.training.data.latent_cache import CachedLatents
from pipelines.training.data.orbits_in_memory import load_orbits
from tests.pipelines.training.objectives.test_image_training import folder, load
from tests.tiny_orbits import NUM_VIEWS, write_files, write_orbits
from utils.errors import ConfigError
from utils.registry import DATASETS, ENGINE

assert folder  # a fixture

SCALES = [0.8, 1.35]


def disc(*, radius, x, y, size=64):
    row, column = np.mgrid[:size, :size] + 0.5 - size / 2
    rgba_HW4 = np.zeros((size, size, 4), dtype=np.uint8)
    rgba_HW4[np.hypot(column - x, row - y) < radius] = (200, 100, 40, 255)
    return torch.from_numpy(rgba_HW4)


def test_content_scales_about_the_middle_each_picture_by_its_factor():
    pictures = torch.stack([disc(radius=6, x=8, y=-5)] * 3)
    zoomed = zoom(pictures, torch.tensor([1.0, 1.5, 0.75]))
    assert torch.equal(zoomed[0], pictures[0])
    row, column = torch.meshgrid(*[torch.arange(64) + 0.5 - 32] * 2, indexing="ij")
    for one, factor in zip(zoomed, (1.0, 1.5, 0.75), strict=True):
        alpha = one[..., 3].float() / 255
        centre = [float((alpha * axis).sum() / alpha.sum()) for axis in (column, row)]
        assert centre == pytest.approx([8 * factor, -5 * factor], abs=0.1)
        assert float(alpha.sum()) == pytest.approx(float(pictures[0, ..., 3].sum()) / 255 * factor**2, rel=0.03)


def test_edges_keep_their_colour():
    """The pixels around are transparent black: none of it may come in."""
    (zoomed,) = zoom(disc(radius=9, x=0, y=0)[None], torch.tensor([1.3]))
    seen = zoomed[zoomed[..., 3] > 25][:, :3].float()
    assert (seen - torch.tensor([200.0, 100.0, 40.0])).abs().max() < 6  # a byte of alpha is coarse where it is low


def test_factors_belong_to_objects_and_fill_the_range():
    factors = np.array([scale_from_id(f"0/{number}", SCALES) for number in range(2000)])
    assert factors[7] == scale_from_id("0/7", SCALES)
    assert SCALES[0] <= factors.min() < 0.81
    assert 1.34 < factors.max() <= SCALES[1]
    assert np.log(factors).mean() == pytest.approx((math.log(0.8) + math.log(1.35)) / 2, abs=0.01)


def test_every_way_of_reading_scales_alike_and_leaves_the_cameras(tmp_path):
    write_orbits(tmp_path / "orbits", copies=1)
    options = {"data_dir_list": [str(tmp_path / "orbits")], "num_views": NUM_VIEWS, "resolution": [32, 32]}
    plain, scaled = (PackedOrbits(PackedOrbits.Config(**options, **more)) for more in ({}, {"scale_range": SCALES}))
    single = DATASETS.build({**write_files(tmp_path / "files"), "background": 1.0, "scale_range": SCALES})
    pixels = load_orbits(scaled, device=torch.device("cpu"))
    orbits_B = torch.tensor([2, 0])
    views_BVCHW, masks = pixels.views(orbits_B)
    for row, number in enumerate(orbits_B.tolist()):
        sample, true = scaled[number], plain[number]
        torch.testing.assert_close(views_BVCHW[row], sample["views_VCHW"])
        torch.testing.assert_close(masks[row], sample["masks_V1HW"])
        torch.testing.assert_close(single[number]["views_VCHW"], sample["views_VCHW"])
        assert torch.equal(sample["c2w_V44"], true["c2w_V44"])
        grown = float(sample["masks_V1HW"].sum() / true["masks_V1HW"].sum())
        assert grown == pytest.approx(scale_from_id(scaled.object_ids[number], SCALES) ** 2, rel=0.1)
    one_each, _ = pixels.views(orbits_B, torch.tensor([1, 2]))
    torch.testing.assert_close(one_each, views_BVCHW[[0, 1], [1, 2]])
    pairs = pixels.rgba(orbits_B[:, None].expand(2, 2), torch.tensor([[1, 2], [0, 1]]))
    assert torch.equal(pairs, pixels.rgba(orbits_B)[[[0], [1]], [[1, 2], [0, 1]]])


@pytest.mark.usefixtures("one_thread")
def test_cached_latents_follow_the_range(folder):
    for scales in ([], [0.5, 0.6]):
        cfg = load(folder, chunk_size=64)
        cfg = dataclasses.replace(cfg, vid_dataset=cfg.vid_dataset.changed(scale_range=scales))
        task = ENGINE.build({"type": cfg.TASK_TYPE}, cfg=cfg, device=torch.device("cpu"))
        torch.manual_seed(0)
        task.autoencoder.load_state_dict(
            {name: torch.randn(value.shape) * 0.02 for name, value in task.autoencoder.state_dict().items()}
        )
        task.data.cached_latents()
        expected = torch.stack([task.dataset[number]["views_VCHW"] for number in range(4)])
        with torch.no_grad():
            latents = task.autoencoder.encode_views(expected)
        cached = CachedLatents(folder / "latents")
        kept = cached.rows(torch.arange(len(cached))).mean_BCVHW.float()
        torch.testing.assert_close(kept, latents, atol=0.01, rtol=0.01)


@pytest.mark.parametrize("ends", [[1.0], [1.2, 0.8], [0.0, 1.0]])
def test_unusable_ranges_are_refused(ends):
    with pytest.raises(ConfigError, match="scale_range must be empty or"):
        PackedOrbits.Config(data_dir_list=["x"], scale_range=ends)
