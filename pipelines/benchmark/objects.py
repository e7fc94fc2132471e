"""Measure the 3D files of a sample, and fits of an object to true views: what a user waits for after the views.

Letters: V views.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets.views.rendered import true_views
from datasets.zoo.sample import sample_object
from models.gaussians.scene import Gaussians
from pipelines.assets.files import write_assets
from pipelines.benchmark.case import Bench, Case, sample
from pipelines.benchmark.timing import MIN_REPEATS, peak_gib, reset_peak
from pipelines.reconstruction.fitting.loop import fit_object, ready_methods
from pipelines.reconstruction.fitting.storage import write_fit
from utils.cameras import DATA_FOV_DEG, orbit_cameras
from utils.registry import FITS
from utils.stopwatch import synchronize

FIT_VIEWS, FIT_SIZE, OBJECT_SEED = 24, 256, 5
FILES_BUDGET_S = 10.0  # no more calls after this time, but at least MIN_REPEATS


def measure_files(bench: Bench, case: Case) -> list[dict[str, Any]]:
    """Measure all 3D files of a sample together, and each of them while the others are made too: medians, warm."""
    if not case.cfg.reconstruction:
        return []
    pipeline = bench.pipeline(case.cfg, head=True)
    if pipeline.reconstruction is None:
        return []
    gaussians = sample(pipeline).gaussians.scene(0)
    with tempfile.TemporaryDirectory() as folder:
        _files(bench, case, gaussians, Path(folder))  # allocates
        held = reset_peak(bench.device)
        runs, started = [], time.perf_counter()
        while len(runs) < bench.repeats and (len(runs) < MIN_REPEATS or time.perf_counter() - started < FILES_BUDGET_S):
            runs.append(_files(bench, case, gaussians, Path(folder)))
    rows = []
    for name, fact in runs[0][0].items():
        found = {"failed": "no file"} if "error" in fact else {"seconds": _median(runs, name, "seconds")}
        rows.append({**case.row, "what": name, **found})
        if "render_seconds" in fact:  # before all files
            rows.append({**case.row, "what": f"{name}, its frames", "seconds": _median(runs, name, "render_seconds")})
    total = {**case.row, "what": f"all files at once, {gaussians.means_BN3.shape[1]} Gaussians"}
    total["seconds"] = statistics.median(seconds for _, seconds in runs)
    return [*rows, total | {"held_gib": held, "peak_gib": peak_gib(bench.device)}]


def _median(runs: Sequence[tuple[dict[str, Any], float]], name: str, fact: str) -> float:
    return statistics.median(facts[name][fact] for facts, _ in runs)


def _files(bench: Bench, case: Case, gaussians: Gaussians, folder: Path) -> tuple[dict[str, Any], float]:
    synchronize(bench.device)
    started = time.perf_counter()
    facts = write_assets(
        folder,
        gaussians,
        options=case.cfg.assets,
        c2w_44=case.cfg.cameras.c2w()[0],
        fov_deg=DATA_FOV_DEG,
        title="benchmark",
        rasterizer=case.cfg.rasterizer,
    )
    return facts, time.perf_counter() - started


def measure_fits(bench: Bench, case: Case) -> list[dict[str, Any]]:
    """Fit each method with its default options to 24 true views of 256 x 256 of one object, and write its files."""
    c2w_V44 = orbit_cameras(num_views=FIT_VIEWS, elevation_deg=15.0, radius=2.0)
    mesh = sample_object(OBJECT_SEED, "held_out").mesh
    views, move = true_views(mesh, c2w_V44, fov_deg=DATA_FOV_DEG, size=FIT_SIZE).normalized()
    views = views.to(bench.device)
    rows = []
    for name in ready_methods():
        section = FITS.section({"type": name})
        held = reset_peak(bench.device)
        fitted = fit_object(section, views, seed=0)
        synchronize(bench.device)
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            write_fit(Path(folder), fitted, section, move=move, options=case.cfg.assets)
        seconds = time.perf_counter() - started
        shared = {**case.row, "views": FIT_VIEWS, "pixels": f"{FIT_SIZE} x {FIT_SIZE}", "held_gib": held}
        shared["peak_gib"] = peak_gib(bench.device)
        psnr_db = float(fitted.psnr_V.mean())
        rows += [
            {**shared, "what": name, "seconds": fitted.seconds, "psnr_db": psnr_db},
            {**shared, "what": f"{name}, files", "seconds": seconds},
        ]
    return rows
