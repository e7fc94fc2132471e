"""What a file of cameras says about its views, before any picture is decoded.

Letters: V views.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from utils.errors import DataError, first_line
from utils.object_image import DECODER_ERRORS

ROTATION_TOLERANCE = 1e-3  # files have five to six digits
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".PNG", ".JPG", ".JPEG", ".tif", ".tiff", ".bmp")


@dataclass(frozen=True, kw_only=True)
class ViewRecord:
    """One view as a file of cameras describes it.

    Attributes:
        name: for messages, such as `frame 3 (views/003.png)`.
        picture: the file of the picture, which exists.
        mask: the file of a mask, which exists; None if there is none.
        matrix_44: the pose in the convention of the file, float64.
        K_33: intrinsics in pixels, pixel centres at +0.5, float64.
        size: width and height in pixels, of which the intrinsics are.
    """

    name: str
    picture: Path
    mask: Path | None
    matrix_44: np.ndarray
    K_33: np.ndarray
    size: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class CameraFile:
    """The views of a file of cameras.

    Attributes:
        path: the file, or the folder with one file per camera.
        format: words for messages, such as `COLMAP model`.
        convention: a key of utils.cameras.CONVENTIONS.
        z_up: whether the format says that the world's z axis points up.
        views: in the order of the file.
    """

    path: Path
    format: str
    convention: str
    z_up: bool
    views: tuple[ViewRecord, ...]


def shown(value: Any) -> str:
    """A value of a file, short enough for a message."""
    return short(repr(value))


def short(text: str) -> str:
    """A name in a file, short enough for a message of one line; the end of a path says most."""
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:20]}...{text[-37:]}"


def finite(value: Any, *, name: str) -> float:
    """A number of a file.

    Raises:
        DataError: it is not a finite number; the message starts with `name`.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(f"{name} must be a finite number, got {shown(value)}; correct the file or write it again")
    return float(value)


def positive(value: Any, *, name: str) -> float:
    """A number of a file that must be positive, see `finite`."""
    number = finite(value, name=name)
    if number <= 0:
        raise DataError(f"{name} must be positive, got {shown(value)}; correct the file or write it again")
    return number


def pixels(value: Any, *, name: str) -> int:
    """A width or height in a file, see `positive`."""
    number = positive(value, name=name)
    if number != int(number):
        raise DataError(f"{name} must be a whole number of pixels, got {shown(value)}; correct the file")
    return int(number)


def pose(rows: Any, *, name: str) -> np.ndarray:
    """A camera's matrix of a file, with three or four rows: (4, 4) float64.

    Raises:
        DataError: it is not a matrix of finite numbers, or not a rotation with a shift; the message starts with `name`.
    """
    try:
        matrix_44 = np.asarray(rows, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as err:
        raise DataError(f"{name} must be a 4 x 4 matrix of numbers, got {shown(rows)}; correct the file") from err
    if matrix_44.shape == (3, 4):
        matrix_44 = np.concatenate([matrix_44, [[0.0, 0.0, 0.0, 1.0]]])
    if matrix_44.shape != (4, 4):
        raise DataError(f"{name} must be a 4 x 4 matrix of numbers, got {shown(rows)}; correct the file")
    if not np.isfinite(matrix_44).all():
        raise DataError(f"{name} has a value that is not a finite number; correct the file or write it again")
    if np.abs(matrix_44[3] - [0, 0, 0, 1]).max() > ROTATION_TOLERANCE:
        raise DataError(f"{name} has the last row {shown(matrix_44[3].tolist())} instead of 0 0 0 1; transpose it")
    matrix_44[:3, :3] = rotation(matrix_44[:3, :3], name=name)
    return matrix_44


def rotation(rows_33: np.ndarray, *, name: str) -> np.ndarray:
    """The rotation nearest to one of a file that has few digits: (3, 3).

    Raises:
        DataError: it is not a rotation; the message starts with `name`.
    """
    square_33 = rows_33.T @ rows_33
    scale = math.sqrt(max(np.trace(square_33) / 3, 0))
    if scale < 1e-6:
        raise DataError(f"{name} has a scale of zero; correct the file or write it again")
    if np.abs(square_33 / scale**2 - np.eye(3)).max() > ROTATION_TOLERANCE:
        raise DataError(f"{name} is not a rotation with a shift (its axes are not at right angles); correct the file")
    if np.linalg.det(rows_33) < 0:
        raise DataError(f"{name} is mirrored (determinant -1), so no camera has it; flip one axis of the cameras")
    if abs(scale - 1) > ROTATION_TOLERANCE:
        raise DataError(f"{name} has axes of length {scale:.4g} instead of 1; divide the rotation by it")
    left_33, _, right_33 = np.linalg.svd(rows_33)
    return left_33 @ right_33


def intrinsics_33(focal_x: float, focal_y: float, center_x: float, center_y: float) -> np.ndarray:
    """K from numbers of a file: (3, 3) float64."""
    return np.array([[focal_x, 0.0, center_x], [0.0, focal_y, center_y], [0.0, 0.0, 1.0]])


def focal_of(angle: float, side: int, *, name: str) -> float:
    """Focal length in pixels of a field of view in radians.

    Raises:
        DataError: the angle is not between 0 and pi; the message starts with `name`.
    """
    if not 0 < angle < math.pi - 1e-3:
        raise DataError(f"{name} must lie between 0 and pi radians, got {shown(angle)}; correct the file")
    return 0.5 * side / math.tan(angle / 2)


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height of a picture as stored, from its header.

    Raises:
        DataError: the file is not a picture.
    """
    try:
        with Image.open(path) as image:
            return image.size
    except (*DECODER_ERRORS, Image.DecompressionBombError) as err:
        text = first_line(err).replace(repr(str(path)), "it")
        raise DataError(f"{path}: cannot be read as an image ({text}); export it as PNG again") from err


def find_picture(folders: Sequence[Path], name: str, *, where: str) -> Path:
    """The file of a picture, whose name may lack its suffix and may have backslashes.

    Args:
        folders: where it may be, best first.
        where: the start of the message.

    Raises:
        DataError: there is none.
    """
    found = find_file(folders, name)
    if found is None:
        raise DataError(f"{where}: no such file in {folders[0]}; copy the picture there, or remove the view")
    return found


def find_file(folders: Sequence[Path], name: str) -> Path | None:
    """As `find_picture`; None if there is no file."""
    for spelled in dict.fromkeys((name, name.replace("\\", "/"))):
        for folder in folders:
            path = folder / spelled
            try:
                if path.is_file():
                    return path
                for suffix in SUFFIXES:
                    if (longer := path.with_name(path.name + suffix)).is_file():
                        return longer
            except (OSError, ValueError):  # a name that no file can have
                continue
    return None
