"""A made-up set of packed orbits: coloured squares and discs, small enough to learn in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from datasets.orbits.layout import write_orbit
from datasets.orbits.packed import PackedOrbits, PackedShard, shard_file, write_shard
from tests.tiny import AUTOENCODER, EMBEDDER_, UNET
from utils.cameras import orbit_cameras
from utils.files import write_json

COLORS = {"red": (220, 30, 30), "blue": (30, 30, 220)}
KINDS = ("square", "disc")
SIZE, NUM_VIEWS = 32, 3


def write_orbits(folder: Path, *, copies: int = 4) -> Path:
    """Write `copies` orbits of each kind and colour; they differ in size."""
    y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    images, captions, attributes = [], [], []
    for copy in range(copies):
        radius = 7 + copy
        for kind in KINDS:
            for color, rgb in COLORS.items():
                orbit = np.zeros((NUM_VIEWS, SIZE, SIZE, 4), dtype=np.uint8)
                inside = np.hypot(x, y) < radius if kind == "disc" else np.maximum(abs(x), abs(y)) < radius
                orbit[:, inside] = (*rgb, 255)
                images.append(orbit)
                captions.append(f"a {color} {kind}")
                attributes.append({"kind": kind, "color": color})
    cameras = orbit_cameras(num_views=NUM_VIEWS, elevation_deg=15, radius=2).numpy()
    shard = PackedShard(
        rgba_NVHW4=np.stack(images),
        c2w_NV44=np.broadcast_to(cameras, (len(images), NUM_VIEWS, 4, 4)),
        fov_deg=39.6,
        object_ids=[f"0/{number}" for number in range(len(images))],
        captions=captions,
        attributes=attributes,
    )
    write_shard(shard_file(folder, 0), shard)
    return folder


def write_files(folder: Path) -> dict[str, Any]:
    """Write the packed orbits beside `folder` as single files; returns the section that reads them."""
    packed = PackedOrbits(PackedOrbits.Config(data_dir_list=[str(folder.parent / "orbits")], num_views=NUM_VIEWS))
    for index, object_id in enumerate(packed.object_ids):
        rgba_VHW4, c2w_V44, fov_deg = packed.stored(index)
        bounds_23 = np.array([[-0.5] * 3, [0.5] * 3])
        write_orbit(folder / object_id, rgba_VHW4=rgba_VHW4, c2w_V44=c2w_V44, fov_deg=fov_deg, bounds_23=bounds_23)
    write_json(folder / "index.json", packed.object_ids)
    write_json(folder / "captions.json", dict(zip(packed.object_ids, packed.captions, strict=True)))
    return {
        "type": "VideoDataset",
        "data_list": [str(folder / "index.json")],
        "data_dir_list": [str(folder)],
        "caption_dir": str(folder / "captions.json"),
        "resolution": [SIZE, SIZE],
        "num_views": NUM_VIEWS,
        "get_first_frame": False,
    }


def write_turning_orbits(
    folder: Path,
    *,
    elevations: tuple[float, ...],
    num_views: int = 8,
    attributes: dict[str, str] | list[dict[str, str]] | None = None,
) -> Path:
    """Write one orbit an elevation of a disc that circles the origin, so that each view differs from the others.

    Args:
        attributes: of all objects, or one record for each.
    """
    y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    images = np.zeros((len(elevations), num_views, SIZE, SIZE, 4), dtype=np.uint8)
    for number, view in np.ndindex(len(elevations), num_views):
        inside = np.hypot(x - 7 * np.cos(2 * np.pi * view / num_views), y) < 6 + number
        images[number, view][inside] = (200 - 20 * view, 40 + 25 * view, 60, 255)
    cameras = [orbit_cameras(num_views=num_views, elevation_deg=angle, radius=2).numpy() for angle in elevations]
    shard = PackedShard(
        rgba_NVHW4=images,
        c2w_NV44=np.stack(cameras),
        fov_deg=39.6,
        object_ids=[f"0/{number}" for number in range(len(elevations))],
        captions=["a disc"] * len(elevations),
        attributes=attributes if isinstance(attributes, list) else [attributes or {}] * len(elevations),
    )
    write_shard(shard_file(folder, 0), shard)
    return folder


def training_config(folder: Path, **changes: Any) -> dict[str, Any]:
    """A configuration that trains on the orbits of `folder / "orbits"`, writing to `folder / "run"`."""
    return {
        "vid_dataset": {
            "type": "PackedOrbits",
            "data_dir_list": [str(folder / "orbits")],
            "resolution": [SIZE, SIZE],
            "num_views": NUM_VIEWS,
            "caption_suffix": "",
        },
        "UNet": UNET,
        "auto_encoder": {**AUTOENCODER, "scale_factor": 1.0, "posterior": "mode"},
        "embedder": EMBEDDER_,
        "Diffusion": {"type": "DiffusionDDIM"},
        "sampler": {"type": "DDIM", "num_steps": 2},
        "cameras": {"num_views": NUM_VIEWS},
        "resolution": [SIZE, SIZE],
        "frame_lens": [NUM_VIEWS],
        "batch_sizes": {"1": 16, str(NUM_VIEWS): 4},
        "log_dir": str(folder / "run"),
        "cache_dir": str(folder / "latents"),
        "prompt_suffix": "",
        "num_workers": 0,
        "device": "cpu",
        "seed": 1,
        "num_steps": 20,
        "lr": 2e-3,
        "warmup_steps": 2,
        "log_interval": 5,
    } | changes
