"""From a prompt to files, with a warm model and from a cold start."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from models.gaussian_files import write_ply
from models.weights import save_published
from pipelines.benchmark.case import Bench, Case, has_files, random_parts, sample
from pipelines.benchmark.timing import median_s, peak_gib, reset_peak, synchronize
from pipelines.views_pipeline import ViewsPipeline
from utils.images import save_videos
from utils.run_config import RunConfig

log = logging.getLogger(__name__)


def measure_orbit(bench: Bench, case: Case) -> list[dict[str, Any]]:
    """Prompt to a plain orbit.mp4; and to that, a 3D-aware one and gaussians.ply, of one trajectory."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        pipeline = bench.pipeline(case.cfg)
        rows.append(_timed(bench, case, "plain orbit.mp4", lambda: write_orbits(pipeline, Path(folder), "plain")))
        if not case.cfg.reconstruction:
            return rows
        pipeline = bench.pipeline(case.cfg, head=True)
        if pipeline.reconstruction:
            what = "plain and 3D-aware orbit.mp4, gaussians.ply"
            rows.append(_timed(bench, case, what, lambda: write_orbits(pipeline, Path(folder), "both")))
    return rows


def write_orbits(pipeline: ViewsPipeline, folder: Path, results: str) -> None:
    """Sample once; write a video of each result, and the Gaussians if there are any."""
    orbits = sample(pipeline, results=results)
    videos = {"orbit": orbits.views_BVCHW, "orbit_gs": orbits.refined_views_BVCHW}
    videos = {folder / f"{name}.mp4": views[0] for name, views in videos.items() if views is not None}
    save_videos(videos, fps=pipeline.cfg.target_fps)
    if orbits.gaussians is not None:
        write_ply(folder / "gaussians.ply", orbits.gaussians.scene(0))


def measure_cold(bench: Bench, case: Case) -> list[dict[str, Any]]:
    """Load and compile, in this process but with nothing held: from files, through the first plain orbit.

    Random weights are written first, as published files are: float32. Compiled code goes to an empty cache. The start
    is what loading and the first orbit take more than a second orbit; it leaves out importing packages.
    """
    with tempfile.TemporaryDirectory() as folder, empty_compile_cache(Path(folder)):
        cfg = dataclasses.replace(case.cfg, reconstruction={})
        cfg = cfg if has_files(cfg) else write_random_files(cfg, Path(folder), bench.device)
        bench.clear()
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


def write_random_files(cfg: RunConfig, folder: Path, device: torch.device) -> RunConfig:
    """Untrained weights as files; returns the configuration that names them."""
    log.info("writing random weights to %s", folder)
    parts = random_parts(cfg, device=device, rest=torch.device("cpu"), dtype=torch.float32)
    save_published(folder / "unet_00000000.pth", parts.unet.state_dict(), 0)
    paths = {}
    for name, part in {"auto_encoder": parts.autoencoder, "embedder": parts.embedder.model}.items():
        paths[name] = str(folder / f"{name}.pth")
        save_published(paths[name], part.state_dict(), 0)
    return dataclasses.replace(
        cfg,
        test_model=str(folder / "unet_00000000.pth"),
        auto_encoder={**cfg.auto_encoder, "pretrained": paths["auto_encoder"]},
        embedder={**cfg.embedder, "pretrained": paths["embedder"]},
    )


@contextmanager
def empty_compile_cache(folder: Path) -> Iterator[None]:
    """Let torch.compile find nothing that it compiled before."""
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


def _timed(bench: Bench, case: Case, what: str, call: Any) -> dict[str, Any]:
    call()  # compiles, allocates
    held = reset_peak(bench.device)
    seconds = median_s(call, device=bench.device, repeats=min(3, bench.repeats))
    return {**case.row, "what": what, "seconds": seconds, "held_gib": held, "peak_gib": peak_gib(bench.device)}
