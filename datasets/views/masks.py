"""Separates an object from its background: by alpha, by a file of a mask, or by a plain background's colour.

Letters: H W pixels, 3 and 4 RGB and RGBA, E pixels of the border.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from utils.errors import DataError
from utils.object_image import open_picture, to_rgb

BORDER_SHARE = 0.02  # width of the border, as a fraction of the shorter side
# A border is plain if this share of its pixels has nearly the same colour; the object may touch the rest.
PLAIN_SHARE = 0.75
PLAIN_TOLERANCE = 0.06
# A pixel with a larger difference to the background, in any channel, shows the object; for noise, the larger of both.
FOREGROUND, NOISE_FACTOR = 0.04, 4.0
# Parts of the object with the background's colour are closed up to this share of the object, and such specks removed.
HOLE_SHARE, SPECK_SHARE = 0.01, 0.003
REMEDY = "give pictures with alpha, for example from rembg (python -m utils.recenter_i2v --help has its installation)"


@dataclass(frozen=True, kw_only=True)
class CutOut:
    """A picture of an object.

    Attributes:
        colors_HW3: straight colours in [0, 1], float32.
        mask_HW: share of each pixel that shows the object.
        background_3: colour of the plain background by which it was cut out; None if it has a mask of its own.
    """

    colors_HW3: np.ndarray
    mask_HW: np.ndarray
    background_3: np.ndarray | None


def read_cut_out(picture: Path, *, mask: Path | None = None, background_3: np.ndarray | None = None) -> CutOut:
    """Read a picture, 8 or 16 bits, with the mask of the object in it.

    Args:
        mask: a file in which the object is white.
        background_3: RGB of the plain background in [0, 1] if it is known.

    Raises:
        DataError: a file cannot be read, the mask has another size, or the picture has neither mask nor alpha and its
            background is not plain.
    """
    image = open_picture(picture, upright=False)
    alpha_HW = None
    if image.has_transparency_data:
        rgba_HW4 = np.asarray(image.convert("RGBA"), dtype=np.float32) / 255
        colors_HW3, alpha_HW = rgba_HW4[..., :3], rgba_HW4[..., 3]
        if alpha_HW.min() == 1:  # an alpha channel that says nothing
            alpha_HW = None
    else:
        colors_HW3 = np.asarray(to_rgb(image, path=picture), dtype=np.float32) / 255
    if mask is not None:
        white_HW = _read_mask(mask)
        if white_HW.shape != colors_HW3.shape[:2]:
            raise DataError(
                f"{mask}: has {white_HW.shape[1]} x {white_HW.shape[0]} pixels, but {picture} has "
                f"{colors_HW3.shape[1]} x {colors_HW3.shape[0]}; scale the mask"
            )
        alpha_HW = white_HW if alpha_HW is None else alpha_HW * white_HW
    if alpha_HW is not None:
        return CutOut(colors_HW3=colors_HW3, mask_HW=alpha_HW, background_3=None)
    return cut_from_plain(colors_HW3, name=str(picture), background_3=background_3)


def _read_mask(path: Path) -> np.ndarray:
    """Grey of a mask in [0, 1]; the alpha of one that has it."""
    image = open_picture(path, upright=False)
    if image.has_transparency_data:
        alpha_HW = np.asarray(image.convert("RGBA"), dtype=np.float32)[..., 3] / 255
        if alpha_HW.min() < 1:
            return alpha_HW
    grey_HW = np.asarray(to_rgb(image, path=path).convert("L"), dtype=np.float32) / 255
    # Masks of 0 and 1 instead of 0 and 255 are common.
    return grey_HW if grey_HW.max() > 1.5 / 255 else (grey_HW > 0).astype(np.float32)


def border_of(image_HW3: np.ndarray) -> np.ndarray:
    """The pixels of the border: (E, 3)."""
    width = max(1, round(BORDER_SHARE * min(image_HW3.shape[:2])))
    inside_HW = np.zeros(image_HW3.shape[:2], dtype=bool)
    inside_HW[width:-width, width:-width] = True
    return image_HW3[~inside_HW]


def cut_from_plain(colors_HW3: np.ndarray, *, name: str, background_3: np.ndarray | None = None) -> CutOut:
    """Cut out an object by the distance to a plain background, with soft edges.

    A pixel at the outline is a mixture of the background and the mean colour of the object's inner pixels around it.
    Its share of the object follows, and the background's share is taken out of its colour.

    Args:
        name: of the picture, for messages.
        background_3: its colour if it is known; else the median of the border.

    Raises:
        DataError: the border is not plain.
    """
    border_E3 = border_of(colors_HW3)
    behind_3 = np.median(border_E3, axis=0) if background_3 is None else background_3.astype(np.float32)
    off_E = np.abs(border_E3 - behind_3).max(axis=1)
    share = float((off_E <= PLAIN_TOLERANCE).mean())
    if share < PLAIN_SHARE:
        what = "the background is not plain" if background_3 is None else "the background has another colour"
        raise DataError(
            f"{name}: has no alpha and no mask, and {what} (only {share:.0%} of the border is near RGB "
            f"{_bytes(behind_3)}); {REMEDY}"
        )
    noise = float(off_E[off_E <= PLAIN_TOLERANCE].std())
    distance_HW = np.abs(colors_HW3 - behind_3).max(axis=2)
    object_HW = _without_specks(distance_HW > max(FOREGROUND, NOISE_FACTOR * noise))
    cross = np.ones((3, 3), dtype=np.uint8)
    inner_HW = cv2.erode(object_HW.astype(np.uint8), cross, borderType=cv2.BORDER_REPLICATE) > 0
    mask_HW = np.where(inner_HW, 1.0, _outline_share(colors_HW3 - behind_3, distance_HW, inner_HW)) * object_HW
    share_HW1 = np.maximum(mask_HW, 0.1)[..., None]
    straight_HW3 = np.clip((colors_HW3 - (1 - share_HW1) * behind_3) / share_HW1, 0, 1)
    return CutOut(
        colors_HW3=np.where(object_HW[..., None], straight_HW3, colors_HW3).astype(np.float32),
        mask_HW=mask_HW.clip(0, 1).astype(np.float32),
        background_3=behind_3,
    )


def _outline_share(beyond_HW3: np.ndarray, distance_HW: np.ndarray, inner_HW: np.ndarray) -> np.ndarray:
    """Share of the object in pixels near inner ones, from colours minus the background: (H, W) in [0, 1].

    Thin parts have no inner pixels; there it is the distance relative to the largest one around.
    """
    near_HW = cv2.boxFilter(inner_HW.astype(np.float32), -1, (5, 5), normalize=False)
    inner_HW3 = cv2.boxFilter(beyond_HW3 * inner_HW[..., None], -1, (5, 5), normalize=False)
    inner_HW3 = inner_HW3 / np.maximum(near_HW, 1)[..., None]
    mixed_HW = (beyond_HW3 * inner_HW3).sum(axis=2) / np.maximum((inner_HW3**2).sum(axis=2), FOREGROUND**2)
    strongest_HW = cv2.dilate(distance_HW, np.ones((5, 5), dtype=np.uint8))
    thin_HW = distance_HW / np.maximum(strongest_HW, FOREGROUND)
    return np.where(near_HW >= 1, mixed_HW, thin_HW).clip(0, 1)


def _without_specks(object_HW: np.ndarray) -> np.ndarray:
    """Remove small parts of a mask and close small holes."""
    size = int(object_HW.sum())
    kept_HW = object_HW.copy()
    for wanted, share in ((False, HOLE_SHARE), (True, SPECK_SHARE)):
        part_HW = (kept_HW if wanted else ~kept_HW).astype(np.uint8)
        _, label_HW, stats, _ = cv2.connectedComponentsWithStats(part_HW, connectivity=8 if wanted else 4)
        small = stats[:, cv2.CC_STAT_AREA] < share * size
        small[0] = False  # pixels that are in no part
        kept_HW[small[label_HW]] = not wanted
    return kept_HW


def _bytes(color_3: np.ndarray) -> str:
    return " ".join(str(round(255 * float(value))) for value in color_3)
