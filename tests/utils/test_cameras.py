"""Cameras against the recorded cases and against closed forms."""

import json

import numpy as np
import pytest
import torch

from tests.reference_cases import REFERENCE, load_case
from utils.cameras import (
    camera_condition,
    camera_elevations_deg,
    fov_deg_of,
    head_cameras,
    intrinsics,
    opencv_to_opengl,
    orbit_cameras,
    plucker_rays,
    project_points,
)


def dataset_cameras() -> torch.Tensor:
    content = json.loads((REFERENCE / "dataset_views.json").read_text())
    views = content if isinstance(content, list) else next(iter(content.values()))
    columns = [np.stack([view["x"], view["y"], view["z"], view["origin"]], axis=1) for view in views]
    c2w_V44 = torch.eye(4).repeat(len(views), 1, 1)
    c2w_V44[:, :3] = torch.tensor(np.stack(columns), dtype=torch.float32)
    return c2w_V44


def orbit_of(name: str) -> torch.Tensor:
    if name == "cameras_dataset":
        return dataset_cameras()
    spec, _ = load_case(name)
    inputs = spec["inputs"]
    return orbit_cameras(num_views=24, elevation_deg=inputs["elevation_deg"], radius=inputs["distance"])


@pytest.mark.parametrize("name", ["cameras_t2v", "cameras_i2v", "cameras_dataset"])
def test_reference_cameras(name):
    _, expected = load_case(name)
    c2w_V44 = orbit_of(name)
    head = head_cameras(c2w_V44, published_sampling_axes=name != "cameras_dataset")
    rays = plucker_rays(head.poses_V44, fov_deg=49.1, size=32)[[0, 6]]
    actual = {
        "camera_data": camera_condition(c2w_V44),
        "poses": head.poses_V44,
        "plucker": rays,
        "cam_view": head.cam_view_V44,
        "cam_view_proj": head.cam_view_proj_V44,
        "cam_pos": head.cam_pos_V3,
    }
    for key, value in expected.items():
        reference = torch.from_numpy(value).reshape(actual[key].shape)
        torch.testing.assert_close(actual[key], reference, atol=1e-4 * float(reference.abs().max()), rtol=0)


def test_orbit_looks_at_origin():
    c2w_V44 = orbit_cameras(num_views=24, elevation_deg=15.0, radius=2.0)
    target_V3 = c2w_V44[:, :3, 3] + 2.0 * c2w_V44[:, :3, 2]
    torch.testing.assert_close(target_V3, torch.zeros(24, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.linalg.det(c2w_V44[:, :3, :3]), torch.ones(24), atol=1e-6, rtol=0)


def test_view_zero_is_above_plus_x_and_azimuth_is_counter_clockwise():
    centre_V3 = orbit_cameras(num_views=4, elevation_deg=0.0, radius=1.0)[:, :3, 3]
    torch.testing.assert_close(centre_V3[:2], torch.tensor([[1.0, 0, 0], [0, 1.0, 0]]), atol=1e-6, rtol=0)


def test_projection_of_axes():
    c2w = orbit_cameras(num_views=1, elevation_deg=0.0, radius=2.0)[0]
    pixels = project_points(torch.tensor([[0.0, 0, 0], [0, 0.1, 0], [0, 0, 0.1]]), c2w, intrinsics(39.6, 128))
    assert pixels[0].tolist() == pytest.approx([64, 64], abs=1e-3)
    assert pixels[1, 0] > 65  # the world's +y lies to the right of view 0
    assert pixels[2, 1] < 63  # up is towards row 0


def test_opengl_conversion_is_its_own_inverse():
    c2w = orbit_cameras(num_views=5, elevation_deg=-20.0, radius=1.5)
    assert torch.equal(opencv_to_opengl(opencv_to_opengl(c2w)), c2w)


@pytest.mark.parametrize(
    ("options", "name"),
    [({"num_views": 0}, "num_views"), ({"elevation_deg": 90.0}, "elevation_deg"), ({"radius": 0.0}, "radius")],
)
def test_orbit_refuses(options, name):
    with pytest.raises(ValueError, match=name):
        orbit_cameras(**({"num_views": 4, "elevation_deg": 0.0, "radius": 1.0} | options))


@pytest.mark.parametrize("elevation_deg", [-60.0, 0.0, 5.0, 89.0])
def test_elevations_are_read_off_cameras(elevation_deg):
    c2w_V44 = orbit_cameras(num_views=5, elevation_deg=elevation_deg, radius=1.7)
    assert camera_elevations_deg(c2w_V44).tolist() == pytest.approx([elevation_deg] * 5, abs=1e-3)


def test_the_field_of_view_is_read_from_the_intrinsics():
    for fov_deg in (20.0, 39.6, 90.0):
        assert float(fov_deg_of(intrinsics(fov_deg, 128), 128)) == pytest.approx(fov_deg, abs=1e-4)
