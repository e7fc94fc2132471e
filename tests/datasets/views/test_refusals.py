"""Folders of views that cannot be used: one line with the file, the value and the remedy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.views.checks import coherence
from datasets.views.colmap import write_colmap
from datasets.views.folder import read_cameras, read_views
from tests.tiny_views import edit, picture, sphere_views, write_model, write_pictures, write_transforms
from utils.cameras import cameras_at, opencv_to_opengl
from utils.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    pass


def set_matrix(number: int, change: Callable[[np.ndarray], Any]) -> Callable[[dict[str, Any]], None]:
    """A change of the matrix of one frame."""

    def of_file(content):
        matrix_44 = np.array(content["frames"][number]["transform_matrix"])
        changed = change(matrix_44)
        content["frames"][number]["transform_matrix"] = changed.tolist() if isinstance(changed, np.ndarray) else changed

    return of_file


def with_value(row: int, column: int, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(matrix_44):
        matrix_44[row, column] = value
        return matrix_44

    return change


def with_axes(factor_3: Any) -> Callable[[np.ndarray], np.ndarray]:
    def change(matrix_44):
        matrix_44[:3, :3] *= factor_3
        return matrix_44

    return change


def all_matrices(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[dict[str, Any]], None]:
    def of_file(content):
        for number in range(len(content["frames"])):
            set_matrix(number, change)(content)

    return of_file


def in_frame(number: int, **values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["frames"][number].update(values)


NAN, INF = float("nan"), float("inf")
OF_FILES = {
    "no frames": (lambda c: c.pop("frames"), r"has no list `frames` with at least one camera"),
    "frames that are empty": (lambda c: c.update(frames=[]), r"has no list `frames` with at least one camera"),
    "a frame that is a number": (lambda c: c["frames"].__setitem__(1, 7), "frame 1 has no file_path"),
    "a frame without a matrix": (lambda c: c["frames"][1].pop("transform_matrix"), r"frame 1 .*no transform_matrix"),
    "a matrix of words": (set_matrix(2, lambda m: [["a"] * 4] * 4), r"frame 2 .*must be a 4 x 4 matrix"),
    "a ragged matrix": (set_matrix(2, lambda m: [[1, 2], [3]]), r"frame 2 .*must be a 4 x 4 matrix"),
    "a NaN": (set_matrix(3, with_value(0, 3, NAN)), r"frame 3 \(views/003\.png\): transform_matrix has .*not a finite"),
    "an infinity": (set_matrix(3, with_value(1, 1, INF)), r"frame 3 .*not a finite number; correct the file"),
    "a scale of zero": (set_matrix(1, with_axes(0)), r"frame 1 .*has a scale of zero"),
    "a scale of two": (set_matrix(1, with_axes(2)), r"frame 1 .*axes of length 2 instead of 1; divide"),
    "a shear": (set_matrix(1, with_value(0, 1, 0.4)), r"frame 1 .*is not a rotation"),
    "a mirror": (set_matrix(1, with_axes(np.array([1, 1, -1]))), r"frame 1 .*is mirrored .*flip one axis"),
    "transposed": (set_matrix(1, lambda m: m.T), r"frame 1 .*has the last row .*transpose it"),
    "one view": (lambda c: c.update(frames=c["frames"][:1]), r"has one view, which shows no depth; give two or more"),
    "the same picture twice": (in_frame(4, file_path="views/001.png"), r"frame 1 .* and frame 4 .*have the same pict"),
    "the same camera twice": (
        lambda c: c["frames"][4].update(transform_matrix=c["frames"][1]["transform_matrix"]),
        r"frame 1 .* and frame 4 .*have the same camera; remove one",
    ),
    "all at the origin": (all_matrices(lambda m: np.concatenate([m[:, :3], np.eye(4)[:, 3:]], 1)), "a scale of zero"),
    "one that looks away": (set_matrix(2, with_axes(np.array([-1, 1, -1]))), r"1 of 6 cameras look away .*frame 2"),
    "a picture that is missing": (in_frame(2, file_path="views/9.png"), r"frame 2 \(views/9\.png\): no such file in"),
    "a picture outside names": (in_frame(2, file_path="a\0b"), "no such file"),
    "a picture without a name": (in_frame(2, file_path=None), "frame 2 has no file_path"),
    "a mask that is missing": (in_frame(2, mask_path="m.png"), r"frame 2 .*mask_path='m.png': no such file"),
    "no field of view": (
        lambda c: [c.pop(key) for key in ("camera_angle_x", "fl_x", "fl_y")],
        "frame 0 .*neither fl_x nor camera_angle_x",
    ),
    "a focal length of zero": (lambda c: c.update(fl_x=0), r"frame 0 .*fl_x must be positive, got 0"),
    "a focal length that is a word": (lambda c: c.update(fl_x="33"), r"fl_x must be a finite number, got '33'"),
    "half a pixel of width": (lambda c: c.update(w=23.5), r"w must be a whole number of pixels, got 23\.5"),
    "another width": (lambda c: c.update(w=48), r"000\.png: has 24 x 24 pixels, but .* says 48 x 24 .*scale the pict"),
    "lens distortion": (lambda c: c.update(k1=0.01), r"k1=0\.01 is lens distortion.*undistort the pictures first"),
    "a fisheye": (lambda c: c.update(camera_model="OPENCV_FISHEYE"), r"camera_model='OPENCV_FISHEYE' .*undistort"),
    "a broken applied_transform": (lambda c: c.update(applied_transform=[1]), "applied_transform must be a 4 x 4"),
}


@pytest.mark.parametrize("name", OF_FILES)
def test_a_wrong_file_is_one_line(name, tmp_path):
    change, says = OF_FILES[name]
    edit(write_transforms(tmp_path), change)
    with pytest.raises(DataError, match=says) as caught:
        read_views(tmp_path)
    assert len(str(caught.value).splitlines()) == 1
    assert str(tmp_path) in str(caught.value)


def test_an_angle_of_pi_is_refused(tmp_path):
    def change(content):
        content.pop("fl_x"), content.pop("fl_y")
        content["camera_angle_x"] = math.pi

    edit(write_transforms(tmp_path), change)
    with pytest.raises(DataError, match=r"camera_angle_x must lie between 0 and pi radians, got 3\.14"):
        read_views(tmp_path)


@pytest.mark.parametrize("azimuths", [(0.0, 180.0), (0.0, 1.0, 0.5)])
def test_views_along_one_line_are_refused(azimuths, tmp_path):
    angles = torch.tensor(azimuths)
    c2w_V44 = cameras_at(angles, torch.zeros(len(angles)), torch.full((len(angles),), 2.0))
    write_transforms(tmp_path, sphere_views(c2w_V44=c2w_V44))
    with pytest.raises(DataError, match=r"see the object along one line .*add views from other sides"):
        read_views(tmp_path)


@pytest.mark.parametrize("size", [(12, 24), (24, 23)])
def test_a_picture_of_another_size_is_refused(size, tmp_path):
    write_transforms(tmp_path)
    picture(tmp_path / "views/003.png", *size)
    with pytest.raises(DataError, match=rf"003\.png: has {size[0]} x {size[1]} pixels, but .*transforms\.json says 24"):
        read_views(tmp_path)
    edit(tmp_path, lambda content: content["frames"][3].update(w=size[0], h=size[1]))
    with pytest.raises(
        DataError, match=rf"003\.png: has {size[0]} x {size[1]} .*frame 0 .*has 24 x 24; give all views"
    ):
        read_views(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(50), "cut"])
def test_an_unreadable_picture_is_refused(content, tmp_path):
    file = write_transforms(tmp_path) / "views" / "002.png"
    file.write_bytes(file.read_bytes()[:200] if content == "cut" else content)
    with pytest.raises(DataError, match=r"002\.png: cannot be read as an image \(.*\); export it as PNG again"):
        read_views(tmp_path)


def test_a_mask_that_is_empty_is_refused(tmp_path):
    file = write_transforms(tmp_path) / "views" / "002.png"
    Image.new("RGBA", (24, 24)).save(file)
    with pytest.raises(DataError, match=r"frame 2 \(views/002\.png\) shows no object, its mask is empty; remove this"):
        read_views(tmp_path)
    Image.new("RGB", (24, 24), "white").save(file)  # all of it is background
    with pytest.raises(DataError, match=r"frame 2 .*its mask is empty"):
        read_views(tmp_path)


def test_no_alpha_over_a_photograph_is_refused(tmp_path):
    file = write_transforms(tmp_path) / "views" / "002.png"
    noise = np.random.default_rng(0).integers(0, 255, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file)
    with pytest.raises(DataError, match=r"002\.png: has no alpha and no mask, and the background is not plain .*rembg"):
        read_views(tmp_path)


def test_pictures_of_another_orbit_are_noticed(tmp_path):
    """An object beside the axes, with cameras that go round the other way: the masks have no common point."""
    views = sphere_views(center=(0.45, 0.0, 0.0), radius=0.15)
    backwards = replace(views, c2w_V44=views.c2w_V44[[1, 3, 5, 0, 2, 4]])
    write_transforms(tmp_path, backwards)
    with pytest.raises(DataError, match=r"in 3\d% of the others at best; check that cameras, pictures"):
        read_views(tmp_path)


def test_pictures_that_cut_the_object_off_speak_for_what_they_show():
    """The object goes on outside of some pictures, so no point of it need lie in all masks."""
    views = sphere_views(center=(1.0, 0.0, 0.0), radius=0.4, num_views=8)
    at_edge_V = (views.masks_V1HW[..., [0, -1]] > 0.5).flatten(1).any(dim=1)
    assert 0 < int(at_edge_V.sum()) < 8
    # 0.85 if points outside of pictures counted as empty
    assert coherence(views.c2w_V44.double(), views) == pytest.approx(1.0, abs=0.01)
    assert coherence(opencv_to_opengl(views.c2w_V44.double()), views) < 0.5


def test_a_model_in_another_convention_is_named(tmp_path):
    """Camera to world where COLMAP has world to camera, and axes of OpenGL."""
    views = sphere_views(num_views=4)
    write_pictures(tmp_path, views)
    (tmp_path / "views").rename(tmp_path / "images")
    model = tmp_path / "sparse" / "0"
    model.mkdir(parents=True)
    files = [f"{number:03d}.png" for number in range(4)]
    for matrix_V44, other in (
        (torch.linalg.inv(views.c2w_V44), "opencv"),
        (opencv_to_opengl(views.c2w_V44), "opengl_w2c"),
    ):
        write_colmap(model, matrix_V44, views.K_V33, views.size, files=files)
        with pytest.raises(
            DataError, match=rf"looks like O.*; convert it with tools/convert_cameras\.py --from {other}$"
        ):
            read_cameras(tmp_path)


LINE = "1 1 0 0 0 0 0 3 1 a.png\n\n2 0.7071 0 0.7071 0 0 0 3 1 b b.png\n\n"
OF_MODELS = {
    "OPENCV": (
        {"cameras": "1 OPENCV 16 8 20 21 7 4 0 0 0 0\n"},
        r"cameras\.txt: line 2: the camera model OPENCV is not",
    ),
    "SIMPLE_RADIAL": ({"cameras": "1 SIMPLE_RADIAL 16 8 20 7 4 0\n"}, "undistort with colmap image_undistorter"),
    "too few parameters": ({"cameras": "1 PINHOLE 16 8 20 21 7\n"}, "PINHOLE has 4 parameters, but there are 3"),
    "a short camera": ({"cameras": "1 PINHOLE 16\n"}, "line 2: '1 PINHOLE 16' is not a camera"),
    "a focal length of zero": ({"cameras": "1 PINHOLE 16 8 0 21 7 4\n"}, "the focal length must be positive, got 0"),
    "a word": ({"cameras": "1 PINHOLE 16 8 f 21 7 4\n"}, "line 2 must be a finite number, got 'f'"),
    "a NaN": (
        {"images": LINE.replace("3 1 a", "nan 1 a")},
        r"images\.txt: line 1: image 1: its shift must be a finite",
    ),
    "a long quaternion": ({"images": LINE.replace("1 1 0", "1 2 0")}, "its quaternion has length 2 instead of 1"),
    "another camera": ({"images": LINE.replace("3 1 a", "3 9 a")}, r"its camera 9 is not in cameras\.txt"),
    "no empty lines": ({"images": LINE.replace("\n\n", "\n")}, "has one view"),
    "a short image": ({"images": "1 1 0 0 0\n\n"}, "is not an image .*every image has two lines"),
    "no images": ({"images": "# nothing\n"}, r"images\.txt: has no images"),
    "another picture": ({"images": LINE.replace("a.png", "c.png")}, r"image 1 \(c\.png\): no such file in .*images"),
}


@pytest.mark.parametrize("name", OF_MODELS)
def test_a_wrong_model_is_one_line(name, tmp_path):
    content, says = OF_MODELS[name]
    write_model(tmp_path, **content)
    with pytest.raises(DataError, match=says) as caught:
        read_cameras(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_scene_far_from_the_origin_is_refused(tmp_path):
    def shift(matrix_44):
        matrix_44[:3, 3] += 5e4
        return matrix_44

    edit(write_transforms(tmp_path), all_matrices(shift))
    with pytest.raises(DataError, match=r"8\.66e\+04 away from the origin but only 3\.\d+ apart.*subtract their mean"):
        read_views(tmp_path)


def test_a_binary_model_is_named(tmp_path):
    model = write_model(tmp_path)
    for name in ("cameras", "images"):
        (model / f"{name}.txt").rename(model / f"{name}.bin")
    with pytest.raises(DataError, match=r"cameras\.txt: no such file; write it as text with `colmap model_converter"):
        read_cameras(tmp_path)
    (model / "cameras.bin").unlink()
    with pytest.raises(DataError, match=r"cameras\.txt: no such file; copy the whole model"):
        read_cameras(tmp_path)


def test_a_folder_without_cameras_is_named(tmp_path):
    picture(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"has no cameras \(looked for transforms\.json, .*e\.g\. with COLMAP"):
        read_views(tmp_path)
    with pytest.raises(DataError, match=r"none: no such folder"):
        read_views(tmp_path / "none")
    with pytest.raises(DataError, match=r"a\.png: is not a file of cameras"):
        read_views(tmp_path / "a.png")
    (tmp_path / "transforms.json").write_text("{")
    with pytest.raises(DataError, match=r"transforms\.json: not valid JSON"):
        read_views(tmp_path)


@pytest.mark.parametrize(
    ("options", "says"), [({"up": "w"}, "up=w is unknown"), ({"convention": "nerf"}, "valid: opencv")]
)
def test_unknown_options_are_refused(options, says, tmp_path):
    with pytest.raises(ConfigError, match=says):
        read_views(write_transforms(tmp_path), **options)
