"""Convert a folder of views with cameras to the format of another program.

    python tools/convert_cameras.py workspace/chair --to colmap --out workspace/chair_colmap
    python tools/convert_cameras.py my_views --from opencv --to nerfstudio --out my_views_corrected

reads what datasets/views/README.md lists, and writes one of:

    transforms   transforms.json with one field of view, pictures in views/, as inference.py writes
    nerfstudio   transforms.json with intrinsics in pixels, pictures in images/
    blender      transforms_train.json of Blender synthetic data, RGBA pictures in train/
    colmap       COLMAP's text model in sparse/0/, pictures in images/
    gobjaverse   campos_512_v4/ with RGBA pictures; square pictures only

--from corrects files whose cameras have another convention than their format says. The world's z axis points up in the
result. The output is written completely or not at all, and an existing one is never replaced.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from PIL import Image

from datasets.orbits.layout import write_orbit
from datasets.views.colmap import write_colmap
from datasets.views.folder import UPS, FolderCameras, describe, load_views, read_cameras
from datasets.views.masks import read_cut_out
from datasets.views.posed_views import Normalization, PosedViews
from datasets.views.records import ViewRecord
from datasets.views.transforms_json import blender_transforms, pinhole_transforms, shared_angle
from utils.cameras import BALL_RADIUS, CONVENTIONS
from utils.errors import ConfigError, DataError
from utils.files import atomic_folder, write_json
from utils.images import to_uint8
from utils.script import run_script

log = logging.getLogger(__name__)

# The folder of the pictures, and the convention of the cameras.
FORMATS = {
    "transforms": ("views", "opengl"),
    "nerfstudio": ("images", "opengl"),
    "blender": ("train", "opengl"),
    "colmap": ("images", "opencv_w2c"),
    "gobjaverse": ("", "opencv"),
}


@dataclass(frozen=True, kw_only=True)
class Placed:
    """Names of a view's files, relative to the output folder; mask is None for a view without a file of a mask."""

    picture: str
    mask: str | None


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with views and cameras, or a file of cameras")
    parser.add_argument("--to", choices=FORMATS, required=True, help="format of the result")
    parser.add_argument("--out", type=Path, required=True, help="folder of the result; it must be new or empty")
    parser.add_argument(
        "--from", dest="convention", choices=CONVENTIONS, help="convention of the matrices (default: of their format)"
    )
    parser.add_argument("--up", choices=UPS, help="the input's axis that points up (default z; for COLMAP auto)")
    parser.add_argument("--views", type=int, help="at most this number of views, evenly chosen (default all)")
    parser.add_argument("--link", action="store_true", help="hard links instead of copies of the pictures")
    parser.add_argument(
        "--normalize", action="store_true", help="move the object into the ball about the origin; needs alpha or masks"
    )
    return parser.parse_args(argv)


def check_out(out: Path, folder: Path) -> None:
    """Check that the result replaces nothing.

    Raises:
        DataError: it would.
    """
    if out.is_symlink() or out.is_file():
        raise DataError(f"--out={out} exists and is not a folder; choose another one")
    if out.is_dir() and any(out.iterdir()):
        raise DataError(f"--out={out} exists and is not empty; choose another folder, or remove it")
    if out.resolve() == folder.resolve():
        raise DataError(f"--out={out} is the input; choose another folder")


def place(views: tuple[ViewRecord, ...], to: str) -> list[Placed]:
    """Names of the files of all views in the result."""
    folder, _ = FORMATS[to]
    placed = []
    for number, view in enumerate(views):
        name = f"r_{number}.png" if to == "blender" else f"{number:03d}{view.picture.suffix.lower()}"
        mask = None if view.mask is None or to == "blender" else f"masks/{name}.png"
        placed.append(Placed(picture=f"{folder}/{name}", mask=mask))
    return placed


def write_pictures(part: Path, views: tuple[ViewRecord, ...], placed: list[Placed], *, to: str, link: bool) -> None:
    """Copy pictures and masks; Blender's format needs PNG with alpha, so other pictures are converted."""
    for view, names in zip(views, placed, strict=True):
        target = part / names.picture
        target.parent.mkdir(parents=True, exist_ok=True)
        if to == "blender" and (view.mask is not None or not _is_png(view.picture)):
            cut = read_cut_out(view.picture, mask=view.mask)
            rgba_HW4 = np.concatenate([cut.colors_HW3, cut.mask_HW[..., None]], axis=2)
            Image.fromarray(np.rint(255 * rgba_HW4).astype(np.uint8)).save(target)
        else:
            _copy(view.picture, target, link=link)
        if names.mask is not None and view.mask is not None:
            (part / names.mask).parent.mkdir(exist_ok=True)
            if _is_png(view.mask):
                _copy(view.mask, part / names.mask, link=link)
            else:
                with Image.open(view.mask) as image:
                    image.convert("L").save(part / names.mask)


def _copy(file: Path, target: Path, *, link: bool) -> None:
    if link:
        try:
            os.link(file.resolve(), target)
            return
        except OSError:  # a file system without links, or another one
            log.info("%s cannot be linked and is copied", file)
    shutil.copyfile(file, target)


def _is_png(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(8) == b"\x89PNG\r\n\x1a\n"


def write_files(out: Path, cameras: FolderCameras, *, to: str, link: bool) -> None:
    """Write cameras and pictures in every format but that of G-Objaverse.

    Raises:
        DataError: the format has no place for these cameras.
    """
    views, size = cameras.file.views, cameras.size
    c2w_V44, K_V33 = cameras.c2w_V44, cameras.K_V33
    placed = place(views, to)
    files, masks = [names.picture for names in placed], [names.mask for names in placed]
    if to == "blender":
        files = [file.removesuffix(".png") for file in files]
        name, content = "transforms_train.json", blender_transforms(c2w_V44, K_V33, size, files=files)
    else:
        name, content = "transforms.json", pinhole_transforms(c2w_V44, K_V33, size, files=files, masks=masks)
    if to == "transforms":
        content = {"camera_angle_x": shared_angle(K_V33, size, format=to), **content}
    with atomic_folder(out) as part:
        write_pictures(part, views, placed, to=to, link=link)
        if to == "colmap":
            (part / "sparse" / "0").mkdir(parents=True)
            names = [file.removeprefix("images/") for file in files]
            write_colmap(part / "sparse" / "0", c2w_V44, K_V33, size, files=names)
        else:
            write_json(part / name, content)


def write_gobjaverse(out: Path, views: PosedViews) -> None:
    """Write RGBA pictures and cameras in the layout of G-Objaverse.

    Raises:
        DataError: the pictures are not square, or the layout has no place for these cameras.
    """
    height, width = views.size
    if height != width:
        raise DataError(f"--to gobjaverse needs square pictures, but these have {width} x {height} pixels; crop them")
    fov = shared_angle(views.K_V33.double(), views.size, format="gobjaverse")
    _, move = views.normalized()
    radius_3 = torch.full((3,), BALL_RADIUS / move.scale)
    write_orbit(
        out,
        rgba_VHW4=to_uint8(torch.cat([views.colors_V3HW, views.masks_V1HW], dim=1)),
        c2w_V44=views.c2w_V44.numpy(),
        fov_deg=math.degrees(fov),
        bounds_23=torch.stack([move.center_3 - radius_3, move.center_3 + radius_3]).numpy(),
    )


def normalized_cameras(cameras: FolderCameras, move: Normalization) -> FolderCameras:
    """The cameras after a move of the scene."""
    c2w_V44 = cameras.c2w_V44.clone()
    c2w_V44[:, :3, 3] = move.from_world(c2w_V44[:, :3, 3])
    return replace(cameras, c2w_V44=c2w_V44)


def main(argv: list[str] | None = None) -> int:
    options = parse_args(argv)
    if options.views is not None and options.views < 2:
        raise ConfigError(f"--views must be at least 2, got {options.views}")
    check_out(options.out, options.folder)
    cameras = read_cameras(options.folder, num_views=options.views, up=options.up, convention=options.convention)
    if options.normalize or options.to == "gobjaverse":
        views = load_views(cameras)
        if options.normalize:
            views, move = views.normalized()
            cameras = normalized_cameras(cameras, move)
            print(f"moved: scale {move.scale:.4g} about ({', '.join(f'{x:.4g}' for x in move.center_3.tolist())})")
    if options.to == "gobjaverse":
        write_gobjaverse(options.out, views)
    else:
        write_files(options.out, cameras, to=options.to, link=options.link)
    print(f"{options.out}/: {describe(replace(cameras, convention=FORMATS[options.to][1]), format=options.to)}")
    return 0


if __name__ == "__main__":
    run_script(main)
