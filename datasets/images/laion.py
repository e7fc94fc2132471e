"""Single images with captions from webdataset shards, with the published filters.

Nothing is unpacked: the positions of the images in a shard are looked up when the shard is first used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets.base import ImageData
from datasets.images.sample import image_sample
from datasets.images.shard import Shard, TarImage, expanded, read_shard
from utils.errors import ConfigError, DataError
from utils.registry import DATASETS

ENDLESS = 1 << 62


@DATASETS.register
class LAIONImageDataset(ImageData):
    """An endless sequence of the images of shards. `seed` determines the order: sample n is always the same.

    Each pass has a new order of shards. A visit to a shard takes `samples_per_visit` of its images; each visit takes
    other ones.
    """

    retired_keys = {"vit_resolution": "the embedder receives no images here"}
    endless = True

    @dataclass(frozen=True, kw_only=True)
    class Config(ImageData.Config):
        """`data_list` contains names of shards, with ranges: `{00000..60580}.tar`. The limits are the published ones.

        Attributes:
            max_watermark: highest `pwatermark`; null: no limit (also for the limits below).
            max_unsafe: highest `punsafe`.
            min_aesthetic: lowest `AESTHETIC_SCORE`.
            max_aspect: largest ratio of the longer to the shorter side.
            min_size: smallest length of the shorter side, in pixels.
            min_similarity: lowest `similarity` of image and caption.
            samples_per_visit: number of images that are taken from a shard before the next shard.
            seed: seed of the order.
        """

        max_watermark: float | None = 0.3
        max_unsafe: float | None = 0.2
        min_aesthetic: float | None = 4.0
        max_aspect: float | None = 3.0
        min_size: int | None = None
        min_similarity: float | None = None
        samples_per_visit: int = 4096
        seed: int = 0

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.samples_per_visit < 1:
                raise ConfigError(f"samples_per_visit must be >= 1, got {self.samples_per_visit}")

        def keeps(self, facts: Mapping[str, Any]) -> bool:
            """Whether an image passes the filters. It does not if it lacks a value that a limit needs."""
            width, height = (facts.get(key) or 0 for key in ("width", "height"))
            shortest = min(width, height)
            limits = (
                (facts.get("pwatermark"), None, self.max_watermark),
                (facts.get("punsafe"), None, self.max_unsafe),
                (facts.get("AESTHETIC_SCORE"), self.min_aesthetic, None),
                (max(width, height) / shortest if shortest else None, None, self.max_aspect),
                (shortest, self.min_size, None),
                (facts.get("similarity"), self.min_similarity, None),
            )
            return all(
                (low is None and high is None)
                or (value is not None and (low is None or value >= low) and (high is None or value <= high))
                for value, low, high in limits
            )

    def __init__(self, config: Config) -> None:
        """List the shards.

        Raises:
            DataError: a listed shard is missing.
        """
        super().__init__(config)
        self.files = [
            Path(folder) / name
            for pattern, folder in zip(config.data_list, config.data_dir_list, strict=True)
            for name in expanded(pattern)
        ]
        missing = [file for file in self.files if not file.is_file()]
        if missing:
            raise DataError(
                f"img_dataset.data_list: {len(missing)} of {len(self.files)} shards are missing, the first is "
                f"{missing[0]}; set data_dir_list to their folder, and data_list to the range that exists"
            )
        self.noticed: list[str] = []
        self._open: dict[int, Shard] = {}

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample, see `datasets.images.sample.image_sample`.

        Raises:
            DataError: the image is broken, or no image of its shard passes the filters.
        """
        image, file = self._find(index)
        with file.open("rb") as shard:
            shard.seek(image.offset)
            raw = shard.read(image.num_bytes)
        return image_sample(raw, image.caption, name=f"{file}/{image.name}", options=self.config)

    def take_problems(self) -> list[str]:
        found, self.noticed = self.noticed, []
        return found

    def instead_of(self, index: int) -> int:
        """The index to use instead of a broken one: the next, or the next visit's first if this shard has no image."""
        visit = index // self.config.samples_per_visit
        return index + 1 if self._shard(visit).images else (visit + 1) * self.config.samples_per_visit

    def name_of(self, index: int) -> str:
        """Name of a sample in messages."""
        try:
            image, file = self._find(index)
        except DataError as err:
            return str(err)
        return f"{file}/{image.name}"

    def _find(self, index: int) -> tuple[TarImage, Path]:
        visit, place = divmod(index, self.config.samples_per_visit)
        shard = self._shard(visit)
        if not shard.images:
            raise DataError(f"{shard.file}: no image passes the filters ({shard.num_left_out} are left out)")
        # if a shard has fewer images than a visit takes, they repeat in the same order
        order = np.random.default_rng([self.config.seed, visit]).permutation(len(shard.images))
        return shard.images[order[place % len(order)]], shard.file

    def _shard(self, visit: int) -> Shard:
        number_of_pass, place = divmod(visit, len(self.files))
        if visit not in self._open:
            order = np.random.default_rng([self.config.seed, number_of_pass, 1]).permutation(len(self.files))
            shard = read_shard(self.files[order[place]], keeps=self.config.keeps)
            self.noticed += shard.problems
            if len(self._open) > 1:
                del self._open[next(iter(self._open))]
            self._open[visit] = shard
        return self._open[visit]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}, "noticed": []}
