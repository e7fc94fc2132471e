"""A cache of the latents and text tokens of a whole data set, which are encoded once.

A cache folder contains safetensors shards, `samples.json` and `fingerprint.json`. The fingerprint is written last and
identifies the weights of the encoders, the data set, its index and its files. If any of them changes, the cache is made
again.

Letters: B samples, V views, C channels, H W latent pixels, L text tokens.
"""

from __future__ import annotations

import dataclasses
import hashlib
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
from torch import Tensor, nn

from models.autoencoder import draw_like
from utils.errors import DataError, WriteError
from utils.files import atomic_path, read_json, sole_use, writable_folder, write_json
from utils.processes import is_main, num_processes, process_rank, seen_by_all, wait_for_all

log = logging.getLogger(__name__)

SHARD_SIZE = 128  # samples per shard
BEGUN = "begun.json"  # the fingerprint of an incomplete cache
LAYOUT = 3  # increase it when the content of shards changes


@dataclass(frozen=True, kw_only=True)
class EncodedChunk:
    """Some encoded samples for the cache.

    Attributes:
        first: index of the first sample in the data set.
        mean_BCVHW: scaled means of the posterior.
        std_BCVHW: scaled standard deviations of the posterior, or None if its mode is used.
        c2w_BV44: cameras.
        captions: B captions.
        object_ids: B names.
        words_BLC: text tokens of the captions for the network.
        image_BVC: image embedding of every view, or None for a text model.
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
    """Return everything on which latents, text tokens and image embeddings depend, as plain values.

    Args:
        autoencoder: its weights, scale and kind of posterior are included.
        options: options of the data set.
        index: values that identify the samples and their captions, in order.
        pictures: `stamp_of` some image files, to detect changed images.
        encoder: the encoder of text and images (`visual`).
        with_images: whether the cache also contains image embeddings.
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
    """Return the size and the modification time of a file, without opening it; None if it is missing."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _digest_of_list(values: Iterable[Any]) -> str:
    return hashlib.sha256(json.dumps(list(values), default=str).encode()).hexdigest()


def digest_of(module: nn.Module, *, without: str | None = None) -> str:
    """Return the SHA-256 of a module's weights, equal on all devices; names starting with `without` are left out."""
    weights = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if without is None or not name.startswith(without):
            weights.update(name.encode())
            weights.update(value.detach().float().cpu().contiguous().numpy())
    return weights.hexdigest()


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
    fields |= {"words": "words_BLC", "image": "image_BVC"}
    joined = {}
    for name, field in fields.items():
        parts = [getattr(chunk, field) for chunk in chunks]
        if parts[0] is not None:
            joined[name] = torch.cat([part.cpu() for part in parts]).to(
                torch.float32 if name == "c2w" else torch.float16
            )
    samples = [sample for chunk in chunks for sample in zip(chunk.object_ids, chunk.captions, strict=True)]
    for name, values in joined.items():
        bad = (~values.flatten(1).isfinite().all(dim=1)).nonzero().flatten().tolist()
        if bad:
            raise DataError(
                f"cache_dir={file.parent}: the {name} of object {samples[bad[0]][0]} is not finite (NaN or infinite); "
                "check its views and the weights of the encoders"
            )
    header = {"samples": json.dumps(samples), "checksums": json.dumps(row_checksums(joined))}
    with _writing(file.parent), atomic_path(file) as part:
        save_file({name: value.contiguous() for name, value in joined.items()}, part, header)


def row_checksums(values: Mapping[str, Tensor]) -> list[int]:
    """Return a checksum of each sample: sums of 2-byte words, times an odd number from each name, modulo 2**64."""
    total_N = np.zeros(len(next(iter(values.values()))), dtype=np.uint64)
    for name, value in values.items():
        words_NW = value.contiguous().flatten(1).view(torch.uint8).numpy().view(np.uint16)
        total_N += words_NW.sum(axis=1, dtype=np.uint64) * np.uint64(zlib.crc32(name.encode()) | 1)
    return total_N.tolist()


def _samples_in(file: Path) -> list[list[str]] | None:
    """Return the object id and caption of each sample in a shard; None if it is missing or incomplete."""
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


NAMES = {"mean_BCVHW": "mean", "std_BCVHW": "std", "c2w_BV44": "c2w", "words_BLC": "words"}
NAMES |= {"image_BVC": "image"}


@dataclass(frozen=True, kw_only=True)
class LatentRows:
    """Some encoded samples.

    Attributes:
        mean_BCVHW: scaled means of the posterior, float16.
        c2w_BV44: cameras, float32.
        words_BLC: text tokens of the captions, float16.
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

    def at(self, index_B: Tensor) -> LatentRows:
        """Select samples by index."""
        return self._each(lambda value: value[index_B.to(value.device)])

    def to(self, device: torch.device) -> LatentRows:
        """Move all tensors to a device."""
        return self._each(lambda value: value.to(device))

    def _each(self, change: Any) -> LatentRows:
        found = {name: value for name, value in vars(self).items() if value is not None}
        return dataclasses.replace(self, **{name: change(value) for name, value in found.items()})


class CachedLatents:
    """A complete cache. A file is opened when one of its rows is needed, and is read through memory mapping.

    Attributes:
        captions: N captions.
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
        self.captions = [caption for _, caption in samples]
        self.files = sorted(self.folder.glob("latents_*.safetensors"))
        self.starts, self.num_bytes, num_rows = [], 0, 0
        for file in self.files:
            self.starts.append(num_rows)
            num_rows += _num_rows(file)
            self.num_bytes += file.stat().st_size
        if not self.files or num_rows != len(samples):
            raise DataError(f"cache_dir={folder} is incomplete; delete the folder to encode again")
        self._open: dict[int, Any] = {}
        self._unseen: dict[int, dict[int, int]] = {}  # by number of the file: checksums of rows not read before
        self._kept: LatentRows | None = None

    def __len__(self) -> int:
        return len(self.captions)

    def keep(self, device: torch.device) -> None:
        """Load all samples and keep them on a device."""
        self._kept = self.rows(torch.arange(len(self))).to(device)
        self._open.clear()

    def rows(self, index_B: Tensor) -> LatentRows:
        """Return samples by index, on the device after `keep`, else on the CPU.

        Raises:
            DataError: a file cannot be read.
        """
        if self._kept:
            return self._kept.at(index_B)
        found = [self._parts(index) for index in _runs(index_B.tolist(), self.starts, total=len(self))]
        return LatentRows(**{field: torch.cat([part[field] for part in found]) for field in found[0]})

    def _parts(self, run: tuple[int, int, int]) -> dict[str, Tensor]:
        number, first, last = run
        try:
            if number not in self._open:
                self._open[number] = safe_open(str(self.files[number]), framework="pt")
                checksums = json.loads((self._open[number].metadata() or {}).get("checksums", "[]"))
                self._unseen.setdefault(number, dict(enumerate(checksums)))
            shard = self._open[number]
            there = set(shard.keys())
            found = {field: shard.get_slice(name)[first:last] for field, name in NAMES.items() if name in there}
        except (SafetensorError, OSError, ValueError) as err:
            raise DataError(_broken(self.files[number], err)) from err
        self._verify(number, first, {NAMES[field]: value for field, value in found.items()})
        return found

    def _verify(self, number: int, first: int, values: Mapping[str, Tensor]) -> None:
        """Compare the checksums of rows when they are read for the first time."""
        unseen = self._unseen[number]
        rows = range(first, first + len(next(iter(values.values()))))
        if not any(row in unseen for row in rows):
            return
        for row, checksum in zip(rows, row_checksums(values), strict=True):
            if unseen.pop(row, checksum) != checksum:
                name = self.object_ids[self.starts[number] + row]
                raise DataError(_broken(self.files[number], f"object {name} has changed since it was written"))


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


def _num_rows(file: Path) -> int:
    """Return the number of samples in a shard. This reads only the header, which also fails for a truncated shard."""
    try:
        with safe_open(str(file), framework="pt") as shard:
            return shard.get_slice("mean").get_shape()[0]
    except (SafetensorError, OSError) as err:
        raise DataError(_broken(file, err)) from err


def _is_sample(sample: Any) -> bool:
    return isinstance(sample, list) and len(sample) == 2 and all(isinstance(part, str) for part in sample)


def _broken(file: Path, err: Exception | str) -> str:
    return f"cache_dir={file.parent}: {file.name} is broken ({err}); delete the folder to encode again"
