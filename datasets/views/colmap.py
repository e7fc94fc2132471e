"""Reads and writes the text model of COLMAP: cameras.txt and images.txt. No other module knows it.

Poses are world to camera with OpenCV axes, as a quaternion (w first) and a shift. Pixel centres are at +0.5. The world
has any orientation; most often its y axis points down.

Letters: V views.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from datasets.views.records import (
    CameraFile,
    ViewRecord,
    find_file,
    find_picture,
    finite,
    intrinsics_33,
    pixels,
    positive,
    short,
    shown,
)
from datasets.views.transforms_json import same_intrinsics
from utils.cameras import to_convention
from utils.errors import DataError
from utils.files import read_lines

CAMERAS, IMAGES, POINTS = "cameras.txt", "images.txt", "points3D.txt"
PARAMETERS = {"SIMPLE_PINHOLE": 3, "PINHOLE": 4}
UNIT_TOLERANCE = 1e-2  # of the length of a quaternion


def model_folder(folder: Path) -> Path | None:
    """The folder of a model in or below a project's folder, text or binary; None if there is none."""
    places = [folder / place for place in ("sparse/0", "sparse", "colmap/sparse/0", ".")]
    for suffix in (".txt", ".bin"):  # text first, because the binary model cannot be read
        found = next((place for place in places if (place / f"images{suffix}").is_file()), None)
        if found is not None:
            return found
    return None


def read_colmap(model: Path, *, project: Path) -> CameraFile:
    """Read a model.

    Args:
        model: the folder with cameras.txt and images.txt.
        project: the folder with `images/` and perhaps `masks/`.

    Raises:
        DataError: a file or picture is missing, a line is broken, or a camera is not a pinhole camera; the message
            names the file, the line and the value.
    """
    for name in (CAMERAS, IMAGES):
        if not (model / name).is_file():
            binary = (model / name).with_suffix(".bin").is_file()
            remedy = (
                f"write it as text with `colmap model_converter --input_path {model} --output_path {model} "
                "--output_type TXT`"
            )
            raise DataError(f"{model / name}: no such file; {remedy if binary else 'copy the whole model'}")
    cameras = _read_cameras(model / CAMERAS)
    views: list[ViewRecord] = []
    path = model / IMAGES
    lines = [(number, line) for number, line in enumerate(read_lines(path, option="file"), 1) if line[:1] != "#"]
    while lines and not lines[0][1].strip():
        lines.pop(0)
    for number, line in lines[::2]:  # every second line has the points of the image, and may be empty
        if line.strip():
            views.append(_read_image(path, number, line, cameras, project=project))
    if not views:
        raise DataError(f"{path}: has no images; run the reconstruction again")
    return CameraFile(path=path, format="COLMAP model", convention="opencv_w2c", z_up=False, views=tuple(views))


def _read_cameras(path: Path) -> dict[str, tuple[np.ndarray, tuple[int, int]]]:
    """Intrinsics and size by the camera's number."""
    cameras = {}
    for number, line in enumerate(read_lines(path, option="file"), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        where = f"{path}: line {number}"
        if len(words) < 5:
            raise DataError(f"{where}: {shown(line)} is not a camera (number, model, width, height, parameters)")
        if words[1] not in PARAMETERS:
            raise DataError(
                f"{where}: the camera model {words[1]} is not supported; undistort with colmap image_undistorter "
                "(it writes PINHOLE)"
            )
        width, height = (pixels(_number(word), name=where) for word in words[2:4])
        numbers = [finite(_number(word), name=where) for word in words[4:]]
        if len(numbers) != PARAMETERS[words[1]]:
            raise DataError(f"{where}: {words[1]} has {PARAMETERS[words[1]]} parameters, but there are {len(numbers)}")
        focals = numbers[:-2] * (2 // len(numbers[:-2]))
        focal_x, focal_y = (positive(focal, name=f"{where}: the focal length") for focal in focals)
        cameras[words[0]] = intrinsics_33(focal_x, focal_y, *numbers[-2:]), (width, height)
    return cameras


def _read_image(
    path: Path, number: int, line: str, cameras: dict[str, tuple[np.ndarray, tuple[int, int]]], *, project: Path
) -> ViewRecord:
    where = f"{path}: line {number}"
    words = line.strip().split(maxsplit=9)
    if len(words) < 10:
        raise DataError(
            f"{where}: {shown(line)} is not an image (number, quaternion, shift, camera, name); every image has two "
            "lines, of which the second may be empty"
        )
    name, where = f"image {words[0]} ({short(words[9])})", f"{where}: image {words[0]}"
    quat_4 = np.array([finite(_number(word), name=f"{where}: its quaternion") for word in words[1:5]])
    shift_3 = [finite(_number(word), name=f"{where}: its shift") for word in words[5:8]]
    length = float(np.linalg.norm(quat_4))
    if abs(length - 1) > UNIT_TOLERANCE:
        raise DataError(f"{where}: its quaternion has length {length:.4g} instead of 1; correct the file")
    if words[8] not in cameras:
        raise DataError(f"{where}: its camera {words[8]} is not in {CAMERAS}; copy the whole model again")
    matrix_44 = np.eye(4)
    matrix_44[:3, :3] = rotation_of(quat_4 / length)
    matrix_44[:3, 3] = shift_3
    picture = find_picture([project / "images", project], words[9], where=f"{where} ({short(words[9])})")
    masks = [project / "masks"]
    mask = find_file(masks, f"{words[9]}.png") or find_file(masks, str(Path(words[9]).with_suffix(".png")))
    K_33, size = cameras[words[8]]
    return ViewRecord(name=name, picture=picture, mask=mask, matrix_44=matrix_44, K_33=K_33, size=size)


def _number(word: str) -> float | str:
    """A number of a text; a word that is none stays, for the message."""
    try:
        return float(word)
    except ValueError:
        return word


def rotation_of(quat_4: np.ndarray) -> np.ndarray:
    """The rotation of a unit quaternion, w first: (3, 3)."""
    w, x, y, z = quat_4
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def quaternion_of(rotation_33: np.ndarray) -> np.ndarray:
    """The unit quaternion of a rotation, w first and not negative: (4,)."""
    r = rotation_33
    # The largest of these products of the quaternion with itself gives the others without loss of digits.
    squares_44 = 0.25 * np.array(
        [
            [1 + r[0, 0] + r[1, 1] + r[2, 2], r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]],
            [r[2, 1] - r[1, 2], 1 + r[0, 0] - r[1, 1] - r[2, 2], r[1, 0] + r[0, 1], r[0, 2] + r[2, 0]],
            [r[0, 2] - r[2, 0], r[1, 0] + r[0, 1], 1 - r[0, 0] + r[1, 1] - r[2, 2], r[2, 1] + r[1, 2]],
            [r[1, 0] - r[0, 1], r[0, 2] + r[2, 0], r[2, 1] + r[1, 2], 1 - r[0, 0] - r[1, 1] + r[2, 2]],
        ]
    )
    quat_4 = squares_44[np.diag(squares_44).argmax()]
    quat_4 = quat_4 / np.linalg.norm(quat_4)
    return -quat_4 if quat_4[0] < 0 else quat_4


def write_colmap(model: Path, c2w_V44: Tensor, K_V33: Tensor, size: tuple[int, int], *, files: Sequence[str]) -> None:
    """Write a model without points into an empty folder; the world stays as it is, with z up.

    Args:
        size: height and width of the views in pixels.
        files: the name of each picture in `images/`.
    """
    height, width = size
    one_camera = same_intrinsics(K_V33)
    K_V33 = K_V33[:1] if one_camera else K_V33
    cameras = ["# number, model, width, height, fx, fy, cx, cy"]
    for number, K_33 in enumerate(K_V33.double(), 1):
        numbers = [K_33[0, 0], K_33[1, 1], K_33[0, 2], K_33[1, 2]]
        cameras.append(f"{number} PINHOLE {width} {height} {_words(numbers)}")
    images = ["# number, quaternion (w first), shift, camera, name; then a line of points, which is empty"]
    matrices_V44 = to_convention(c2w_V44.double(), "opencv_w2c").numpy()
    for number, (matrix_44, file) in enumerate(zip(matrices_V44, files, strict=True), 1):
        numbers = [*quaternion_of(matrix_44[:3, :3]), *matrix_44[:3, 3]]
        images += [f"{number} {_words(numbers)} {1 if one_camera else number} {file}", ""]
    for name, lines in ((CAMERAS, cameras), (IMAGES, images), (POINTS, ["# this model has no points"])):
        (model / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _words(numbers: Sequence[float | Tensor | np.floating]) -> str:
    return " ".join(f"{float(number):.12g}" for number in numbers)
