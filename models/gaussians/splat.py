"""Reads and writes Gaussians as `.splat`, the 32-byte format of web viewers.

Most important Gaussians come first, invisible ones are left out, and colours are the same from all sides. Positions are
in the world of utils.cameras (z up).

Letters: N Gaussians.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np
import torch

from models.gaussians.scene import OTHER_GAUSSIANS, Gaussians
from utils.errors import DataError
from utils.files import atomic_path

log = logging.getLogger(__name__)

SPLAT = np.dtype([("position", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("quat", "u1", 4)])


def splat_bytes(gaussians: Gaussians) -> bytes:
    """One scene in the 32-byte format: position and scale as float32, RGBA and rotation as bytes, w first.

    Sorted by volume times opacity, largest first, so that a viewer can draw while it loads. Gaussians whose opacity
    rounds to zero are left out.

    Raises:
        DataError: values that no rasteriser can draw, or all Gaussians are invisible.
    """
    scene = gaussians.for_file("Gaussians")
    if scene.harmonics_BNK3 is not None:
        log.info(".splat has no place for the harmonics of degree %d, so they are left out", scene.degree)
        colors_BN3 = scene.colors_BN3.clamp(0, 1)
        scene = dataclasses.replace(scene, colors_BN3=colors_BN3, harmonics_BNK3=None)
    opacity_N = scene.opacities_BN1[0, :, 0]
    seen_N = (opacity_N * 255).round() > 0
    if not bool(seen_N.any()):
        raise DataError(f"every Gaussian is transparent, so a .splat file would be empty; {OTHER_GAUSSIANS}")
    importance_N = scene.scales_BN3[0].double().prod(-1) * opacity_N
    order = importance_N.argsort(descending=True, stable=True)
    scene = scene.only(order[seen_N[order]])
    quats_N4 = scene.quats_BN4[0]
    quats_N4 = torch.where(quats_N4[:, :1] < 0, -quats_N4, quats_N4)
    rows = np.empty(quats_N4.shape[0], dtype=SPLAT)
    rows["position"], rows["scale"] = scene.means_BN3[0].numpy(), scene.scales_BN3[0].numpy()
    rgba_N4 = torch.cat([scene.colors_BN3[0], scene.opacities_BN1[0]], dim=-1)
    rows["rgba"] = (rgba_N4 * 255).round().to(torch.uint8).numpy()
    rows["quat"] = (quats_N4 * 128 + 128).round().clamp(0, 255).to(torch.uint8).numpy()
    return rows.tobytes()


def write_splat(path: str | Path, gaussians: Gaussians) -> None:
    """Write one scene as `.splat`, completely or not at all."""
    content = splat_bytes(gaussians)
    with atomic_path(path) as part:
        part.write_bytes(content)


def read_splat(path: str | Path) -> Gaussians:
    """Read a `.splat` file: a batch of one scene.

    Raises:
        DataError: the file is missing, not a whole number of Gaussians, or has values that no rasteriser can draw.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; name a .splat file")
    content = path.read_bytes()
    if not content or len(content) % SPLAT.itemsize:
        raise DataError(f"{path}: {len(content)} bytes are not a multiple of the 32 bytes of a Gaussian; copy it again")
    rows = np.frombuffer(content, dtype=SPLAT)
    quats_N4 = (torch.from_numpy(rows["quat"].astype(np.float32)) - 128) / 128
    rgba_N4 = torch.from_numpy(rows["rgba"].astype(np.float32)) / 255
    scene = Gaussians(
        means_BN3=torch.from_numpy(rows["position"].copy())[None],
        opacities_BN1=rgba_N4[None, :, 3:],
        scales_BN3=torch.from_numpy(rows["scale"].copy())[None],
        quats_BN4=torch.nn.functional.normalize(quats_N4, dim=-1)[None],
        colors_BN3=rgba_N4[None, :, :3],
    )
    # Any file of the right size can be read this way, so the values are checked.
    scene.check_values(name=str(path), remedy="if it is a .splat file, copy or export it again")
    return scene
