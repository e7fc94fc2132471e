"""Measure decoding of latents, and one refinement with the Gaussian head."""

from __future__ import annotations

from typing import Any

import torch

from pipelines.benchmark.case import Bench, Case
from pipelines.benchmark.timing import median_ms, peak_gib, reset_peak
from pipelines.sampling.pipeline import ViewsPipeline


@torch.no_grad()
def measure_decode(bench: Bench, case: Case) -> list[dict[str, Any]]:
    """Decode all views of one orbit, `decoder_bs` at a time."""
    pipeline = bench.pipeline(case.cfg)
    latents_BCVHW = random_latents(pipeline, bench.device)
    held = reset_peak(bench.device)
    ms = median_ms(lambda: pipeline.decode(latents_BCVHW), device=bench.device, repeats=bench.repeats)
    row = {**case.row, "views": len(case.cfg.cameras.c2w()), "decode_ms": ms}
    return [row | {"held_gib": held, "peak_gib": peak_gib(bench.device)}]


@torch.no_grad()
def measure_refine(bench: Bench, case: Case) -> list[dict[str, Any]]:
    """Refine one x0: decode the head's views, reconstruct, render all views, encode. Published: 6 times per orbit."""
    if not case.cfg.reconstruction:
        return []
    pipeline = bench.pipeline(case.cfg, head=True)
    if pipeline.reconstruction is None:
        return []
    latents_BCVHW = random_latents(pipeline, bench.device).float()
    refiner = pipeline.reconstruction.refiner(case.cfg.cameras.c2w(), [torch.Generator().manual_seed(0)])
    held = reset_peak(bench.device)
    ms = median_ms(lambda: refiner(latents_BCVHW, 0), device=bench.device, repeats=bench.repeats)
    row = {**case.row, "views": len(case.cfg.cameras.c2w()), "refine_ms": ms}
    return [row | {"held_gib": held, "peak_gib": peak_gib(bench.device)}]


def random_latents(pipeline: ViewsPipeline, device: torch.device) -> torch.Tensor:
    """Draw latents of one orbit, with standard deviation 1."""
    num_views = len(pipeline.cfg.cameras.c2w())
    generators = [torch.Generator().manual_seed(0)]
    noise = pipeline.draw_noise(generators, num_views=num_views, resolution=tuple(pipeline.cfg.resolution))
    return noise.to(device)
