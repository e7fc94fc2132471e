"""How near a sampler comes to the samples of many small steps.

Letters: V views, C channels, H W pixels.
"""

from __future__ import annotations

import dataclasses
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.benchmark.case import Bench, Case, has_files
from pipelines.inputs import sources_of
from utils.errors import ConfigError
from utils.images import contact_sheet, save_png

REFERENCE_STEPS = 200
MAX_PSNR_DB = 60.0
SHEET_VIEWS = 6

EVEN, ANGLE = "sampler.spacing=trailing", "sampler.spacing=angle"
# Each is a row; the first is the bar.
SETTINGS = (
    f"sampler.type=DDIM sampler.num_steps=50 {EVEN}",
    f"sampler.type=DDIM sampler.num_steps=20 {EVEN}",
    *(
        f"sampler.type={solver} sampler.num_steps={steps} {spacing}"
        for solver in ("DPMSolver++", "UniPC")
        for steps, spacing in ((20, EVEN), (20, ANGLE), (12, ANGLE))
    ),
)


def measure_solvers(bench: Bench, case: Case) -> list[dict[str, Any]]:
    """PSNR of decoded views against DDIM in 200 steps from the same noise, for the first inputs of the list.

    The reference is in float32, not compiled, with the guidance and the spacing of the configuration. In the
    tables' folder solvers_MODEL.png shows the first input: the reference, and below it the rows.
    """
    if not has_files(case.cfg):
        raise ConfigError(f"--measure solvers needs trained weights, but those of {case.model} are not there")
    references = reference_views(bench, case)
    shown = bench.references.setdefault(f"{case.model}, pictures", [next(iter(references.values()))])
    pipeline, psnr, seconds = bench.pipeline(case.cfg), [], []
    for number, (text, reference_VCHW) in enumerate(references.items()):
        orbits = pipeline(text, results="plain")
        psnr.append(psnr_db(orbits.views_BVCHW[0], reference_VCHW))
        if number == 0:
            shown.append(orbits.views_BVCHW[0])
        seconds.append(orbits.seconds["denoise"])
    write_sheet(bench.out / f"solvers_{case.model.replace('/', '_')}.png", shown)
    row = {**case.row, "steps": pipeline.sampler.config.num_steps, "samples": len(psnr)}
    return [row | {"denoise_s": statistics.median(seconds), "psnr_db": statistics.mean(psnr)}]


def reference_views(bench: Bench, case: Case) -> dict[str, Tensor]:
    """Views by input; made once for a model."""
    key = f"{case.model}, {REFERENCE_STEPS} steps"
    if key not in bench.references:
        cfg = case.reference_cfg
        spacing = cfg.sampler.get("spacing", "leading")
        sampler = {"type": "DDIM", "num_steps": REFERENCE_STEPS, "spacing": spacing}
        pipeline = bench.pipeline(dataclasses.replace(cfg, sampler=sampler))
        sources = sources_of(cfg, kind="image" if case.takes_images else "prompt")[: bench.num_samples]
        bench.references[key] = {
            source.text: pipeline(source.text, results="plain").views_BVCHW[0] for source in sources
        }
    return bench.references[key]


def write_sheet(path: Path, orbits: list[Tensor]) -> None:
    """A line of evenly spaced views for each orbit."""
    every = max(1, len(orbits[0]) // SHEET_VIEWS)
    lines = [views_VCHW[::every][:SHEET_VIEWS] for views_VCHW in orbits]
    save_png(path, contact_sheet(torch.cat(lines), columns=len(lines[0])))


def psnr_db(views: Tensor, reference: Tensor) -> float:
    """Of pictures in [0, 1], by their mean squared error."""
    error = (views - reference).square().mean()
    return float(-10 * torch.log10(error.clamp_min(10 ** (-MAX_PSNR_DB / 10))))
