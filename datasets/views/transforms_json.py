"""Reads and writes `transforms.json` of NeRF and Gaussian-splatting tools. No other module knows it.

All flavours have OpenGL camera-to-world matrices in `frames[].transform_matrix` and a world with z up:

- ours, which the folder of a sample has: one focal length and `camera_angle_x`, pictures in `views/`;
- nerfstudio and instant-ngp: `fl_x`, `fl_y`, `cx`, `cy`, `w`, `h` for all frames or for each, `mask_path`;
- Blender synthetic: `camera_angle_x` only, `file_path` without suffix, a file per split.

Letters: V views.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.views.records import (
    CameraFile,
    ViewRecord,
    find_file,
    find_picture,
    finite,
    focal_of,
    intrinsics_33,
    picture_size,
    pixels,
    pose,
    positive,
    short,
    shown,
)
from utils.cameras import opencv_to_opengl
from utils.errors import DataError
from utils.files import read_json

SPLITS = ("train", "val", "test")
DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")
PINHOLES = ("PINHOLE", "SIMPLE_PINHOLE", "OPENCV", "SIMPLE_RADIAL", "RADIAL", "PERSPECTIVE")
UNDISTORT = "undistort the pictures first, e.g. with colmap image_undistorter"
SAME_PIXELS = 1e-4  # focal lengths and centres that differ less are equal


def read_transforms(path: Path) -> CameraFile:
    """Read the cameras of a file.

    Raises:
        DataError: the file is not of this format, a value is out of range, or a picture is missing; the message names
            the file, the frame and the value.
    """
    content = read_json(path, option="file", kind=dict)
    frames = content.get("frames")
    if not isinstance(frames, list) or not frames:
        raise DataError(f"{path}: has no list `frames` with at least one camera; it is not a file of cameras")
    if "applied_transform" in content:  # the matrices already contain it
        pose(content["applied_transform"], name=f"{path}: applied_transform")
    views = [_read_frame(path, content, number) for number in range(len(frames))]
    by_angle = all(not ({"fl_x", "fl_y"} & {*content, *frame}) for frame in frames)
    return CameraFile(
        path=path,
        format="transforms.json of Blender" if by_angle else "transforms.json",
        convention="opengl",
        z_up=True,
        views=tuple(views),
    )


def _read_frame(path: Path, content: dict[str, Any], number: int) -> ViewRecord:
    frame = content["frames"][number]
    if not isinstance(frame, dict) or not isinstance(frame.get("file_path"), str):
        raise DataError(f"{path}: frame {number} has no file_path, so its picture is unknown; correct the file")
    name = f"frame {number} ({short(frame['file_path'])})"
    where = f"{path}: {name}"
    if "transform_matrix" not in frame:
        raise DataError(f"{where}: has no transform_matrix; correct the file or write it again")
    matrix_44 = pose(frame["transform_matrix"], name=f"{where}: transform_matrix")
    values = {**content, **frame}
    _refuse_distortion(values, where=where)
    picture = find_picture([path.parent], frame["file_path"], where=where)
    mask = None
    if values.get("mask_path"):
        mask = find_file([path.parent], str(values["mask_path"]))
        if mask is None:
            raise DataError(f"{where}: mask_path={shown(values['mask_path'])}: no such file; copy it, or remove it")
    width, height = picture_size(picture) if "w" not in values or "h" not in values else (0, 0)
    width = pixels(values["w"], name=f"{where}: w") if "w" in values else width
    height = pixels(values["h"], name=f"{where}: h") if "h" in values else height
    focal_x, focal_y = _focal_lengths(values, (width, height), where=where)
    center_x = finite(values.get("cx", width / 2), name=f"{where}: cx")
    center_y = finite(values.get("cy", height / 2), name=f"{where}: cy")
    K_33 = intrinsics_33(focal_x, focal_y, center_x, center_y)
    return ViewRecord(name=name, picture=picture, mask=mask, matrix_44=matrix_44, K_33=K_33, size=(width, height))


def _focal_lengths(values: dict[str, Any], size: tuple[int, int], *, where: str) -> tuple[float, float]:
    """Focal lengths from `fl_x` or `camera_angle_x`, and those of y, which are optional."""
    found: dict[str, float] = {}
    for axis, side in zip("xy", size, strict=True):
        if f"fl_{axis}" in values:
            found[axis] = positive(values[f"fl_{axis}"], name=f"{where}: fl_{axis}")
        elif f"camera_angle_{axis}" in values:
            name = f"{where}: camera_angle_{axis}"
            found[axis] = focal_of(finite(values[f"camera_angle_{axis}"], name=name), side, name=name)
    if not found:
        raise DataError(f"{where}: has neither fl_x nor camera_angle_x, so its field of view is unknown; add one")
    if "fl_x" in values and "fl_y" not in values:  # camera_angle_y beside fl_x is often rounded
        found["y"] = found["x"]
    return found.get("x", found.get("y", 0.0)), found.get("y", found.get("x", 0.0))


def _refuse_distortion(values: dict[str, Any], *, where: str) -> None:
    model = values.get("camera_model", "PINHOLE")
    if model not in PINHOLES:
        raise DataError(f"{where}: camera_model={shown(model)} is not a pinhole camera; {UNDISTORT}")
    for key in DISTORTION:
        if finite(values.get(key, 0.0), name=f"{where}: {key}") != 0:
            raise DataError(f"{where}: {key}={values[key]} is lens distortion, which is not supported; {UNDISTORT}")


def nerf_transforms(c2w_V44: Tensor, fov_deg: float, size: tuple[int, int]) -> dict[str, Any]:
    """Return the `transforms.json` of NeRF and Gaussian-splatting tools: OpenGL camera-to-world, world z up.

    Args:
        fov_deg: horizontal field of view.
        size: height and width of the views in pixels.
    """
    height, width = size
    focal = 0.5 * width / math.tan(math.radians(fov_deg) / 2)
    K_33 = torch.tensor([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]], dtype=torch.float64)
    files = [f"views/{number:03d}.png" for number in range(len(c2w_V44))]
    transforms = pinhole_transforms(c2w_V44, K_33.expand(len(c2w_V44), 3, 3), size, files=files)
    return {"camera_model": "OPENCV", "camera_angle_x": math.radians(fov_deg), **transforms}


def pinhole_transforms(
    c2w_V44: Tensor, K_V33: Tensor, size: tuple[int, int], *, files: Sequence[str], masks: Sequence[str | None] = ()
) -> dict[str, Any]:
    """Return a `transforms.json` with intrinsics in pixels, as nerfstudio has; for each frame if they differ.

    Args:
        size: height and width of the views in pixels.
        files: the picture of each view, relative to the file.
        masks: the mask of each view, relative to the file; empty if there are none.
    """
    height, width = size
    shared = same_intrinsics(K_V33)
    frames = []
    for number, matrix in enumerate(opencv_to_opengl(c2w_V44).tolist()):
        frame: dict[str, Any] = {"file_path": files[number]}
        if masks and masks[number]:
            frame["mask_path"] = masks[number]
        if not shared:
            frame |= _intrinsics_of(K_V33[number])
        frames.append({**frame, "transform_matrix": matrix})
    head = {"w": width, "h": height, **(_intrinsics_of(K_V33[0]) if shared else {})}
    return {"camera_model": "OPENCV", **head, "frames": frames}


def blender_transforms(
    c2w_V44: Tensor, K_V33: Tensor, size: tuple[int, int], *, files: Sequence[str]
) -> dict[str, Any]:
    """Return a file of Blender synthetic data, which knows one field of view and a centred image.

    Args:
        size: height and width of the views in pixels.
        files: the picture of each view, relative to the file and without suffix.

    Raises:
        DataError: the intrinsics are not of this kind.
    """
    fov = shared_angle(K_V33, size, format="blender")
    frames = [
        {"file_path": file, "transform_matrix": matrix}
        for file, matrix in zip(files, opencv_to_opengl(c2w_V44).tolist(), strict=True)
    ]
    return {"camera_angle_x": fov, "frames": frames}


def same_intrinsics(K_V33: Tensor) -> bool:
    """Whether all views have the same intrinsics."""
    return bool(((K_V33 - K_V33[:1]).abs() <= SAME_PIXELS).all())


def shared_angle(K_V33: Tensor, size: tuple[int, int], *, format: str) -> float:
    """The horizontal field of view in radians, for formats that have only that.

    Args:
        size: height and width of the views in pixels.
        format: name for messages.

    Raises:
        DataError: views differ, pixels are not square, or the optical axis does not meet the image's middle.
    """
    height, width = size
    focal_x, focal_y, center_x, center_y = (float(K_V33[0, row, column]) for row, column in _PLACES)
    what = ""
    if not same_intrinsics(K_V33):
        what = "the views have different intrinsics"
    elif abs(focal_x - focal_y) > SAME_PIXELS * focal_x:
        what = f"pixels are not square (fl_x={focal_x:.4f}, fl_y={focal_y:.4f})"
    elif max(abs(center_x - width / 2), abs(center_y - height / 2)) > SAME_PIXELS * width:
        what = f"the optical axis is not in the middle of the image (cx={center_x:.3f}, cy={center_y:.3f})"
    if what:
        raise DataError(f"--to {format} has no place for these cameras: {what}; use --to nerfstudio or --to colmap")
    return 2 * math.atan(0.5 * width / focal_x)


_PLACES = ((0, 0), (1, 1), (0, 2), (1, 2))


def _intrinsics_of(K_33: Tensor | np.ndarray) -> dict[str, float]:
    return {key: float(K_33[place]) for key, place in zip(("fl_x", "fl_y", "cx", "cy"), _PLACES, strict=True)}
