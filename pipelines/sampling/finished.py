"""Whether a sample on disk is finished: of this input, with these settings and weights, and with all its files.

The files decide, not result.json alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.parts import published_files, weight_files
from pipelines.sampling.inputs import Source
from pipelines.sampling.sample_folder import RESULT_FILE, missing_file
from utils.errors import DataError
from utils.files import read_json
from utils.settings.original import with_present_names
from utils.settings.run import RunConfig
from utils.settings.sampling import ESTIMATED, SamplingConfig

log = logging.getLogger(__name__)

# Settings that do not change a sample.
NOT_IN_A_SAMPLE = (
    "log_dir", "device", "round", "seed", "batch_size", "test_list_path", "chunk_size", "decoder_bs",
    "visual_inference", "prompts", "images", "compile", "fused", "cuda_graph", "low_memory", "rasterizer",
    "known_objects", "takes_prompts", "fit", "elevation", "report",
)  # fmt: skip
EMBEDDER_OPTIONS_NOT_IN_A_SAMPLE = ("cache_dir", "device")
BLOCK_BYTES, CHUNK_BYTES = 4096, 1 << 24


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


def sample_settings(cfg: RunConfig) -> dict[str, Any]:
    """Return the settings that change a sample, as plain JSON values."""
    names = {field.name for field in dataclasses.fields(SamplingConfig)} - {*NOT_IN_A_SAMPLE}
    values = {name: value for name, value in cfg.as_dict().items() if name in names}
    for name in EMBEDDER_OPTIONS_NOT_IN_A_SAMPLE:
        values["embedder"].pop(name, None)
    # an angle is only compared with the cameras
    values["input_elevation_deg"] = ESTIMATED if cfg.estimates_elevation else None
    return json.loads(json.dumps(values))


@cache
def _default_settings() -> dict[str, Any]:
    return sample_settings(RunConfig())


def read_result(folder: Path) -> dict[str, Any] | None:
    """Read result.json of a sample; None if there is none, or if it is not what a run writes."""
    try:
        return read_json(folder / RESULT_FILE, option=RESULT_FILE, kind=dict)
    except DataError:
        return None


def is_done(job: Job, settings: dict[str, Any]) -> bool:
    """Whether the folder contains this sample, whole, and made with these settings and weights."""
    result = read_result(job.folder)
    if result is None:
        if (job.folder / RESULT_FILE).exists():
            log.warning("%s has a damaged %s and will be made again", job.folder, RESULT_FILE)
        return False
    reason = _difference(job, result, settings) or missing_file(job.folder, result)
    if reason:
        log.info("%s %s and will be made again", job.folder, reason)
    return not reason


def _difference(job: Job, result: dict[str, Any], settings: dict[str, Any]) -> str:
    """Say how the sample differs from the wanted one; "" if it does not."""
    if not job.source.made(result, exactly=True) or result.get("seed") != job.seed:
        return "was made from another input"
    given = result.get("settings", {})
    if not isinstance(given, dict):
        return "was made with unknown settings"
    # Extra settings in the file are ignored, because earlier versions also saved settings of training. Settings that
    # are missing in the file are newer than the sample, and their defaults do not change it.
    try:
        found = with_defaults(with_present_names(given))
    except (TypeError, ValueError, AttributeError, KeyError):  # values that no run writes
        return "was made with unknown settings"
    changed = [name for name, value in settings.items() if found[name] != value]
    if changed:
        return f"was made with other settings ({', '.join(changed)})"
    weights = result.get("weights", {})  # results of earlier versions have none
    if not isinstance(weights, dict):
        return "was made with unknown weights"
    changed = [path for path, facts in weights.items() if _changed(Path(path), facts)]
    return f"was made with other weights ({', '.join(changed)} changed)" if changed else ""


def with_defaults(given: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a sample with the defaults of all that are newer, also in sections without a type."""
    found = {**_default_settings(), **given}
    for name, default in _default_settings().items():
        if isinstance(default, dict) and "type" not in {*default, *found[name]}:
            found[name] = {**default, **found[name]}
    return found


def weights_of(cfg: RunConfig) -> dict[str, dict[str, Any]]:
    """Return size, time and a digest of the content of each weight file of a run, by its path in the settings."""
    paths = []
    for option, path in weight_files(cfg).items():
        files = published_files(cfg, option, path)
        paths += [path] if files is None else map(str, files)
    return {path: facts_of(Path(path)) for path in dict.fromkeys(paths) if path and Path(path).is_file()}


def facts_of(path: Path) -> dict[str, Any]:
    """Return size, time of change and digest of a file."""
    stat = path.stat()
    digest = _digest(path, stat.st_size, stat.st_mtime_ns)
    return {"bytes": stat.st_size, "changed_ns": stat.st_mtime_ns, "digest": digest}


def _changed(path: Path, facts: Any) -> bool:
    """Whether a weight file is not what it was. A copy with another time is the same; a missing file is ignored."""
    if not isinstance(facts, dict):
        return True
    if not path.is_file():
        return False
    stat = path.stat()
    if (facts.get("bytes"), facts.get("changed_ns")) == (stat.st_size, stat.st_mtime_ns):
        return False
    return facts_of(path)["digest"] != facts.get("digest")


@cache
def _digest(path: Path, size: int, changed_ns: int) -> str:
    """Compute a digest of a large file, as fast as it can be read: SHA-256 of the sums of its blocks."""
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            chunk += b"\0" * (-len(chunk) % BLOCK_BYTES)
            words = np.frombuffer(chunk, dtype="<u8").reshape(-1, BLOCK_BYTES // 8)
            digest.update(words.sum(axis=1, dtype=np.uint64).astype("<u8").tobytes())
    return digest.hexdigest()[:32]
