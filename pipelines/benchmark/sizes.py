"""Measure time and memory for other numbers of views and other resolutions."""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

import torch

from pipelines.benchmark.case import Bench, Case, example_input, with_sampler
from pipelines.benchmark.timing import Marks, median_ms, peak_gib, reset_peak
from utils.cameras import orbit_cameras

NUM_STEPS = 8


def measure_sizes(bench: Bench, case: Case) -> list[dict[str, Any]]:
    """Measure half, all and twice the views, and all views at twice the resolution, with eight steps each."""
    pipeline = with_sampler(bench.pipeline(case.cfg), num_steps=NUM_STEPS)
    cameras, (width, height) = case.cfg.cameras, case.cfg.resolution
    rows = []
    for factor, scale in ((0.5, 1), (1, 1), (2, 1), (1, 2)):
        num_views = max(1, int(factor * cameras.num_views))
        c2w_V44 = orbit_cameras(num_views=num_views, elevation_deg=cameras.elevation_deg, radius=cameras.distance)
        size = (scale * width, scale * height)
        image = example_input(pipeline)
        if isinstance(image, torch.Tensor):
            image = torch.nn.functional.interpolate(image[None], size[::-1], mode="bilinear")[0]
        marks = Marks(bench.device)
        held = reset_peak(bench.device)
        orbits = pipeline(image, c2w_V44=c2w_V44, resolution=size, results="plain", on_step=marks.mark)
        row = {**case.row, "views": num_views, "pixels": f"{size[0]} x {size[1]}"}
        row["step_ms"] = statistics.median(marks.intervals_ms())
        with torch.no_grad():  # a second time, because the first call at a size compiles and selects kernels
            decode = partial(pipeline.decode, orbits.latents_BCVHW)
            row["decode_ms"] = median_ms(decode, device=bench.device, repeats=3)
        rows.append(row | {"held_gib": held, "peak_gib": peak_gib(bench.device)})
    return rows
