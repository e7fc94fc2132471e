"""The UNet learns to denoise the latents of orbits.

Letters: B batch, V views, C channels, L tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pipelines.latent_cache import (
    SHARD_SIZE,
    CachedLatents,
    EncodedChunk,
    fingerprint,
    is_current,
    read_cache,
    write_cache,
)
from pipelines.objectives.base import Objective
from pipelines.orbit_pixels import load_orbits, shuffled
from utils.cameras import camera_condition
from utils.registry import AUTO_ENCODER, DATASETS, DIFFUSION, EMBEDDER, ENGINE, MODEL, VISUAL
from utils.run_config import RunConfig

log = logging.getLogger(__name__)


class DiffusionBatch(NamedTuple):
    """One step's data: scaled latents (B, C, V, h, w), token numbers (B, L), camera conditions (B, V, 16)."""

    latents_BCVHW: Tensor
    token_ids_BL: Tensor
    camera_data_BV16: Tensor


@ENGINE.register(name="train_t2v_entrance")
class TextToOrbit(Objective):
    """Text and cameras to orbits, as published."""

    stem = "t2v"

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """
        Attributes:
            dropped_prompt: the text that replaces a prompt with probability `p_zero`.
        """

        dropped_prompt: str = ""

    def __init__(self, config: Config, *, cfg: RunConfig, device: torch.device) -> None:
        super().__init__(cfg, device=device, num_views=cfg.frame_lens[0])
        self.dataset = DATASETS.build(cfg.vid_dataset, where="vid_dataset")
        self.diffusion = DIFFUSION.build(cfg.Diffusion, where="Diffusion")
        self.network = MODEL.build(cfg.UNet, where="UNet")
        self.autoencoder = _frozen(AUTO_ENCODER.build(cfg.auto_encoder, where="auto_encoder"), device)
        self.embedder = _frozen(EMBEDDER.build(cfg.embedder, where="embedder"), device)
        self.dropped_ids_1L = self.embedder.tokenize([config.dropped_prompt])

    def batches(self) -> Iterator[DiffusionBatch]:
        return self._cached_batches(self.cached_latents()) if self.cfg.cache_latents else self._encoded_batches()

    def forward(self, batch: DiffusionBatch) -> tuple[Tensor, dict[str, Tensor]]:
        x0 = batch.latents_BCVHW
        t_B = torch.randint(self.diffusion.num_timesteps, (len(x0),), generator=self.generator, device=x0.device)
        noise = self.diffusion.make_noise(x0, generator=self.generator)
        x_t = self.diffusion.add_noise(x0, noise, t_B)
        if self.cfg.Pretrain.get("fix_weight"):
            # A group norm of channels_last data that needs no gradient crashes on the CPU (torch 2.10).
            x_t.requires_grad_()
        prediction = self.network(
            x_t,
            t_B,
            self.words(batch.token_ids_BL),
            camera_data=batch.camera_data_BV16,
            fps=torch.full_like(t_B, self.cfg.target_fps),
        )
        loss = self.diffusion.loss(prediction, self.diffusion.training_target(x0, noise, t_B))
        return loss, {}

    @torch.no_grad()
    def words(self, token_ids_BL: Tensor) -> Tensor:
        """Text tokens (B, L, C); a share of `p_zero` of the prompts is dropped for guidance."""
        drop_B = torch.rand(len(token_ids_BL), generator=self.generator, device=token_ids_BL.device) < self.cfg.p_zero
        token_ids_BL = torch.where(drop_B[:, None], self.dropped_ids_1L.to(token_ids_BL), token_ids_BL)
        return self.embedder.embed_tokens(token_ids_BL)[1]

    def cached_latents(self) -> CachedLatents:
        """The whole data set as latents, encoded now unless the cache is up to date."""
        wanted = fingerprint(self.autoencoder, options=self.cfg.vid_dataset, index=_index_of(self.dataset))
        if not is_current(self.cfg.cache_dir, wanted):
            log.info("encoding %d orbits into %s", len(self.dataset), self.cfg.cache_dir)
            write_cache(self.cfg.cache_dir, self._encode_all(), wanted)
        return read_cache(self.cfg.cache_dir)

    def parts_to_compile(self) -> list[nn.Module]:
        return self.network.parts_to_compile()

    def preview(self, folder: Path, step: int) -> None:
        if not self.cfg.visual_train:
            return
        visual = VISUAL.build(self.cfg.visual_train, where="visual_train")
        visual.write(
            folder,
            step,
            cfg=self.cfg,
            unet=self.network,
            autoencoder=self.autoencoder,
            embedder=self.embedder,
            diffusion=self.diffusion,
        )

    def _cached_batches(self, cached: CachedLatents) -> Iterator[DiffusionBatch]:
        cached = cached.to(self.device)
        token_ids_NL = self.embedder.tokenize(cached.captions)
        camera_data_NV16 = camera_condition(cached.c2w_NV44)
        for index_B in shuffled(len(token_ids_NL), self.batch_size, generator=self.generator):
            latents_BCVHW = cached.draw(index_B, generator=self.generator)
            yield DiffusionBatch(latents_BCVHW, token_ids_NL[index_B], camera_data_NV16[index_B])

    def _encoded_batches(self) -> Iterator[DiffusionBatch]:
        for views_BVCHW, c2w_BV44, captions in self._samples(self.batch_size, endless=True):
            with torch.no_grad():
                latents_BCVHW = self.autoencoder.encode_views(
                    views_BVCHW, generator=self.generator, chunk=self.cfg.chunk_size
                )
            camera_data_BV16 = camera_condition(c2w_BV44.to(self.device))
            yield DiffusionBatch(latents_BCVHW.float(), self.embedder.tokenize(captions), camera_data_BV16)

    @torch.no_grad()
    def _encode_all(self) -> Iterator[EncodedChunk]:
        keep_std = self.autoencoder.config.posterior == "sample"
        for views_BVCHW, c2w_BV44, captions in self._samples(SHARD_SIZE, endless=False):
            parts = [
                self.autoencoder.view_posteriors(views, chunk=self.cfg.chunk_size) for views in views_BVCHW.split(16)
            ]
            mean_BCVHW, std_BCVHW = (torch.cat(moment) for moment in zip(*parts, strict=True))
            yield EncodedChunk(
                mean_BCVHW=mean_BCVHW,
                std_BCVHW=std_BCVHW if keep_std else None,
                c2w_BV44=c2w_BV44,
                captions=captions,
            )

    def _samples(self, batch_size: int, *, endless: bool) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
        """Views in [0, 1] on the device, cameras and prompts; in order and once, or shuffled without end."""
        if hasattr(self.dataset, "stored"):
            orbits = load_orbits(self.dataset, device=self.device)
            indices = (
                shuffled(orbits.num_orbits, batch_size, generator=self.generator)
                if endless
                else torch.arange(orbits.num_orbits).split(batch_size)
            )
            for index_B in indices:
                captions = [orbits.captions[number] for number in index_B.tolist()]
                yield orbits.views(index_B)[0], orbits.c2w_NV44[index_B.cpu()], captions
            return
        while True:
            for sample in self._loader(batch_size, shuffle=endless):
                yield sample["views_VCHW"].to(self.device, non_blocking=True), sample["c2w_V44"], sample["caption"]
            if not endless:
                return

    def _loader(self, batch_size: int, *, shuffle: bool) -> DataLoader[Any]:
        workers = self.cfg.num_workers
        return DataLoader(
            self.dataset,
            batch_size=min(batch_size, len(self.dataset)),
            shuffle=shuffle,
            drop_last=shuffle,
            num_workers=workers,
            prefetch_factor=self.cfg.prefetch_factor if workers else None,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator().manual_seed(self.cfg.seed),
        )


def _frozen(module: nn.Module, device: torch.device) -> Any:
    return module.requires_grad_(False).to(device).eval()


def _index_of(dataset: Any) -> list[Any]:
    """What names a data set's samples and captions, in order."""
    if hasattr(dataset, "prompt"):
        return [(dataset.object_ids[number], dataset.prompt(number)) for number in range(len(dataset))]
    return [(str(folder), object_id, dataset.captions.get(object_id)) for folder, object_id in dataset.entries]
