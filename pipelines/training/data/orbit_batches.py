"""Batches of orbits for a generator, encoded during training or taken from the cache.

Letters: N samples of a data set, M captions of all of them, B batch, V views, C channels, L tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from datasets.base import OrbitData
from models.encoders import Autoencoder, Embedder
from pipelines.training.data.global_batch import GlobalBatch, KindOfBatch
from pipelines.training.data.latent_cache import (
    CachedLatents,
    EncodedChunk,
    check_shared,
    fingerprint,
    is_current,
    stamp_of,
    write_cache,
)
from pipelines.training.data.orbits_in_memory import load_orbits
from pipelines.training.data.reading import read_samples
from utils.cameras import camera_condition
from utils.processes import is_main, largest, main_first
from utils.settings.run import RunConfig

log = logging.getLogger(__name__)

READ_SIZE = 16  # number of orbits that are read and encoded together for the cache: 0.3 GB at full size


class DiffusionBatch(NamedTuple):
    """The data of one step.

    Attributes:
        latents_BCVHW: scaled latents.
        token_ids_BL: token ids of the captions; None: the embedder has none, and the words are given.
        camera_data_BV16: camera conditions; None for images, which have no camera.
        image_B1C: image embedding of view 0; None for a text model.
        words_BLC: text tokens of the captions, from the cache or an embedder without token ids; else None.
    """

    latents_BCVHW: Tensor
    token_ids_BL: Tensor | None
    camera_data_BV16: Tensor | None
    image_B1C: Tensor | None = None
    words_BLC: Tensor | None = None


class OrbitBatches:
    """Makes the batches of a data set of orbits.

    Args:
        cfg: the run's configuration, with the settings of the cache.
        dataset: the orbits.
        global_batch: random numbers for the rows of this process.
        dealer: determines the samples of each batch; it is the global batch if all batches are orbits.
        autoencoder, embedder: frozen, on the device.
        embeds_images: whether batches have the image embedding of view 0, for a generator that takes it.

    Attributes:
        source: the data set or the cache, with the `object_ids` of the samples.
    """

    def __init__(
        self,
        cfg: RunConfig,
        *,
        dataset: OrbitData,
        global_batch: GlobalBatch,
        dealer: GlobalBatch | KindOfBatch,
        autoencoder: Autoencoder,
        embedder: Embedder,
        embeds_images: bool,
        device: torch.device,
    ) -> None:
        self.cfg, self.dataset, self.global_batch, self.dealer = cfg, dataset, global_batch, dealer
        self.autoencoder, self.embedder, self.embeds_images, self.device = autoencoder, embedder, embeds_images, device
        # Views are rolled here, after encoding, for all ways of reading; this is possible because encoding is per
        # image.
        self.random_start_view = cfg.vid_dataset.options.random_start_view
        self.source = dataset
        self.num_tokens: int | None = None  # see Embedder.prepare

    def batches(self, start: int = 0) -> Iterator[DiffusionBatch]:
        """Yield batches without end; for `start` see Objective.batches."""
        if self.cfg.cache_latents:
            return self.cached_batches(self.cached_latents(), start)
        return self.encoded_batches(start)

    def cached_latents(self) -> CachedLatents:
        """Return the latents of the whole data set; encode it first if the cache is not up to date."""
        options = {name: value for name, value in self.cfg.vid_dataset.given.items() if name != "random_start_view"}
        wanted, outdated = {}, False
        if is_main():  # copies of the data on other machines may have other modification times
            wanted = fingerprint(
                self.autoencoder,
                options=options,
                index=map(self.dataset.identity, range(len(self.dataset))),
                pictures=map(stamp_of, self.dataset.source_files()),
                embedder=self.embedder,
                with_images=self.embeds_images,
            )
            outdated = not is_current(self.cfg.cache_dir, wanted)
        if any(largest(outdated)):  # all processes encode, or none
            self._prepare_texts()
            log.info("encoding %d orbits into %s", len(self.dataset), self.cfg.cache_dir)
            write_cache(self.cfg.cache_dir, self._encode, wanted, num_samples=len(self.dataset))
        check_shared(self.cfg.cache_dir, "samples.json")
        cached = CachedLatents(self.cfg.cache_dir)
        if len(cached) < len(self.dataset):
            left_out = len(self.dataset) - len(cached)
            log.warning(
                "%d broken orbits are not in %s; delete this folder after repairing them", left_out, self.cfg.cache_dir
            )
        return cached

    def cached_batches(self, cached: CachedLatents, start: int = 0) -> Iterator[DiffusionBatch]:
        """Yield batches from the cache, which stays on the device if it fits into `cache_memory_gb`."""
        self.source = cached
        token_ids_ML = None
        if cached.num_bytes <= self.cfg.cache_memory_gb * 1e9:
            cached.keep(self.device)
            token_ids_ML = self.texts(cached.all_captions, words=False)[0]
        for index_B in self.dealer.order(len(cached), start=start):
            caption_B = self._caption_rows(cached, index_B)
            rows = cached.rows(index_B, caption_B).to(self.device)
            latents_BCVHW = rows.draw(generator=self.global_batch.row_generators())
            if token_ids_ML is None:
                token_ids_BL, _ = self.texts([cached.all_captions[row] for row in caption_B.tolist()], words=False)
            else:
                token_ids_BL = token_ids_ML[caption_B.to(token_ids_ML.device)]
            image_BVC = rows.image_BVC.float() if self.embeds_images else None
            batch = self._batch(latents_BCVHW, token_ids_BL, camera_condition(rows.c2w_BV44), image_BVC)
            yield batch._replace(words_BLC=self.embedder.padded(rows.words_BLC.float()))

    def _caption_rows(self, cached: CachedLatents, index_B: Tensor) -> Tensor:
        """Draw a caption for each sample; returns its row among all captions of the cache."""
        counts = [len(cached.captions[index]) for index in index_B.tolist()]
        chosen = zip(index_B.tolist(), self.global_batch.choices(counts), strict=True)
        return torch.tensor([cached.first_caption[index] + choice for index, choice in chosen])

    def draw_captions(self, index_B: Tensor) -> list[str]:
        """Draw a caption for each sample of a batch; it depends on the step and the row, not on the way of reading."""
        prompts = [self.dataset.prompts(index) for index in index_B.tolist()]
        choices = self.global_batch.choices([len(one) for one in prompts])
        return [one[choice] for one, choice in zip(prompts, choices, strict=True)]

    def texts(self, captions: list[str], *, words: bool = True) -> tuple[Tensor | None, Tensor | None]:
        """Return what a batch needs of its captions: token ids, or without them the words, unless these are there."""
        if self.embedder.config.embeds_tokens:
            return self.embedder.tokenize(captions), None
        return None, self.embedder.encode_text(captions) if words else None

    def _prepare_texts(self) -> None:
        """Let the embedder prepare all captions of the data set: the main process encodes, the others find them."""
        if self.embedder.config.embeds_tokens:
            return
        prompts = dict.fromkeys(prompt for index in range(len(self.dataset)) for prompt in self.dataset.prompts(index))
        with main_first():
            self.num_tokens = self.embedder.prepare(list(prompts))

    def encoded_batches(self, start: int = 0) -> Iterator[DiffusionBatch]:
        self._prepare_texts()
        for views_BVCHW, c2w_BV44, _, index_B in self._views(start):
            with torch.no_grad():
                latents_BCVHW = self.autoencoder.encode_views(
                    views_BVCHW, generator=self.global_batch.row_generators(), chunk=self.cfg.chunk_size
                )
                image_BVC = self.embed_views(views_BVCHW)
            camera_data_BV16 = camera_condition(c2w_BV44.to(self.device))
            token_ids_BL, words_BLC = self.texts(self.draw_captions(index_B))
            batch = self._batch(latents_BCVHW.float(), token_ids_BL, camera_data_BV16, image_BVC)
            yield batch._replace(words_BLC=words_BLC)

    def _batch(self, latents_BCVHW, token_ids_BL, camera_data_BV16, image_BVC) -> DiffusionBatch:
        """Make a batch; with `random_start_view` each sample's images are rolled at random, but not the cameras."""
        if self.random_start_view:
            start_B = self.global_batch.randint(latents_BCVHW.shape[2], len(latents_BCVHW))
            latents_BCVHW = roll_views(latents_BCVHW.transpose(1, 2), start_B).transpose(1, 2)
            image_BVC = None if image_BVC is None else roll_views(image_BVC, start_B)
        image_B1C = None if image_BVC is None else image_BVC[:, :1]
        return DiffusionBatch(latents_BCVHW, token_ids_BL, camera_data_BV16, image_B1C)

    def embed_views(self, views_BVCHW: Tensor) -> Tensor | None:
        """Compute the image embedding of every view, (B, V, C), for an image model; else return None."""
        if not self.embeds_images:
            return None
        parts = [self.embedder.encode_image(part) for part in views_BVCHW.flatten(0, 1).split(self.cfg.chunk_size)]
        return torch.cat(parts).float().unflatten(0, views_BVCHW.shape[:2])

    @torch.no_grad()
    def _encode(self, ranges: list[range]) -> Iterator[EncodedChunk]:
        """Encode ranges of the data set, in order."""
        keep_std = self.autoencoder.config.posterior == "sample"
        for views_BVCHW, c2w_BV44, object_ids, index_B in self._views(ranges):
            captions = [self.dataset.prompts(index) for index in index_B.tolist()]
            parts = [
                self.autoencoder.view_posteriors(views, chunk=self.cfg.chunk_size) for views in views_BVCHW.split(16)
            ]
            mean_BCVHW, std_BCVHW = (torch.cat(moment) for moment in zip(*parts, strict=True))
            yield EncodedChunk(
                first=int(index_B[0]),
                mean_BCVHW=mean_BCVHW,
                std_BCVHW=std_BCVHW if keep_std else None,
                c2w_BV44=c2w_BV44,
                captions=captions,
                object_ids=object_ids,
                words_MLC=self._embed_all([caption for one in captions for caption in one]),
                image_BVC=self.embed_views(views_BVCHW),
            )

    def _embed_all(self, captions: list[str]) -> Tensor:
        """Encode captions (M, L, C), as many at a time as orbits are; without tokens that are zero for all captions."""
        starts = range(0, len(captions), READ_SIZE)
        words = [self.embedder.encode_text(captions[start : start + READ_SIZE]) for start in starts]
        return torch.cat([part[:, : self.num_tokens] for part in words])

    def _views(self, start: int | list[range]) -> Iterator[tuple[Tensor, Tensor, list[str], Tensor]]:
        """Yield views in [0, 1] on the device, cameras, object ids, and the samples' indices in the data set.

        Args:
            start: the first step, for shuffled batches without end; or ranges of the data set, once and in order.
        """
        if not self.dataset.in_memory:
            for sample in self.loader(start):
                views_BVCHW = sample["views_VCHW"].to(self.device, non_blocking=True)
                yield views_BVCHW, sample["c2w_V44"], list(sample["object_id"]), sample["index"]
            return
        orbits = load_orbits(self.dataset, device=self.device)
        for index_B in self._order(start):
            ids = [orbits.object_ids[index] for index in index_B.tolist()]
            yield orbits.views(index_B)[0], orbits.c2w_NV44[index_B], ids, index_B

    def _order(self, start: int | list[range]) -> Iterator[Tensor]:
        if isinstance(start, int):
            return self.dealer.order(len(self.dataset), start=start)
        return (index_B for rows in start for index_B in torch.tensor(list(rows)).split(READ_SIZE))

    def loader(self, start: int | list[range]) -> Iterable[dict[str, Any]]:
        """Yield batches of samples that are read from single files; for `start` see `_views`."""
        return read_samples(
            self.dataset,
            (index_B.tolist() for index_B in self._order(start)),
            replace=isinstance(start, int),
            max_bad=self.cfg.max_bad_samples,
            tool="tools/index_dataset.py",  # it also writes an index without broken samples
            num_workers=self.cfg.num_workers,
            prefetch_factor=self.cfg.prefetch_factor,
            pin_memory=self.device.type == "cuda",
        )


def roll_views(values_BV: Tensor, start_B: Tensor) -> Tensor:
    """Roll dimension 1 of each sample cyclically, so that it starts at its own index."""
    B, V = values_BV.shape[:2]
    order_BV = (start_B[:, None] + torch.arange(V, device=start_B.device)) % V
    return values_BV[torch.arange(B, device=start_B.device)[:, None], order_BV]
