"""Bad and odd folders of views with cameras, and the arguments of the tool that converts them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from datasets.views.folder import read_cameras, read_views
from tests.campaign import Case
from tests.odd_pictures import absurd
from tests.tiny_views import edit, sphere_views, write_transforms
from utils.cameras import opencv_to_opengl

TOOL = "tools.convert_cameras"


def first(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["frames"][0].update(values)


def number(row: int, column: int, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        content["frames"][0]["transform_matrix"][row][column] = value

    return change


def other_axes(content: dict[str, Any]) -> None:
    for frame in content["frames"]:
        frame["transform_matrix"] = opencv_to_opengl(torch.tensor(frame["transform_matrix"])).tolist()


def world_to_camera(content: dict[str, Any]) -> None:
    for frame in content["frames"]:
        frame["transform_matrix"] = np.linalg.inv(np.array(frame["transform_matrix"])).tolist()


# Changes of transforms.json, and the words of the refusal.
FILES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no frames": (lambda c: c.update(frames={}), "has no list `frames`"),
    "a frame of null": (lambda c: c["frames"].__setitem__(0, None), "frame 0 has no file_path"),
    "a matrix of NaN": (number(0, 3, float("nan")), r"frame 0 .*not a finite number"),
    "a matrix of 1e999": (number(1, 1, float("inf")), r"frame 0 .*not a finite number"),
    "a matrix with a word": (number(0, 0, "one"), r"frame 0 .*4 x 4 matrix of numbers"),
    "a matrix of 10^400": (number(0, 0, 10**400), r"frame 0 .*4 x 4 matrix of numbers"),
    "a deep matrix": (first(transform_matrix=[[[[0]]]]), r"frame 0 .*4 x 4 matrix of numbers"),
    "a matrix of zeros": (first(transform_matrix=[[0] * 4] * 3 + [[0, 0, 0, 1]]), "a scale of zero"),
    "OpenCV axes": (other_axes, "looks like OpenCV axes, camera to world; .*--from opencv$"),
    "matrices the wrong way": (world_to_camera, "looks like OpenGL axes, world to camera; .*--from opengl_w2c$"),
    "a name that no file has": (first(file_path="x" * 5000), "no such file"),
    "a name with a zero byte": (first(file_path="a\0.png"), "no such file"),
    "a name that is a folder": (first(file_path="views"), "frame 0 .*no such file"),
    "a width of a text": (lambda c: c.update(w="24"), "w must be a finite number, got '24'"),
    "a width below zero": (lambda c: c.update(w=-24), "w must be positive"),
    "a height of 10^30": (lambda c: c.update(h=10**30), "scale the picture, or the camera"),
    "a focal length of true": (lambda c: c.update(fl_x=True), "fl_x must be a finite number, got True"),
    "distortion": (lambda c: c.update(p1=-0.002), r"p1=-0\.002 is lens distortion"),
    "distortion of one frame": (first(k4=0.1), r"frame 0 .*k4=0\.1 is lens distortion"),
    "a camera model of a list": (lambda c: c.update(camera_model=[1]), r"camera_model=\[1\] is not a pinhole"),
    "a mask that is a number": (first(mask_path=3), r"mask_path=3: no such file"),
    "a mask that is no picture": (first(mask_path="transforms.json"), "cannot be read as an image"),
}


def cases(folder: Path) -> Iterator[Case]:
    """Write the inputs below `folder`."""
    yield from _files(folder / "files")
    yield from _pictures(folder / "pictures")
    yield from _models(folder / "models")
    yield from _arguments(folder / "arguments")


def _files(folder: Path) -> Iterator[Case]:
    for place, (name, (change, says)) in enumerate(FILES.items()):
        path = edit(write_transforms(folder / str(place), sphere_views(num_views=3, size=16)), change)
        command = (TOOL, str(path), "--to", "gobjaverse", "--out", str(folder / f"out{place}"))
        yield Case(name=name, command=command, code=2, says=rf"{place}/transforms\.json: .*{says}|{says}")


def _saved(image: Image.Image) -> Callable[[Path], None]:
    return lambda path: image.save(path, format="PNG")


def _pictures(folder: Path) -> Iterator[Case]:
    noise = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    table: dict[str, tuple[Callable[[Path], Any], str]] = {
        "an empty file": (lambda path: path.write_bytes(b""), "cannot be read as an image"),
        "a cut picture": (lambda path: path.write_bytes(path.read_bytes()[:120]), "cannot be read as an image"),
        "a picture of 60000 x 60000": (absurd, r"60000 x 60000 pixels, but .* says 16 x 16|cannot be read as an image"),
        "a picture of another size": (_saved(Image.new("RGBA", (17, 16))), "has 17 x 16 pixels"),
        "a transparent picture": (_saved(Image.new("RGBA", (16, 16))), r"frame 1 .*its mask is empty"),
        "a photograph without alpha": (_saved(Image.fromarray(noise)), "background is not plain"),
        "one colour": (_saved(Image.new("RGB", (16, 16), "red")), r"frame 1 .*its mask is empty"),
        "a folder": (lambda path: (path.unlink(), path.mkdir()), "frame 1 .*no such file"),
    }
    for place, (name, (write, says)) in enumerate(table.items()):
        path = write_transforms(folder / str(place), sphere_views(num_views=3, size=16))
        write(path / "views" / "001.png")
        command = (TOOL, str(path), "--to", "gobjaverse", "--out", str(folder / f"out{place}"))
        yield Case(name=name, command=command, code=2, says=says)


CAMERA = "1 PINHOLE 16 16 22 22 8 8\n"
POSES = "1 1 0 0 0 0 0 2 1 000.png\n\n2 0.70710678 0 0.70710678 0 0 0 2 1 001.png\n\n"
MODELS = {
    "an empty model": ("", "", "has no images"),
    "fisheye": (CAMERA.replace("PINHOLE", "OPENCV_FISHEYE"), POSES, "OPENCV_FISHEYE is not supported; undistort"),
    "a camera of infinity": (CAMERA.replace("22 22", "inf 22"), POSES, "finite number, got inf"),
    "a quaternion of zeros": (CAMERA, POSES.replace("1 1 0", "1 0 0", 1), "length 0 instead of 1"),
    "no lines of points": (CAMERA, POSES.replace("\n\n", "\n"), "has one view"),
    "a name outside": (CAMERA, POSES.replace("000.png", "../../none.png"), "no such file"),
    "bytes that are no text": (CAMERA, "\udcff\n", "not UTF-8 text"),
}


def _models(folder: Path) -> Iterator[Case]:
    for place, (name, (cameras, images, says)) in enumerate(MODELS.items()):
        path = write_transforms(folder / str(place), sphere_views(num_views=2, size=16))
        (path / "transforms.json").unlink()
        (path / "views").rename(path / "images")
        model = path / "sparse" / "0"
        model.mkdir(parents=True)
        (model / "cameras.txt").write_text(cameras)
        (model / "images.txt").write_text(images, errors="surrogateescape")
        command = (TOOL, str(path), "--to", "nerfstudio", "--out", str(folder / f"out{place}"))
        yield Case(name=f"COLMAP: {name}", command=command, code=2, says=says)


def _arguments(folder: Path) -> Iterator[Case]:
    good = write_transforms(folder / "good", sphere_views(num_views=4, size=16))
    wide = write_transforms(folder / "wide", sphere_views(num_views=3, size=16, width=20))
    table = {
        "a missing folder": ((folder / "none", "--to", "colmap"), "none: no such folder"),
        "a folder without cameras": ((folder, "--to", "colmap"), "has no cameras"),
        "a picture": ((good / "views" / "000.png", "--to", "colmap"), "is not a file of cameras"),
        "one view of four": ((good, "--to", "colmap", "--views", "1"), "--views must be at least 2, got 1"),
        "nine views of four": ((good, "--to", "colmap", "--views", "9"), r"num_views must lie in \[1, 4\].*got 9"),
        "the wrong convention": ((good, "--to", "colmap", "--from", "opencv"), "--from opengl$"),
        "wide pictures": ((wide, "--to", "gobjaverse"), "needs square pictures, but these have 20 x 16"),
    }
    for place, (name, (arguments, says)) in enumerate(table.items()):
        command = (TOOL, *map(str, arguments), "--out", str(folder / f"out{place}"))
        yield Case(name=name, command=command, code=2, says=says)
    yield Case(
        name="an output that exists",
        command=(TOOL, str(good), "--to", "colmap", "--out", str(wide)),
        code=2,
        says="wide exists and is not empty; choose another folder",
    )
    marked = folder / "good" / "marked.json"
    text = json.dumps(json.loads((good / "transforms.json").read_text())).replace("views/", "views\\\\")
    marked.write_bytes(b"\xef\xbb\xbf" + text.encode())

    def cameras_stay() -> None:
        found, expected = read_cameras(folder / "marked"), read_cameras(good)
        assert torch.allclose(found.c2w_V44, expected.c2w_V44, atol=1e-6), found.c2w_V44
        assert len(read_views(folder / "marked")) == 4

    yield Case(
        name="a mark, and names with backslashes",
        command=(TOOL, str(marked), "--to", "colmap", "--up", "z", "--out", str(folder / "marked")),
        code=0,
        check=cameras_stay,
    )
