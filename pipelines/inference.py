"""The inference entrance: a list of prompts to a folder of orbits, resumable."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import sys
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from pipelines.views_pipeline import Orbits, ViewsPipeline
from pipelines.visual import RESULT_FILE
from utils.config import save_config
from utils.errors import DataError
from utils.files import writable_folder
from utils.registry import INFER_ENGINE, VISUAL
from utils.run_config import RunConfig

log = logging.getLogger(__name__)

# Settings that may differ between two runs that make the same samples.
NOT_IN_A_SAMPLE = {"log_dir", "device", "round", "seed", "batch_size", "test_list_path", "chunk_size", "decoder_bs"}
NOT_IN_A_SAMPLE |= {"visual_inference", "prompts", "compile"}


@dataclass(frozen=True, kw_only=True)
class Job:
    """One sample to make.

    Attributes:
        prompt: the sentence.
        seed: of its noise.
        folder: where it goes.
    """

    prompt: str
    seed: int
    folder: Path


@INFER_ENGINE.register(name="inference_text2video_entrance")
class OrbitInference:
    """Sample every prompt of a list; what is already there with the same settings is kept."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """No options of its own: everything is in the run's configuration."""

    def __init__(self, config: Config, *, cfg: RunConfig) -> None:
        self.cfg = cfg

    def run(self) -> list[Path]:
        """Make what is missing.

        Returns:
            The folders of all samples of the run.

        Raises:
            ConfigError, DataError: something does not fit; said before any weight is loaded wherever possible.
        """
        cfg = self.cfg
        prompts = list(cfg.prompts) or read_prompts(cfg.test_list_path)
        cfg.cameras.c2w()
        out = writable_folder(cfg.log_dir, option="log_dir")
        save_config(cfg, out / "config.yaml")
        settings = sample_settings(cfg)
        jobs = plan_jobs(prompts, num_rounds=cfg.round, seed=cfg.seed, out=out)
        todo = [job for job in jobs if not is_done(job, settings)]
        log.info("%d of %d samples to make, in %s", len(todo), len(jobs), out)
        if todo:
            self._make(todo, settings)
        return [job.folder for job in jobs]

    def _make(self, jobs: list[Job], settings: dict[str, Any]) -> None:
        started = time.perf_counter()
        pipeline = ViewsPipeline.from_config(self.cfg)
        log.info("built and loaded in %.1f s", time.perf_counter() - started)
        writer = VISUAL.build(self.cfg.visual_inference, where="visual_inference")
        batches = [jobs[start : start + self.cfg.batch_size] for start in range(0, len(jobs), self.cfg.batch_size)]
        seconds = 0.1 if sys.stderr.isatty() else 10.0  # a log file needs few lines
        with tqdm(total=len(batches) * pipeline.sampler.config.num_steps, unit="step", mininterval=seconds) as bar:
            for batch in batches:
                bar.set_description(batch[0].prompt[:40])
                orbits = pipeline([job.prompt for job in batch], seeds=[job.seed for job in batch], on_step=bar.update)
                for index, job in enumerate(batch):
                    writer.write(job.folder, orbits, index, fps=self.cfg.target_fps, settings=settings)
                    bar.write(
                        file=sys.stderr,
                        s=f"wrote {job.folder}/ (orbit.mp4, sheet.png, views/, transforms.json, {RESULT_FILE})",
                    )
                bar.write(file=sys.stderr, s=cost_of(orbits, num_steps=pipeline.sampler.config.num_steps))


def cost_of(orbits: Orbits, *, num_steps: int) -> str:
    """One line about the time and, on a GPU, the memory that a call took."""
    denoise, decode = orbits.seconds["denoise"], orbits.seconds["decode"]
    line = f"denoising {denoise:.2f} s ({1000 * denoise / num_steps:.0f} ms a step), decoding {decode:.2f} s"
    if torch.cuda.is_available():
        line += f", peak GPU memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
    return line


def read_prompts(path: str) -> list[str]:
    """Prompts of a text file, one a line; empty lines and lines that begin with # are skipped.

    Raises:
        DataError: the file is missing, is no UTF-8 text, or holds no prompt.
    """
    if not path or not Path(path).is_file():
        raise DataError(f"test_list_path={path}: no such file; give a text file with one prompt a line, or --prompt")
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as err:
        raise DataError(f"test_list_path={path} is no UTF-8 text ({err.reason}); give one prompt a line") from err
    prompts = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not prompts:
        raise DataError(f"test_list_path={path} holds no prompt; write one a line (lines with # are comments)")
    return prompts


def plan_jobs(prompts: list[str], *, num_rounds: int, seed: int, out: Path) -> list[Job]:
    """Round r of every prompt uses seed + r, wherever the prompt stands in the list."""
    prompts = list(dict.fromkeys(prompts))
    slugs = [slug_of(prompt) for prompt in prompts]
    jobs = []
    for number in range(num_rounds):
        for prompt, slug in zip(prompts, slugs, strict=True):
            if slugs.count(slug) > 1:
                slug = f"{slug}-{zlib.crc32(prompt.encode()):08x}"
            jobs.append(Job(prompt=prompt, seed=seed + number, folder=out / f"{slug}_seed{seed + number}"))
    return jobs


def slug_of(prompt: str) -> str:
    """A file name that says the prompt: at most 60 letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60].strip("-") or f"{zlib.crc32(prompt.encode()):08x}"


def sample_settings(cfg: RunConfig) -> dict[str, Any]:
    """The settings that decide what a sample looks like, as plain JSON values."""
    values = {key: value for key, value in dataclasses.asdict(cfg).items() if key not in NOT_IN_A_SAMPLE}
    return json.loads(json.dumps(values))


def is_done(job: Job, settings: dict[str, Any]) -> bool:
    """Whether the folder holds this sample, made with these settings."""
    path = job.folder / RESULT_FILE
    if not path.is_file():
        return False
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        return False
    same = (result.get("prompt"), result.get("seed"), result.get("settings")) == (job.prompt, job.seed, settings)
    if not same:
        log.info("%s was made with other settings and is made again", job.folder)
    return same
