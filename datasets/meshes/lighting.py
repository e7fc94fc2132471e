"""The light of renders: fixed in the world, diffuse, and the same for all views of an object."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True, eq=False)
class Lamp:
    """A light from far away.

    towards_3: direction towards the light, of any length.
    color_3: linear RGB.
    wrap: how far it reaches past the terminator.
    """

    towards_3: np.ndarray
    color_3: np.ndarray
    wrap: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Light:
    """A hemisphere of sky and ground (linear RGB) and some lamps."""

    sky_3: np.ndarray
    ground_3: np.ndarray
    lamps: tuple[Lamp, ...]


# Chosen by eye: a white object (albedo 0.8) has 45 % to 95 % sRGB, so that it differs from a white background.
# A warm key light, a cool fill light and a light from behind.
FIXED = Light(
    sky_3=np.array([0.36, 0.38, 0.41], dtype=np.float32),
    ground_3=np.array([0.20, 0.19, 0.18], dtype=np.float32),
    lamps=(
        Lamp(towards_3=np.array([0.55, 0.50, 0.95]), color_3=np.array([0.68, 0.65, 0.60]), wrap=0.25),
        Lamp(towards_3=np.array([0.45, -0.95, 0.35]), color_3=np.array([0.17, 0.19, 0.22]), wrap=0.30),
        Lamp(towards_3=np.array([-1.00, -0.10, 0.45]), color_3=np.array([0.20, 0.21, 0.23]), wrap=0.30),
    ),
)
# How bright the brightest direction of a drawn light is; that of FIXED has 1.14. White must not be overexposed.
BRIGHTEST = (0.8, 1.14)


def irradiance(normals: np.ndarray, light: Light = FIXED) -> np.ndarray:
    """Light (linear RGB) that falls on surfaces with these unit normals (..., 3)."""
    up = (normals[..., 2:] * 0.5 + 0.5).astype(np.float32)
    total = light.sky_3 * up + light.ground_3 * (1 - up)
    for lamp in light.lamps:
        towards_3 = (lamp.towards_3 / np.linalg.norm(lamp.towards_3)).astype(np.float32)
        cosine = np.einsum("...i,i->...", normals, towards_3)
        weight = np.maximum((cosine + lamp.wrap) / (1 + lamp.wrap), 0)[..., None]
        total = total + weight * lamp.color_3.astype(np.float32)
    return total.astype(np.float32)


def draw_light(rng: np.random.Generator) -> Light:
    """Draw a light: FIXED turned about z, with another strength, colour temperature, height of the lamps and sky."""
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    warmth = rng.uniform(-1, 1)
    lamps = []
    for number, lamp in enumerate(FIXED.lamps):
        # the fill light and the sky are cool where the key light is warm, as outdoors
        color_3 = lamp.color_3 * tint(warmth if number == 0 else -0.5 * warmth) * rng.uniform(0.5, 1.4)
        towards_3 = turn @ (lamp.towards_3 * [1, 1, rng.uniform(0.4, 2.0)])
        lamps.append(Lamp(towards_3=towards_3, color_3=color_3, wrap=lamp.wrap))
    sky_3 = FIXED.sky_3 * tint(-0.5 * warmth) * rng.uniform(0.6, 1.3)
    ground_3 = FIXED.ground_3 * tint(0.5 * rng.uniform(-1, 1)) * rng.uniform(0.4, 1.6)
    drawn = Light(sky_3=sky_3, ground_3=ground_3, lamps=tuple(lamps))
    scale = rng.uniform(*BRIGHTEST) / float(irradiance(_directions(), drawn).max())
    return Light(
        sky_3=(sky_3 * scale).astype(np.float32),
        ground_3=(ground_3 * scale).astype(np.float32),
        lamps=tuple(Lamp(towards_3=lamp.towards_3, color_3=lamp.color_3 * scale, wrap=lamp.wrap) for lamp in lamps),
    )


def tint(warmth: float) -> np.ndarray:
    """The colour of a light, from -1 (cool, about 9000 K) over 0 (white) to 1 (warm, about 4000 K)."""
    return np.array([1 + 0.14 * warmth, 1.0, 1 - 0.24 * warmth])


def _directions() -> np.ndarray:
    """Directions (N, 3) all over the sphere."""
    z, azimuth = np.meshgrid(np.linspace(-1, 1, 15), np.linspace(0, 2 * np.pi, 24, endpoint=False))
    radius = np.sqrt(1 - z**2)
    return np.stack([radius * np.cos(azimuth), radius * np.sin(azimuth), z], axis=-1).reshape(-1, 3)
