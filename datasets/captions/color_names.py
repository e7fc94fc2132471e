"""Names of colours, in the perceptual space OKLab.

Source: B. Ottosson, "A perceptual color space for image processing", 2020. The borders between the names were chosen by
eye on rendered objects.
"""

from __future__ import annotations

import numpy as np

TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
FROM_LMS, FROM_LAB = np.linalg.inv(TO_LMS), np.linalg.inv(TO_LAB)

NAMES = (
    "black", "white", "grey", "red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "brown", "beige",
    "gold",
)  # fmt: skip
# Hue in degrees at which a name begins, for colours with a clear hue.
HUES = (
    (0, "pink"), (12, "red"), (38, "orange"), (80, "yellow"), (115, "green"), (178, "cyan"), (222, "blue"),
    (287, "purple"), (325, "pink"),
)  # fmt: skip
GREY_CHROMA = 0.022  # below it a colour is black, grey or white
PALE_CHROMA = 0.05  # below it, a dark colour is black and a light one is white or beige


def oklab(linear: np.ndarray) -> np.ndarray:
    """Convert linear sRGB (..., 3) in [0, 1] to OKLab (..., 3)."""
    lms = np.cbrt(np.einsum("ij,...j->...i", TO_LMS, np.asarray(linear, dtype=np.float64)))
    return np.einsum("ij,...j->...i", TO_LAB, lms)


def linear_from_oklab(lab: np.ndarray) -> np.ndarray:
    """Convert OKLab (..., 3) to linear sRGB (..., 3), which may lie outside [0, 1]."""
    lms = np.einsum("ij,...j->...i", FROM_LAB, np.asarray(lab, dtype=np.float64)) ** 3
    return np.einsum("ij,...j->...i", FROM_LMS, lms)


def name_indices(lab: np.ndarray) -> np.ndarray:
    """Name colours.

    Args:
        lab: OKLab (..., 3).

    Returns:
        Indices (...) into NAMES.
    """
    lightness, chroma = lab[..., 0], np.hypot(lab[..., 1], lab[..., 2])
    hue = np.degrees(np.arctan2(lab[..., 2], lab[..., 1])) % 360
    starts = np.array([start for start, _ in HUES])
    by_hue = np.array([NAMES.index(name) for _, name in HUES])
    found = by_hue[np.searchsorted(starts, hue, side="right") - 1]

    def put(name: str, where: np.ndarray) -> None:
        found[where] = NAMES.index(name)

    warm, light = (hue >= 28) & (hue < 100), lightness > 0.82
    put("pink", (hue >= 5) & (hue < 40) & (lightness > 0.7) & (chroma < 0.16))
    put("purple", (hue >= 325) & (lightness < 0.5))
    put("red", (hue < 12) & (lightness < 0.5))
    put("pink", (hue < 28) & (lightness > 0.6) & (chroma < 0.07))
    put("brown", (hue >= 28) & (hue < 58) & (lightness < 0.62) & (chroma < np.where(lightness < 0.57, 0.145, 0.12)))
    put("brown", (hue >= 58) & (hue < 90) & (lightness < 0.62))
    put("brown", (hue >= 50) & (hue < 72) & (lightness < 0.7) & (chroma < 0.13))
    put("green", (hue >= 90) & (hue < 115) & (lightness < 0.72))  # olive
    put("gold", (hue >= 74) & (hue < 100) & (lightness >= 0.62) & (lightness < 0.8) & (chroma > 0.1))
    tan = warm & (lightness >= 0.62) & (chroma < 0.1)
    put("beige", tan)
    put("brown", tan & (lightness < 0.58 + chroma))
    put("beige", (hue >= 70) & (hue < 114) & (lightness > 0.76) & (chroma < 0.075))
    # dark blue-green, such as slate, is called grey up to a higher chroma
    cool, slate = GREY_CHROMA + 0.01, GREY_CHROMA + np.where(lightness < 0.5, 0.018, 0.01)
    slaty = (hue >= 160) & (hue < 255)
    grey = chroma < np.where(warm | (lightness < 0.5), GREY_CHROMA + 0.003, cool)
    grey |= slaty & (chroma < slate)
    put("grey", grey)
    put("white", grey & light)
    put("white", (chroma < np.where(warm, 0.028, 0.04)) & (lightness > 0.9))
    put("black", (grey & (lightness < 0.33)) | (lightness < 0.18))
    put("black", (lightness < 0.27) & (chroma < np.where(warm, 0.03, PALE_CHROMA)))
    return found


def color_name(linear_3: np.ndarray) -> str:
    """Name one colour (3,) in linear sRGB."""
    return NAMES[int(name_indices(oklab(linear_3)[None])[0])]
