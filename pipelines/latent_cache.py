"""Latents of a whole data set, encoded once and kept beside what made them. pipelines/cached_latents.py reads them.

A cache folder holds safetensors shards, `samples.json` and `fingerprint.json`. The fingerprint is written last and
names the weights of the encoders, the data set and its index: when any of it differs, the cache is made again.

Letters: B samples, V views, C channels, H W latent pixels.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from utils.errors import DataError
from utils.files import atomic_path, read_json, writable_folder, write_json

log = logging.getLogger(__name__)

SHARD_SIZE = 128  # samples
BEGUN = "begun.json"  # the fingerprint of what is being encoded
LAYOUT = 2  # raise it when the content of shards changes


@dataclass(frozen=True, kw_only=True)
class EncodedChunk:
    """Some samples on their way into the cache.

    Attributes:
        mean_BCVHW: scaled posterior means.
        std_BCVHW: scaled deviations, or None when the mode is taken.
        c2w_BV44: cameras.
        captions: B sentences.
        object_ids: B names.
        image_BVC: image embedding of every view, or None when the network takes none.
    """

    mean_BCVHW: Tensor
    std_BCVHW: Tensor | None
    c2w_BV44: Tensor
    captions: list[str]
    object_ids: list[str]
    image_BVC: Tensor | None = None


def fingerprint(
    autoencoder: nn.Module,
    *,
    options: Mapping[str, Any],
    index: Iterable[Any],
    image_encoder: nn.Module | None = None,
) -> dict[str, Any]:
    """What latents depend on, as plain values.

    Args:
        autoencoder: its weights, scale and kind of posterior count.
        options: of the data set.
        index: whatever names the samples and their captions, in order.
        image_encoder: its weights count where image embeddings are kept.
    """
    embeddings = {} if image_encoder is None else {"image_weights": digest_of(image_encoder)}
    return embeddings | {
        "layout": LAYOUT,
        "weights": digest_of(autoencoder),
        "scale_factor": autoencoder.scale_factor,
        "posterior": autoencoder.config.posterior,
        "dataset": json.loads(json.dumps(dict(options), sort_keys=True, default=str)),
        "index": hashlib.sha256(json.dumps(list(index), default=str).encode()).hexdigest(),
    }


def digest_of(module: nn.Module) -> str:
    """SHA-256 of a module's weights, the same on any device."""
    weights = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        weights.update(name.encode())
        weights.update(value.detach().float().cpu().contiguous().numpy().tobytes())
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
    folder: str | Path, encode: Callable[[str | None], Iterable[EncodedChunk]], wanted: Mapping[str, Any]
) -> None:
    """Fill the folder; until the last file is written it counts as empty.

    Args:
        encode: gives the samples that come after the one of that name; after None: all.
        wanted: the fingerprint. What a stopped run left under the same one stays, and encoding goes on there.

    Raises:
        DataError: the folder cannot be written, or the disk is full.
    """
    folder = writable_folder(folder, option="cache_dir")
    samples: list[list[str]] = []
    begun = folder / BEGUN
    if begun.is_file() and read_json(begun, option="cache_dir") == dict(wanted):
        samples = _samples_so_far(folder)
        log.info("%d orbits are there already", len(samples))
    else:
        for old in (folder / "fingerprint.json", *sorted(folder.glob("latents_*.safetensors"))):
            old.unlink(missing_ok=True)
        with _writing(folder):
            write_json(begun, dict(wanted))
    first = len(list(folder.glob("latents_*.safetensors")))
    for number, shard in enumerate(_in_shards(encode(samples[-1][0] if samples else None)), start=first):
        tensors = {name: torch.cat([chunk[name] for chunk in shard.tensors]) for name in shard.tensors[0]}
        with _writing(folder), atomic_path(folder / f"latents_{number:05d}.safetensors") as part:
            save_file(tensors, part, metadata={"samples": json.dumps(shard.samples)})
        samples += shard.samples
    with _writing(folder):
        write_json(folder / "samples.json", samples)
        write_json(folder / "fingerprint.json", dict(wanted))
        begun.unlink()


def _samples_so_far(folder: Path) -> list[list[str]]:
    """What the shards of a stopped run hold; one that is broken, and those after it, go away."""
    samples: list[list[str]] = []
    files = sorted(folder.glob("latents_*.safetensors"))
    for number, file in enumerate(files):
        try:
            with safe_open(str(file), framework="pt") as shard:
                samples += json.loads(shard.metadata()["samples"])
        except (SafetensorError, OSError, TypeError, KeyError, ValueError):
            for left in files[number:]:
                left.unlink()
            break
    return samples


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


class _Shard(NamedTuple):
    """What goes into one file: tensors of each chunk by name, and object id and caption of each sample."""

    tensors: list[dict[str, Tensor]]
    samples: list[list[str]]


def _in_shards(chunks: Iterable[EncodedChunk]) -> Iterator[_Shard]:
    """Put chunks together until they are SHARD_SIZE samples or a few more."""
    shard = _Shard([], [])
    for chunk in chunks:
        tensors = {"mean": chunk.mean_BCVHW.half(), "c2w": chunk.c2w_BV44.float()}
        if chunk.std_BCVHW is not None:
            tensors["std"] = chunk.std_BCVHW.half()
        if chunk.image_BVC is not None:
            tensors["image"] = chunk.image_BVC.half()
        shard.tensors.append({name: value.cpu().contiguous() for name, value in tensors.items()})
        shard.samples.extend(map(list, zip(chunk.object_ids, chunk.captions, strict=True)))
        if len(shard.samples) >= SHARD_SIZE:
            yield shard
            shard = _Shard([], [])
    if shard.samples:
        yield shard
