"""The table and the pictures of measured fits.

Letters: V views, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.meshes.loading import load_mesh
from datasets.meshes.renderer import render_views
from datasets.meshes.scene import RenderMesh
from utils.cameras import DATA_FOV_DEG, cameras_at
from utils.errors import DataError
from utils.images import contact_sheet

COLUMNS = {
    "psnr": ("PSNR", "{:.2f}"), "ssim": ("SSIM", "{:.4f}"), "chamfer": ("Chamfer", "{:.4f}"),
    "chamfer_all": ("Chamfer (SyncDreamer)", "{:.4f}"), "iou": ("IoU", "{:.3f}"), "seconds": ("seconds", "{:.1f}"),
    "mesh_seconds": ("mesh seconds", "{:.1f}"), "peak_memory_mb": ("peak MB", "{:.0f}"),
}  # fmt: skip
SHEET_SIZE = 96  # pixels of one picture of a mesh
SIDES_DEG = [(0, 15), (60, 15), (120, 15), (180, 15), (240, 15), (300, 15), (0, 75), (0, -60)]
SHEET_DISTANCE = 2.4


def markdown_table(result: Mapping[str, Any]) -> str:
    """Format fits.json as a table in Markdown."""
    heads = ["views", "state", "method", *(head for head, _ in COLUMNS.values()), "named", "failed"]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for row in result["rows"]:
        cells = [row["views"], row["state"], row["method"]]
        cells += ["" if row[name] is None else form.format(row[name]) for name, (_, form) in COLUMNS.items()]
        cells.append("" if row["named_right"] is None else f"{row['named_right']} of {row['num_objects']}")
        cells.append(str(row["num_failed"]) if row["num_failed"] else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def mesh_sheet(true: RenderMesh, meshes: Mapping[str, Path]) -> Tensor:
    """Render meshes from six sides, from above and from below, in the same light: (3, H, W).

    The first row is the truth, then one row per file in the given order; a missing mesh is an empty row.
    """
    rows = [_sides(true)]
    for path in meshes.values():
        try:
            rows.append(_sides(load_mesh(path)))
        except DataError:
            rows.append(torch.ones(len(SIDES_DEG), 3, SHEET_SIZE, SHEET_SIZE))
    return contact_sheet(torch.cat(rows), columns=len(SIDES_DEG))


def _sides(mesh: RenderMesh) -> Tensor:
    azimuth_deg_V, elevation_deg_V = torch.tensor(SIDES_DEG, dtype=torch.float32).unbind(-1)
    c2w_V44 = cameras_at(azimuth_deg_V, elevation_deg_V, torch.full_like(azimuth_deg_V, SHEET_DISTANCE))
    rgba_VHW4 = render_views(
        mesh, c2w_V44.numpy(), fov_deg=DATA_FOV_DEG, size=SHEET_SIZE, normal_depth=False
    ).rgba_VHW4.astype(np.float32)
    rgb, alpha = rgba_VHW4[..., :3] / 255, rgba_VHW4[..., 3:] / 255
    return torch.from_numpy(rgb * alpha + 1 - alpha).movedim(-1, 1)
