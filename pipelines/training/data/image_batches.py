"""Batches of single images for a text model: orbits of one view without a camera.

Letters: B batch, L tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from datasets.base import ImageData
from models.encoders import Autoencoder, Embedder
from pipelines.training.data.global_batch import GlobalBatch, KindOfBatch
from pipelines.training.data.orbit_batches import DiffusionBatch
from pipelines.training.data.reading import read_samples
from utils.settings.run import RunConfig


class ImageBatches:
    """Makes the batches of a data set of images.

    Images are encoded when they are used, because there may be millions of them.

    Args:
        dataset: the images, see `ImageData`.
        global_batch: random numbers for the rows of this process.
        dealer: determines the samples of each batch.
        autoencoder, embedder: frozen, on the device.
    """

    def __init__(
        self,
        cfg: RunConfig,
        *,
        dataset: ImageData,
        global_batch: GlobalBatch,
        dealer: KindOfBatch,
        autoencoder: Autoencoder,
        embedder: Embedder,
        device: torch.device,
    ) -> None:
        self.cfg, self.dataset, self.global_batch, self.dealer = cfg, dataset, global_batch, dealer
        self.autoencoder, self.embedder, self.device = autoencoder, embedder, device

    def batches(self, start: int = 0) -> Iterator[DiffusionBatch]:
        """Yield batches without end; for `start` see Objective.batches."""
        endless = self.dataset.endless
        order = self.dealer.ranges(start=start) if endless else self.dealer.order(len(self.dataset), start=start)
        samples = read_samples(
            self.dataset,
            (index_B.tolist() for index_B in order),
            replace=True,
            max_bad=self.cfg.max_bad_samples,
            tool="tools/check_images.py",
            num_workers=self.cfg.num_workers,
            prefetch_factor=self.cfg.prefetch_factor,
            pin_memory=self.device.type == "cuda",
        )
        for sample in samples:
            with torch.no_grad():
                latents_BC1HW = self.autoencoder.encode_views(
                    sample["views_VCHW"].to(self.device, non_blocking=True),
                    generator=self.global_batch.row_generators(),
                    chunk=self.cfg.chunk_size,
                )
            yield DiffusionBatch(latents_BC1HW.float(), self.embedder.tokenize(list(sample["caption"])), None)

    def names(self, number: int) -> list[str]:
        """Return the names of the samples of a batch, by its number among all batches of images."""
        size = self.dealer.size
        if self.dataset.endless:
            indices = range(number * size, (number + 1) * size)
        else:
            indices = next(self.dealer.all_batches(len(self.dataset), start=number)).tolist()
        return [self.dataset.name_of(index) for index in indices]
