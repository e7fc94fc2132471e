"""The visual hull of exact views of a sphere, and of views of which some are wrong."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh

from pipelines.reconstruction.fitting import hull as hull_file
from pipelines.reconstruction.fitting.hull import carve, distance_by_axis, distance_to
from tests.tiny_views import sphere_views
from utils.errors import DataError

RADIUS = 0.5


def views(**changes):
    return sphere_views(num_views=12, size=48, radius=RADIUS, **changes)


def test_the_hull_of_a_sphere_is_nearly_the_sphere():
    hull = carve(views(), grid=32)
    # cameras at 15 degrees do not see the poles, so the hull is a little longer there
    equator = torch.tensor([[1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.6, 0.8, 0.0]])
    assert bool((hull.distance_at(0.46 * equator) < 0).all())
    assert bool((hull.distance_at(0.54 * equator) > 0).all())
    assert float(hull.distance_at(torch.zeros(1, 3))) == pytest.approx(-RADIUS, abs=0.04)
    mesh = trimesh.Trimesh(*(getattr(hull.surface(), name) for name in ("points_N3", "faces_F3")))
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * RADIUS**3, rel=0.12)


def test_distances_by_axis_are_exact(monkeypatch):
    monkeypatch.setattr(hull_file, "CHUNK_PAIRS", 5000)  # so that there are several parts
    solid = torch.rand(30, 17, 22, generator=torch.Generator().manual_seed(0)) > 0.995
    solid[:, 5:, :] = False
    assert 3 < int(solid.sum()) < 60
    torch.testing.assert_close(distance_by_axis(solid), distance_to(solid))


@pytest.mark.gpu
def test_distances_on_a_gpu_are_those_of_a_cpu():
    solid = torch.rand(40, 30, 20, generator=torch.Generator().manual_seed(0)) > 0.99
    torch.testing.assert_close(distance_to(solid.cuda()).cpu(), distance_to(solid))


def test_rays_meet_the_hull_where_the_sphere_is():
    hull = carve(views(), grid=32)
    origins = torch.tensor([[2.0, 0.0, 0.0], [0.0, -3.0, 0.0], [2.0, 0.0, 0.0], [2.0, 0.9, 0.0]])
    directions = torch.tensor([[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    near, far = hull.intervals(origins, directions)
    block = 5 * hull.voxel  # intervals are bounds, and never cut the object
    for ray, distance in ((0, 2.0), (1, 3.0)):
        assert distance - RADIUS - block - hull.voxel <= float(near[ray]) <= distance - RADIUS + hull.voxel
        assert distance + RADIUS - hull.voxel <= float(far[ray]) <= distance + RADIUS + block + hull.voxel
    assert bool((far[2:] < near[2:]).all())


def test_an_object_that_reaches_the_border_goes_on_there():
    hull = carve(sphere_views(num_views=12, size=48, radius=0.8, distance=2.0), grid=32)
    assert float(hull.distance_at(torch.tensor([[0.0, 0.0, 0.7]]))) < 0


def test_views_with_other_masks_are_left_out(caplog):
    caplog.set_level("INFO")
    good = views()
    masks = good.masks_V1HW.clone()
    masks[3] = masks[3].roll(12, dims=-1)
    masks[8] = masks[8].roll(-12, dims=-2)
    wrong = replace(good, masks_V1HW=masks)
    assert _volume(carve(wrong, grid=32)) < 0.6 * _volume(carve(good, grid=32))
    hull = carve(wrong, grid=32, tolerance=0.2)
    assert "view 3, view 8" in caplog.text
    assert _volume(hull) == pytest.approx(_volume(carve(good, grid=32)), rel=0.05)


def test_of_many_different_masks_the_worst_are_left_out(caplog):
    caplog.set_level("INFO")
    good = views()
    masks = good.masks_V1HW.clone()
    masks[2], masks[7] = masks[2].roll(8, dims=-1), masks[7].roll(16, dims=-1)
    carve(replace(good, masks_V1HW=masks), grid=32, tolerance=1.5 / 12)  # one view
    assert "view 7" in caplog.text
    assert "view 2" not in caplog.text


def test_a_tolerance_changes_nothing_for_good_views(caplog):
    caplog.set_level("INFO")
    assert torch.equal(carve(views(), grid=32).distance_XYZ, carve(views(), grid=32, tolerance=0.2).distance_XYZ)
    assert "leaves out" not in caplog.text


def test_views_without_a_common_object_are_refused():
    good = views()
    masks = torch.zeros_like(good.masks_V1HW)
    masks[0::2, :, :10, :10], masks[1::2, :, -10:, -10:] = 1, 1
    with pytest.raises(DataError, match=r"no common object.*tools/convert_cameras.py"):
        carve(replace(good, masks_V1HW=masks), grid=32)


def _volume(hull) -> float:
    return float((hull.distance_XYZ < 0).sum()) * hull.voxel**3
