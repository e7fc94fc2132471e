"""Train the UNet to denoise the latents of orbits.

Letters: B batch, V views, C channels, L tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.lora import add_lora, lora_state
from pipelines.parts import check_layout, check_resolution, check_widths, load_generator, note_untrained
from pipelines.sampling.conditioner import check_model_kind, texts_of
from pipelines.training.data.global_batch import JointBatch
from pipelines.training.data.image_batches import ImageBatches
from pipelines.training.data.orbit_batches import DiffusionBatch, OrbitBatches
from pipelines.training.objectives.base import Objective, batch_size_for
from pipelines.training.objectives.known_views import (
    KnownViewOptions,
    give_clean,
    timesteps_of_views,
    weights_of_unknown,
)
from utils.errors import ConfigError
from utils.processes import main_first
from utils.registry import ENGINE
from utils.settings.run import RunConfig
from utils.torch_settings import channels_last

log = logging.getLogger(__name__)


@ENGINE.register(name="train_t2v_entrance")
@ENGINE.register(name="train_i2v_entrance", image=True)
class OrbitDenoising(Objective):
    """Denoising of orbits, conditioned on text or an image and on cameras, as published.

    For an image model, view 0 of each sample is the image: its latent and its image embedding are conditions.

    With 1 in `frame_lens`, a text model also learns from single images, as orbits of one view without a camera.

    Attributes:
        data: makes the batches of orbits.
        images: makes the batches of images, or None.
        reads_stored_views: whether it reads the views as stored, which `prepare_lgm` adds to each sample.
    """

    stem = "t2v"
    can_be_sharded = True
    reads_stored_views = False
    takes_images = True

    @dataclass(frozen=True, kw_only=True)
    class Config(KnownViewOptions):
        """
        Attributes:
            dropped_prompt: the text that replaces a prompt with probability `p_zero`.
            p_no_image: fraction of an image model's samples that have only text: image embedding and image latent are
                zero and no view is known. The model then also makes views from text alone.
            p_no_text: fraction of an image model's samples whose text is replaced by `dropped_prompt` while the image
                stays.
            image: whether to train an image model; set by the type's name.
        """

        dropped_prompt: str = ""
        p_no_image: float = 0.0
        p_no_text: float = 0.0
        image: bool = False

        def __post_init__(self) -> None:
            super().__post_init__()
            for name in ("p_no_image", "p_no_text"):
                value = getattr(self, name)
                if not 0 <= value <= 1:
                    raise ConfigError(f"objective.{name} must lie in [0, 1], got {value}")
                if value and not self.image:
                    raise ConfigError(
                        f"objective.{name}={value:g} needs an image model; set objective.{name}=0 for a text model"
                    )

    @classmethod
    def weight_files(cls, options: Config, cfg: RunConfig) -> dict[str, str | None]:
        found = super().weight_files(options, cfg)
        for name in ("auto_encoder", "embedder"):
            found[f"{name}.pretrained"] = getattr(cfg, name).pretrained
        if cfg.lora.rank and not cfg.checkpoint:
            found["test_model"] = cfg.test_model
        return found

    def __init__(self, config: Config, *, cfg: RunConfig, device: torch.device) -> None:
        super().__init__(cfg, device=device, num_views=max(cfg.frame_lens))
        config.check_known(image=config.image, num_views=max(cfg.frame_lens))
        self.options, self.of_images = config, config.image
        if config.image and cfg.takes_images and not (cfg.UNet.options.takes_image_embedding or config.p_known):
            raise ConfigError(
                f"objective.p_known=0: UNet.type={cfg.UNet.type} sees pictures only as known views; set "
                "objective.p_known=1"
            )
        if config.image and cfg.takes_prompts != bool(config.p_no_image):
            log.warning(
                "takes_prompts=%s and objective.p_no_image=%g do not agree: only p_no_image above 0 teaches prompts "
                "alone, and only takes_prompts=true lets sampling take them",
                str(cfg.takes_prompts).lower(),
                config.p_no_image,
            )
        if config.image:
            self.stem = "i2v"
        joint = self._share_with_images() if cfg.is_joint else None
        self.dataset = cfg.vid_dataset.changed(random_start_view=False, prepare_lgm=self.reads_stored_views).build()
        if self.dataset.config.num_views != max(cfg.frame_lens):
            raise ConfigError(
                f"frame_lens={list(cfg.frame_lens)}, but vid_dataset.num_views={self.dataset.config.num_views}; "
                "set both to the same number"
            )
        size = list(self.dataset.config.resolution)
        if size != list(cfg.resolution):
            raise ConfigError(
                f"resolution={list(cfg.resolution)}, but vid_dataset.resolution={size}, so training and previews would "
                "differ in size; set both to the same size"
            )
        check_resolution(cfg, cfg.resolution)
        check_widths(cfg)
        self._check_layout()
        cfg.embedder.options.check_prompts([config.dropped_prompt])
        images = cfg.img_dataset.build() if joint else None
        self.diffusion = cfg.Diffusion.build()
        with device:  # draw random weights on the device, because a CPU needs 15 s for 1.4 billion
            self.network = cfg.UNet.build()
            self.autoencoder = _frozen(cfg.auto_encoder.build(), device)
            self.embedder = _frozen(cfg.embedder.build(), device)
        if cfg.channels_last:
            channels_last(self.network)
        note_untrained(cfg, "auto_encoder", "embedder")
        check_model_kind(self.network, self.embedder, image=config.image, option=f"TASK_TYPE={cfg.TASK_TYPE}")
        takes_embedding = cfg.UNet.options.takes_image_embedding
        if not takes_embedding:
            self.embedder.forget_images()
        self._prepare_texts()
        parts = {
            "autoencoder": self.autoencoder,
            "embedder": self.embedder,
            "device": device,
            "global_batch": self.global_batch,
        }
        dealer = joint.kind(max(cfg.frame_lens)) if joint else self.global_batch
        self.data = OrbitBatches(cfg, dataset=self.dataset, dealer=dealer, embeds_images=takes_embedding, **parts)
        self.images = ImageBatches(cfg, dataset=images, dealer=joint.kind(1), **parts) if joint else None

    def _prepare_texts(self) -> None:
        """Tokenize the dropped prompt; without token numbers, encode it and the prompts of previews."""
        cfg, self.dropped_ids_1L, self.dropped_words_1LC = self.cfg, None, None
        dropped = self.options.dropped_prompt
        if self.embedder.config.embeds_tokens:
            self.dropped_ids_1L = self.embedder.tokenize([dropped])
            return
        shown = cfg.visual_train.options.prompts if cfg.visual_train else []
        with main_first():  # only one process loads the encoder
            self.embedder.prepare([dropped, *texts_of(cfg, shown)])

    def _check_layout(self) -> None:
        """Check that the views of training and of previews, known views and rolled views fit the latents."""
        cfg, layout = self.cfg, check_layout(self.cfg)
        layout.check(max(cfg.frame_lens), option="frame_lens")
        if cfg.visual_train:
            layout.check(len(cfg.cameras.c2w()), option="cameras, for visual_train")
        if self.options.p_known and self.options.max_known > 1:
            layout.check_known(option=f"objective.max_known={self.options.max_known}")
        if cfg.vid_dataset.options.random_start_view:
            layout.check_rolls(option="vid_dataset.random_start_view=true")

    def _share_with_images(self) -> JointBatch:
        cfg = self.cfg
        if not cfg.embedder.options.embeds_tokens:
            raise ConfigError(
                f"frame_lens={list(cfg.frame_lens)}, but embedder.type={cfg.embedder.type} cannot encode captions of "
                "images in every step; use one number of views"
            )
        if self.of_images or not self.takes_images:
            raise ConfigError(
                f"frame_lens={list(cfg.frame_lens)}: only a text model trains on images too; use one number of views"
            )
        sizes = {num_views: batch_size_for(cfg, num_views) for num_views in set(cfg.frame_lens)}
        self.global_batch = JointBatch(
            frame_lens=cfg.frame_lens, sizes=sizes, parts=cfg.grad_accumulation, seed=cfg.seed, device=self.device
        )
        self.generator = self.global_batch.own
        self.views_per_step = sum(num_views * sizes[num_views] for num_views in cfg.frame_lens) / len(cfg.frame_lens)
        return self.global_batch

    @property
    def unet(self) -> nn.Module:
        """The generator."""
        return self.network

    def batches(self, start: int = 0) -> Iterator[DiffusionBatch]:
        orbits = self.data.batches(start)
        if not self.images:
            return orbits
        return self._by_slot({1: self.images.batches(start), max(self.cfg.frame_lens): orbits})

    def _by_slot(self, kinds: dict[int, Iterator[DiffusionBatch]]) -> Iterator[DiffusionBatch]:
        while True:
            yield next(kinds[self.global_batch.num_views])

    @property
    def sample_source(self) -> Any:
        return self.data.source

    def sample_names(self, number: int, part: int, rank: int) -> list[str]:
        if self.images:
            slot = self.global_batch.slot(number, part, rank)
            if self.global_batch.kind_of(slot) == 1:
                return self.images.names(self.global_batch.number_in_kind(slot))
        return super().sample_names(number, part, rank)

    def forward(self, batch: DiffusionBatch) -> tuple[Tensor, dict[str, Tensor]]:
        x0 = batch.latents_BCVHW
        t_B = self.diffusion.draw_timesteps(self.global_batch, len(x0))
        known_BV = self.options.draw_known(self.global_batch, batch_size=len(x0), num_views=x0.shape[2])
        bare_B = self._draw_share(self.options.p_no_image, len(x0))
        if known_BV is not None and bare_B is not None:
            known_BV = known_BV & ~bare_B[:, None]
        mute_B = self._draw_share(self.options.p_no_text, len(x0))
        if mute_B is not None and bare_B is not None:
            mute_B = mute_B & ~bare_B
        prediction, _, noise = self.predict(batch, t_B, known_BV, bare_B, mute_B)
        target = self.diffusion.training_target(x0, noise, t_B)
        loss = self.diffusion.loss(prediction, target, weights_of_unknown(known_BV))
        return loss, self._figures(loss.detach(), of_an_image=x0.shape[2] == 1) if self.images else {}

    def _draw_share(self, share: float, batch_size: int) -> Tensor | None:
        """Draw which samples belong to a share, (B,) bool; for a share of 0 return None and draw nothing."""
        return self.global_batch.rand(batch_size) < share if share else None

    def _figures(self, loss: Tensor, *, of_an_image: bool) -> dict[str, Tensor]:
        """Return the loss of each kind. `summary` turns means over all batches into means over those of the kind."""
        share = torch.full_like(loss, float(of_an_image))
        return {"loss_images": loss * share, "loss_orbits": loss * (1 - share), "image_batches": share}

    def summary(self, figures: dict[str, float]) -> dict[str, float]:
        if not self.images:
            return figures
        share = figures["image_batches"]
        of_kinds = {"loss_images": share, "loss_orbits": 1 - share}
        # an interval may have no batch of a kind
        means = {name: figures[name] / part for name, part in of_kinds.items() if part}
        return {name: value for name, value in figures.items() if name not in of_kinds} | means

    def predict(
        self,
        batch: DiffusionBatch,
        t_B: Tensor,
        known_BV: Tensor | None = None,
        bare_B: Tensor | None = None,
        mute_B: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Add noise, drop some conditions, and return the prediction, the noised latents and the noise.

        Args:
            known_BV: views without noise.
            bare_B: samples of an image model that have no image.
            mute_B: samples that have no text.
        """
        x0 = batch.latents_BCVHW
        noise = self.global_batch.draw(self.diffusion.make_noise, x0)
        x_t = give_clean(self.diffusion.add_noise(x0, noise, t_B), x0, known_BV)
        if (self.cfg.Pretrain and self.cfg.Pretrain.options.fix_weight) or self.cfg.lora.rank:
            # On the CPU, a group norm crashes if its channels_last input needs no gradient (torch 2.10).
            x_t.requires_grad_()
        drop_B = self.global_batch.rand(len(x0)) < self.cfg.p_zero
        no_text_B = drop_B if mute_B is None else drop_B | mute_B
        prediction = self.unet(
            x_t,
            timesteps_of_views(t_B, known_BV, x0.shape[2]) if self.cfg.UNet.options.view_timesteps else t_B,
            self.words(batch, no_text_B),
            **self.image_conditions(batch, drop_B, bare_B),
            camera_data=batch.camera_data_BV16,
            # as published, single images have frame rate 1
            fps=torch.full_like(t_B, 1 if x0.shape[2] == 1 else self.cfg.target_fps),
        )
        return prediction, x_t, noise

    @torch.no_grad()
    def words(self, batch: DiffusionBatch, drop_B: Tensor) -> Tensor:
        """Return text tokens (B, L, C); where `drop_B` is true, those of the dropped prompt, for guidance."""
        if batch.words_BLC is not None:
            return torch.where(drop_B[:, None, None], self._dropped_words().to(batch.words_BLC), batch.words_BLC)
        ids_BL = torch.where(drop_B[:, None], self.dropped_ids_1L.to(batch.token_ids_BL), batch.token_ids_BL)
        return self.embedder.embed_tokens(ids_BL)[1]

    def _dropped_words(self) -> Tensor:
        """Return the text tokens of the dropped prompt, encoded once and rounded like those in the cache."""
        if self.dropped_words_1LC is None:
            with torch.autocast(self.device.type, enabled=False):
                self.dropped_words_1LC = self.embedder.encode_text([self.options.dropped_prompt]).half()
        return self.dropped_words_1LC

    def image_conditions(
        self, batch: DiffusionBatch, drop_B: Tensor, bare_B: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return embedding and latent of view 0.

        They are dropped in the same way as in the unconditional branch of sampling where `drop_B` is true, and are zero
        where `bare_B` is true.
        """
        if batch.image_B1C is None:
            return {}
        no_B = torch.zeros_like(drop_B) if bare_B is None else bare_B
        no_embedding_B = no_B | drop_B if self.cfg.use_zero_infer else no_B
        no_latent_B = no_B | drop_B if self.cfg.zero_local_image else no_B
        kept_B1C = batch.image_B1C.masked_fill(no_embedding_B[:, None, None], 0)
        kept_BCVHW = batch.latents_BCVHW[:, :, :1].masked_fill(no_latent_B[:, None, None, None, None], 0)
        return {"image": kept_B1C, "local_image": kept_BCVHW.expand_as(batch.latents_BCVHW)}

    def adapt(self) -> None:
        """With `lora.rank`, add low-rank factors, which are then the only trained weights."""
        lora = self.cfg.lora
        if not lora.rank:
            return
        if self.unet is not self.network:
            raise ConfigError(f"lora.rank={lora.rank} does not support refine=true in training; set lora.rank=0")
        self.load_base()
        add_lora(self.network, rank=lora.rank, alpha=lora.alpha or lora.rank, targets=lora.targets)
        self.stem += "_lora"

    def load_base(self) -> None:
        """Load the weights to which low-rank factors are added, unless Pretrain loads them."""
        if self.cfg.checkpoint:
            return
        if not self.cfg.test_model:
            raise ConfigError(f"lora.rank={self.cfg.lora.rank} needs a trained model; set test_model to its weights")
        load_generator(self.network, self.cfg)

    def checkpoint_state(self) -> dict[str, Tensor]:
        return lora_state(self.network) if self.cfg.lora.rank else super().checkpoint_state()

    def parts_to_compile(self) -> list[nn.Module]:
        return self.network.parts_to_compile()

    @property
    def can_be_graphed(self) -> bool:
        return self.network.can_be_graphed

    def preview(self, folder: Path, step: int) -> None:
        if not self.cfg.visual_train:
            return
        visual = self.cfg.visual_train.build()
        visual.write(
            folder,
            step,
            cfg=self.cfg,
            unet=self.network,
            autoencoder=self.autoencoder,
            embedder=self.embedder,
            diffusion=self.diffusion,
        )


def _frozen(module: nn.Module, device: torch.device) -> Any:
    return module.requires_grad_(False).to(device).eval()
