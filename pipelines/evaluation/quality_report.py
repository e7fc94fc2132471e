"""Report on the quality of an image model: figures, a table, curves and a contact sheet.

Letters: O objects, V views, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.evaluation.image_metrics import METRICS, ViewScores, pooled_psnr
from utils.files import atomic_path
from utils.images import contact_sheet

MODEL_ROW, REPEATED, FIRST_STEP = "model", "input repeated (floor)", "first step alone"
HEADINGS = {"psnr": "PSNR", "psnr_of_views": "of views", "masked_psnr": "near object", "ssim": "SSIM", "lpips": "LPIPS"}
GROUP_HEADINGS = ("PSNR", "the back", "near object", "SSIM", "over floor")
SHEET_COLUMNS = 8


def unseen_views(given_by_run: Mapping[int, Sequence[int]], num_views: int) -> list[int]:
    """Return the views that are given in no run, so that all runs are compared on the same views."""
    return [view for view in range(num_views) if not any(view in given for given in given_by_run.values())]


def summary(
    scores: Mapping[str, ViewScores],
    object_ids: Sequence[str],
    given_by_run: Mapping[int, Sequence[int]],
    *,
    losses_OT: Tensor,
    timesteps: Sequence[int],
    groups: Mapping[str, Mapping[str, Sequence[int]]] | None = None,
) -> dict[str, Any]:
    """Compute the figures of all rows over three sets of views, and the gain from more given views.

    `unseen` has the views that are given in no run. `back` has those of them within 45 degrees of the view opposite the
    input (9 to 15 of 24). `all` has all views.

    Args:
        scores: scores of the O objects, by the name of the row; rows of S seeds have S times O rows, seed by seed.
        given_by_run: the given views, by their number.
        losses_OT: loss of each object at each of `timesteps`.
        groups: indices of the objects by the value of an attribute, by the attribute.
    """
    num_views = scores[MODEL_ROW].psnr_OV.shape[1]
    unseen = unseen_views(given_by_run, num_views)
    back = [view for view in unseen if 3 * num_views <= 8 * view <= 5 * num_views]
    sets = {"unseen": unseen, "back": back, "all": list(range(num_views))}
    everything = list(range(len(object_ids)))
    rows = _rows(scores, sets, everything, num_objects=len(object_ids))
    for name, row in scores.items():
        rows[name]["by_view"] = row.curves()
    psnr_O = {name: _by_object(row, unseen, len(object_ids)) for name, row in scores.items()}
    return {
        "num_objects": len(object_ids),
        "views": sets,
        "given_views": {str(num): list(given) for num, given in given_by_run.items()},
        "rows": rows,
        **_gains(psnr_O, everything),
        "loss": _losses(losses_OT, timesteps, everything),
        "by": {
            attribute: {
                value: {
                    "num_objects": len(places),
                    "rows": _rows(scores, sets, places, num_objects=len(object_ids)),
                    **_gains(psnr_O, places),
                    "loss": _losses(losses_OT, timesteps, places),
                }
                for value, places in values.items()
            }
            for attribute, values in (groups or {}).items()
        },
        "psnr_by_object": [
            {"object": object_id} | {name: round(value_O[index].item(), 3) for name, value_O in psnr_O.items()}
            for index, object_id in enumerate(object_ids)
        ],
    }


def _rows(
    scores: Mapping[str, ViewScores], sets: Mapping[str, Sequence[int]], places: Sequence[int], *, num_objects: int
) -> dict[str, dict[str, Any]]:
    """Compute the metrics of some objects over each set of views, by the name of the row."""
    found = {}
    for name, row in scores.items():
        starts = range(0, len(row.psnr_OV), num_objects)  # of each seed
        own = row.rows([start + place for start in starts for place in places])
        found[name] = {which: own.over(views) for which, views in sets.items()}
    return found


def _by_object(row: ViewScores, views: Sequence[int], num_objects: int) -> Tensor:
    """Compute the PSNR of each object over some views, the mean over the seeds: (O,)."""
    return pooled_psnr(row.psnr_OV[:, list(views)]).unflatten(0, (-1, num_objects)).mean(dim=0)


def _gains(psnr_O: Mapping[str, Tensor], places: Sequence[int]) -> dict[str, Any]:
    own = {name: value_O[list(places)] for name, value_O in psnr_O.items()}
    return {
        "psnr_over_repeated_input": {name: gain(value_O, own[REPEATED]) for name, value_O in own.items()},
        "psnr_over_one_given_view": {
            name: gain(value_O, own[MODEL_ROW]) for name, value_O in own.items() if "given views" in name
        },
    }


def _losses(losses_OT: Tensor, timesteps: Sequence[int], places: Sequence[int]) -> dict[str, Any]:
    """Compute the mean losses of some objects, by timestep and over all of them."""
    mean_T = losses_OT[list(places)].mean(dim=0)
    by_timestep = {str(t): loss for t, loss in zip(timesteps, mean_T.tolist(), strict=True)}
    return {"mean": mean_T.mean().item(), "by_timestep": by_timestep}


def gain(psnr_O: Tensor, other_O: Tensor) -> dict[str, float | None]:
    """Compute by how many dB one row is better than another: mean over the objects, and its standard error."""
    gain_O = psnr_O - other_O
    error = gain_O.std().item() / len(gain_O) ** 0.5 if len(gain_O) > 1 else None
    return {"mean_db": gain_O.mean().item(), "standard_error_db": error}


def quality_table(result: Mapping[str, Any]) -> str:
    """Format the figures as text."""
    width = max(len(name) for name in result["rows"]) + 2
    lines = []
    for which, title in (("unseen", "over the orbit"), ("back", "the back")):
        views = result["views"][which]
        lines += [f"{result['num_objects']} objects, {title}: {len(views)} views that were not given {_ranges(views)}"]
        lines += [" " * width + "".join(f"{heading:>13}" for heading in HEADINGS.values())]
        for name, row in result["rows"].items():
            lines.append(f"{name:<{width}}" + "".join(_cell(row[which][metric], metric) for metric in METRICS))
        lines.append("")
    for name, better in result["psnr_over_repeated_input"].items():
        if name.startswith(MODEL_ROW):
            lines.append(f"{name}: {_gained(better)} over the input repeated")
    for name, better in result["psnr_over_one_given_view"].items():
        lines.append(f"{name}: {_gained(better)} over one given view")
    by_timestep = ", ".join(f"{loss:.4f} at {t}" for t, loss in result["loss"]["by_timestep"].items())
    lines.append(f"loss of training: {result['loss']['mean']:.4f} ({by_timestep})")
    for attribute, values in result["by"].items():
        lines += ["", f"{'by ' + attribute:<{width + 2}}" + "".join(f"{title:>13}" for title in GROUP_HEADINGS)]
        for value, own in values.items():
            lines.append(f"{value}, {own['num_objects']} objects, loss {own['loss']['mean']:.4f}")
            lines += [_group_line(name, own, width=width) for name in own["rows"]]
    return "\n".join(lines)


def _group_line(name: str, own: Mapping[str, Any], *, width: int) -> str:
    """Format a row of the objects with one value of an attribute."""
    row, gained = own["rows"][name], own["psnr_over_repeated_input"][name]["mean_db"]
    cells = [row[which][metric] for which, metric in (("unseen", "psnr"), ("back", "psnr"), ("unseen", "masked_psnr"))]
    text = "".join(_cell(cell, "psnr") for cell in cells) + _cell(row["unseen"]["ssim"], "ssim")
    return f"  {name:<{width}}{text}{gained:>+10.2f} dB"


def plot_curves(path: Path, result: Mapping[str, Any], *, azimuths_deg: Sequence[float]) -> None:
    """Plot each metric over the azimuth relative to the input, with one line per row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [name for name in ("psnr", "masked_psnr", "ssim", "lpips") if _has(result, name)]
    figure = Figure(figsize=(6 * len(names), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    order = sorted(range(len(azimuths_deg)), key=lambda view: azimuths_deg[view] % 360)
    for axes, metric in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        highest = 0.0
        for name, row in result["rows"].items():
            values = row["by_view"][metric]
            points = [(azimuths_deg[view] % 360, values[view]) for view in order]
            if metric.endswith("psnr"):
                highest = max([highest, *(values[view] for view in result["views"]["unseen"])])
            axes.plot(*zip(*points, strict=True), marker=".", label=name)
        if highest:  # the given view may be exact, with a much higher PSNR than all others
            axes.set_ylim(top=highest + 2)
        unit = ", dB" if metric.endswith("psnr") else ""
        axes.set(title=HEADINGS[metric] + unit, xlabel="azimuth from the input, degrees")
        axes.set_xticks(range(0, 361, 45))
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    with atomic_path(path) as part:
        figure.savefig(part, dpi=100)


def spread_by_psnr(result: Mapping[str, Any], *, count: int) -> list[int]:
    """Select objects that are evenly spaced in the order from lowest to highest PSNR of the model."""
    order = sorted(range(result["num_objects"]), key=lambda index: result["psnr_by_object"][index][MODEL_ROW])
    count = min(count, len(order))
    return [order[round(place * (len(order) - 1) / max(1, count - 1))] for place in range(count)]


def quality_sheet(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Make a sheet with three rows per object: true views, result, and 1 minus their absolute difference.

    Args:
        pairs: (true_VCHW, views_VCHW) in [0, 1].
    """
    rows = []
    for true_VCHW, views_VCHW in pairs:
        pick = [place * len(true_VCHW) // SHEET_COLUMNS for place in range(min(SHEET_COLUMNS, len(true_VCHW)))]
        true, views = true_VCHW[pick], views_VCHW[pick]
        rows += [true, views, 1 - (true - views).abs()]
    return contact_sheet(torch.cat(rows), columns=len(rows[0]))


def _has(result: Mapping[str, Any], metric: str) -> bool:
    return all(row["by_view"][metric] is not None for row in result["rows"].values())


def _cell(value: float | None, metric: str) -> str:
    if value is None:
        return f"{'':>13}"
    return f"{value:>10.2f} dB" if "psnr" in metric else f"{value:>13.4f}"


def _gained(better: Mapping[str, float | None]) -> str:
    error = better["standard_error_db"]
    return f"{better['mean_db']:+.2f} dB" + ("" if error is None else f" (standard error {error:.2f})")


def _ranges(views: Sequence[int]) -> str:
    """Format [1, 2, 3, 5] as "(1-3, 5)"."""
    groups: list[list[int]] = []
    for view in views:
        if groups and view == groups[-1][-1] + 1:
            groups[-1].append(view)
        else:
            groups.append([view])
    return "(" + ", ".join(f"{g[0]}-{g[-1]}" if len(g) > 1 else str(g[0]) for g in groups) + ")"
