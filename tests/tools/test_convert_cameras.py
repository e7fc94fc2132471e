"""The command that converts cameras: round trips through every format, what it writes, what it refuses."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.orbits.gobjaverse import read_orbit
from datasets.views.folder import read_views
from tests.tiny_views import FOV_DEG, edit, sphere_views, write_transforms
from tools import convert_cameras
from tools.convert_cameras import FORMATS
from utils.cameras import opencv_to_opengl, orbit_cameras, project_points
from utils.errors import DataError

CORNERS_N3 = torch.tensor([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    pass


def convert(*arguments) -> int:
    return convert_cameras.main([str(argument) for argument in arguments])


def same_views(found, expected) -> None:
    """Cameras are equal to 1e-5, and the corners of the unit cube lie at the same pixels."""
    torch.testing.assert_close(found.c2w_V44, expected.c2w_V44, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.K_V33, expected.K_V33, atol=1e-4, rtol=0)
    for view in range(len(expected)):
        here = project_points(CORNERS_N3, found.c2w_V44[view], found.K_V33[view])
        there = project_points(CORNERS_N3, expected.c2w_V44[view], expected.K_V33[view])
        torch.testing.assert_close(here, there, atol=1e-3, rtol=0)


@pytest.mark.parametrize("to", FORMATS)
def test_every_format_gives_the_views_back(to, tmp_path, capsys):
    views = sphere_views()
    write_transforms(tmp_path / "in", views)
    assert convert(tmp_path / "in", "--to", to, "--out", tmp_path / "out") == 0
    line = capsys.readouterr().out.splitlines()[-1]
    axes = {"colmap": "OpenCV axes, world to camera", "gobjaverse": "OpenCV axes, camera to world"}
    assert line == (
        f"{tmp_path / 'out'}/: 6 views of 24 x 24 pixels, {to} ({axes.get(to, 'OpenGL axes, camera to world')}), "
        "field of view 39.6 degrees, cameras 2 from the middle of the scene"
    )
    back = read_views(tmp_path / "out")
    same_views(back, views)
    torch.testing.assert_close(back.masks_V1HW, views.masks_V1HW, atol=1 / 255, rtol=0)
    torch.testing.assert_close(back.over(0.5), views.over(0.5), atol=1.5 / 255, rtol=0)
    # and from there to the first format again
    assert convert(tmp_path / "out", "--to", "transforms", "--out", tmp_path / "again") == 0
    same_views(read_views(tmp_path / "again"), views)


@pytest.mark.parametrize("to", ["nerfstudio", "colmap"])
def test_general_intrinsics_and_masks_survive(to, tmp_path):
    """Wide pictures with an axis beside the middle, one focal length per view, JPEG with files of masks."""
    K_33 = torch.tensor([[30.0, 0.0, 14.5], [0.0, 33.0, 11.0], [0.0, 0.0, 1.0]])
    views = sphere_views(K_33=K_33, width=32, num_views=4, radius=0.4)
    folder = write_transforms(tmp_path / "in", views)
    for number in range(4):
        with Image.open(folder / f"views/{number:03d}.png") as image:
            image.getchannel("A").save(folder / f"views/{number:03d}_mask.png")
            image.convert("RGB").save(folder / f"views/{number:03d}.jpg", quality=95)

    def change(content):
        content.update(fl_x=30.0, fl_y=33.0, cx=14.5, cy=11.0)
        del content["camera_angle_x"]
        for number, frame in enumerate(content["frames"]):
            frame["file_path"] = f"views/{number:03d}.jpg"
            frame["mask_path"] = f"views/{number:03d}_mask.png"
        content["frames"][2].update(fl_x=31.0)

    edit(folder, change)
    views = replace(views, K_V33=views.K_V33.clone())
    views.K_V33[2, 0, 0] = 31.0
    assert convert(folder, "--to", to, "--out", tmp_path / "out") == 0
    back = read_views(tmp_path / "out")
    same_views(back, views)
    torch.testing.assert_close(back.masks_V1HW, views.masks_V1HW, atol=1 / 255, rtol=0)
    assert (tmp_path / "out" / "images" / "002.jpg").read_bytes() == (folder / "views" / "002.jpg").read_bytes()
    for other, says in {
        "blender": "different intrinsics",
        "gobjaverse": "square pictures",
        "transforms": "diff",
    }.items():
        with pytest.raises(DataError, match=says):
            convert(folder, "--to", other, "--out", tmp_path / other)
        assert not (tmp_path / other).exists()


def test_an_axis_beside_the_middle_and_wide_pixels_are_refused_by_simple_formats(tmp_path):
    folder = write_transforms(tmp_path / "in")
    edit(folder, lambda content: content.update(cx=13.0))
    with pytest.raises(DataError, match=r"--to blender has no place for .* middle .*cx=13.*use --to nerfstudio"):
        convert(folder, "--to", "blender", "--out", tmp_path / "out")
    edit(folder, lambda content: content.update(cx=12.0, fl_y=40.0))
    with pytest.raises(DataError, match=r"pixels are not square \(fl_x=33\.\d+, fl_y=40"):
        convert(folder, "--to", "transforms", "--out", tmp_path / "out")


def test_masks_become_alpha_for_blender(tmp_path):
    views = sphere_views(num_views=3)
    folder = write_transforms(tmp_path / "in", views)
    with Image.open(folder / "views/001.png") as image:
        image.getchannel("A").save(folder / "mask.png")
        image.convert("RGB").save(folder / "views/001.png")
    edit(folder, lambda content: content["frames"][1].update(mask_path="mask.png"))
    assert convert(folder, "--to", "blender", "--out", tmp_path / "out") == 0
    assert {path.name for path in (tmp_path / "out" / "train").iterdir()} == {"r_0.png", "r_1.png", "r_2.png"}
    assert (tmp_path / "out" / "train" / "r_0.png").read_bytes() == (folder / "views" / "000.png").read_bytes()
    with Image.open(tmp_path / "out" / "train" / "r_1.png") as image:
        assert image.mode == "RGBA"
    torch.testing.assert_close(read_views(tmp_path / "out").masks_V1HW, views.masks_V1HW, atol=1 / 255, rtol=0)
    content = json.loads((tmp_path / "out" / "transforms_train.json").read_text())
    assert content["frames"][1]["file_path"] == "train/r_1"
    assert content["camera_angle_x"] == pytest.approx(math.radians(FOV_DEG))


def test_the_layout_of_g_objaverse_is_read_by_the_data_set(tmp_path):
    views = sphere_views()
    write_transforms(tmp_path / "in", views)
    assert convert(tmp_path / "in", "--to", "gobjaverse", "--out", tmp_path / "0" / "1") == 0
    orbit = read_orbit(tmp_path / "0" / "1", num_views=6)
    np.testing.assert_allclose(orbit.c2w_V44, views.c2w_V44.numpy(), atol=1e-6)
    assert orbit.fov_deg == pytest.approx(FOV_DEG, abs=1e-4)


@pytest.mark.parametrize("convention", ["opencv", "opencv_w2c", "opengl_w2c"])
def test_a_wrong_convention_is_corrected(convention, tmp_path):
    """Such matrices in a transforms.json, whose format says OpenGL and camera to world."""
    views = sphere_views()
    folder = write_transforms(tmp_path / "in", views)
    c2w_V44 = views.c2w_V44 if convention.startswith("opencv") else opencv_to_opengl(views.c2w_V44)
    matrix_V44 = torch.linalg.inv(c2w_V44) if convention.endswith("w2c") else c2w_V44

    def change(content):
        for frame, matrix in zip(content["frames"], matrix_V44.tolist(), strict=True):
            frame["transform_matrix"] = matrix

    edit(folder, change)
    with pytest.raises(DataError, match=rf"convert it with tools/convert_cameras\.py --from {convention}$"):
        read_views(folder)
    out = tmp_path / "out"
    assert convert(folder, "--from", convention, "--to", "nerfstudio", "--out", out) == 0
    same_views(read_views(out), views)
    # the message is the same for OpenCV cameras that are read with the wrong option
    with pytest.raises(DataError, match=r"--from opengl$"):
        convert(out, "--from", "opencv", "--to", "colmap", "--out", tmp_path / "more")


def test_the_scene_is_moved_to_the_ball_if_asked(tmp_path, capsys):
    views = sphere_views(size=32)
    far = replace(views, c2w_V44=views.c2w_V44.clone())
    far.c2w_V44[:, :3, 3] = 5 * far.c2w_V44[:, :3, 3] + torch.tensor([7.0, 0.0, -2.0])
    write_transforms(tmp_path / "in", far)
    assert convert(tmp_path / "in", "--to", "nerfstudio", "--normalize", "--out", tmp_path / "out") == 0
    assert capsys.readouterr().out.startswith("moved: scale 0.3")
    back = read_views(tmp_path / "out")
    placed, _ = far.normalized()
    torch.testing.assert_close(back.c2w_V44, placed.c2w_V44, atol=1e-4, rtol=0)


def test_fewer_views_and_links(tmp_path):
    folder = write_transforms(tmp_path / "in")
    assert convert(folder, "--to", "colmap", "--views", "3", "--link", "--out", tmp_path / "out") == 0
    assert len(read_views(tmp_path / "out")) == 3
    assert (tmp_path / "out" / "images" / "001.png").samefile(folder / "views" / "002.png")


def test_the_up_axis_of_a_model_is_turned_up(tmp_path):
    """A model whose world has y down, as COLMAP's often have."""
    views = sphere_views()
    turn_33 = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])  # z up to y down
    lying = replace(views, c2w_V44=views.c2w_V44.clone())
    lying.c2w_V44[:, :3] = turn_33 @ lying.c2w_V44[:, :3]
    write_transforms(tmp_path / "in", lying)
    assert convert(tmp_path / "in", "--to", "colmap", "--out", tmp_path / "model") == 0
    same_views(read_views(tmp_path / "model"), views)
    same_views(read_views(tmp_path / "model", up="-y"), views)
    same_views(read_views(tmp_path / "model", up="z"), lying)


def test_an_output_is_never_replaced(tmp_path):
    folder = write_transforms(tmp_path / "in")
    (tmp_path / "out").mkdir()
    assert convert(folder, "--to", "nerfstudio", "--out", tmp_path / "out") == 0
    with pytest.raises(DataError, match=r"--out=.*out exists and is not empty; choose another folder, or remove it"):
        convert(folder, "--to", "nerfstudio", "--out", tmp_path / "out")
    with pytest.raises(DataError, match="exists and is not empty"):
        convert(folder, "--to", "nerfstudio", "--out", folder)
    with pytest.raises(DataError, match="is not a folder"):
        convert(folder, "--to", "nerfstudio", "--out", folder / "transforms.json")


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    folder = write_transforms(
        tmp_path / "in", sphere_views(c2w_V44=orbit_cameras(num_views=3, elevation_deg=0, radius=2))
    )
    monkeypatch.setattr(convert_cameras, "write_json", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        convert(folder, "--to", "nerfstudio", "--out", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"in"}
