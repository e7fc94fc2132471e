"""Encoded samples, read out of a cache folder: kept on the device if they fit, else row by row from the files.

Either way a batch is the same, bit for bit. Letters: B batch, N samples, V views, C channels, H W latent pixels, L text
tokens.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from models.autoencoder import draw_like
from utils.errors import DataError
from utils.files import read_json

NAMES = {"mean_BCVHW": "mean", "std_BCVHW": "std", "c2w_BV44": "c2w", "words_BLC": "words"}
NAMES |= {"image_BVC": "image"}


@dataclass(frozen=True, kw_only=True)
class LatentRows:
    """Some encoded samples.

    Attributes:
        mean_BCVHW: scaled posterior means, float16.
        c2w_BV44: cameras, float32.
        words_BLC: text tokens of the captions, float16.
        std_BCVHW: scaled deviations, or None when the mode is taken.
        image_BVC: image embedding of every view, float16, or None when the network takes none.
    """

    mean_BCVHW: Tensor
    c2w_BV44: Tensor
    words_BLC: Tensor
    std_BCVHW: Tensor | None = None
    image_BVC: Tensor | None = None

    def draw(self, *, generator: torch.Generator | Sequence[torch.Generator]) -> Tensor:
        """Latents (B, C, V, H, W) float32: a fresh sample of the posterior, or its mode.

        Args:
            generator: one, or one for each sample.
        """
        mean_BCVHW = self.mean_BCVHW.float()
        if self.std_BCVHW is None:
            return mean_BCVHW
        return mean_BCVHW + self.std_BCVHW.float() * draw_like(mean_BCVHW, generator)

    def at(self, index_B: Tensor) -> LatentRows:
        """Some of them."""
        return self._each(lambda value: value[index_B.to(value.device)])

    def to(self, device: torch.device) -> LatentRows:
        """The same on another device."""
        return self._each(lambda value: value.to(device))

    def _each(self, change: Any) -> LatentRows:
        found = {name: value for name, value in vars(self).items() if value is not None}
        return dataclasses.replace(self, **{name: change(value) for name, value in found.items()})


class CachedLatents:
    """A complete cache. Files are opened when a row of them is asked for; the system pages them in and out.

    Attributes:
        captions: N sentences.
        object_ids: N names.
        num_bytes: of all tensors.

    Raises:
        DataError: the folder is empty, or shards are missing or broken.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        samples = read_json(self.folder / "samples.json", option="cache_dir")
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
        self._kept: LatentRows | None = None

    def __len__(self) -> int:
        return len(self.captions)

    def keep(self, device: torch.device) -> None:
        """Hold everything on a device from now on."""
        self._kept = self.rows(torch.arange(len(self))).to(device)
        self._open.clear()

    def rows(self, index_B: Tensor) -> LatentRows:
        """Samples by number: on the device if they are kept, else on the CPU.

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
            shard = self._open[number]
            there = set(shard.keys())
            return {field: shard.get_slice(name)[first:last] for field, name in NAMES.items() if name in there}
        except (SafetensorError, OSError) as err:
            raise DataError(_broken(self.files[number], err)) from err


def _runs(indices: list[int], starts: list[int], *, total: int) -> list[tuple[int, int, int]]:
    """Rows to read together, in order: the file's number, the first row in it, and the one after the last."""
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
    """Samples in a shard. Reads its header only, which a shard that is cut off does not get through."""
    try:
        with safe_open(str(file), framework="pt") as shard:
            return shard.get_slice("mean").get_shape()[0]
    except (SafetensorError, OSError) as err:
        raise DataError(_broken(file, err)) from err


def _broken(file: Path, err: Exception) -> str:
    return f"cache_dir={file.parent}: {file.name} is broken ({err}); delete the folder to encode again"
