"""Random textures. All of them repeat without a seam.

Colours are drawn in OKLab. Half of the palettes have the statistics of photographs: weak colours, related hues, mostly
between orange and blue, and differences of lightness that are larger than those of colour (D. L. Ruderman et al.,
"Statistics of cone responses to natural images", 1998). Noise has the 1/f spectrum of natural scenes (D. J. Field,
"Relations between the statistics of natural images and the response properties of cortical cells", 1987).

Letters: H W texels, P colours of a palette.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.spatial import cKDTree

from datasets.captions.color_names import NAMES, linear_from_oklab, name_indices
from datasets.meshes.scene import linear_to_srgb

SIZE = 256  # H = W
ALBEDO = (0.02, 0.88)  # real surfaces are neither black nor white
PLAIN, PATTERNED, FIELD = range(3)
Mask = np.ndarray


@dataclass(frozen=True)
class Drawn:
    """A texture: uint8 sRGB (H, W, 3), or (H, W, 4) with holes. `words` describe it, e.g. `striped red and white`."""

    pixels_HWC: np.ndarray
    words: str


def draw_palette(rng: np.random.Generator, num: int = 5) -> np.ndarray:
    """Draw colours (P, 3) in OKLab that go together."""
    lightness = np.clip(rng.normal(0.62, 0.2, num), 0.18, 0.96)
    if rng.random() < 0.5:  # as in photographs
        hue = rng.choice([rng.normal(65, 22), rng.normal(250, 25), rng.normal(130, 20)], p=[0.6, 0.25, 0.15])
        hues, chroma = rng.normal(hue, 25, num), np.minimum(rng.exponential(0.05, num), 0.16)
    else:
        hues, chroma = rng.uniform(0, 360, num), rng.uniform(0.08, 0.28, num)
        chroma[rng.random(num) < 0.2] = 0.0
    angle = np.radians(hues)
    return np.stack([lightness, chroma * np.cos(angle), chroma * np.sin(angle)], axis=1)


def shown(lab: np.ndarray) -> np.ndarray:
    """Linear sRGB of OKLab colours (..., 3), with less chroma where a colour cannot be shown."""
    lab = lab.copy()
    for _ in range(8):
        linear = linear_from_oklab(lab)
        beyond = (linear.min(axis=-1) < -0.002) | (linear.max(axis=-1) > 1.002)
        if not beyond.any():
            break
        lab[beyond] *= [1.0, 0.8, 0.8]
    return np.clip(linear, *ALBEDO)


def noise(rng: np.random.Generator, *, slope: float, lowest: float = 1.0) -> Mask:
    """Periodic noise (H, W) of mean 0 and deviation 1, whose amplitude falls with frequency to the power of `slope`."""
    waves = np.fft.rfft2(rng.normal(size=(SIZE, SIZE)))
    frequency = np.hypot(np.fft.fftfreq(SIZE)[:, None], np.fft.rfftfreq(SIZE)[None]) * SIZE
    weight = np.where(frequency >= lowest, np.maximum(frequency, 1.0) ** -slope, 0.0)
    field = np.fft.irfft2(waves * weight, s=(SIZE, SIZE))
    return field / max(float(field.std()), 1e-9)


def _places() -> tuple[np.ndarray, np.ndarray]:
    """u and v of the texels, in [0, 1)."""
    steps = (np.arange(SIZE) + 0.5) / SIZE
    return np.broadcast_to(steps, (SIZE, SIZE)), np.broadcast_to(steps[:, None], (SIZE, SIZE))


def _sharp(field: np.ndarray, width: float) -> Mask:
    """0 where the field is negative and 1 where it is positive, with a soft border."""
    return np.clip(field / width + 0.5, 0, 1)


def stripes(rng: np.random.Generator) -> Mask:
    u, v = _places()
    along, across = [(0, 1), (1, 0), (1, 1), (1, -2)][rng.integers(4)]
    wave = (u * along + v * across) * int(rng.integers(2, 9)) * 2 * np.pi
    wave = wave + noise(rng, slope=2.5) * rng.choice([0.0, rng.uniform(0.2, 1.2)])
    return _sharp(np.sin(wave) - rng.uniform(-0.6, 0.6), 0.15)


def checks(rng: np.random.Generator) -> Mask:
    u, v = _places()
    num = int(rng.integers(1, 6))
    return _sharp(np.sin(2 * np.pi * num * u) * np.sin(2 * np.pi * num * v), 0.08)


def dots(rng: np.random.Generator) -> Mask:
    u, v = _places()
    num = 2 * int(rng.integers(1, 5))
    row = np.floor(v * num)
    x, y = (u * num + 0.5 * (row % 2)) % 1 - 0.5, v * num % 1 - 0.5
    return _sharp(rng.uniform(0.18, 0.38) - np.hypot(x, y), 0.02 * num)


def cells(rng: np.random.Generator, *, joint: float = 0.14) -> Mask:
    """Stones with joints: the cells of random points."""
    points = rng.random((int(rng.integers(12, 70)), 2))
    near = cKDTree(points, boxsize=1.0).query(np.stack(_places(), axis=-1).reshape(-1, 2), k=2)[0]
    gap = (near[:, 1] - near[:, 0]).reshape(SIZE, SIZE) * np.sqrt(len(points))
    return _sharp(gap - joint, 0.08)


def clouds(rng: np.random.Generator) -> Mask:
    return np.clip(noise(rng, slope=rng.uniform(1.2, 2.0)) * rng.uniform(0.2, 0.4) + 0.5, 0, 1)


def patches(rng: np.random.Generator) -> Mask:
    return _sharp(noise(rng, slope=rng.uniform(1.8, 2.6)), 0.1)


def letters(rng: np.random.Generator) -> Mask:
    """A few lines of letters and digits."""
    picture = Image.new("L", (SIZE, SIZE))
    pen, num = ImageDraw.Draw(picture), int(rng.integers(2, 6))
    font = ImageFont.load_default(SIZE / num * 0.95)
    signs = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghkmnpqrstuvwxyz0123456789&?!"))
    for line in range(num):
        text = "".join(rng.choice(signs, size=max(1, round(num * 1.4))))
        pen.text((SIZE * 0.03, SIZE / num * (line - 0.08)), text, fill=255, font=font)
    return np.asarray(picture, dtype=np.float64) / 255


def fading(rng: np.random.Generator) -> Mask:
    u, v = _places()
    place = (u, v)[rng.integers(2)]
    return 0.5 - 0.5 * np.cos(2 * np.pi * place)


PATTERNS: dict[str, Callable[[np.random.Generator], Mask]] = {
    "striped": stripes, "checked": checks, "dotted": dots, "cobbled": cells, "marbled": clouds, "patchy": patches,
    "lettered": letters, "shaded": fading,
}  # fmt: skip


def holes_left(rng: np.random.Generator) -> Mask:
    """1 where a pierced surface remains, which hangs together: a lattice, a plate with round holes, or a net."""
    kind = rng.integers(3)
    if kind == 0:
        u, v = _places()
        num = int(rng.integers(2, 8))
        return _sharp(np.maximum(np.cos(2 * np.pi * num * u), np.cos(2 * np.pi * num * v)) - rng.uniform(0.2, 0.7), 0.1)
    return 1 - (dots(rng) if kind == 1 else cells(rng, joint=0.3))


def draw_texture(
    rng: np.random.Generator, palette_P3: np.ndarray, *, holes: bool = False, with_pixels: bool = True
) -> Drawn:
    """Draw a texture with colours of a palette.

    Args:
        holes: pierce it.
        with_pixels: also make the picture; false: describe the same texture, which is fast.
    """
    chosen_33 = palette_P3[rng.permutation(len(palette_P3))[:3]]
    names = [NAMES[index] for index in name_indices(chosen_33)]
    kind = PLAIN if holes else rng.choice(3, p=[0.25, 0.6, 0.15])
    pattern = str(rng.choice(list(PATTERNS)))
    if holes:
        words = f"pierced {names[0]}"
    elif kind == PATTERNED:
        words = f"{pattern} {' and '.join(dict.fromkeys(names[:2]))}"
    else:
        words = f"mottled {names[0]}" if kind == FIELD else names[0]
    if not with_pixels:
        return Drawn(np.zeros((1, 1, 4 if holes else 3), np.uint8), words)
    first, second, third = shown(chosen_33)
    linear_HW3 = np.broadcast_to(first, (SIZE, SIZE, 3))
    if kind == PATTERNED:
        mask_HW1 = PATTERNS[pattern](rng)[..., None]
        linear_HW3 = first + (second - first) * mask_HW1
        if rng.random() < 0.25:  # a second pattern on one of the colours
            other_HW1 = list(PATTERNS.values())[rng.integers(len(PATTERNS))](rng)[..., None]
            linear_HW3 = linear_HW3 + (third - second) * mask_HW1 * other_HW1
    elif kind == FIELD:  # as in a blurred photograph
        scale = [rng.uniform(0.08, 0.16), *rng.uniform(0.008, 0.03, 2)]
        fields = [noise(rng, slope=rng.uniform(1.3, 2.0)) * deviation for deviation in scale]
        linear_HW3 = linear_from_oklab(chosen_33[0] + np.stack(fields, axis=-1))
    # fine detail, and always some on a pierced surface
    grain = rng.uniform(0.03, 0.15) if holes or rng.random() < 0.5 else 0.0
    if grain:
        linear_HW3 = linear_HW3 * np.exp(grain * noise(rng, slope=rng.uniform(0.6, 1.2), lowest=4.0))[..., None]
    srgb_HWC = linear_to_srgb(np.clip(linear_HW3, *ALBEDO))
    return Drawn(_bytes(np.dstack([srgb_HWC, holes_left(rng)]) if holes else srgb_HWC), words)


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.round(np.clip(values, 0, 1) * 255).astype(np.uint8)
