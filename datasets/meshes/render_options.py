"""Options of the rendering commands, and a check that a resumed run has the same ones."""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np

from datasets.meshes.lighting import FIXED, Light, draw_light
from utils.cameras import DATA_FOV_DEG
from utils.errors import ConfigError, DataError
from utils.files import read_json, write_json

SETTINGS_FILE = "render_settings.json"
# Measured: a picture with normal and depth, and a ray with what it hits.
PIXEL_BYTES, RAY_BYTES = 20, 100


def add_camera_options(parser: argparse.ArgumentParser, *, size: int | None, size_text: str = "") -> None:
    """Add the options of rendering an orbit. The command itself adds --seed, on which varied light depends.

    Args:
        size: of the pictures by default; with None the command chooses.
        size_text: the default size in words.
    """
    parser.add_argument("--views", type=int, default=24, help="number of views on the circle (default 24)")
    parser.add_argument(
        "--size", type=int, default=size, help=f"width and height in pixels (default {size_text or size})"
    )
    parser.add_argument("--distance", type=float, default=2.0, help="from camera to object centre (default 2)")
    parser.add_argument(
        "--fov",
        type=float,
        default=round(DATA_FOV_DEG, 4),
        help="field of view in degrees (default: that of G-Objaverse)",
    )
    parser.add_argument(
        "--light",
        choices=("fixed", "varied"),
        default="fixed",
        help="varied: another direction, strength, colour and sky for each object (default fixed)",
    )
    parser.add_argument("--samples", type=int, default=3, help="n x n rays per pixel (default 3)")
    parser.add_argument(
        "--workers",
        type=int,
        default=multiprocessing.cpu_count(),
        help="processes (default: all cores)",
    )
    parser.add_argument("--no-nd", action="store_true", help="do not write normal and depth")


def check_camera_options(options: argparse.Namespace) -> None:
    """Check the options.

    Raises:
        ConfigError: a value lies outside its range.
    """
    for name, low, high in (("views", 1, 100_000), ("size", 8, 8192), ("samples", 1, 16), ("workers", 1, 1024)):
        if not low <= getattr(options, name) <= high:
            raise ConfigError(f"--{name} must lie between {low} and {high}, got {getattr(options, name)}")
    if not 1.0 <= options.distance <= 100.0:
        raise ConfigError(
            f"--distance must lie between 1 and 100 (objects have a radius up to 0.87), got {options.distance}"
        )
    if not 1.0 <= options.fov <= 150.0:
        raise ConfigError(f"--fov must lie between 1 and 150 degrees, got {options.fov}")
    pixels = options.size**2 * options.views * (4 if options.no_nd else PIXEL_BYTES)
    needed = pixels + (options.size * options.samples) ** 2 * RAY_BYTES
    if needed > (memory := _memory_bytes()):
        raise ConfigError(
            f"--size {options.size}, --views {options.views} and --samples {options.samples} need about "
            f"{needed / 1e9:.0f} GB for one object, but this machine has {memory / 1e9:.0f}; lower one of them"
        )


def light_of(name: str, options: argparse.Namespace) -> Light:
    """Return the light of an object; with --light varied it is drawn by the name and the seed."""
    if options.light == "fixed":
        return FIXED
    return draw_light(generator_of(f"light {options.seed} {name}"))


def generator_of(text: str) -> np.random.Generator:
    """A generator whose numbers depend on a text alone, for example on the name of an object and a seed."""
    return np.random.default_rng(list(hashlib.sha256(text.encode()).digest()[:8]))


def light_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of the light that must not change when a run continues."""
    # None for fixed light, because folders of earlier versions do not have it
    return {"light": f"varied, seed {options.seed}" if options.light == "varied" else None}


def _memory_bytes() -> float:
    """The memory of this machine; infinite on systems that do not tell."""
    if "SC_PHYS_PAGES" not in os.sysconf_names:
        return float("inf")
    return float(os.sysconf("SC_PHYS_PAGES")) * os.sysconf("SC_PAGE_SIZE")


def hold_settings(out: Path, settings: dict[str, Any]) -> None:
    """Save the settings in `out`, or check that they are those of the earlier run in this folder.

    Raises:
        DataError: the folder contains renderings with other settings.
    """
    path = out / SETTINGS_FILE
    if path.is_file():
        before = read_json(path, option="settings")
        if not isinstance(before, dict):
            raise DataError(f"{path}: not the settings of a rendering; delete the file or choose another folder")
        changed = [f"{k}={v} (was {before.get(k)})" for k, v in settings.items() if before.get(k) != v]
        if changed:
            raise DataError(
                f"{out}: contains renderings of other settings: {', '.join(changed)}; choose another folder"
            )
    else:
        write_json(path, settings)
