"""Measure whether the views of an orbit show one object: fit 3D Gaussians to half of the views, test on the others.

Held-out refit: one set of Gaussians is fitted to the even views and scored on the odd views, a second set the other way
round (arXiv:2210.04628, "3D consistency scoring", there with neural fields). Self-consistency: renders of the two sets
from the same cameras are compared, and so are their surfaces (arXiv:2507.00006, MVGBench). Definitions and differences
to the sources: pipelines/evaluation/README.md.

Letters: B objects, V views, C channels, H W pixels, P points.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from models.gaussians.scene import Gaussians
from models.perceptual import Lpips, find_lpips
from pipelines.evaluation.consistency_orbits import OrbitViews, Row, rows_of
from pipelines.evaluation.image_metrics import ViewScores, join, pooled_psnr, score_views
from pipelines.evaluation.mesh_metrics import chamfer_distance
from pipelines.reconstruction.gaussian_fit import FitOptions, Shots, fit, render_scenes
from utils.devices import pick_device
from utils.errors import ConfigError, DataError
from utils.files import read_json, writable_folder, write_json
from utils.images import contact_sheet, save_png
from utils.settings.run import RunConfig

log = logging.getLogger(__name__)

NUM_SURFACE_POINTS = 4096
SOLID = 0.5  # minimum alpha of a pixel that shows a surface
SHEET_COLUMNS = 8
METRICS = ("psnr", "ssim", "lpips")


@dataclass(frozen=True, kw_only=True)
class ConsistencyOptions:
    """Options of the measurement.

    Attributes:
        held_out: folder of true orbits, for ceiling and floor.
        runs: folders of samples; each kind of result is a row.
        num_objects: maximum number of objects per row.
        fit: options of the fit.
        batch_size: number of objects that are fitted at once; it changes only the speed.
        out: output folder.
    """

    held_out: Path
    runs: Sequence[Path]
    num_objects: int
    fit: FitOptions
    batch_size: int
    out: Path


def evaluate_consistency(cfg: RunConfig, options: ConsistencyOptions) -> dict[str, Any]:
    """Fit, compare, and write consistency.json and one sheet per row; results with the same options are kept.

    Raises:
        ConfigError, DataError: a setting or a folder does not fit.
    """
    if options.batch_size < 1:
        raise ConfigError(f"--fit-batch must be at least 1, got {options.batch_size}")
    out = writable_folder(options.out, option="--out")
    device = pick_device(cfg.device)
    rows = rows_of(cfg, held_out=options.held_out, runs=options.runs, num_objects=options.num_objects, scratch=out)
    lpips = find_lpips(device=device)
    settings = {**asdict(options.fit), "lpips_network": lpips and lpips.network}
    jobs = [(row, index) for row in rows for index in range(len(row))]
    todo = [(row, index) for row, index in jobs if not _is_done(_record(out, row, index), row[index], settings)]
    log.info("%d of %d objects to fit, on %s", len(todo), len(jobs), device)
    with tqdm(total=2 * options.fit.num_steps * len(todo), unit="step", mininterval=1.0) as bar:
        for row in rows:
            indices = [index for other, index in todo if other is row]
            bar.set_description(row.name[:40])
            for start in range(0, len(indices), options.batch_size):
                batch = indices[start : start + options.batch_size]
                started = time.perf_counter()
                orbits = [row[index] for index in batch]
                on_step = partial(bar.update, len(batch))
                measured = measure(orbits, options.fit, device=device, lpips=lpips, on_step=on_step)
                seconds = (time.perf_counter() - started) / len(batch)
                for index, orbit, one in zip(batch, orbits, measured, strict=True):
                    record = {"orbit": orbit.digest, "settings": settings, "seconds": seconds, **one.record()}
                    write_json(_record(out, row, index), record)
                if batch[0] == 0:
                    save_png(_record(out, row, 0).parent / "sheet.png", one_sheet(orbits[0], measured[0]))
    figures = {}
    for row in rows:
        records = [read_json(_record(out, row, index), option="--out") for index in range(len(row))]
        figures[row.name] = row_figures(records)
    result = {"fit": settings, "held_out": str(options.held_out), "device": str(device), "rows": figures}
    write_json(out / "consistency.json", result)
    return result


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The result of one object.

    Attributes:
        held_out: scores of each view against the render of the set that was not fitted to it.
        own: scores of each render of one set against that of the other set.
        chamfer: distance between the two surfaces in world units; None if one set has no solid surface.
        held_out_VCHW: the renders for `held_out`.
    """

    held_out: ViewScores
    own: ViewScores
    chamfer: float | None
    held_out_VCHW: Tensor

    def record(self) -> dict[str, Any]:
        """Return the scores by view, as JSON values."""
        return {"held_out": self.held_out.curves(), "self": self.own.curves(), "chamfer": self.chamfer}


def measure(
    orbits: Sequence[OrbitViews], options: FitOptions, *, device: torch.device, lpips: Lpips | None, on_step: Any = None
) -> list[Measured]:
    """Fit both halves of several orbits at once, and compare.

    Args:
        orbits: orbits with the same size, number of views, field of view and background.
    """
    views_BVCHW = torch.stack([orbit.views_VCHW for orbit in orbits]).to(device)
    c2w_BV44 = torch.stack([orbit.c2w_V44 for orbit in orbits]).to(device)
    fov_deg, background = orbits[0].fov_deg, orbits[0].background
    size = tuple(views_BVCHW.shape[-2:])
    shots = Shots(views_BVCHW=views_BVCHW, c2w_BV44=c2w_BV44, fov_deg=fov_deg, background=background)
    draw = partial(render_scenes, fov_deg=fov_deg, size=size, rasterizer=options.rasterizer)
    renders, surfaces = [], []
    for gaussians in fit_halves(shots, options, on_step=on_step):
        with torch.no_grad():
            colors, _ = draw(gaussians, c2w_BV44, background=background)
        renders.append(colors.clamp(0, 1))
        surfaces.append(surface_points(gaussians, c2w_BV44, draw, seed=options.seed))
    even_BVCHW, odd_BVCHW = renders
    unseen_BVCHW = even_BVCHW.clone()
    unseen_BVCHW[:, 0::2] = odd_BVCHW[:, 0::2]
    return [
        Measured(
            held_out=score_views(unseen_BVCHW[index], views_BVCHW[index], lpips=lpips),
            own=score_views(even_BVCHW[index], odd_BVCHW[index], lpips=lpips),
            chamfer=chamfer(surfaces[0][index], surfaces[1][index]),
            held_out_VCHW=unseen_BVCHW[index].cpu(),
        )
        for index in range(len(orbits))
    ]


def fit_halves(shots: Shots, options: FitOptions, *, on_step: Callable[[], object] | None = None) -> list[Gaussians]:
    """Fit Gaussians to the even views and to the odd views; as one batch if both halves have the same size.

    Scenes of a batch do not influence each other, and a GPU needs almost the same time for twice as many.

    Args:
        on_step: called after every step, once per half.
    """
    B = len(shots.views_BVCHW)
    views, cameras = ([values[:, half::2] for half in (0, 1)] for values in (shots.views_BVCHW, shots.c2w_BV44))

    def fitted(views_BVCHW: Tensor, c2w_BV44: Tensor) -> Gaussians:
        def step() -> None:
            for _ in range(len(views_BVCHW) // B if on_step else 0):
                on_step()

        return fit(dataclasses.replace(shots, views_BVCHW=views_BVCHW, c2w_BV44=c2w_BV44), options, on_step=step)

    if shots.views_BVCHW.shape[1] % 2:
        return [fitted(*half) for half in zip(views, cameras, strict=True)]
    both = fitted(torch.cat(views), torch.cat(cameras))
    return [both.scenes(slice(0, B)), both.scenes(slice(B, None))]


@torch.no_grad()
def surface_points(
    gaussians: Gaussians, c2w_BV44: Tensor, draw: Callable[..., tuple[Tensor, Tensor]], *, seed: int
) -> list[Tensor]:
    """Return the visible surface points of each scene, (P, 3) with P at most NUM_SURFACE_POINTS, in world units.

    The point of a pixel is the mean of the centres with the weights of the colours, because positions are rendered as
    colours.

    Args:
        draw: `render_scenes` with all arguments except the background.
    """
    placed = Gaussians(
        means_BN3=gaussians.means_BN3,
        opacities_BN1=gaussians.opacities_BN1,
        scales_BN3=gaussians.scales_BN3,
        quats_BN4=gaussians.quats_BN4,
        colors_BN3=gaussians.means_BN3 / 4 + 0.5,  # maps coordinates in [-2, 2] to [0, 1]
    )
    colors, alphas = draw(placed, c2w_BV44, background=0.0)
    points = []
    for colors_VCHW, alphas_V1HW in zip(colors, alphas, strict=True):
        solid_VHW = alphas_V1HW[:, 0] > SOLID
        position_P3 = colors_VCHW.movedim(1, -1)[solid_VHW] / alphas_V1HW[:, 0][solid_VHW][:, None]
        pick = torch.randperm(len(position_P3), generator=torch.Generator().manual_seed(seed))[:NUM_SURFACE_POINTS]
        points.append((position_P3[pick.to(position_P3.device)] - 0.5) * 4)
    return points


def chamfer(points_P3: Tensor, others_P3: Tensor) -> float | None:
    """Compute the Chamfer distance of two sets of points, or return None if one is empty."""
    if not len(points_P3) or not len(others_P3):
        return None
    return chamfer_distance(points_P3.cpu().numpy(), others_P3.cpu().numpy())


def one_sheet(orbit: OrbitViews, measured: Measured) -> Tensor:
    """Make a sheet of views, with the render of the set that was not fitted to each view below it."""
    # an odd stride shows views of both halves
    stride = max(1, len(orbit.views_VCHW) // SHEET_COLUMNS) | 1
    pick = list(range(0, len(orbit.views_VCHW), stride))
    return contact_sheet(torch.cat([orbit.views_VCHW[pick], measured.held_out_VCHW[pick]]), columns=len(pick))


def row_figures(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Compute one row of the result from the records of its objects."""
    figures: dict[str, Any] = {"num_objects": len(records)}
    for kind in ("held_out", "self"):
        scores = join([_scores(record[kind]) for record in records])
        over = scores.over(range(scores.psnr_OV.shape[1]))
        figures[kind] = {name: over[name] for name in METRICS}
        figures[kind]["psnr_by_object"] = [round(value, 3) for value in pooled_psnr(scores.psnr_OV).tolist()]
    distances = [record["chamfer"] for record in records if record["chamfer"] is not None]
    figures["self"]["chamfer"] = sum(distances) / len(distances) if distances else None
    figures["without_surface"] = len(records) - len(distances)
    figures["seconds_per_object"] = sum(record["seconds"] for record in records) / len(records)
    return figures


def consistency_table(result: dict[str, Any]) -> str:
    """Format the figures as text."""
    width = max(len(name) for name in result["rows"]) + 2
    lines = [
        f"{'':<{width}}{'held-out refit':^33}{'self-consistency':^44}",
        f"{'':<{width}}" + f"{'PSNR':>11}{'SSIM':>11}{'LPIPS':>11}" * 2 + f"{'Chamfer':>11}{'objects':>9}{'s each':>8}",
    ]
    for name, row in result["rows"].items():
        values = [row[kind][metric] for kind in ("held_out", "self") for metric in METRICS] + [row["self"]["chamfer"]]
        places = (2, 4, 4, 2, 4, 4, 4)
        cells = [f"{'':>11}" if value is None else f"{value:>11.{n}f}" for value, n in zip(values, places, strict=True)]
        lines.append(f"{name:<{width}}{''.join(cells)}{row['num_objects']:>9}{row['seconds_per_object']:>8.1f}")
    return "\n".join(lines)


def _scores(curves: dict[str, list[float] | None]) -> ViewScores:
    values = {f"{name}_OV": None if value is None else torch.tensor([value]) for name, value in curves.items()}
    return ViewScores(**values)


def _record(out: Path, row: Row, index: int) -> Path:
    return out / "consistency" / row.slug / f"{index:04d}.json"


def _is_done(path: Path, orbit: OrbitViews, settings: dict[str, Any]) -> bool:
    """Whether a record is whole, and of this orbit and these settings."""
    try:
        record = read_json(path, option="--out", kind=dict)
        row_figures([record])
    except (DataError, KeyError, TypeError, ValueError, AttributeError):
        return False
    return (record.get("orbit"), record.get("settings")) == (orbit.digest, settings)
