"""Samples on disk: sample orbits from true views, and read samples of `inference.py`.

Letters: V views, C channels, H W pixels.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from datasets.views.transforms_json import nerf_transforms
from pipelines.evaluation.held_out import TrueOrbit, TrueOrbits
from pipelines.sampling.finished import Job, is_done, sample_settings, weights_of
from pipelines.sampling.inputs import Source, slug_of
from pipelines.sampling.pipeline import ViewsPipeline
from pipelines.sampling.sample_folder import RESULT_FILE, ours_in, sizes_in
from utils.errors import ConfigError, DataError
from utils.files import atomic_folder, read_json, write_json
from utils.images import save_png
from utils.registry import INFER_ENGINE
from utils.settings.assets import NO_FILES
from utils.settings.run import RunConfig

log = logging.getLogger(__name__)


def given_views(num_given: int, num_views: int) -> tuple[int, ...]:
    """Return the given views of a sample: view 0 and others, evenly spaced around the orbit.

    Raises:
        ConfigError: this number does not divide the number of views.
    """
    if num_given < 1 or num_views % num_given or num_given == num_views:
        raise ConfigError(f"--known {num_given} is not valid; use a divisor of the {num_views} views of the orbit")
    return tuple(range(0, num_views, num_views // num_given))


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """A missing sample."""

    orbit: TrueOrbit
    job: Job


def sample_orbits(
    pipeline: ViewsPipeline, orbits: TrueOrbits, *, given: Sequence[int], out: Path, seed: int
) -> list[Path]:
    """Sample the orbit of each object from some of its true views, with the object's own cameras.

    Existing samples with the same settings and the same views are kept.

    Args:
        given: indices of the given views, including 0. View 0 is the input, the others are known views (see
            `pipelines.sampling.known_views`).
        out: output folder, with one folder per sample: `views/`, `transforms.json` and `result.json`.
        seed: seed of the noise, the same for every object.

    Returns:
        One folder per object.
    """
    settings = sample_settings(pipeline.cfg)
    folders, missing = orbit_samples(pipeline.cfg, orbits, given=given, out=out, seed=seed)
    log.info("%d of %d orbits to sample from %d given views, in %s", len(missing), len(orbits), len(given), out)
    weights = weights_of(pipeline.cfg) if missing else {}
    num_steps, seconds = pipeline.steps_per_call, 0.1 if sys.stderr.isatty() else 10.0
    wanted = (
        _Wanted(orbit=orbits[index], job=_job_of(orbits[index], index, given=given, out=out, seed=seed))
        for index in missing
    )
    with tqdm(total=len(missing) * num_steps, unit="step", mininterval=seconds, desc=f"{len(given)} given") as bar:
        for batch in _batches(wanted, pipeline.cfg.batch_size):
            results = _sample(pipeline, batch, given=given, on_step=partial(bar.update, len(batch)))
            for index, one in enumerate(batch):
                record = {**one.job.source.record, "seed": one.job.seed, "settings": settings, "weights": weights}
                own = {name: views_BVCHW[index] for name, views_BVCHW in results.items()}
                write_sample(one.job.folder, own, orbit=one.orbit, record=record)
    return folders


def orbit_samples(
    cfg: RunConfig, orbits: TrueOrbits, *, given: Sequence[int], out: Path, seed: int
) -> tuple[list[Path], list[int]]:
    """Return the folder of each sample that `sample_orbits` makes, and the indices of those that are missing."""
    settings = sample_settings(cfg)
    jobs = [_job_of(orbit, index, given=given, out=out, seed=seed) for index, orbit in enumerate(orbits)]
    return [job.folder for job in jobs], [index for index, job in enumerate(jobs) if not is_done(job, settings)]


def sample_prompts(cfg: RunConfig, prompts: Sequence[str], *, out: Path) -> list[Path]:
    """Sample prompts alone into `out`/runs as inference.py does, without files of the object; returns the folders."""
    alone = {"prompts": list(prompts), "images": [], "known_views": [], "input_elevation_deg": None, "image_prompt": ""}
    sampling = dataclasses.replace(cfg, **alone, round=1, log_dir=str(out / "runs"), assets=NO_FILES)
    return INFER_ENGINE.build({"type": cfg.TASK_TYPE}, where="TASK_TYPE", cfg=sampling).run()


def samples_by_prompt(folders: Sequence[Path], *, suffix: str) -> dict[str, Path]:
    """Return the samples that have a prompt, by their prompt without the suffix."""
    results = {folder: read_json(folder / RESULT_FILE, option="--runs", kind=dict) for folder in folders}
    return {
        result["prompt"].removesuffix(suffix): folder
        for folder, result in results.items()
        if isinstance(result.get("prompt"), str)
    }


def write_sample(folder: Path, results: dict[str, Tensor], *, orbit: TrueOrbit, record: dict[str, Any]) -> None:
    """Write a folder with views and cameras, completely or not at all.

    Args:
        results: views (V, 3, H, W) in [0, 1], by the name of their folder, which starts with `views`.
    """
    with atomic_folder(folder, is_ours=ours_in(folder)) as part:
        for name, views_VCHW in results.items():
            for number, view in enumerate(views_VCHW):
                save_png(part / name / f"{number:03d}.png", view)
        size = results["views"].shape[-2:]
        write_json(part / "transforms.json", nerf_transforms(orbit.c2w_V44, orbit.fov_deg, size))
        facts = {"fov_deg": orbit.fov_deg, "c2w": orbit.c2w_V44.tolist(), "files": sizes_in(part)}
        write_json(part / RESULT_FILE, {**record, **facts})


def read_views(folder: Path) -> Tensor:
    """Read the images of a folder in the order of their names: (V, 3, H, W) in [0, 1].

    Raises:
        DataError: there are none, their sizes differ, or one cannot be read.
    """
    files = sorted(folder.glob("*.png"))
    if not files:
        raise DataError(f"{folder} contains no images; sample again")
    try:
        views = [np.asarray(Image.open(file).convert("RGB"), dtype=np.float32) / 255 for file in files]
        return torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2)
    except (OSError, ValueError) as err:
        raise DataError(f"{folder}: {err}; sample again") from err


def views_folders(sample: Path) -> list[str]:
    """List the folders of results in a sample: `views`, and others that start with this, such as `views_gs`."""
    return sorted(path.name for path in sample.glob("views*") if path.is_dir())


def sample_folders(runs: Path) -> list[Path]:
    """List the samples in a folder that inference.py or evaluate.py wrote.

    Raises:
        DataError: there are no samples.
    """
    found = (path.parent for path in runs.glob(f"*/{RESULT_FILE}"))
    folders = sorted(folder for folder in found if not folder.name.startswith("."))  # those are being written
    if not folders:
        raise DataError(f"--runs {runs}: contains no samples; use the log_dir of a run of inference.py")
    return folders


def read_cameras(sample: Path) -> tuple[Tensor, float]:
    """Read c2w_V44 and the field of view in degrees of a sample.

    Raises:
        DataError: they are missing in result.json.
    """
    result = read_json(sample / RESULT_FILE, option="--runs", kind=dict)
    try:
        return torch.tensor(result["c2w"], dtype=torch.float32).reshape(-1, 4, 4), float(result["fov_deg"])
    except (KeyError, TypeError, ValueError, RuntimeError) as err:
        raise DataError(f"{sample / RESULT_FILE}: contains no cameras ({err}); sample again") from err


def _job_of(orbit: TrueOrbit, index: int, *, given: Sequence[int], out: Path, seed: int) -> Job:
    """Make the job for an object, with its output folder and its input."""
    start_from = orbit.views_VCHW[list(given)].numpy().tobytes() + orbit.c2w_V44.numpy().tobytes()
    record = {
        "object": orbit.object_id,
        "start_view": orbit.start_view,
        "given_views": list(given),
        "sha256": hashlib.sha256(start_from).hexdigest(),
    }
    slug = f"{index:04d}-{slug_of(orbit.object_id)}"
    source = Source(text=orbit.object_id, slug=slug, record=record)
    return Job(source=source, seed=seed, folder=out / f"{slug}_seed{seed}")


def _batches(wanted: Iterator[_Wanted], batch_size: int) -> Iterator[list[_Wanted]]:
    """Yield batches of consecutive samples with equal cameras, because a call has one set of cameras."""
    batch: list[_Wanted] = []
    for one in wanted:
        if batch and (len(batch) == batch_size or not torch.equal(one.orbit.c2w_V44, batch[0].orbit.c2w_V44)):
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch


def _sample(pipeline: ViewsPipeline, batch: list[_Wanted], *, given: Sequence[int], on_step: Any) -> dict[str, Tensor]:
    """Sample a batch; returns results (B, V, 3, H, W) by the name of their folder."""
    held = {view: [one.orbit.views_VCHW[view] for one in batch] for view in given if view > 0}
    orbits = pipeline(
        [one.orbit.views_VCHW[0] for one in batch],
        seeds=[one.job.seed for one in batch],
        c2w_V44=batch[0].orbit.c2w_V44,
        known_views=held,
        on_step=on_step,
    )
    refined = {} if orbits.refined_views_BVCHW is None else {"views_gs": orbits.refined_views_BVCHW}
    return {"views": orbits.views_BVCHW, **refined}
