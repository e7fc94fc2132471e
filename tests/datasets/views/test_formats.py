"""Files of cameras of every flavour: the values of one camera, written by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from datasets.orbits.layout import write_orbit
from datasets.views.colmap import quaternion_of, read_colmap, rotation_of
from datasets.views.folder import find_cameras, read_cameras, read_views
from datasets.views.transforms_json import nerf_transforms, read_transforms
from tests.tiny_views import FOV_DEG, edit, picture, sphere_views, write_model, write_transforms
from utils.cameras import from_convention, mean_up, orbit_cameras, rotation_to_up, to_convention
from utils.errors import DataError

# A camera on the +x axis at a distance of 3 that looks at the origin, z up: OpenGL columns are right (+y), up (+z) and
# backward (+x).
ON_X_GL = [[0, 0, 1, 3], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]
ON_X_CV = [[0, 0, -1, 3], [1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]]
ON_Y_GL = [[-1, 0, 0, 0], [0, 0, 1, 3], [0, 1, 0, 0], [0, 0, 0, 1]]


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    pass


def write_json_file(path, **content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def two_frames(**extra):
    return [
        {"file_path": "a.png", "transform_matrix": ON_X_GL, **extra},
        {"file_path": "b.png", "transform_matrix": ON_Y_GL},
    ]


def test_our_transforms_are_as_they_always_were():
    content = nerf_transforms(orbit_cameras(num_views=4, elevation_deg=0.0, radius=3.0), 60.0, (16, 32))
    assert list(content) == ["camera_model", "camera_angle_x", "w", "h", "fl_x", "fl_y", "cx", "cy", "frames"]
    focal = 16 / math.tan(math.radians(30))
    assert content["camera_angle_x"] == pytest.approx(math.pi / 3)
    assert [content[key] for key in ("w", "h", "cx", "cy")] == [32, 16, 16, 8]
    assert content["fl_x"] == content["fl_y"] == pytest.approx(focal)
    assert content["frames"][0]["file_path"] == "views/000.png"
    np.testing.assert_allclose(content["frames"][0]["transform_matrix"], ON_X_GL, atol=1e-6)


def test_nerfstudio_with_values_for_all_and_for_one_frame(tmp_path):
    for name in "ab":
        picture(tmp_path / f"{name}.png", 16, 8)
    picture(tmp_path / "m.png", 16, 8, mode="L")
    head = {"w": 16, "h": 8, "fl_x": 20.0, "fl_y": 21.0, "cx": 7.5, "cy": 4.25, "k1": 0.0, "camera_model": "OPENCV"}
    frames = two_frames(fl_x=25.0, mask_path="m.png")
    applied = [[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0]]
    path = write_json_file(tmp_path / "transforms.json", **head, applied_transform=applied, frames=frames)
    first, second = read_transforms(path).views
    assert first.K_33.tolist() == [[25, 0, 7.5], [0, 21, 4.25], [0, 0, 1]]
    assert second.K_33.tolist() == [[20, 0, 7.5], [0, 21, 4.25], [0, 0, 1]]
    assert first.mask == tmp_path / "m.png"
    assert second.mask is None
    cameras = read_cameras(tmp_path)
    assert cameras.size == (8, 16)
    np.testing.assert_allclose(cameras.c2w_V44[0], ON_X_CV, atol=1e-12)


def test_blender_has_one_angle_and_names_without_suffix(tmp_path):
    for split in ("train", "test"):
        for name in "ab":
            picture(tmp_path / split / f"{name}.png", 32, 16)
        frames = [
            {"file_path": f"./{split}/{name}", "rotation": 0.01, "transform_matrix": matrix}
            for name, matrix in (("a", ON_X_GL), ("b", ON_Y_GL))
        ]
        write_json_file(tmp_path / f"transforms_{split}.json", camera_angle_x=2 * math.atan(0.5), frames=frames)
    file = find_cameras(tmp_path)
    assert file.path == tmp_path / "transforms_train.json"
    np.testing.assert_allclose(file.views[0].K_33, [[32, 0, 16], [0, 32, 8], [0, 0, 1]], atol=1e-9)
    assert file.views[1].picture == tmp_path / "train" / "b.png"
    assert find_cameras(tmp_path / "transforms_test.json").views[0].picture == tmp_path / "test" / "a.png"


def test_colmap_text_model(tmp_path):
    model = write_model(tmp_path)
    first, second = read_colmap(model, project=tmp_path).views
    assert first.K_33.tolist() == [[20, 0, 7.5], [0, 21, 4.25], [0, 0, 1]]
    assert second.picture.name == "b b.png"
    # world to camera: the origin is 3 in front of both
    assert first.matrix_44.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 3], [0, 0, 0, 1]]
    # a quarter turn about y takes the world's z axis to the camera's x axis
    np.testing.assert_allclose(second.matrix_44[:3, :3] @ [0, 0, 1], [1, 0, 0], atol=1e-12)
    kept = read_cameras(tmp_path, up="z").c2w_V44
    np.testing.assert_allclose(kept[0, :3, 3], [0, 0, -3], atol=1e-12)
    # -y is up: the first camera stays level and its up vector becomes z
    for cameras in (read_cameras(tmp_path), read_cameras(model), read_cameras(tmp_path, up="-y")):
        np.testing.assert_allclose(-cameras.c2w_V44[0, :3, 1], [0, 0, 1], atol=1e-12)


def test_simple_pinhole_and_masks_of_colmap(tmp_path):
    write_model(tmp_path, cameras="1 SIMPLE_PINHOLE 16 8 20 7.5 4.25\n")
    picture(tmp_path / "masks" / "a.png.png", 16, 8, mode="L")
    picture(tmp_path / "masks" / "b b.png", 16, 8, mode="L")
    first, second = find_cameras(tmp_path).views
    assert first.K_33.tolist() == [[20, 0, 7.5], [0, 20, 4.25], [0, 0, 1]]
    assert first.mask == tmp_path / "masks" / "a.png.png"
    assert second.mask == tmp_path / "masks" / "b b.png"


def test_g_objaverse(tmp_path):
    views = sphere_views(num_views=3, size=16)
    rgba_VHW4 = (torch.cat([views.colors_V3HW, views.masks_V1HW], 1).permute(0, 2, 3, 1) * 255).round().byte().numpy()
    bounds_23 = np.array([[-0.5] * 3, [0.5] * 3])
    write_orbit(
        tmp_path / "1", rgba_VHW4=rgba_VHW4, c2w_V44=views.c2w_V44.numpy(), fov_deg=FOV_DEG, bounds_23=bounds_23
    )
    for folder in (tmp_path / "1", tmp_path / "1" / "campos_512_v4"):
        found = read_views(folder)
        torch.testing.assert_close(found.c2w_V44, views.c2w_V44)
        torch.testing.assert_close(found.K_V33, views.K_V33)
    (tmp_path / "1" / "campos_512_v4" / "00001" / "00001.png").unlink()
    with pytest.raises(DataError, match=r"00001\.png: the view is missing"):
        read_views(tmp_path / "1")


@pytest.mark.parametrize("convention", ["opencv", "opengl", "opencv_w2c", "opengl_w2c"])
def test_conventions_come_back(convention):
    c2w_V44 = orbit_cameras(num_views=3, elevation_deg=20.0, radius=2.0).double()
    there = to_convention(c2w_V44, convention)
    torch.testing.assert_close(from_convention(there, convention), c2w_V44)
    if convention == "opengl_w2c":
        on_x = torch.tensor(ON_X_CV, dtype=torch.float64)
        point = to_convention(on_x, convention) @ torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64)
        assert point.tolist() == [0, 1, -3, 1]  # above the origin: up in the picture, and along -z


def test_quaternions_of_every_kind_come_back():
    generator = torch.Generator().manual_seed(0)
    quats = torch.nn.functional.normalize(torch.randn(50, 4, generator=generator).double(), dim=1).numpy()
    for quat_4 in [*quats, *np.eye(4)]:
        turned = rotation_of(quat_4)
        np.testing.assert_allclose(turned @ turned.T, np.eye(3), atol=1e-12)
        back = quaternion_of(turned)
        np.testing.assert_allclose(back, quat_4 * (1 if back @ quat_4 > 0 else -1), atol=1e-12)


def test_up_is_found_for_views_of_one_side():
    """The mean of their up vectors would be tilted by 14 degrees."""
    c2w_V44 = orbit_cameras(num_views=5, elevation_deg=30.0, radius=2.0, azimuth_span_deg=90.0)
    assert mean_up(c2w_V44).tolist() == [0, 0, 1]
    tilted_3 = torch.tensor([0.3, -0.9, 0.1]).double()
    tilted_3 = tilted_3 / tilted_3.norm()
    turn_33 = rotation_to_up(tilted_3)
    torch.testing.assert_close(turn_33 @ tilted_3, torch.tensor([0.0, 0.0, 1.0]).double())
    torch.testing.assert_close(turn_33 @ turn_33.T, torch.eye(3).double())
    moved_V44 = c2w_V44.double()
    moved_V44[:, :3] = turn_33.T @ moved_V44[:, :3]
    torch.testing.assert_close(mean_up(moved_V44), tilted_3, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        rotation_to_up(torch.tensor([0.0, 0.0, -2.0])) @ -torch.eye(3).double()[2], torch.eye(3).double()[2]
    )
    # cameras that are rolled to both sides: the mean of their up vectors
    rolled_V44 = c2w_V44.double().clone()
    for view, angle in enumerate((-0.4, 0.4, -0.4, 0.4, 0.0)):
        right_3, down_3 = rolled_V44[view, :3, 0].clone(), rolled_V44[view, :3, 1].clone()
        rolled_V44[view, :3, 0] = math.cos(angle) * right_3 + math.sin(angle) * down_3
        rolled_V44[view, :3, 1] = math.cos(angle) * down_3 - math.sin(angle) * right_3
    expected_3 = torch.nn.functional.normalize(-rolled_V44[:, :3, 1].mean(dim=0), dim=0)
    torch.testing.assert_close(mean_up(rolled_V44), expected_3)


def test_one_line_describes_what_was_read(tmp_path, caplog):
    caplog.set_level("INFO")
    write_transforms(tmp_path / "in")
    read_views(tmp_path / "in")
    assert caplog.messages == [
        f"{tmp_path / 'in' / 'transforms.json'}: 6 views of 24 x 24 pixels, transforms.json (OpenGL axes, camera to "
        "world), field of view 39.6 degrees, cameras 2 from the middle of the scene"
    ]
    write_model(tmp_path / "model")
    caplog.clear()
    read_cameras(tmp_path / "model")
    assert "up axis of its world, estimated from the cameras, is (0.000 -1.000 0.000); --up sets it" in caplog.text
    edit(tmp_path / "in", lambda content: [turn_on_side(frame) for frame in content["frames"]])
    caplog.clear()
    read_cameras(tmp_path / "in")
    assert "up vector is 90 degrees away from the world's z axis; if the object lies on its side" in caplog.text
    assert caplog.records[0].levelname == "WARNING"


def turn_on_side(frame):
    turn_44 = np.array([[1, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    frame["transform_matrix"] = (turn_44 @ np.array(frame["transform_matrix"])).tolist()


def test_views_are_chosen_evenly(tmp_path):
    write_transforms(tmp_path)
    found = read_views(tmp_path, num_views=3)
    assert found.names == tuple(f"frame {number} (views/{number:03d}.png)" for number in (0, 2, 4))
    with pytest.raises(ValueError, match=r"num_views must lie in \[1, 6\], the number of views in .* got 7"):
        read_views(tmp_path, num_views=7)
