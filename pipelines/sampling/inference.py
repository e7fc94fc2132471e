"""The inference task: sample every prompt or image of a list into a folder. It can be resumed."""

from __future__ import annotations

import itertools
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pipelines.sampling.conditioner import texts_of
from pipelines.sampling.finished import Job, is_done, read_result, sample_settings, weights_of
from pipelines.sampling.input_elevation import cameras_at_elevation
from pipelines.sampling.inputs import ESTIMATE, Source, known_view_files, names_of, sources_of
from pipelines.sampling.pipeline import Orbits, ViewsPipeline
from pipelines.sampling.report import write_report
from pipelines.sampling.sample_folder import FIT_FOLDER, RESULT_FILE
from utils.config import save_config
from utils.devices import free_memory, peak_memory, pick_device
from utils.errors import ConfigError, DataError, WriteError
from utils.files import sole_use, writable_folder
from utils.registry import INFER_ENGINE
from utils.settings.run import RunConfig

log = logging.getLogger(__name__)

MAX_JOBS = 10_000_000
NUM_NAMES = 3  # of `names_of`, which this version and earlier ones give to folders
MAX_FPS = 1000  # of the video's codec
# Measured peak on the CPU while views are decoded, per view, pixel and result: three copies of three floats.
BYTES_PER_PIXEL = 36


@dataclass(frozen=True, kw_only=True)
class RunWatch:
    """Functions that a run calls while it works, e.g. to show progress. An error that one raises ends the run.

    Attributes:
        on_step: called after every denoising step with the number of steps done and of all steps of the run.
        on_x0: called at every step with the pipeline and x0, see `ViewsPipeline.__call__`.
        on_orbits: called with the sampled orbits of a batch, before its files are written.
        on_file: called with the name of each 3D file before it is made.
    """

    on_step: Callable[[int, int], None] | None = None
    on_x0: Callable[[ViewsPipeline, Tensor], None] | None = None
    on_orbits: Callable[[Orbits], None] | None = None
    on_file: Callable[[str], None] | None = None


@INFER_ENGINE.register(name="inference_text2video_entrance", kind="prompt")
@INFER_ENGINE.register(name="inference_i2vgen_entrance", kind="image")
class OrbitInference:
    """Sample every prompt or image of a list. Existing samples with the same settings are kept."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Options, set by the type's name; everything else is in the run's configuration.

        Attributes:
            kind: kind of the inputs, prompt or image.
        """

        kind: str = "prompt"

    def __init__(self, config: Config, *, cfg: RunConfig) -> None:
        self.config, self.cfg = config, cfg
        self.failures: list[str] = []

    def run(self, *, pipeline: ViewsPipeline | None = None, watch: RunWatch | None = None) -> list[Path]:
        """Make the missing samples.

        Args:
            pipeline: loaded networks of this configuration, see `ViewsPipeline.with_settings`; None: load them.
            watch: is told what the run does.

        Returns:
            The folders of all samples of the run. Those that failed are in `self.failures`, one line each.

        Raises:
            ConfigError, DataError: a setting or a file does not fit, or no sample could be made. Most checks come
                before weights are loaded.
        """
        cfg = self.cfg
        check_sampling(cfg)
        sources = sources_of(cfg, kind=self.config.kind)
        check_counts(cfg, num_sources=len(sources))
        known = known_view_files(cfg, cfg.cameras.c2w())
        out = writable_folder(cfg.log_dir, option="log_dir")
        with sole_use(out, option="log_dir"):
            save_config(cfg, out / "config.yaml")
            settings = sample_settings(cfg)
            jobs = plan_jobs(sources, num_rounds=cfg.round, seed=cfg.seed, out=out)
            todo = [job for job in jobs if not is_done(job, settings)]
            log.info("%d of %d samples to make, in %s", len(todo), len(jobs), out)
            if todo:
                self._make(todo, known, settings, pipeline=pipeline, watch=watch or RunWatch())
            if self.failures and len(self.failures) == len(todo):
                raise DataError(self.failures[0])
            if cfg.fit:
                self._fit(jobs)
            folders = [job.folder for job in jobs]
            page = write_report(out, folders, cfg, failures=self.failures) if cfg.report else None
            if page:
                log.info("all samples on one page: %s", page)
        for failure in self.failures:
            log.error("error: %s", failure)
        return folders

    def _make(
        self,
        jobs: list[Job],
        known: dict[int, str],
        settings: dict[str, Any],
        *,
        pipeline: ViewsPipeline | None,
        watch: RunWatch,
    ) -> None:
        started = time.perf_counter()
        prompts = [job.source.prompt for job in jobs if job.source.prompt is not None]
        if self.cfg.embedder:
            self.cfg.embedder.options.check_prompts(texts_of(self.cfg, prompts))
        pipeline = pipeline.with_settings(self.cfg) if pipeline else ViewsPipeline.from_config(self.cfg)
        pipeline.prepare_texts(prompts)
        log.info("networks built and loaded in %.1f s", time.perf_counter() - started)
        options = {"assets": self.cfg.assets, "rasterizer": self.cfg.rasterizer}
        writer = self.cfg.visual_inference.build(**options)
        batches = batches_of(jobs, self.cfg.batch_size)
        seconds = 0.1 if sys.stderr.isatty() else 10.0  # fewer lines in a log file
        with (
            ThreadPoolExecutor(max_workers=1) as pool,
            tqdm(total=len(batches) * pipeline.steps_per_call, unit="step", mininterval=seconds) as bar,
        ):
            weights = pool.submit(weights_of, self.cfg)  # reads the files once more, beside the first steps

            def make(batch: list[Job]) -> None:
                orbits = self._sample(pipeline, batch, known, bar, watch=watch)
                if watch.on_orbits:
                    watch.on_orbits(orbits)
                bar.set_description(f"{batch[0].source.slug[:40]}: writing files")
                began = time.perf_counter()
                cost = record_of_cost(orbits, device=pipeline.placement.device)
                for index, job in enumerate(batch):
                    record = {**job.source.record, "seed": job.seed, "settings": settings}
                    record |= {"weights": weights.result(), "cost": cost}
                    options = {"fps": self.cfg.target_fps, "record": record, "on_file": watch.on_file}
                    writer.write(job.folder, orbits, index, **options)
                    bar.write(file=sys.stderr, s=f"wrote {job.folder}/ ({', '.join(contents_of(job.folder))})")
                line = cost_of(orbits, num_steps=pipeline.steps_per_call)
                bar.write(file=sys.stderr, s=f"{line}, files {time.perf_counter() - began:.2f} s")

            while batches:
                batch = batches.pop(0)
                try:
                    make(batch)
                except WriteError:  # the next could not be written either
                    raise
                except DataError as err:
                    if len(batch) > 1:  # the others of the batch come out the same alone
                        batches[:0] = [[job] for job in batch]
                    else:
                        self.failures.append(f"{batch[0].folder.name}: {err}")

    def _fit(self, jobs: list[Job]) -> None:
        """Fit an object to the views of each sample; what is finished is kept."""
        from pipelines.reconstruction.fitting.folder import fit_folder  # imported here, because few runs need it

        device = pick_device(self.cfg.device)
        for job in jobs:
            if not (job.folder / RESULT_FILE).is_file():  # the sample failed
                continue
            options = {"seed": job.seed, "device": device, "assets": self.cfg.assets}
            try:
                log.info("%s", fit_folder(job.folder, job.folder / FIT_FOLDER, self.cfg.fit, **options))
            except WriteError:
                raise
            except DataError as err:
                self.failures.append(f"{job.folder.name}: no fit: {err}")

    def _sample(
        self, pipeline: ViewsPipeline, batch: list[Job], known: dict[int, str], bar: tqdm, *, watch: RunWatch
    ) -> Orbits:
        name = batch[0].source.slug[:40]
        bar.set_description(name)
        sources = [job.source for job in batch]  # all are prompts, all images, or all images with prompts
        of_images, prompts = sources[0].has_image, [source.prompt for source in sources]
        elevation_deg = sources[0].record.get(ESTIMATE)  # the same for the whole batch
        return pipeline(
            [source.text for source in sources] if of_images else None,
            prompts=None if sources[0].prompt is None else prompts,
            seeds=[job.seed for job in batch],
            c2w_V44=None if elevation_deg is None else cameras_at_elevation(self.cfg, elevation_deg),
            known_views={view: [image] * len(batch) for view, image in known.items()},
            on_step=partial(count_step, bar, steps_per_call=pipeline.steps_per_call, name=name, told=watch.on_step),
            on_x0=partial(watch.on_x0, pipeline) if watch.on_x0 else None,
        )


def batches_of(jobs: Sequence[Job], size: int) -> list[list[Job]]:
    """Divide jobs into batches of at most `size`; the samples of a batch share their cameras, so their elevation."""
    batches: list[list[Job]] = []
    for _, group in itertools.groupby(jobs, key=lambda job: job.source.record.get(ESTIMATE)):
        alike = list(group)
        batches += [alike[start : start + size] for start in range(0, len(alike), size)]
    return batches


def check_sampling(cfg: RunConfig) -> None:
    """Check settings whose faults would show only after sampling, or never.

    Raises:
        ConfigError: a value is out of range.
    """
    cameras = cfg.cameras
    if cfg.target_fps > MAX_FPS:
        raise ConfigError(f"target_fps must lie in [1, {MAX_FPS}], got {cfg.target_fps}")
    cfg.sampler.build().check(cfg.Diffusion.build())
    if cfg.fit and cfg.fit.options.obstacle:
        raise ConfigError(f"fit.type={cfg.fit.type}: {cfg.fit.options.obstacle}")
    num_views = len(cameras.views) or cameras.num_views
    check_memory(cfg, num_views=num_views, num_samples=1)


def check_counts(cfg: RunConfig, *, num_sources: int) -> None:
    """Check the number of samples of a run, and the memory of a batch of them.

    Raises:
        ConfigError: it is too large.
    """
    if num_sources * cfg.round > MAX_JOBS:
        raise ConfigError(f"round={cfg.round}: {num_sources * cfg.round} samples are too many; at most {MAX_JOBS}")
    num_views = len(cfg.cameras.views) or cfg.cameras.num_views
    check_memory(cfg, num_views=num_views, num_samples=min(cfg.batch_size, num_sources * cfg.round))


def check_memory(cfg: RunConfig, *, num_views: int, num_samples: int) -> None:
    """Check that the memory of the machine can hold the views of a batch; the networks need more.

    Raises:
        ConfigError: it cannot.
    """
    num_results = 2 if cfg.refine and cfg.results == "both" else 1
    width, height = cfg.resolution
    needed, free = BYTES_PER_PIXEL * num_results * num_samples * num_views * width * height, free_memory()
    if free is not None and needed > free:
        raise ConfigError(
            f"{num_views} views of {width} x {height} pixels (cameras.num_views, resolution) in {num_samples} samples "
            f"at once (batch_size) need at least {needed / 2**30:.1f} GiB of memory, but {free / 2**30:.1f} GiB are "
            "free; lower one of them"
        )


def count_step(bar: tqdm, *, steps_per_call: int, name: str, told: Callable[[int, int], None] | None = None) -> None:
    """Advance the progress bar; after the last step of a call, show that decoding has started."""
    bar.update()
    if told:
        told(bar.n, bar.total)
    if bar.n % steps_per_call == 0:
        bar.set_description(f"{name}: decoding")


def contents_of(folder: Path) -> list[str]:
    """List the names in a folder; names of folders end with a slash."""
    return sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())


def cost_of(orbits: Orbits, *, num_steps: int) -> str:
    """Return one line with the time of a call and, on a GPU, its memory."""
    seconds = {"refine": 0.0, **orbits.seconds}
    step = 1000 * (seconds["denoise"] - seconds["refine"]) / num_steps
    line = f"denoising {seconds['denoise']:.2f} s ({step:.0f} ms per step"
    line += f", {seconds['refine']:.2f} s for 3D-aware sampling)" if seconds["refine"] else ")"
    line += f", decoding {seconds['decode']:.2f} s"
    if "reconstruct" in seconds:
        line += f", Gaussians {seconds['reconstruct']:.2f} s"
    if torch.cuda.is_available():
        line += f", peak GPU memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
    return line


def record_of_cost(orbits: Orbits, *, device: torch.device) -> dict[str, Any]:
    """Return the time of one sample of a call without its files, in parts, and the largest memory until then."""
    parts = {name: round(seconds / len(orbits.seeds), 2) for name, seconds in orbits.seconds.items()}
    inner = {"refine"}  # a part of `denoise`
    return {
        "seconds": round(sum(seconds for name, seconds in parts.items() if name not in inner), 2),
        "parts": parts,
        "samples_at_once": len(orbits.seeds),
        "peak_memory_mb": round(peak_memory(device) / 1e6),
        "device": device.type,
    }


def plan_jobs(sources: list[Source], *, num_rounds: int, seed: int, out: Path) -> list[Job]:
    """List all jobs. Round r of every source uses seed + r, so the order of the sources does not matter.

    Sources may have the same slug. Each gets a folder of its own, and no folder in which `out` has the result of
    another input.
    """
    present = {entry.name: entry.is_dir() for entry in os.scandir(out)} if out.is_dir() else {}
    taken: set[str] = set()
    jobs = []
    for number in range(num_rounds):
        for source in sources:
            folder = _folder_of(source, seed + number, out, present=present, taken=taken)
            taken.add(folder.name)
            jobs.append(Job(source=source, seed=seed + number, folder=folder))
    return jobs


def _folder_of(source: Source, seed: int, out: Path, *, present: Mapping[str, bool], taken: set[str]) -> Path:
    """Return the folder that has the result of a source, else the first one that no other input has."""
    free = ""
    for number, slug in enumerate(names_of(source), start=1):
        name = f"{slug}_seed{seed}"
        if name in taken or not present.get(name, True):  # of another source, or a file
            continue
        result = read_result(out / name) if name in present else None
        if result is None:
            free = free or name
        elif source.made(result):
            return out / name
        if free and number >= NUM_NAMES:
            return out / free
    raise AssertionError("names_of never ends")
