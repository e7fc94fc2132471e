"""Compare samplers with a reference of many small steps.

Letters: V views, C channels, H W pixels.
"""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any

from torch import Tensor

from pipelines.benchmark.case import Bench, Case, has_files, warm_up
from pipelines.benchmark.sheet import SheetLine, write_sheet
from pipelines.sampling.inputs import sources_of
from utils.devices import pick_dtype
from utils.errors import ConfigError
from utils.images import psnr_db
from utils.settings.run import RunConfig

REFERENCE_STEPS = 200
MAX_PSNR_DB = 60.0

EVEN, ANGLE = "sampler.spacing=trailing", "sampler.spacing=angle"
# Each setting is a row; the first is the baseline.
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
    """Measure the PSNR of decoded views for the first inputs of the list, against two references from the same noise.

    Both references are in float32 and not compiled. The first is DDIM in 200 steps with the guidance of the
    configuration, which samplers should approximate. The second has the sampler of the row, so that it shows the effect
    of the other settings; rows without other settings have no second reference. Settings of the reconstruction are
    measured on refined views, others on plain views. solvers_MODEL.jpg in the output folder shows the first input.
    """
    if not has_files(case.cfg):
        raise ConfigError(f"--measure solvers needs trained weights, but those of {case.model} are missing; add them")
    if case.takes_images and case.cfg.prompts:
        raise ConfigError(f"prompts: --measure solvers samples {case.model} from images; leave prompts out")
    results = results_of(case)
    converged = reference_views(bench, case, converged_sampler(case), results)
    own_sampler = plain_sampler(case.cfg)
    same = reference_views(bench, case, own_sampler, results) if sets_more(case, own_sampler) else None
    pipeline = bench.shared_pipeline(case.cfg, role="row", head=results != "plain")
    warm_up(pipeline, results=results)
    views, seconds = {}, []
    for text in converged:
        orbits = pipeline(text, results=results)
        views[text] = orbits.views_BVCHW[0]
        seconds.append(orbits.seconds["conditions"] + orbits.seconds["denoise"])
    row = {**case.row, "steps": pipeline.sampler.config.num_steps, "samples": len(views)}
    row |= {"denoise_s": statistics.median(seconds), "psnr_db": mean_psnr_db(views, converged)}
    row |= {"psnr_same_db": same and mean_psnr_db(views, same)}
    _show(bench, case, row_label(row), views)
    return [row]


def results_of(case: Case) -> str:
    """Return `refined` if the setting changes refined views, else `plain`."""
    about = ("reconstruction.", "refine=true", "UNet.use_lgm_refine=true")
    return "refined" if any(part.startswith(about) for part in case.setting.split()) else "plain"


def converged_sampler(case: Case) -> dict[str, Any]:
    """Return DDIM with many steps, and with the spacing of the configuration if DDIM supports it."""
    spacing = case.plain_cfg.sampler.options.spacing
    spacing = "trailing" if spacing == "angle" else spacing
    return {"type": "DDIM", "num_steps": REFERENCE_STEPS, "spacing": spacing}


def plain_sampler(cfg: RunConfig) -> dict[str, Any]:
    """Return the sampler of a configuration, without reuse of features."""
    return {name: value for name, value in cfg.sampler.given.items() if name not in ("reuse_steps", "reuse_outer")}


def sets_more(case: Case, sampler: dict[str, Any]) -> bool:
    """Whether a row has other settings than its reference in float32 with this sampler."""
    precision = str(pick_dtype(case.cfg)).removeprefix("torch.")
    cfg = dataclasses.replace(case.cfg, precision=precision)
    return cfg != dataclasses.replace(case.reference_cfg, sampler=sampler)


def reference_views(bench: Bench, case: Case, sampler: dict[str, Any], results: str) -> dict[str, Tensor]:
    """Return the views of a sampler in float32, by input; they are sampled once per model."""
    key = f"{case.model}, {results}, {sampler}"
    if key not in bench.references:
        cfg = dataclasses.replace(case.reference_cfg, sampler=sampler)
        pipeline = bench.shared_pipeline(cfg, role="reference", head=results != "plain")
        sources = sources_of(cfg, kind="image" if case.takes_images else "prompt")[: bench.num_samples]
        made = {source.text: pipeline(source.text, results=results).views_BVCHW[0] for source in sources}
        bench.references[key] = made
        if sampler == converged_sampler(case):
            refined = ["with 3D-aware sampling"] if results == "refined" else []
            _show(bench, case, (f"{REFERENCE_STEPS} steps of DDIM in float32", *refined), made)
    return bench.references[key]


def row_label(row: dict[str, Any]) -> tuple[str, ...]:
    """Return the settings, one per line, and the results."""
    figures = [f"{row['psnr_db']:.1f} dB to {REFERENCE_STEPS} steps, {row['denoise_s']:.2f} s"]
    if row["psnr_same_db"] is not None:
        figures.append(f"{row['psnr_same_db']:.1f} dB to the same in float32")
    return (*row["setting"].split(), *figures)


def _show(bench: Bench, case: Case, label: tuple[str, ...], views: dict[str, Tensor]) -> None:
    """Add the first input to the model's sheet, and write the sheet."""
    lines = bench.references.setdefault(f"{case.model}, sheet", [])
    lines.append(SheetLine(label=label, views_VCHW=next(iter(views.values()))))
    write_sheet(bench.out / f"solvers_{case.model.replace('/', '_')}.jpg", lines)


def mean_psnr_db(views: dict[str, Tensor], reference: dict[str, Tensor]) -> float:
    """Compute the mean PSNR over the inputs."""
    return statistics.mean(_psnr_db(views[text], reference[text]) for text in reference)


def _psnr_db(views: Tensor, reference: Tensor) -> float:
    return float(psnr_db((views - reference).square().mean()).clamp_max(MAX_PSNR_DB))
