"""The inference task: sample every prompt or image of a list into a folder. It can be resumed."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
import time
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from pipelines.sampling.inputs import Source, known_view_files, sources_of
from pipelines.sampling.pipeline import Orbits, ViewsPipeline
from pipelines.sampling.sample_folder import RESULT_FILE
from utils.config import save_config
from utils.files import writable_folder
from utils.registry import INFER_ENGINE
from utils.settings.original import with_present_names
from utils.settings.run import RunConfig
from utils.settings.sampling import SamplingConfig

log = logging.getLogger(__name__)

# Settings that do not change a sample.
NOT_IN_A_SAMPLE = (
    "log_dir", "device", "round", "seed", "batch_size", "test_list_path", "chunk_size", "decoder_bs",
    "visual_inference", "prompts", "images", "compile", "fused", "cuda_graph", "low_memory", "input_elevation_deg",
    "rasterizer", "known_objects",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Job:
    """One sample to make.

    Attributes:
        source: the prompt or image.
        seed: the seed of the noise.
        folder: the output folder.
    """

    source: Source
    seed: int
    folder: Path


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

    def run(self) -> list[Path]:
        """Make the missing samples.

        Returns:
            The folders of all samples of the run.

        Raises:
            ConfigError, DataError: a setting or a file does not fit. Most checks come before weights are loaded.
        """
        cfg = self.cfg
        sources = sources_of(cfg, kind=self.config.kind)
        known = known_view_files(cfg, cfg.cameras.c2w())
        out = writable_folder(cfg.log_dir, option="log_dir")
        save_config(cfg, out / "config.yaml")
        settings = sample_settings(cfg)
        jobs = plan_jobs(sources, num_rounds=cfg.round, seed=cfg.seed, out=out)
        todo = [job for job in jobs if not is_done(job, settings)]
        log.info("%d of %d samples to make, in %s", len(todo), len(jobs), out)
        if todo:
            self._make(todo, known, settings)
        return [job.folder for job in jobs]

    def _make(self, jobs: list[Job], known: dict[int, str], settings: dict[str, Any]) -> None:
        started = time.perf_counter()
        pipeline = ViewsPipeline.from_config(self.cfg)
        log.info("networks built and loaded in %.1f s", time.perf_counter() - started)
        options = {"assets": self.cfg.assets, "rasterizer": self.cfg.rasterizer}
        writer = self.cfg.visual_inference.build(**options)
        batches = [jobs[start : start + self.cfg.batch_size] for start in range(0, len(jobs), self.cfg.batch_size)]
        seconds = 0.1 if sys.stderr.isatty() else 10.0  # fewer lines in a log file
        with tqdm(total=len(batches) * pipeline.steps_per_call, unit="step", mininterval=seconds) as bar:
            for batch in batches:
                name = batch[0].source.slug[:40]
                bar.set_description(name)
                orbits = pipeline(
                    [job.source.text for job in batch],
                    seeds=[job.seed for job in batch],
                    known_views={view: [image] * len(batch) for view, image in known.items()},
                    on_step=partial(count_step, bar, steps_per_call=pipeline.steps_per_call, name=name),
                )
                bar.set_description(f"{name}: writing files")
                began = time.perf_counter()
                for index, job in enumerate(batch):
                    record = {**job.source.record, "seed": job.seed, "settings": settings}
                    writer.write(job.folder, orbits, index, fps=self.cfg.target_fps, record=record)
                    bar.write(file=sys.stderr, s=f"wrote {job.folder}/ ({', '.join(contents_of(job.folder))})")
                cost = cost_of(orbits, num_steps=pipeline.steps_per_call)
                bar.write(file=sys.stderr, s=f"{cost}, files {time.perf_counter() - began:.2f} s")


def count_step(bar: tqdm, *, steps_per_call: int, name: str) -> None:
    """Advance the progress bar; after the last step of a call, show that decoding has started."""
    bar.update()
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


def plan_jobs(sources: list[Source], *, num_rounds: int, seed: int, out: Path) -> list[Job]:
    """List all jobs. Round r of every source uses seed + r, so the order of the sources does not matter."""
    slugs = [source.slug for source in sources]
    jobs = []
    for number in range(num_rounds):
        for source, slug in zip(sources, slugs, strict=True):
            if slugs.count(slug) > 1:
                slug = f"{slug}-{zlib.crc32(source.text.encode()):08x}"
            jobs.append(Job(source=source, seed=seed + number, folder=out / f"{slug}_seed{seed + number}"))
    return jobs


def sample_settings(cfg: RunConfig) -> dict[str, Any]:
    """Return the settings that change a sample, as plain JSON values."""
    names = {field.name for field in dataclasses.fields(SamplingConfig)} - {*NOT_IN_A_SAMPLE}
    values = {name: value for name, value in cfg.as_dict().items() if name in names}
    return json.loads(json.dumps(values))


def is_done(job: Job, settings: dict[str, Any]) -> bool:
    """Whether the folder contains this sample, made with these settings."""
    path = job.folder / RESULT_FILE
    if not path.is_file():
        return False
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        return False
    same = all(result.get(name) == value for name, value in {**job.source.record, "seed": job.seed}.items())
    # Extra settings in the file are ignored, because earlier versions also saved settings of training. Settings that
    # are missing in the file are newer than the sample, and their defaults do not change it.
    found = {**sample_settings(RunConfig()), **with_present_names(result.get("settings", {}))}
    same = same and all(found[name] == value for name, value in settings.items())
    if not same:
        log.info("%s was made with other settings and will be made again", job.folder)
    return same
