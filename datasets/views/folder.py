"""Reads a folder of views with cameras, whichever program wrote it.

Letters: V views, H W pixels.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets.orbits.layout import VIEW_FOLDER, count_views, read_camera, view_file
from datasets.views.checks import aim_point, check_cameras, check_masks, check_pictures
from datasets.views.colmap import model_folder, read_colmap
from datasets.views.masks import CutOut, read_cut_out
from datasets.views.posed_views import PosedViews
from datasets.views.records import CameraFile, ViewRecord, focal_of, intrinsics_33, picture_size
from datasets.views.transforms_json import SPLITS, read_transforms
from utils.cameras import CONVENTIONS, fov_deg_of, from_convention, mean_up, rotation_to_up
from utils.errors import ConfigError, DataError

log = logging.getLogger(__name__)

AXES = {"x": (1, 0, 0), "-x": (-1, 0, 0), "y": (0, 1, 0), "-y": (0, -1, 0), "z": (0, 0, 1), "-z": (0, 0, -1)}
UPS = ("auto", *AXES)
FARTHEST = 1e3  # distance of cameras to the origin, relative to that between them; float32 has seven digits
LYING_DEG = 60.0  # if the cameras' up vector is farther from the world's z axis, the scene probably lies on its side


@dataclass(frozen=True, kw_only=True)
class FolderCameras:
    """The checked cameras of a folder, without pictures.

    Attributes:
        file: what was read.
        convention: from which the cameras were converted, a key of utils.cameras.CONVENTIONS.
        c2w_V44: camera to world, OpenCV axes, float64, world z up.
        K_V33: intrinsics in pixels, float64.
        size: height and width of all views.
    """

    file: CameraFile
    convention: str
    c2w_V44: Tensor
    K_V33: Tensor
    size: tuple[int, int]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(view.name for view in self.file.views)


def read_views(
    folder: str | Path,
    *,
    background: float | Sequence[float] | None = None,
    num_views: int | None = None,
    up: str | None = None,
    convention: str | None = None,
) -> PosedViews:
    """Read views of one object with their cameras and masks.

    The folder has a transforms.json, a COLMAP model with `images/`, or `campos_512_v4`. A file of cameras may be named
    instead, such as transforms_test.json. One line of the log has the number of views, their size, the convention, the
    field of view and the distances of the cameras.

    Args:
        background: grey or RGB in [0, 1] behind the object in pictures without alpha; None: the colour of the border.
        num_views: at most this number of views, evenly chosen; None: all.
        up: the world's axis that points up, of `UPS`; None: z, or `auto` where the format does not say it.
        convention: a key of utils.cameras.CONVENTIONS instead of that of the format.

    Raises:
        DataError: a file is missing or broken, or views and cameras cannot be used together; one line with the file,
            the value and the remedy.
        ConfigError: an option is out of range.
    """
    background_color(background)  # a wrong option is found before files are read
    cameras = read_cameras(folder, num_views=num_views, up=up, convention=convention)
    return load_views(cameras, background=background)


def load_views(cameras: FolderCameras, *, background: float | Sequence[float] | None = None) -> PosedViews:
    """Read the pictures and masks of checked cameras, see `read_views`.

    Raises:
        DataError: a picture cannot be used, masks and cameras do not fit, or the scene is too far from the origin.
    """
    background_3 = background_color(background)
    centers_V3 = cameras.c2w_V44[:, :3, 3]
    reach, farthest = float(torch.cdist(centers_V3, centers_V3).max()), float(centers_V3.norm(dim=1).max())
    if farthest > FARTHEST * reach:
        raise DataError(
            f"{cameras.file.path}: the cameras are {farthest:.4g} away from the origin but only {reach:.4g} apart, "
            "which loses digits; subtract their mean from all shifts"
        )
    cuts = [read_cut_out(view.picture, mask=view.mask, background_3=background_3) for view in cameras.file.views]
    _tell_masks(cuts, cameras)
    views = PosedViews(
        colors_V3HW=torch.from_numpy(np.stack([cut.colors_HW3.transpose(2, 0, 1) for cut in cuts])).contiguous(),
        masks_V1HW=torch.from_numpy(np.stack([cut.mask_HW[None] for cut in cuts])),
        c2w_V44=cameras.c2w_V44.float(),
        K_V33=cameras.K_V33.float(),
        names=cameras.names,
    )
    check_masks(views, path=str(cameras.file.path), convention=cameras.convention)
    return views


def read_cameras(
    folder: str | Path, *, num_views: int | None = None, up: str | None = None, convention: str | None = None
) -> FolderCameras:
    """Read and check the cameras of a folder, and the sizes of its pictures; see `read_views`."""
    if up is not None and up not in UPS:
        raise ConfigError(f"up={up} is unknown; valid: {', '.join(UPS)}")
    if convention is not None and convention not in CONVENTIONS:
        raise ConfigError(f"convention={convention} is unknown; valid: {', '.join(CONVENTIONS)}")
    file = find_cameras(Path(folder))
    if num_views is not None:
        if not 1 <= num_views <= len(file.views):
            raise ConfigError(
                f"num_views must lie in [1, {len(file.views)}], the number of views in {file.path}, got {num_views}"
            )
        chosen = np.floor(np.arange(num_views) * len(file.views) / num_views).astype(int)
        file = replace(file, views=tuple(file.views[number] for number in chosen))
    path, names = str(file.path), [view.name for view in file.views]
    check_pictures([(view.name, str(view.picture)) for view in file.views], path=path)
    size = _check_sizes(file)
    matrix_V44 = torch.from_numpy(np.stack([view.matrix_44 for view in file.views]))
    c2w_V44 = from_convention(matrix_V44, convention or file.convention)
    check_cameras(c2w_V44, path=path, names=names, convention=convention or file.convention)
    c2w_V44 = _turned_up(c2w_V44, file, up=up)
    K_V33 = torch.from_numpy(np.stack([view.K_33 for view in file.views]))
    cameras = FolderCameras(
        file=file, convention=convention or file.convention, c2w_V44=c2w_V44, K_V33=K_V33, size=size
    )
    log.info("%s: %s", path, describe(cameras))
    return cameras


def describe(cameras: FolderCameras, *, format: str = "") -> str:
    """Number and size of the views, convention, field of view and distances, for one line of the log.

    Args:
        format: words instead of those of the file that was read.
    """
    height, width = cameras.size
    centers_V3 = cameras.c2w_V44[:, :3, 3]
    middle_3 = aim_point(cameras.c2w_V44)
    if middle_3 is None:
        far = "with parallel axes"
    else:
        far = f"{_range((centers_V3 - middle_3).norm(dim=1), '.3g')} from the middle of the scene"
    fovs_V = fov_deg_of(cameras.K_V33, width)
    return (
        f"{len(centers_V3)} views of {width} x {height} pixels, {format or cameras.file.format} "
        f"({CONVENTIONS[cameras.convention]}), field of view {_range(fovs_V, '.1f')} degrees, cameras {far}"
    )


def find_cameras(folder: Path) -> CameraFile:
    """Find and read the file of cameras of a folder, or the named file.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    if folder.is_file():
        if folder.suffix.lower() == ".json":
            return read_transforms(folder)
        if folder.name in ("images.txt", "cameras.txt"):
            return read_colmap(folder.parent, project=_project_of(folder.parent))
        raise DataError(f"{folder}: is not a file of cameras; name a transforms.json, or the folder with it")
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; check the path (it is relative to the working directory)")
    names = ["transforms.json", *(f"transforms_{split}.json" for split in SPLITS)]
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is not None:
        return read_transforms(found)
    model = model_folder(folder)
    if model is not None:
        return read_colmap(model, project=_project_of(model) if model == folder else folder)
    if (folder / VIEW_FOLDER).is_dir():
        return _read_gobjaverse(folder)
    if folder.name == VIEW_FOLDER:
        return _read_gobjaverse(folder.parent)
    raise DataError(
        f"{folder}: has no cameras (looked for transforms.json, transforms_train.json, sparse/0/images.txt and "
        f"{VIEW_FOLDER}); name the folder that has them, or reconstruct them, e.g. with COLMAP"
    )


def _project_of(model: Path) -> Path:
    """The folder with the pictures of a model that was named itself."""
    places = [model, *model.resolve().parents[:3]]
    return next((place for place in places if (place / "images").is_dir()), model)


def _read_gobjaverse(object_dir: Path) -> CameraFile:
    num_views = count_views(object_dir)
    numbers = [int(entry.name) for entry in (object_dir / VIEW_FOLDER).iterdir() if entry.name.isdigit()]
    if num_views <= max(numbers, default=0):
        raise DataError(
            f"{view_file(object_dir, num_views)}: the view is missing; render or download this object again"
        )
    views = []
    for view in range(num_views):
        picture = view_file(object_dir, view)
        camera = read_camera(view_file(object_dir, view, ".json"))
        width, height = picture_size(picture)
        focal = focal_of(math.radians(camera.fov_deg), width, name=f"{picture.with_suffix('.json')}: x_fov")
        views.append(
            ViewRecord(
                name=f"view {view} ({picture.name})",
                picture=picture,
                mask=None,
                matrix_44=camera.c2w_44.astype(np.float64),
                K_33=intrinsics_33(focal, focal, width / 2, height / 2),
                size=(width, height),
            )
        )
    return CameraFile(
        path=object_dir / VIEW_FOLDER, format="G-Objaverse", convention="opencv", z_up=True, views=tuple(views)
    )


def _check_sizes(file: CameraFile) -> tuple[int, int]:
    """Height and width, which all views and their cameras share.

    Raises:
        DataError: a picture is not as large as its camera says, or as the others.
    """
    first = file.views[0]
    for view in file.views:
        width, height = picture_size(view.picture)
        if (width, height) != view.size:
            raise DataError(
                f"{view.picture}: has {width} x {height} pixels, but {file.path} says {view.size[0]} x {view.size[1]} "
                f"for {view.name}; scale the picture, or the camera"
            )
        if view.size != first.size:
            raise DataError(
                f"{view.picture}: has {width} x {height} pixels, but {first.name} has {first.size[0]} x "
                f"{first.size[1]}; give all views one size"
            )
    return first.size[1], first.size[0]


def _turned_up(c2w_V44: Tensor, file: CameraFile, *, up: str | None) -> Tensor:
    """Turn the world so that its z axis points up, and tell how."""
    estimate_3 = mean_up(c2w_V44)
    if up is None and file.z_up:
        angle = math.degrees(math.acos(max(-1.0, min(1.0, float(estimate_3[2])))))
        if angle > LYING_DEG:
            log.warning(
                "%s: the cameras' mean up vector is %.0f degrees away from the world's z axis; if the object lies on "
                "its side, use --up auto",
                file.path,
                angle,
            )
        return c2w_V44
    if up in AXES:
        up_3 = torch.tensor(AXES[up], dtype=torch.float64)
    else:
        up_3 = estimate_3
        vector = " ".join(f"{value:.3f}" for value in up_3.tolist())
        log.info("%s: the up axis of its world, estimated from the cameras, is (%s); --up sets it", file.path, vector)
    turned_V44 = c2w_V44.clone()
    turned_V44[:, :3] = rotation_to_up(up_3) @ c2w_V44[:, :3]
    return turned_V44


def background_color(background: float | Sequence[float] | None) -> np.ndarray | None:
    if background is None:
        return None
    color = np.asarray(background, dtype=np.float32)
    if color.shape not in ((), (3,)) or not np.isfinite(color).all() or color.min() < 0 or color.max() > 1:
        raise ConfigError(f"background must be a grey or RGB in [0, 1], got {background}")
    return np.broadcast_to(color, 3).copy()


def _tell_masks(cuts: list[CutOut], cameras: FolderCameras) -> None:
    colors = [cut.background_3 for cut in cuts if cut.background_3 is not None]
    if colors:
        middle = " ".join(str(round(255 * float(value))) for value in np.median(colors, axis=0))
        log.info(
            "%s: %d of %d views have no alpha; their masks are the distance to the plain background, RGB %s",
            cameras.file.path, len(colors), len(cuts), middle,
        )  # fmt: skip


def _range(values_V: Tensor, digits: str) -> str:
    low, high = (format(float(value), digits) for value in (values_V.min(), values_V.max()))
    return low if low == high else f"{low} to {high}"
