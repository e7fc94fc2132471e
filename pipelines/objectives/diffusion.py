"""The UNet learns to denoise the latents of orbits.

Letters: B batch, V views, C channels, L tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.lora import add_lora, lora_state
from models.weights import load_strict
from pipelines.conditioner import check_model_kind
from pipelines.data_reading import read_samples
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
from pipelines.objectives.known_view_training import KnownViewOptions, give_clean, weights_of_unknown
from pipelines.orbit_pixels import load_orbits
from utils.cameras import camera_condition
from utils.errors import ConfigError
from utils.memory_format import channels_last
from utils.processes import main_first
from utils.registry import AUTO_ENCODER, DATASETS, DIFFUSION, EMBEDDER, ENGINE, MODEL, VISUAL
from utils.run_config import RunConfig

log = logging.getLogger(__name__)


class DiffusionBatch(NamedTuple):
    """One step's data.

    Attributes:
        latents_BCVHW: scaled latents.
        token_ids_BL: token numbers of the captions.
        camera_data_BV16: camera conditions.
        image_B1C: image embedding of view 0; None for a text model.
    """

    latents_BCVHW: Tensor
    token_ids_BL: Tensor
    camera_data_BV16: Tensor
    image_B1C: Tensor | None = None


@ENGINE.register(name="train_t2v_entrance")
@ENGINE.register(name="train_i2v_entrance", image=True)
class OrbitDenoising(Objective):
    """Text or an image, and cameras, to orbits, as published.

    For an image model, view 0 of each sample is the image: its latent and its image embedding are conditions.
    """

    stem = "t2v"
    can_be_sharded = True

    @dataclass(frozen=True, kw_only=True)
    class Config(KnownViewOptions):
        """
        Attributes:
            dropped_prompt: the text that replaces a prompt with probability `p_zero`.
            image: train an image model; set by the type's name.
        """

        dropped_prompt: str = ""
        image: bool = False

    def __init__(self, config: Config, *, cfg: RunConfig, device: torch.device) -> None:
        super().__init__(cfg, device=device, num_views=cfg.frame_lens[0])
        config.check_known(image=config.image, num_views=cfg.frame_lens[0])
        self.options, self.of_images = config, config.image
        if config.image:
            self.stem = "i2v"
        # Latents roll here, after encoding, for all ways of reading: encoding works image by image.
        self.random_start_view = DATASETS.resolve(cfg.vid_dataset, where="vid_dataset")[1].random_start_view
        self.dataset = DATASETS.build({**cfg.vid_dataset, "random_start_view": False}, where="vid_dataset")
        self._source: Any = self.dataset
        self.diffusion = DIFFUSION.build(cfg.Diffusion, where="Diffusion")
        self.network = MODEL.build(cfg.UNet, where="UNet")
        if cfg.channels_last:
            channels_last(self.network)
        self.autoencoder = _frozen(AUTO_ENCODER.build(cfg.auto_encoder, where="auto_encoder"), device)
        self.embedder = _frozen(EMBEDDER.build(cfg.embedder, where="embedder"), device)
        check_model_kind(self.network, self.embedder, image=config.image, option=f"TASK_TYPE={cfg.TASK_TYPE}")
        self.dropped_ids_1L = self.embedder.tokenize([config.dropped_prompt])

    @property
    def unet(self) -> nn.Module:
        """The generator."""
        return self.network

    def batches(self, start: int = 0) -> Iterator[DiffusionBatch]:
        if self.cfg.cache_latents:
            return self._cached_batches(self.cached_latents(), start)
        return self._encoded_batches(start)

    @property
    def sample_source(self) -> Any:
        return self._source

    def forward(self, batch: DiffusionBatch) -> tuple[Tensor, dict[str, Tensor]]:
        x0 = batch.latents_BCVHW
        t_B = self.share.randint(self.diffusion.num_timesteps, len(x0))
        known_BV = self.options.draw_known(self.share, batch_size=len(x0), num_views=x0.shape[2])
        prediction, _, noise = self.predict(batch, t_B, known_BV)
        target = self.diffusion.training_target(x0, noise, t_B)
        return self.diffusion.loss(prediction, target, weights_of_unknown(known_BV)), {}

    def predict(
        self, batch: DiffusionBatch, t_B: Tensor, known_BV: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The network's prediction for noised latents, some of its conditions dropped; those latents; their noise.

        Args:
            known_BV: views that are given without noise.
        """
        x0 = batch.latents_BCVHW
        noise = self.share.draw(self.diffusion.make_noise, x0)
        x_t = give_clean(self.diffusion.add_noise(x0, noise, t_B), x0, known_BV)
        if self.cfg.Pretrain.get("fix_weight") or self.cfg.lora.rank:
            # A group norm of channels_last data that needs no gradient crashes on the CPU (torch 2.10).
            x_t.requires_grad_()
        drop_B = self.share.rand(len(x0)) < self.cfg.p_zero
        prediction = self.unet(
            x_t,
            t_B,
            self.words(batch.token_ids_BL, drop_B),
            **self.image_conditions(batch, drop_B),
            camera_data=batch.camera_data_BV16,
            fps=torch.full_like(t_B, self.cfg.target_fps),
        )
        return prediction, x_t, noise

    @torch.no_grad()
    def words(self, token_ids_BL: Tensor, drop_B: Tensor) -> Tensor:
        """Text tokens (B, L, C); where `drop_B` is true those of the dropped prompt, for guidance."""
        token_ids_BL = torch.where(drop_B[:, None], self.dropped_ids_1L.to(token_ids_BL), token_ids_BL)
        return self.embedder.embed_tokens(token_ids_BL)[1]

    def image_conditions(self, batch: DiffusionBatch, drop_B: Tensor) -> dict[str, Tensor]:
        """Embedding and latent of view 0, dropped just as sampling leaves them out of its unconditional branch."""
        if not self.of_images:
            return {}
        kept_B1C, kept_BCVHW = batch.image_B1C, batch.latents_BCVHW[:, :, :1]
        if self.cfg.use_zero_infer:
            kept_B1C = kept_B1C.masked_fill(drop_B[:, None, None], 0)
        if self.cfg.zero_local_image:
            kept_BCVHW = kept_BCVHW.masked_fill(drop_B[:, None, None, None, None], 0)
        return {"image": kept_B1C, "local_image": kept_BCVHW.expand_as(batch.latents_BCVHW)}

    def cached_latents(self) -> CachedLatents:
        """The whole data set as latents, encoded now unless the cache is up to date."""
        options = {name: value for name, value in self.cfg.vid_dataset.items() if name != "random_start_view"}
        wanted = fingerprint(
            self.autoencoder,
            options=options,
            index=_index_of(self.dataset),
            image_encoder=self.embedder.model.visual if self.of_images else None,
        )
        with main_first():
            if not is_current(self.cfg.cache_dir, wanted):
                log.info("encoding %d orbits into %s", len(self.dataset), self.cfg.cache_dir)
                write_cache(self.cfg.cache_dir, self._encode_all(), wanted)
        cached = read_cache(self.cfg.cache_dir)
        if len(cached) < len(self.dataset):
            left_out = len(self.dataset) - len(cached)
            log.warning("%d broken orbits are not in %s; delete it once they are whole", left_out, self.cfg.cache_dir)
        return cached

    def adapt(self) -> None:
        """With `lora.rank`, only low-rank factors train from now on."""
        lora = self.cfg.lora
        if not lora.rank:
            return
        if self.unet is not self.network:
            raise ConfigError(f"lora.rank={lora.rank} does not go with UNet.use_lgm_refine=true in training; set 0")
        if not self.cfg.Pretrain.get("resume_checkpoint"):
            if not self.cfg.test_model:
                raise ConfigError(f"lora.rank={lora.rank} adds to a trained model: name its weights with test_model")
            load_strict(self.network, self.cfg.test_model, option="test_model")
        add_lora(self.network, rank=lora.rank, alpha=lora.alpha or lora.rank, targets=lora.targets)
        self.stem += "_lora"

    def checkpoint_state(self) -> dict[str, Tensor]:
        return lora_state(self.network) if self.cfg.lora.rank else super().checkpoint_state()

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

    def _cached_batches(self, cached: CachedLatents, start: int = 0) -> Iterator[DiffusionBatch]:
        self._source = cached
        cached = cached.to(self.device)
        token_ids_NL = self.embedder.tokenize(cached.captions)
        camera_data_NV16 = camera_condition(cached.c2w_NV44)
        for index_B in self.share.order(len(token_ids_NL), start=start):
            index_B = index_B.to(self.device)
            latents_BCVHW = cached.draw(index_B, generator=self.share.row_generators())
            image_BVC = cached.image_NVC[index_B].float() if self.of_images else None
            yield self._batch(latents_BCVHW, token_ids_NL[index_B], camera_data_NV16[index_B], image_BVC)

    def _encoded_batches(self, start: int = 0) -> Iterator[DiffusionBatch]:
        for views_BVCHW, c2w_BV44, captions, _ in self._views(start):
            with torch.no_grad():
                latents_BCVHW = self.autoencoder.encode_views(
                    views_BVCHW, generator=self.share.row_generators(), chunk=self.cfg.chunk_size
                )
                image_BVC = self._embed_views(views_BVCHW)
            camera_data_BV16 = camera_condition(c2w_BV44.to(self.device))
            yield self._batch(latents_BCVHW.float(), self.embedder.tokenize(captions), camera_data_BV16, image_BVC)

    def _batch(self, latents_BCVHW, token_ids_BL, camera_data_BV16, image_BVC) -> DiffusionBatch:
        """The batch; with `random_start_view` its images roll, each sample's by its own number, and cameras stay."""
        if self.random_start_view:
            start_B = self.share.randint(latents_BCVHW.shape[2], len(latents_BCVHW))
            latents_BCVHW = roll_views(latents_BCVHW.transpose(1, 2), start_B).transpose(1, 2)
            image_BVC = None if image_BVC is None else roll_views(image_BVC, start_B)
        image_B1C = None if image_BVC is None else image_BVC[:, :1]
        return DiffusionBatch(latents_BCVHW, token_ids_BL, camera_data_BV16, image_B1C)

    def _embed_views(self, views_BVCHW: Tensor) -> Tensor | None:
        """Image embedding of every view, (B, V, C), if the network takes one."""
        if not self.of_images:
            return None
        parts = [self.embedder.encode_image(part) for part in views_BVCHW.flatten(0, 1).split(self.cfg.chunk_size)]
        return torch.cat(parts).float().unflatten(0, views_BVCHW.shape[:2])

    @torch.no_grad()
    def _encode_all(self) -> Iterator[EncodedChunk]:
        keep_std = self.autoencoder.config.posterior == "sample"
        for views_BVCHW, c2w_BV44, captions, object_ids in self._views(None):
            parts = [
                self.autoencoder.view_posteriors(views, chunk=self.cfg.chunk_size) for views in views_BVCHW.split(16)
            ]
            mean_BCVHW, std_BCVHW = (torch.cat(moment) for moment in zip(*parts, strict=True))
            yield EncodedChunk(
                mean_BCVHW=mean_BCVHW,
                std_BCVHW=std_BCVHW if keep_std else None,
                c2w_BV44=c2w_BV44,
                captions=captions,
                object_ids=object_ids,
                image_BVC=self._embed_views(views_BVCHW),
            )

    def _views(self, start: int | None) -> Iterator[tuple[Tensor, Tensor, list[str], list[str]]]:
        """Views in [0, 1] on the device, cameras, prompts and object ids.

        Args:
            start: the step to begin with, shuffled and without end; None: the whole data set once in order.
        """
        if not hasattr(self.dataset, "stored"):
            for sample in self._loader(start):
                views_BVCHW = sample["views_VCHW"].to(self.device, non_blocking=True)
                yield views_BVCHW, sample["c2w_V44"], list(sample["caption"]), list(sample["object_id"])
            return
        orbits = load_orbits(self.dataset, device=self.device)
        in_order = torch.arange(orbits.num_orbits).split(SHARD_SIZE)
        for index_B in in_order if start is None else self.share.order(orbits.num_orbits, start=start):
            captions, ids = ([names[n] for n in index_B.tolist()] for names in (orbits.captions, orbits.object_ids))
            yield orbits.views(index_B)[0], orbits.c2w_NV44[index_B], captions, ids

    def _loader(self, start: int | None) -> Iterable[dict[str, Any]]:
        """Batches of samples that are read file by file; `start` as in `_views`."""
        in_order = (index_B.tolist() for index_B in torch.arange(len(self.dataset)).split(SHARD_SIZE))
        order = (index_B.tolist() for index_B in self.share.order(len(self.dataset), start=start or 0))
        return read_samples(
            self.dataset,
            in_order if start is None else order,
            replace=start is not None,
            max_bad=self.cfg.max_bad_samples,
            num_workers=self.cfg.num_workers,
            prefetch_factor=self.cfg.prefetch_factor,
            pin_memory=self.device.type == "cuda",
        )


def roll_views(values_BV: Tensor, start_B: Tensor) -> Tensor:
    """Let each sample's dimension 1 begin at its own place and go round."""
    B, V = values_BV.shape[:2]
    order_BV = (start_B[:, None] + torch.arange(V, device=start_B.device)) % V
    return values_BV[torch.arange(B, device=start_B.device)[:, None], order_BV]


def _frozen(module: nn.Module, device: torch.device) -> Any:
    return module.requires_grad_(False).to(device).eval()


def _index_of(dataset: Any) -> list[Any]:
    """What names a data set's samples and captions, in order."""
    if hasattr(dataset, "prompt"):
        return [(dataset.object_ids[number], dataset.prompt(number)) for number in range(len(dataset))]
    return [(str(folder), object_id, dataset.captions.get(object_id)) for folder, object_id in dataset.entries]
