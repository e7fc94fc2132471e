"""A cache of the latents and text tokens of a whole data set, which are encoded once.

A cache folder contains safetensors shards, `samples.json` and `fingerprint.json`. The fingerprint is written last and
identifies the weights of the encoders, the data set, its index and its files. If any of them changes, the cache is made
again.

Letters: B samples, M captions (a sample has one or several), V views, C channels, H W latent pixels, L text tokens.
The V of latents is the number of their frames, which is smaller with `auto_encoder.packed`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
import os
import shutil
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from models.checksums import digest_of
from models.encoders import Autoencoder, Embedder, FrameLayout, draw_like
from utils.errors import DataError, WriteError
from utils.files import atomic_path, read_json, sole_use, writable_folder, write_json
from utils.processes import is_main, num_processes, process_rank, seen_by_all, wait_for_all

log = logging.getLogger(__name__)

SHARD_SIZE = 128  # samples per shard
BEGUN = "begun.json"  # the fingerprint of an incomplete cache
WORDS = "words"  # the tensor with a row for each caption; all others have one for each sample
LAYOUT = 3  # increase it when the content of shards changes


@dataclass(frozen=True, kw_only=True)
class EncodedChunk:
    """Some encoded samples for the cache.

    Attributes:
        first: index of the first sample in the data set.
        mean_BCVHW: scaled means of the posterior.
        std_BCVHW: scaled standard deviations of the posterior, or None if its mode is used.
        c2w_BV44: cameras.
        captions: the captions of each sample.
        object_ids: B names.
        words_MLC: text tokens of all captions for the network, in order.
        image_BVC: image embedding of every view, or None for a text model.
    """

    first: int
    mean_BCVHW: Tensor
    std_BCVHW: Tensor | None
    c2w_BV44: Tensor
    captions: list[Sequence[str]]
    object_ids: list[str]
    words_MLC: Tensor
    image_BVC: Tensor | None = None


def fingerprint(
    autoencoder: Autoencoder,
    *,
    options: Mapping[str, Any],
    index: Iterable[Any],
    pictures: Iterable[Any],
    embedder: Embedder,
    with_images: bool,
) -> dict[str, Any]:
    """Return everything on which latents, text tokens and image embeddings depend, as plain values.

    Args:
        autoencoder: its weights, scale and kind of posterior are included.
        options: options of the data set.
        index: values that identify the samples and their captions, in order.
        pictures: `stamp_of` some image files, to detect changed images.
        embedder: the encoder of texts and images.
        with_images: whether the cache also contains image embeddings.
    """
    found = embedder.identity(with_images=with_images) | {
        "layout": LAYOUT,
        "weights": digest_of(autoencoder),
        "scale_factor": autoencoder.scale_factor,
        "posterior": autoencoder.config.posterior,
        "dataset": json.loads(json.dumps(dict(options), sort_keys=True, default=str)),
        "index": _digest_of_list(index),
        "pictures": _digest_of_list(pictures),
    }
    if autoencoder.layout != FrameLayout():  # caches of earlier versions remain valid
        found["views_per_frame"] = autoencoder.layout.views_per_frame
    return found


def stamp_of(file: Path) -> tuple[int, int] | None:
    """Return the size and the modification time of a file, without opening it; None if it is missing."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _digest_of_list(values: Iterable[Any]) -> str:
    return hashlib.sha256(json.dumps(list(values), default=str).encode()).hexdigest()


def is_current(folder: str | Path, wanted: Mapping[str, Any]) -> bool:
    """Whether the folder contains a complete cache with this fingerprint; if not, log the differences."""
    file = Path(folder) / "fingerprint.json"
    if not file.is_file():
        return False
    found = read_json(file, option="cache_dir")
    if not isinstance(found, dict):
        log.info("%s is broken: encoding again", file)
        return False
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
    """Write the cache with all processes together; without its last file it counts as empty.

    A shard contains SHARD_SIZE samples of the data set, without broken ones. Shards of an interrupted run with the same
    fingerprint are kept.

    Args:
        encode: encodes the samples of some ranges, in order; no chunk has samples of two ranges.
        wanted: the fingerprint, which only the main process needs.
        num_samples: number of samples in the whole data set.

    Raises:
        DataError: the folder cannot be written, is not the same on all machines, or the disk is full.
    """
    folder = writable_folder(folder, option="cache_dir")
    with sole_use(folder, option="cache_dir") if is_main() else nullcontext():
        _write_cache(folder, encode, wanted, num_samples=num_samples)


def _write_cache(
    folder: Path,
    encode: Callable[[list[range]], Iterable[EncodedChunk]],
    wanted: Mapping[str, Any],
    *,
    num_samples: int,
) -> None:
    """Write the cache into a folder that no other run writes to."""
    if is_main():
        _begin(folder, wanted)
    wait_for_all()
    check_shared(folder, BEGUN)
    starts = enumerate(range(0, num_samples, SHARD_SIZE))
    ranges = {number: range(first, min(first + SHARD_SIZE, num_samples)) for number, first in starts}
    own = {number: rows for number, rows in ranges.items() if number % num_processes() == process_rank()}
    todo = {number: rows for number, rows in own.items() if _samples_in(_shard_file(folder, number)) is None}
    log.info("%d of %d shards to encode", len(todo), len(own))
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
    """Check that all processes see a file of the main process; all of them must call this together.

    Raises:
        DataError: they do not.
    """
    if not seen_by_all(Path(folder) / name):
        raise DataError(f"cache_dir={folder}: not all processes see {name}; use a folder on a disk that all share")


def _shard_file(folder: Path, number: int) -> Path:
    return folder / f"latents_{number:05d}.safetensors"


def _begin(folder: Path, wanted: Mapping[str, Any]) -> None:
    """Start a cache; remove the files of a cache with another fingerprint."""
    begun = folder / BEGUN
    if begun.is_file() and read_json(begun, option="cache_dir") == dict(wanted):
        return
    for old in (folder / "fingerprint.json", *sorted(folder.glob("latents_*.safetensors"))):
        old.unlink(missing_ok=True)
    with _writing(folder):
        write_json(begun, dict(wanted))


def _write_shard(file: Path, chunks: list[EncodedChunk]) -> None:
    fields = {"mean": "mean_BCVHW", "std": "std_BCVHW", "c2w": "c2w_BV44"}
    fields |= {WORDS: "words_MLC", "image": "image_BVC"}
    joined = {}
    for name, field in fields.items():
        parts = [getattr(chunk, field) for chunk in chunks]
        if parts[0] is not None:
            joined[name] = torch.cat([part.cpu() for part in parts]).to(
                torch.float32 if name == "c2w" else torch.float16
            )
    named = [sample for chunk in chunks for sample in zip(chunk.object_ids, chunk.captions, strict=True)]
    # A single caption is written as in earlier versions, whose caches remain valid.
    samples = [(object_id, list(captions) if len(captions) > 1 else captions[0]) for object_id, captions in named]
    caption_of = [number for number, (_, captions) in enumerate(named) for _ in captions]
    for name, values in joined.items():
        bad = (~values.flatten(1).isfinite().all(dim=1)).nonzero().flatten().tolist()
        if bad:
            sample = caption_of[bad[0]] if name == WORDS else bad[0]
            raise DataError(
                f"cache_dir={file.parent}: the {name} of object {samples[sample][0]} is not finite (NaN or infinite); "
                "check its views and the weights of the encoders"
            )
    header = {"samples": json.dumps(samples)}
    if len(caption_of) > len(samples):
        others = {name: value for name, value in joined.items() if name != WORDS}
        header["checksums"] = json.dumps(row_checksums(others))
        header["word_checksums"] = json.dumps(row_checksums({WORDS: joined[WORDS]}))
    else:
        header["checksums"] = json.dumps(row_checksums(joined))
    with _writing(file.parent), atomic_path(file) as part:
        save_file({name: value.contiguous() for name, value in joined.items()}, part, header)


def row_checksums(values: Mapping[str, Tensor]) -> list[int]:
    """Return a checksum of each row: sums of 2-byte words, times an odd number from each name, modulo 2**64."""
    total_N = np.zeros(len(next(iter(values.values()))), dtype=np.uint64)
    for name, value in values.items():
        words_NW = value.contiguous().flatten(1).view(torch.uint8).numpy().view(np.uint16)
        total_N += words_NW.sum(axis=1, dtype=np.uint64) * np.uint64(zlib.crc32(name.encode()) | 1)
    return total_N.tolist()


def _samples_in(file: Path) -> list[list[Any]] | None:
    """Return the object id and captions of each sample in a shard; None if it is missing or incomplete."""
    try:
        with safe_open(str(file), framework="pt") as shard:
            return json.loads(shard.metadata()["samples"])
    except (SafetensorError, OSError, TypeError, KeyError, ValueError):
        return None


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn errors of writing files into one line."""
    try:
        yield
    except (OSError, SafetensorError, WriteError) as err:
        err = err.__cause__ if isinstance(err, WriteError) and err.__cause__ else err
        free_mb = shutil.disk_usage(folder).free / 1e6
        raise DataError(
            f"cache_dir={folder}: latents cannot be saved ({err}; {free_mb:.0f} MB are free); free disk space and run "
            "the same command again, which continues from here"
        ) from err


NAMES = {"mean_BCVHW": "mean", "std_BCVHW": "std", "c2w_BV44": "c2w", "image_BVC": "image"}


@dataclass(frozen=True, kw_only=True)
class LatentRows:
    """Some encoded samples.

    Attributes:
        mean_BCVHW: scaled means of the posterior, float16.
        c2w_BV44: cameras, float32.
        words_BLC: text tokens of one caption of each, float16.
        std_BCVHW: scaled standard deviations of the posterior, or None if its mode is used.
        image_BVC: image embedding of every view, float16, or None for a text model.
    """

    mean_BCVHW: Tensor
    c2w_BV44: Tensor
    words_BLC: Tensor
    std_BCVHW: Tensor | None = None
    image_BVC: Tensor | None = None

    def draw(self, *, generator: torch.Generator | Sequence[torch.Generator]) -> Tensor:
        """Draw latents (B, C, V, H, W) float32 from the posterior, or return its mode.

        Args:
            generator: one generator, or one per sample.
        """
        mean_BCVHW = self.mean_BCVHW.float()
        if self.std_BCVHW is None:
            return mean_BCVHW
        return mean_BCVHW + self.std_BCVHW.float() * draw_like(mean_BCVHW, generator)

    def to(self, device: torch.device) -> LatentRows:
        """Move all tensors to a device."""
        found = {name: value for name, value in vars(self).items() if value is not None}
        return dataclasses.replace(self, **{name: value.to(device) for name, value in found.items()})


class CachedLatents:
    """A complete cache. A file is opened when one of its rows is needed, and is read through memory mapping.

    Attributes:
        captions: the captions of each sample.
        all_captions: all of them, in order: M.
        first_caption: the row of the first caption of each sample among all of them.
        object_ids: N names.
        num_bytes: size of all tensors in bytes.

    Raises:
        DataError: the folder is empty, or shards are missing or broken.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        samples = read_json(self.folder / "samples.json", option="cache_dir")
        if not isinstance(samples, list) or not all(_is_sample(sample) for sample in samples):
            raise DataError(f"cache_dir={folder}: samples.json is broken; delete the folder to encode again")
        self.object_ids = [object_id for object_id, _ in samples]
        self.captions = [[one] if isinstance(one, str) else one for _, one in samples]
        self.all_captions = [caption for captions in self.captions for caption in captions]
        self.first_caption = [0, *itertools.accumulate(len(captions) for captions in self.captions)][:-1]
        self.files = sorted(self.folder.glob("latents_*.safetensors"))
        # of each file, the first row of its samples and of its captions
        self.starts, self.word_starts, self.num_bytes, num_rows, num_words = [], [], 0, 0, 0
        for file in self.files:
            self.starts.append(num_rows)
            self.word_starts.append(num_words)
            rows, words = _num_rows(file)
            num_rows, num_words = num_rows + rows, num_words + words
            self.num_bytes += file.stat().st_size
        if not self.files or (num_rows, num_words) != (len(samples), len(self.all_captions)):
            raise DataError(f"cache_dir={folder} is incomplete; delete the folder to encode again")
        self._open: dict[int, Any] = {}
        # by name of the list and number of the file: checksums of rows not read before
        self._unseen: dict[tuple[str, int], dict[int, int]] = {}
        self._kept: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self.captions)

    def keep(self, device: torch.device) -> None:
        """Load all samples and keep them on a device."""
        everything = self._read(torch.arange(len(self)), torch.arange(len(self.all_captions)))
        self._kept = {field: value.to(device) for field, value in everything.items()}
        self._open.clear()

    def rows(self, index_B: Tensor, caption_B: Tensor | None = None) -> LatentRows:
        """Return samples by index, on the device after `keep`, else on the CPU.

        Args:
            caption_B: rows among `all_captions`; default: the first caption of each sample.

        Raises:
            DataError: a file cannot be read.
        """
        if caption_B is None:
            caption_B = torch.tensor([self.first_caption[index] for index in index_B.tolist()], dtype=torch.long)
        if not self._kept:
            return LatentRows(**self._read(index_B, caption_B))
        chosen = {field: caption_B if field == "words_BLC" else index_B for field in self._kept}
        return LatentRows(**{name: value[chosen[name].to(value.device)] for name, value in self._kept.items()})

    def _read(self, index_B: Tensor, caption_B: Tensor) -> dict[str, Tensor]:
        """Read samples and captions from the files, by the fields of LatentRows."""
        runs = _runs(index_B.tolist(), self.starts, total=len(self))
        found = [self._parts(run, NAMES, "checksums", self.starts) for run in runs]
        runs = _runs(caption_B.tolist(), self.word_starts, total=len(self.all_captions))
        words = [self._parts(run, {"words_BLC": WORDS}, "word_checksums", self.word_starts) for run in runs]
        return {field: torch.cat([part[field] for part in parts]) for parts in (found, words) for field in parts[0]}

    def _parts(
        self, run: tuple[int, int, int], names: Mapping[str, str], checksums: str, starts: list[int]
    ) -> dict[str, Tensor]:
        number, first, last = run
        try:
            if number not in self._open:
                self._open[number] = safe_open(str(self.files[number]), framework="pt")
            shard = self._open[number]
            header = shard.metadata() or {}
            if (checksums, number) not in self._unseen:
                self._unseen[checksums, number] = dict(enumerate(json.loads(header.get(checksums, "[]"))))
            there = set(shard.keys())
            found = {field: shard.get_slice(name)[first:last] for field, name in names.items() if name in there}
            values = {names[field]: value for field, value in found.items()}
            unseen = self._unseen[checksums, number]
            if (
                checksums == "checksums"
                and "word_checksums" not in header
                and not unseen.keys().isdisjoint(range(first, last))
            ):
                # with one caption for each sample, one checksum is for all tensors
                values[WORDS] = shard.get_slice(WORDS)[first:last]
        except (SafetensorError, OSError, ValueError) as err:
            raise DataError(_broken(self.files[number], err)) from err
        self._verify(run, values, checksums, starts)
        return found

    def _verify(
        self, run: tuple[int, int, int], values: Mapping[str, Tensor], checksums: str, starts: list[int]
    ) -> None:
        """Compare the checksums of rows when they are read for the first time."""
        number, first, last = run
        unseen = self._unseen[checksums, number]
        if not any(row in unseen for row in range(first, last)):
            return
        for row, checksum in zip(range(first, last), row_checksums(values), strict=True):
            if unseen.pop(row, checksum) != checksum:
                place = starts[number] + row
                words = checksums == "word_checksums"
                sample = bisect_right(self.first_caption, place) - 1 if words else place
                raise DataError(
                    _broken(self.files[number], f"object {self.object_ids[sample]} has changed since it was written")
                )


def _runs(indices: list[int], starts: list[int], *, total: int) -> list[tuple[int, int, int]]:
    """Group consecutive rows in order: (number of the file, its first row, the row after the last)."""
    ends, runs = [*starts[1:], total], []
    for index in indices:
        number = bisect_right(starts, index) - 1
        row = index - starts[number]
        if runs and runs[-1][0] == number and runs[-1][2] == row and index < ends[number]:
            runs[-1] = (number, runs[-1][1], row + 1)
        else:
            runs.append((number, row, row + 1))
    return runs


def _num_rows(file: Path) -> tuple[int, int]:
    """Return the numbers of samples and of captions in a shard.

    This reads only the header, which also fails for a truncated shard.
    """
    try:
        with safe_open(str(file), framework="pt") as shard:
            return shard.get_slice("mean").get_shape()[0], shard.get_slice(WORDS).get_shape()[0]
    except (SafetensorError, OSError) as err:
        raise DataError(_broken(file, err)) from err


def _is_sample(sample: Any) -> bool:
    if not isinstance(sample, list) or len(sample) != 2 or not isinstance(sample[0], str):
        return False
    captions = [sample[1]] if isinstance(sample[1], str) else sample[1]
    return isinstance(captions, list) and bool(captions) and all(isinstance(one, str) for one in captions)


def _broken(file: Path, err: Exception | str) -> str:
    return f"cache_dir={file.parent}: {file.name} is broken ({err}); delete the folder to encode again"
