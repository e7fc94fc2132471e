"""Measure the time from a prompt to files, with a warm model and from a cold start."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from models.gaussians.files import write_ply
from models.weights import save_published
from pipelines.benchmark.case import Bench, Case, has_files, random_parts, sample
from pipelines.benchmark.timing import peak_gib, reset_peak
from pipelines.sampling.pipeline import Orbits, ViewsPipeline
from utils.files import meanwhile
from utils.images import save_video
from utils.settings.run import RunConfig
from utils.stopwatch import Stopwatch, synchronize

log = logging.getLogger(__name__)

FILES_OF = {"plain": "plain orbit.mp4", "both": "plain and 3D-aware orbit.mp4, gaussians.ply"}


def measure_orbit(bench: Bench, case: Case) -> list[dict[str, Any]]:
    """Measure a warm model from prompt to a plain orbit.mp4, and to both orbit.mp4 files with gaussians.ply.

    Columns: total time, conditions, denoising without refinements, refinements, decoding, Gaussians, files.
    """
    pipeline = bench.pipeline(case.cfg)
    rows = [_orbit_row(bench, case, pipeline, "plain")]
    if case.cfg.reconstruction:
        pipeline = bench.pipeline(case.cfg, head=True)
        if pipeline.reconstruction:
            rows.append(_orbit_row(bench, case, pipeline, "both"))
    return rows


def _orbit_row(bench: Bench, case: Case, pipeline: ViewsPipeline, results: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        write_orbits(pipeline, Path(folder), results)  # compiles, allocates
        held = reset_peak(bench.device)
        runs = [write_orbits(pipeline, Path(folder), results) for _ in range(min(3, bench.repeats))]
    parts = {name: statistics.median(run.get(name, 0.0) for run in runs) for name in runs[0]}
    row = {**case.row, "what": FILES_OF[results], "seconds": statistics.median(sum(run.values()) for run in runs)}
    row |= {f"{name}_ms": 1000 * seconds for name, seconds in parts.items()}
    return row | {"held_gib": held, "peak_gib": peak_gib(bench.device)}


def write_orbits(pipeline: ViewsPipeline, folder: Path, results: str) -> dict[str, float]:
    """Sample once, and write a video of each result and the Gaussians, if any. Returns the seconds of each part."""
    watch = Stopwatch(pipeline.placement.device)
    with watch.part("all"):
        orbits = sample(pipeline, results=results)
        with watch.part("files"):
            write_files(folder, orbits, fps=pipeline.cfg.target_fps)
    total = watch.seconds.pop("all")
    seconds = orbits.seconds | watch.seconds
    seconds["denoise"] -= seconds.get("refine", 0.0)  # because denoise includes refine
    return seconds | {"other": total - sum(seconds.values())}


def write_files(folder: Path, orbits: Orbits, *, fps: int) -> None:
    """Write the files of a row, see FILES_OF."""
    videos = {"orbit": orbits.views_BVCHW, "orbit_gs": orbits.refined_views_BVCHW}
    writing = [
        partial(save_video, folder / f"{name}.mp4", views[0], fps=fps)
        for name, views in videos.items()
        if views is not None
    ]
    with meanwhile(*writing):
        if orbits.gaussians is not None:
            write_ply(folder / "gaussians.ply", orbits.gaussians.scene(0))


def measure_cold(bench: Bench, case: Case) -> list[dict[str, Any]]:
    """Measure loading, compilation and the first plain orbit, in this process but without cached objects.

    Random weights are first written to float32 files, like published weights. Compiled code goes to an empty cache. The
    cold start is the time of loading and the first orbit, minus that of a second orbit; it does not include imports.
    """
    cfg = dataclasses.replace(case.cfg, reconstruction={})
    cfg = cfg if has_files(cfg) else with_random_files(bench, case.model, cfg)
    bench.clear()
    with tempfile.TemporaryDirectory() as folder, empty_compile_cache(Path(folder)):
        held = reset_peak(bench.device)
        times = [time.perf_counter()]
        pipeline = ViewsPipeline.from_config(cfg)
        for number in range(3):
            synchronize(bench.device)
            times.append(time.perf_counter())
            if number < 2:
                sample(pipeline)
        load, first, second = (after - before for before, after in itertools.pairwise(times))
        row = {**case.row, "load_s": load, "first_s": first, "second_s": second, "start_s": load + first - second}
        return [row | {"held_gib": held, "peak_gib": peak_gib(bench.device)}]


def with_random_files(bench: Bench, model: str, cfg: RunConfig) -> RunConfig:
    """Return the configuration with random weights in temporary files, which are written once per model."""
    key = f"{model}, files"
    if key not in bench.references:
        bench.references[key] = tempfile.TemporaryDirectory()
        write_random_files(cfg, Path(bench.references[key].name), bench.device)
    folder = Path(bench.references[key].name)
    embedder = folder / "embedder.pth"
    return dataclasses.replace(
        cfg,
        test_model=str(folder / "unet_00000000.pth"),
        auto_encoder=cfg.auto_encoder.changed(pretrained=str(folder / "auto_encoder.pth")),
        embedder=cfg.embedder.changed(pretrained=str(embedder)) if embedder.is_file() else cfg.embedder,
    )


def write_random_files(cfg: RunConfig, folder: Path, device: torch.device) -> None:
    """Write random weights in float32, like published weights."""
    log.info("writing random weights to %s", folder)
    parts = random_parts(cfg, device=device, rest=torch.device("cpu"), dtype=torch.float32)
    states = {"unet_00000000": parts.unet.state_dict(), "auto_encoder": parts.autoencoder.state_dict()}
    if (own := parts.embedder.own_state) is not None:
        states["embedder"] = own
    for name, state in states.items():
        save_published(folder / f"{name}.pth", state, 0)


@contextmanager
def empty_compile_cache(folder: Path) -> Iterator[None]:
    """Use an empty cache for torch.compile."""
    names = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
    before = {name: os.environ.get(name) for name in names}
    os.environ |= {name: str(folder / name.lower()) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
