"""Latents and words of a whole data set, encoded once and kept beside what made them;
pipelines/training/data/cached_latents.py reads them.

A cache folder holds safetensors shards, `samples.json` and `fingerprint.json`. The fingerprint is written last and
names the weights of the encoders, the data set, its index and files: when any of it differs, the cache is made again.

Letters: B samples, V views, C channels, H W latent pixels, L text tokens.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from utils.errors import DataError
from utils.files import atomic_path, read_json, writable_folder, write_json
from utils.processes import is_main, num_processes, process_rank, seen_by_all, wait_for_all

log = logging.getLogger(__name__)

SHARD_SIZE = 128  # samples
BEGUN = "begun.json"  # the fingerprint of what is being encoded
LAYOUT = 3  # raise it when the content of shards changes


@dataclass(frozen=True, kw_only=True)
class EncodedChunk:
    """Some samples on their way into the cache.

    Attributes:
        first: number of the first one in the data set.
        mean_BCVHW: scaled posterior means.
        std_BCVHW: scaled deviations, or None when the mode is taken.
        c2w_BV44: cameras.
        captions: B sentences.
        object_ids: B names.
        words_BLC: text tokens of the captions, as the network takes them.
        image_BVC: image embedding of every view, or None when the network takes none.
    """

    first: int
    mean_BCVHW: Tensor
    std_BCVHW: Tensor | None
    c2w_BV44: Tensor
    captions: list[str]
    object_ids: list[str]
    words_BLC: Tensor
    image_BVC: Tensor | None = None


def fingerprint(
    autoencoder: nn.Module,
    *,
    options: Mapping[str, Any],
    index: Iterable[Any],
    pictures: Iterable[Any],
    encoder: nn.Module,
    with_images: bool,
) -> dict[str, Any]:
    """What latents, words and image embeddings depend on, as plain values.

    Args:
        autoencoder: its weights, scale and kind of posterior count.
        options: of the data set.
        index: whatever names the samples and their captions, in order.
        pictures: what tells that pictures were made anew: `stamp_of` some of their files.
        encoder: of text and images (`visual`).
        with_images: image embeddings are kept too.
    """
    embeddings = {"image_weights": digest_of(encoder.visual)} if with_images else {}
    return embeddings | {
        "text_weights": digest_of(encoder, without="visual."),
        "layout": LAYOUT,
        "weights": digest_of(autoencoder),
        "scale_factor": autoencoder.scale_factor,
        "posterior": autoencoder.config.posterior,
        "dataset": json.loads(json.dumps(dict(options), sort_keys=True, default=str)),
        "index": _digest_of_list(index),
        "pictures": _digest_of_list(pictures),
    }


def stamp_of(file: Path) -> tuple[int, int] | None:
    """Size and time of change of a file, which is not opened; None when it is not there."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _digest_of_list(values: Iterable[Any]) -> str:
    return hashlib.sha256(json.dumps(list(values), default=str).encode()).hexdigest()


def digest_of(module: nn.Module, *, without: str | None = None) -> str:
    """SHA-256 of a module's weights, the same on any device; `without` those whose names begin so."""
    weights = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if without is None or not name.startswith(without):
            weights.update(name.encode())
            weights.update(value.detach().float().cpu().contiguous().numpy())
    return weights.hexdigest()


def is_current(folder: str | Path, wanted: Mapping[str, Any]) -> bool:
    """Whether a complete cache with this fingerprint lies in the folder; says what differs when it does not."""
    file = Path(folder) / "fingerprint.json"
    if not file.is_file():
        return False
    found = read_json(file, option="cache_dir")
    changed = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
    if changed:
        log.info("latents in %s are out of date (%s changed): encoding again", folder, ", ".join(changed))
    return not changed


def write_cache(
    folder: str | Path,
    encode: Callable[[list[range]], Iterable[EncodedChunk]],
    wanted: Mapping[str, Any],
    *,
    num_samples: int,
) -> None:
    """Fill the folder, all processes together; until the last file is written it counts as empty.

    A shard holds SHARD_SIZE samples of the data set, less what is broken. Shards that a stopped run left under the same
    fingerprint stay.

    Args:
        encode: gives the samples of some ranges, in order, no chunk from two of them.
        wanted: the fingerprint, which the main process has.
        num_samples: of the whole data set.

    Raises:
        DataError: the folder cannot be written, or is not the same on all machines, or the disk is full.
    """
    folder = writable_folder(folder, option="cache_dir")
    if is_main():
        _begin(folder, wanted)
    wait_for_all()
    check_shared(folder, BEGUN)
    starts = enumerate(range(0, num_samples, SHARD_SIZE))
    ranges = {number: range(first, min(first + SHARD_SIZE, num_samples)) for number, first in starts}
    own = {number: rows for number, rows in ranges.items() if number % num_processes() == process_rank()}
    todo = {number: rows for number, rows in own.items() if _samples_in(_shard_file(folder, number)) is None}
    log.info("%d of %d parts are to be encoded", len(todo), len(own))
    for number, chunks in groupby(encode(list(todo.values())), key=lambda chunk: chunk.first // SHARD_SIZE):
        _write_shard(_shard_file(folder, number), list(chunks))
    wait_for_all()
    if is_main():
        found = [_samples_in(_shard_file(folder, number)) or [] for number in ranges]
        with _writing(folder):
            write_json(folder / "samples.json", [sample for samples in found for sample in samples])
            write_json(folder / "fingerprint.json", dict(wanted))
            (folder / BEGUN).unlink()
    wait_for_all()


def check_shared(folder: str | Path, name: str) -> None:
    """Refuse a folder in which not all processes see a file of the main one. All of them call together.

    Raises:
        DataError: see above.
    """
    if not seen_by_all(Path(folder) / name):
        raise DataError(f"cache_dir={folder}: not all processes see {name}; put it on a disk that all machines share")


def _shard_file(folder: Path, number: int) -> Path:
    return folder / f"latents_{number:05d}.safetensors"


def _begin(folder: Path, wanted: Mapping[str, Any]) -> None:
    """Remove what was made by something else."""
    begun = folder / BEGUN
    if begun.is_file() and read_json(begun, option="cache_dir") == dict(wanted):
        return
    for old in (folder / "fingerprint.json", *sorted(folder.glob("latents_*.safetensors"))):
        old.unlink(missing_ok=True)
    with _writing(folder):
        write_json(begun, dict(wanted))


def _write_shard(file: Path, chunks: list[EncodedChunk]) -> None:
    fields = {"mean": "mean_BCVHW", "std": "std_BCVHW", "c2w": "c2w_BV44"}
    fields |= {"words": "words_BLC", "image": "image_BVC"}
    joined = {}
    for name, field in fields.items():
        parts = [getattr(chunk, field) for chunk in chunks]
        if parts[0] is not None:
            joined[name] = torch.cat([part.cpu() for part in parts]).to(
                torch.float32 if name == "c2w" else torch.float16
            )
    samples = [sample for chunk in chunks for sample in zip(chunk.object_ids, chunk.captions, strict=True)]
    with _writing(file.parent), atomic_path(file) as part:
        save_file({name: value.contiguous() for name, value in joined.items()}, part, {"samples": json.dumps(samples)})


def _samples_in(file: Path) -> list[list[str]] | None:
    """Object id and caption of each sample in a shard; None when it is not there, or not whole."""
    try:
        with safe_open(str(file), framework="pt") as shard:
            return json.loads(shard.metadata()["samples"])
    except (SafetensorError, OSError, TypeError, KeyError, ValueError):
        return None


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Say in one line why files could not be written."""
    try:
        yield
    except (OSError, SafetensorError) as err:
        free_mb = shutil.disk_usage(folder).free / 1e6
        raise DataError(
            f"cache_dir={folder}: latents cannot be saved ({err}; {free_mb:.0f} MB are free); make room and run the "
            "same command again: it goes on there"
        ) from err
