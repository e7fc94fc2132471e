"""Figures, sheet and table for the quality of the Gaussian head, see pipelines/evaluation/README.md.

Letters: O objects, V views, C channels, H W pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipelines.evaluation.held_out import TrueOrbit
from pipelines.evaluation.image_metrics import ViewScores, join, pooled_psnr
from pipelines.evaluation.mesh_metrics import THRESHOLDS, SurfaceDistance
from utils.images import contact_sheet

SHEET_COLUMNS = 8
SURFACE = ("chamfer", "accuracy", "completeness", "floor")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The result of the head for one object.

    Attributes:
        scores: scores of all views.
        renders_VCHW: renders of the Gaussians from all cameras.
        surface: distance of the mesh to the true mesh; None if one of them is missing.
    """

    scores: ViewScores
    renders_VCHW: Tensor
    surface: SurfaceDistance | None


def row_figures(measured: Sequence[tuple[str, Measured]], unseen: Sequence[int]) -> dict[str, Any]:
    """Compute one row of the result.

    Args:
        measured: ids and results of the objects.
        unseen: views that are not the head's input.
    """
    scores = join([one.scores for _, one in measured])
    surfaces = [one.surface for _, one in measured if one.surface is not None]
    mesh: dict[str, Any] | None = None
    if surfaces:
        mesh = {name: sum(getattr(one, name) for one in surfaces) / len(surfaces) for name in SURFACE}
        mesh["f_scores"] = {t: sum(one.f_scores[t] for one in surfaces) / len(surfaces) for t in THRESHOLDS}
    return {
        "num_objects": len(measured),
        "unseen": scores.over(unseen),
        "by_view": scores.curves(),
        "num_meshes": len(surfaces),
        "mesh": mesh,
        "by_object": [
            {
                "object": object_id,
                "psnr": round(pooled_psnr(one.scores.psnr_OV[:, list(unseen)]).item(), 3),
                "surface": one.surface and dataclasses.asdict(one.surface),
            }
            for object_id, one in measured
        ],
    }


def one_sheet(orbit: TrueOrbit, measured: Measured, unseen: Sequence[int]) -> Tensor:
    """Make a sheet of some views that are not the head's input, with the render of each below it."""
    pick = list(unseen)[:: max(1, -(-len(unseen) // SHEET_COLUMNS))]
    return contact_sheet(torch.cat([orbit.views_VCHW[pick], measured.renders_VCHW[pick]]), columns=len(pick))


def head_table(result: Mapping[str, Any]) -> str:
    """Format the figures as text."""
    rows = result["rows"]
    width = max(map(len, rows)) + 2
    views = f"unseen cameras ({len(result['unseen'])} views)"
    lines = [
        f"{'':<{width}}{views:^40}{'mesh against the true one':^54}",
        f"{'':<{width}}" + "".join(f"{name:>10}" for name in ("PSNR", "near obj.", "SSIM", "LPIPS"))
        + "".join(f"{name:>9}" for name in ("Chamfer", *(f"F {t:g}" for t in THRESHOLDS), "floor", "meshes"))
        + f"{'objects':>9}",
    ]  # fmt: skip
    for name, row in rows.items():
        over, mesh = row["unseen"], row["mesh"]
        figures = zip(("psnr", "masked_psnr", "ssim", "lpips"), (2, 2, 4, 4), strict=True)
        cells = ["" if over[key] is None else f"{over[key]:.{places}f}" for key, places in figures]
        surface = [""] * (len(THRESHOLDS) + 2)
        if mesh:
            surface = [mesh["chamfer"], *mesh["f_scores"].values(), mesh["floor"]]
            surface = [f"{value:.4f}" for value in surface]
        lines.append(
            f"{name:<{width}}" + "".join(f"{cell:>10}" for cell in cells) + "".join(f"{cell:>9}" for cell in surface)
            + f"{row['num_meshes']:>9}{row['num_objects']:>9}"
        )  # fmt: skip
    return "\n".join(lines)
