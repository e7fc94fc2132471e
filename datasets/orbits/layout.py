"""Reads and writes the G-Objaverse layout on disk. No other module knows it.

`<root>/<dictionary id>/<instance id>/campos_512_v4/NNNNN/NNNNN.png` is a view as RGBA, `NNNNN.json` its
camera and `NNNNN_nd.exr` its normal and depth. The folder has its published name for every image size.
Camera files contain `origin` and the axes `x` (right), `y` (down), `z` (forward) of the camera in a world with z up,
`x_fov` and `y_fov` in radians, and the object's `bbox`.

Letters: V views, H W pixels. Source: https://github.com/modelscope/richdreamer (dataset/gobjaverse).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from utils.errors import DataError
from utils.files import atomic_folder

VIEW_FOLDER = "campos_512_v4"
REMEDY = "render or download this object again, or remove it from the index"
# 0..9; level 1 writes four times faster than OpenCV's default and the files are 10 % larger.
PNG_LEVEL = 1
# Published normals have Unity's world axes: (R, G, B) = (-x, z, -y) of the z-up world that the cameras use.
_TO_UNITY = np.array([[-1, 0, 0], [0, 0, 1], [0, -1, 0]], dtype=np.float32)


@dataclass(frozen=True)
class ViewCamera:
    """c2w_44: float32 camera to world (x right, y down, z forward); fov_deg: horizontal field of view."""

    c2w_44: np.ndarray
    fov_deg: float


def view_file(object_dir: str | Path, view: int, suffix: str = ".png") -> Path:
    """Path of one file of one view; suffix is `.png`, `.json` or `_nd.exr`."""
    name = f"{view:05d}"
    return Path(object_dir) / VIEW_FOLDER / name / f"{name}{suffix}"


def write_orbit(
    object_dir: str | Path,
    *,
    rgba_VHW4: np.ndarray,
    c2w_V44: np.ndarray,
    fov_deg: float,
    bounds_23: np.ndarray,
    normals_VHW3: np.ndarray | None = None,
    depth_VHW: np.ndarray | None = None,
) -> None:
    """Write all views of an object; its folder is written completely or not at all.

    Args:
        object_dir: `<root>/<dictionary id>/<instance id>`.
        rgba_VHW4: uint8 sRGB with straight alpha.
        c2w_V44: camera to world.
        fov_deg: field of view of the square images.
        bounds_23: lowest and highest corner of the object's bounding box.
        normals_VHW3: world normals; written together with depth_VHW (along the camera's z) if both are given.
    """
    with atomic_folder(object_dir, is_ours=lambda name: name.parts[0] == VIEW_FOLDER) as part:
        for view, rgba_HW4 in enumerate(rgba_VHW4):
            view_file(part, view).parent.mkdir(parents=True)
            write_png(view_file(part, view), rgba_HW4)
            camera = camera_record(c2w_V44[view], fov_deg=fov_deg, bounds_23=bounds_23)
            view_file(part, view, ".json").write_text(json.dumps(camera), encoding="utf-8")
            if normals_VHW3 is not None and depth_VHW is not None:
                write_normal_depth(view_file(part, view, "_nd.exr"), normals_VHW3[view], depth_VHW[view])


def camera_record(c2w_44: np.ndarray, *, fov_deg: float, bounds_23: np.ndarray) -> dict[str, object]:
    """Contents of a camera file."""
    columns = np.asarray(c2w_44, dtype=np.float64)[:3].T.tolist()
    fov = math.radians(fov_deg)
    return {
        "origin": columns[3],
        "x": columns[0],
        "y": columns[1],
        "z": columns[2],
        "x_fov": fov,
        "y_fov": fov,
        "bbox": np.asarray(bounds_23, dtype=np.float64).tolist(),
    }


def read_camera(path: str | Path) -> ViewCamera:
    """Read one camera file.

    Raises:
        DataError: the file is missing or not JSON, its axes are not a rotation, or a value is not finite.
    """
    path = Path(path)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        columns = [np.asarray(record[key], dtype=np.float64) for key in ("x", "y", "z", "origin")]
        c2w_44 = np.eye(4)
        c2w_44[:3] = np.stack(columns, axis=1)
        fov_deg = math.degrees(float(record["x_fov"]))
        if not np.isfinite(c2w_44).all():
            raise ValueError("x, y, z or origin contain a value that is not a finite number")
    except FileNotFoundError as err:
        raise DataError(f"{path}: camera file is missing; {REMEDY}") from err
    except (OSError, RecursionError, KeyError, TypeError, ValueError) as err:
        raise DataError(f"{path}: not a camera file ({type(err).__name__}: {err}); {REMEDY}") from err
    rotation_33 = c2w_44[:3, :3]
    # published files have five to six digits
    if not np.allclose(rotation_33.T @ rotation_33, np.eye(3), atol=1e-3) or np.linalg.det(rotation_33) < 0:
        raise DataError(f"{path}: x, y, z are not the axes of a right-handed camera; {REMEDY}")
    if not 0 < fov_deg < 180:
        raise DataError(f"{path}: x_fov must lie between 0 and pi radians, got {record['x_fov']}; {REMEDY}")
    return ViewCamera(c2w_44=c2w_44.astype(np.float32), fov_deg=fov_deg)


def write_png(path: str | Path, rgba_HW4: np.ndarray) -> None:
    """Write uint8 RGBA."""
    bgra = cv2.cvtColor(np.ascontiguousarray(rgba_HW4), cv2.COLOR_RGBA2BGRA)
    if not cv2.imwrite(str(path), bgra, [cv2.IMWRITE_PNG_COMPRESSION, PNG_LEVEL]):
        raise OSError(f"{path}: cannot be written")


def read_rgba(path: str | Path) -> np.ndarray:
    """Read a view as uint8 (H, W, 4); an image without alpha is opaque.

    Raises:
        DataError: the file is missing, empty or not an image.
    """
    path = Path(path)
    try:
        raw = np.fromfile(path, dtype=np.uint8)
    except FileNotFoundError as err:
        raise DataError(f"{path}: the view is missing; {REMEDY}") from err
    if not raw.size:
        raise DataError(f"{path}: the file is empty (zero bytes); {REMEDY}")
    image = decoded(raw, cv2.IMREAD_UNCHANGED)
    if image is None or image.dtype not in (np.uint8, np.uint16):
        raise DataError(f"{path}: broken image; {REMEDY}")
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    if image.ndim == 2:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2RGBA)
    return cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA if image.shape[2] == 4 else cv2.COLOR_BGR2RGBA)


def has_alpha(path: str | Path) -> bool:
    """Whether the file of a view that `read_rgba` reads has an alpha channel."""
    raw = np.fromfile(path, dtype=np.uint8)
    if raw[:8].tobytes() == b"\x89PNG\r\n\x1a\n" and raw[25] in (4, 6):  # the header: grey or RGB with alpha
        return True
    image = decoded(raw, cv2.IMREAD_UNCHANGED)
    return image is not None and image.ndim == 3 and image.shape[2] == 4


def decoded(raw: np.ndarray, flags: int) -> np.ndarray | None:
    """Decode an image from the bytes of a file with OpenCV flags; None if this is not an image."""
    try:
        return cv2.imdecode(raw, flags)
    except cv2.error:  # the header has more pixels than OpenCV reads
        return None


def write_normal_depth(path: str | Path, normals_HW3: np.ndarray, depth_HW: np.ndarray) -> None:
    """Write world normals (z up) and depth as an EXR with four float32 channels and the published axes."""
    import OpenEXR  # imported here, because only these functions need it

    channels = np.concatenate([normals_HW3 @ _TO_UNITY.T, depth_HW[..., None]], axis=-1).astype(np.float32)
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    OpenEXR.File(header, {"RGBA": np.ascontiguousarray(channels)}).write(str(path))


def read_normal_depth(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """World normals (H, W, 3), z up, and depth (H, W) along the camera's z axis.

    Raises:
        DataError: the file is missing or not an EXR with four channels.
    """
    import OpenEXR

    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: normal and depth are missing; {REMEDY}")
    try:
        with OpenEXR.File(str(path)) as file:
            pixels = np.asarray(file.channels()["RGBA"].pixels, dtype=np.float32)
    except (RuntimeError, KeyError, ValueError, TypeError) as err:
        raise DataError(f"{path}: not a normal and depth file ({err}); {REMEDY}") from err
    return pixels[..., :3] @ _TO_UNITY, pixels[..., 3]


def is_complete(object_dir: str | Path, *, num_views: int, normal_depth: bool = False) -> bool:
    """Whether every file of the first views exists and is not empty."""
    suffixes = (".png", ".json", "_nd.exr") if normal_depth else (".png", ".json")
    files = (view_file(object_dir, view, suffix) for view in range(num_views) for suffix in suffixes)
    return all(file.is_file() and file.stat().st_size > 0 for file in files)


def count_views(object_dir: str | Path) -> int:
    """Number of views on disk, from view 0 on without a gap."""
    view = 0
    while view_file(object_dir, view).is_file():
        view += 1
    return view


def find_objects(root: str | Path) -> Iterator[str]:
    """Sorted object ids `<dictionary id>/<instance id>` in a folder, without those that are half written."""
    for dictionary in _folders(Path(root)):
        for instance in _folders(dictionary):
            if (instance / VIEW_FOLDER).is_dir():
                yield f"{dictionary.name}/{instance.name}"


def _folders(path: Path) -> list[Path]:
    with os.scandir(path) as entries:
        names = [e.name for e in entries if e.is_dir() and not e.name.startswith(".")]
    # G-Objaverse names are numbers: 2 before 10
    return [path / name for name in sorted(names, key=lambda n: (not n.isdigit(), int(n) if n.isdigit() else 0, n))]
