"""Views with cameras in memory: compositing, choice, and the move to the ball about the origin."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from datasets.views.posed_views import PosedViews, closest_point
from tests.tiny_views import sphere_views
from utils.cameras import BALL_RADIUS, cameras_at, project_points
from utils.errors import DataError


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    pass


def moved(views: PosedViews, *, scale: float, shift: tuple[float, float, float]) -> PosedViews:
    """The same pictures in a world with another unit and origin."""
    c2w_V44 = views.c2w_V44.clone()
    c2w_V44[:, :3, 3] = c2w_V44[:, :3, 3] * scale + torch.tensor(shift)
    return replace(views, c2w_V44=c2w_V44)


def test_views_over_a_background_keep_the_share_of_each_pixel():
    views = sphere_views(num_views=2)
    red_3 = torch.tensor([1.0, 0.0, 0.0])
    expected = views.colors_V3HW * views.masks_V1HW + red_3[:, None, None] * (1 - views.masks_V1HW)
    torch.testing.assert_close(views.over(red_3), expected)
    assert float(views.over(0.5)[0, :, 0, 0].std()) == 0
    two = views.over(torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
    assert two[:, :, 0, 0].tolist() == [[1, 0, 0], [0, 0, 1]]


def test_views_are_chosen_by_number_or_by_flag():
    views = sphere_views(num_views=4)
    assert views.only(torch.tensor([2, 0])).names == ("view 2", "view 0")
    kept = views.only(torch.tensor([False, True, False, True]))
    assert kept.names == ("view 1", "view 3")
    assert torch.equal(kept.c2w_V44, views.c2w_V44[[1, 3]])


@pytest.mark.parametrize("radius", [0.3, 0.5, 0.86])
def test_our_own_orbits_stay_as_they_are(radius):
    views = sphere_views(radius=radius)
    same, move = views.normalized()
    assert same is views
    assert move.scale == 1.0
    assert move.center_3.tolist() == [0, 0, 0]
    assert torch.equal(move.to_world_44, torch.eye(4, dtype=torch.float64))


@pytest.mark.parametrize(("radius", "scale", "shift"), [(0.5, 7.0, (3.0, -20.0, 1.0)), (1.3, 0.01, (0.0, 0.0, 0.0))])
def test_a_sphere_anywhere_comes_to_fill_the_ball(radius, scale, shift):
    views = moved(sphere_views(radius=radius, distance=4.0, size=64), scale=scale, shift=shift)
    placed, move = views.normalized()
    # A pixel at the sphere's distance is 4 / focal = 0.045 wide.
    torch.testing.assert_close(move.center_3, torch.tensor(shift).double(), atol=0.02 * scale, rtol=0)
    assert BALL_RADIUS / move.scale == pytest.approx(radius * scale, abs=0.07 * scale)
    assert BALL_RADIUS / move.scale >= radius * scale * 0.99
    points_N3 = torch.tensor([[0.1, -0.3, 0.2], [0.5, 0.5, 0.0]])
    for view in range(len(views)):
        there = project_points(move.to_world(points_N3), views.c2w_V44[view], views.K_V33[view])
        here = project_points(points_N3, placed.c2w_V44[view], placed.K_V33[view])
        torch.testing.assert_close(here, there, atol=2e-3, rtol=0)
    torch.testing.assert_close(move.from_world(move.to_world(points_N3)), points_N3, atol=1e-5, rtol=0)
    homogeneous = torch.cat([points_N3, torch.ones(2, 1)], dim=1).double() @ move.to_world_44.T
    torch.testing.assert_close(homogeneous[:, :3].float(), move.to_world(points_N3))


def test_an_object_beside_the_axes_is_found_by_its_masks():
    aimed = sphere_views(center=(0.4, 0.2, -0.1), radius=0.3, size=64, distance=2.5)
    _, move = moved(aimed, scale=3.0, shift=(1.0, 0.0, 0.0)).normalized()
    torch.testing.assert_close(move.center_3, torch.tensor([2.2, 0.6, -0.3]).double(), atol=0.05, rtol=0)
    assert BALL_RADIUS / move.scale == pytest.approx(0.9, abs=0.12)


def test_views_without_an_object_or_depth_are_refused():
    views = sphere_views()
    with pytest.raises(DataError, match="all masks are empty"):
        replace(views, masks_V1HW=torch.zeros_like(views.masks_V1HW)).normalized()
    for azimuths in ((0.0, 180.0), (0.0, 1.0)):
        cameras = cameras_at(torch.tensor(azimuths), torch.zeros(2), torch.tensor([2.0, 2.0]))
        pair = sphere_views(c2w_V44=cameras, center=(0.0, 0.0, 0.3), radius=0.9)
        centers_V3, axes_V3 = cameras[:, :3, 3].double(), cameras[:, :3, 2].double()
        assert closest_point(centers_V3, axes_V3) is None
        with pytest.raises(DataError, match=r"2 views see the object along one line .* add views from other sides"):
            moved(pair, scale=1.0, shift=(0.0, 0.0, 5.0)).normalized()
