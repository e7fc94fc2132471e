"""Latents of a whole data set, encoded once and kept beside what made them.

A cache folder holds safetensors shards, `samples.json` and `fingerprint.json`. The fingerprint is written last and
names the weights of the encoders, the data set and its index: when any of it differs, the cache is made again.

Letters: N samples, V views, C channels, H W latent pixels.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.autoencoder import draw_like
from utils.errors import DataError
from utils.files import atomic_path, read_json, writable_folder, write_json

log = logging.getLogger(__name__)

SHARD_SIZE = 128  # samples
LAYOUT = 2  # raise it when the content of shards changes


@dataclass(frozen=True, kw_only=True)
class CachedLatents:
    """Encoded samples.

    Attributes:
        mean_NCVHW: scaled posterior means, float16.
        std_NCVHW: scaled deviations, or None when the mode is taken.
        c2w_NV44: cameras, float32.
        captions: N sentences.
        object_ids: N names.
        image_NVC: image embedding of every view, float16, or None when the network takes none.
    """

    mean_NCVHW: Tensor
    std_NCVHW: Tensor | None
    c2w_NV44: Tensor
    captions: list[str]
    object_ids: list[str]
    image_NVC: Tensor | None = None

    def __len__(self) -> int:
        return len(self.captions)

    def draw(self, index_B: Tensor, *, generator: torch.Generator | Sequence[torch.Generator]) -> Tensor:
        """Latents (B, C, V, H, W) float32: a fresh sample of the posterior, or its mode.

        Args:
            generator: one, or one for each sample.
        """
        mean_BCVHW = self.mean_NCVHW[index_B].float()
        if self.std_NCVHW is None:
            return mean_BCVHW
        return mean_BCVHW + self.std_NCVHW[index_B].float() * draw_like(mean_BCVHW, generator)

    def to(self, device: torch.device) -> CachedLatents:
        """The same on another device."""
        tensors = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return dataclasses.replace(self, **tensors)


@dataclass(frozen=True, kw_only=True)
class EncodedChunk:
    """Some samples on their way into the cache; fields as in CachedLatents."""

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


def write_cache(folder: str | Path, chunks: Iterable[EncodedChunk], wanted: Mapping[str, Any]) -> None:
    """Fill the folder; until the last file is written it counts as empty.

    Raises:
        DataError: the folder cannot be written.
    """
    folder = writable_folder(folder, option="cache_dir")
    for old in (folder / "fingerprint.json", *sorted(folder.glob("latents_*.safetensors"))):
        old.unlink(missing_ok=True)
    samples: list[list[str]] = []
    for number, chunk in enumerate(chunks):
        tensors = {"mean": chunk.mean_BCVHW.half(), "c2w": chunk.c2w_BV44.float()}
        if chunk.std_BCVHW is not None:
            tensors["std"] = chunk.std_BCVHW.half()
        if chunk.image_BVC is not None:
            tensors["image"] = chunk.image_BVC.half()
        with atomic_path(folder / f"latents_{number:05d}.safetensors") as part:
            save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, part)
        samples += map(list, zip(chunk.object_ids, chunk.captions, strict=True))
    write_json(folder / "samples.json", samples)
    write_json(folder / "fingerprint.json", dict(wanted))


def read_cache(folder: str | Path) -> CachedLatents:
    """Read a complete cache into memory.

    Raises:
        DataError: it is empty, or shards are missing or broken.
    """
    folder = Path(folder)
    samples = read_json(folder / "samples.json", option="cache_dir")
    try:
        shards = [load_file(file) for file in sorted(folder.glob("latents_*.safetensors"))]
    except (SafetensorError, OSError) as err:
        raise DataError(f"cache_dir={folder}: a shard is broken ({err}); delete the folder to encode again") from err
    if not shards or sum(len(shard["mean"]) for shard in shards) != len(samples):
        raise DataError(f"cache_dir={folder} is incomplete; delete the folder to encode again")
    joined = {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}
    return CachedLatents(
        mean_NCVHW=joined["mean"],
        std_NCVHW=joined.get("std"),
        c2w_NV44=joined["c2w"],
        captions=[caption for _, caption in samples],
        object_ids=[object_id for object_id, _ in samples],
        image_NVC=joined.get("image"),
    )
