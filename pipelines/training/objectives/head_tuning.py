"""Tune the Gaussian head on the predictions of a generator, for 3D-aware sampling.

Letters: B batch, V views of an orbit, K views of a sample, the first I of which are the head's input, C channels,
H W pixels.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import default_collate

from models.gaussians.lgm import LGM, head_input
from models.gaussians.scene import Gaussians
from models.weights import HEAD_PREFIX, has_head, load_head
from pipelines.parts import load_generator
from pipelines.reconstruction.lgm import GaussianReconstruction
from pipelines.training.data.orbit_batches import DiffusionBatch, roll_views
from pipelines.training.data.orbits_in_memory import load_orbits
from pipelines.training.objectives.diffusion import OrbitDenoising
from pipelines.training.objectives.head_loss import HeadLoss, LossConfig, draw_views, head_options, preview_views, sized
from pipelines.training.objectives.known_views import give_clean
from utils.cameras import camera_condition, head_cameras
from utils.errors import ConfigError
from utils.images import save_png
from utils.registry import ENGINE
from utils.settings.run import RunConfig
from utils.torch_settings import channels_last

log = logging.getLogger(__name__)

INPUT_VIEWS = ("random", "even")
NUM_PREVIEWS = 4


class TuningBatch(NamedTuple):
    """The data of one step.

    Attributes:
        generator: inputs of the generator.
        rgba_BVHW4: the true views, bytes with straight alpha.
        c2w_BV44: cameras.
    """

    generator: DiffusionBatch
    rgba_BVHW4: Tensor
    c2w_BV44: Tensor


class GeneratorWithHead(nn.Module):
    """Generator and head. The state dict has the published names: those of the generator, and a prefix for the head.

    Args:
        trains_unet: also train the generator; if false, it is frozen and in evaluation mode.
    """

    def __init__(self, unet: nn.Module, head: LGM, *, trains_unet: bool) -> None:
        super().__init__()
        self.unet, self.head, self.trains_unet = unet, head, trains_unet
        unet.requires_grad_(trains_unet)
        self.register_state_dict_post_hook(_publish_names)

    def train(self, mode: bool = True) -> GeneratorWithHead:
        super().train(mode)
        self.unet.train(mode and self.trains_unet)
        return self


def _publish_names(module: nn.Module, state: dict[str, Tensor], prefix: str, _metadata: Any) -> None:
    for own, published in (("unet.", ""), ("head.", HEAD_PREFIX)):
        for key in [key for key in state if key.startswith(prefix + own)]:
            state[prefix + published + key.removeprefix(prefix + own)] = state.pop(key)


@ENGINE.register(name="tune_t2v_entrance")
@ENGINE.register(name="tune_i2v_entrance", image=True)
class HeadTuning(OrbitDenoising):
    """Predict x0 at a random step, decode and reconstruct a few of its views, and compare renders with true views.

    Source: arXiv:2403.12010, section 3.3. With `refine: true`, the training tasks of generators become this objective.
    """

    stem = "t2v"
    can_be_sharded = False
    takes_images = False
    reads_stored_views = True

    @dataclass(frozen=True, kw_only=True)
    class Config(LossConfig, OrbitDenoising.Config):
        """
        Attributes:
            input_views: `random` as published, or `even`: evenly spaced with a random start, as in sampling.
            t_max: timesteps are drawn from this fraction of the schedule, starting with the least noise.
            train_unet: also train the generator, through the decoder; if false, it is frozen.
        """

        input_views: str = "random"
        t_max: float = 1.0
        train_unet: bool = False

        def __post_init__(self) -> None:
            super().__post_init__()
            OrbitDenoising.Config.__post_init__(self)
            if self.input_views not in INPUT_VIEWS:
                raise ConfigError(f"input_views={self.input_views} is unknown; valid: {', '.join(INPUT_VIEWS)}")
            if not 0 < self.t_max <= 1:
                raise ConfigError(f"t_max must lie in (0, 1], got {self.t_max}")

    @classmethod
    def weight_files(cls, options: Config, cfg: RunConfig) -> dict[str, str | None]:
        found = super().weight_files(options, cfg)
        option, path = generator_file(cfg)
        found[option] = path
        head_file = cfg.reconstruction.pretrained
        # A tuned generator's file contains its head. Reading the file is slow, so look only if there is no other head.
        missing = head_file and not Path(head_file).exists()
        if not (missing and path and Path(path).is_file() and has_head(path, option=option)):
            found["reconstruction.pretrained"] = head_file
        return found

    def __init__(self, config: Config, *, cfg: RunConfig, device: torch.device) -> None:
        options = check_tuning(cfg)
        num_inputs = options.head_config.num_input_views
        loss = HeadLoss(  # first, because it can raise an error and the rest is slow
            config,
            fov_deg=options.fov,
            size=options.render_size,
            rasterizer=cfg.rasterizer,
            device=device,
        )
        super().__init__(config, cfg=cfg, device=device)
        self.config, self.loss = config, loss
        if not config.train_unet:
            self.stem = "head"
        self.fov_deg, self.num_inputs = options.fov, num_inputs
        config.check_views(num_inputs=num_inputs, num_views=self.dataset.config.num_views)
        head = options.head_section.build()
        if device.type == "cuda" and cfg.channels_last:
            channels_last(head)
        load_start(self.network, head, cfg=cfg, head_file=options.pretrained)
        self.network = GeneratorWithHead(self.network, head, trains_unet=config.train_unet)
        self.orbits = load_orbits(self.dataset, device=device) if self.dataset.in_memory else None
        self.views_per_step = self.batch_size * config.num_output_views

    @property
    def unet(self) -> nn.Module:
        return self.network.unet

    @property
    def pretrained_part(self) -> nn.Module:
        return self.network.unet

    def batches(self, start: int = 0) -> Iterator[TuningBatch]:
        self.data.prepare_texts()
        if self.orbits is None:
            for sample in self.data.loader(start):
                captions = self.data.draw_captions(sample["index"])
                yield self._tuning_batch(*_bytes_of(sample, self.device), captions)
        for index_B in self.global_batch.order(self.orbits.num_orbits, start=start):
            captions = self.data.draw_captions(index_B)
            yield self._tuning_batch(self.orbits.rgba(index_B), self.orbits.c2w_NV44[index_B], captions)

    @torch.no_grad()
    def _tuning_batch(self, rgba_BVHW4: Tensor, c2w_BV44: Tensor, captions: list[str]) -> TuningBatch:
        """Encode the views; with `random_start_view` each sample's views are rolled at random, but not the cameras."""
        B, V = rgba_BVHW4.shape[:2]
        if self.data.random_start_view:
            start_B = torch.randint(V, (B,), generator=self.generator, device=self.device)
            rgba_BVHW4 = roll_views(rgba_BVHW4, start_B)
        views_BVCHW, _ = sized(rgba_BVHW4, self.dataset.config.background, self.cfg.resolution[0])
        latents_BCVHW = self.autoencoder.encode_views(views_BVCHW, generator=self.generator, chunk=self.cfg.chunk_size)
        image_BVC = self.data.embed_views(views_BVCHW)
        c2w_BV44 = c2w_BV44.to(self.device)
        tokens, words = self.data.texts(captions)
        given = DiffusionBatch(
            latents_BCVHW.float(),
            tokens,
            camera_condition(c2w_BV44),
            None if image_BVC is None else image_BVC[:, :1],
            words,
        )
        return TuningBatch(given, rgba_BVHW4, c2w_BV44)

    def forward(self, batch: TuningBatch) -> tuple[Tensor, dict[str, Tensor]]:
        B, V = batch.c2w_BV44.shape[:2]
        views_BK = draw_views(
            B,
            num_views=V,
            num_inputs=self.num_inputs,
            num_outputs=self.config.num_output_views,
            even=self.config.input_views == "even",
            generator=self.generator,
        )
        steps = max(1, round(self.config.t_max * self.diffusion.num_timesteps))
        t_B = torch.randint(steps, (B,), generator=self.generator, device=self.device)
        with torch.set_grad_enabled(self.config.train_unet and torch.is_grad_enabled()):
            views_BICHW = self.predicted_views(batch.generator, t_B, views_BK[:, : self.num_inputs])
        rows_B1 = torch.arange(B, device=self.device)[:, None]
        poses_BK44 = head_cameras(batch.c2w_BV44[rows_B1, views_BK], fov_deg=self.fov_deg).poses_V44
        gaussians = self.reconstruct(views_BICHW, poses_BK44)
        return self.loss(
            gaussians,
            poses_BK44,
            batch.rgba_BVHW4[rows_B1, views_BK],
            num_given=self.num_inputs,
            generator=self.generator,
        )

    def predicted_views(self, given: DiffusionBatch, t_B: Tensor, views_BI: Tensor) -> Tensor:
        """Predict x0 from noised latents, and decode some of its views: (B, I, 3, H, W)."""
        x0 = given.latents_BCVHW
        known_BV = self.options.draw_known(self.global_batch, batch_size=len(x0), num_views=x0.shape[2])
        prediction, x_t, _ = self.predict(given, t_B, known_BV)
        x0 = give_clean(self.diffusion.to_x0(prediction.float(), x_t, t_B), x0, known_BV)
        decode = functools.partial(self.autoencoder.decode_views, views_BI=views_BI, chunk=self.cfg.decoder_bs)
        if not torch.is_grad_enabled():
            return decode(x0).float()
        # Without clamping, every pixel has a gradient. Recomputation saves memory, because decoders store much.
        return checkpoint(functools.partial(decode, clamp=False), x0, use_reentrant=False).float()

    def reconstruct(self, views_BICHW: Tensor, poses_BK44: Tensor) -> Gaussians:
        """Reconstruct objects in the frame of the first input view."""
        poses_BI44 = poses_BK44[:, : views_BICHW.shape[1]]
        return self.network.head(head_input(views_BICHW, poses_BI44, fov_deg=self.fov_deg))

    def parts_to_compile(self) -> list[nn.Module]:
        return [*self.unet.parts_to_compile(), *self.network.head.parts_to_compile()]

    @property
    def can_be_graphed(self) -> bool:
        return False

    def final_state(self) -> dict[str, Tensor]:
        """Return the weights of the head, or of both networks if the generator was trained too."""
        return (self.network if self.config.train_unet else self.network.head).state_dict()

    @torch.no_grad()
    def preview(self, folder: Path, step: int) -> None:
        """Write an image of true views and renders; the head's input is predicted at half of the timesteps."""
        given, rgba_BVHW4, c2w_BV44 = self._first_samples()
        inputs, shown = preview_views(c2w_BV44.shape[1], self.num_inputs)
        t_B = torch.full((len(c2w_BV44),), self.diffusion.num_timesteps // 2, device=self.device)
        views_BI = torch.tensor(inputs, device=self.device).expand(len(t_B), -1)
        poses_BK44 = head_cameras(c2w_BV44[:, inputs + shown], fov_deg=self.fov_deg).poses_V44
        gaussians = self.reconstruct(self.predicted_views(given, t_B, views_BI), poses_BK44)
        unseen = (poses_BK44[:, len(inputs) :], rgba_BVHW4[:, shown])
        picture = self.loss.comparison(gaussians, *unseen, background=self.dataset.config.background)
        save_png(folder / f"head_{step:08d}.png", picture)

    def _first_samples(self) -> TuningBatch:
        numbers = list(range(min(NUM_PREVIEWS, len(self.dataset))))
        captions = [self.dataset.prompt(number) for number in numbers]  # the same at every preview
        if self.orbits is not None:
            return self._tuning_batch(self.orbits.rgba(torch.tensor(numbers)), self.orbits.c2w_NV44[numbers], captions)
        sample = default_collate([self.dataset[number] for number in numbers])
        return self._tuning_batch(*_bytes_of(sample, self.device), captions)


def _bytes_of(sample: dict[str, Any], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return bytes with straight alpha, and the cameras, of a loaded batch."""
    rgba_BV4HW = sample["full_rgba_V4HW"].to(device, non_blocking=True)
    return (rgba_BV4HW * 255).round().byte().movedim(2, -1), sample["c2w_V44"]


def check_tuning(cfg: RunConfig) -> GaussianReconstruction.Config:
    """Check the settings of head tuning, and return the options of the reconstruction.

    Raises:
        ConfigError: there is no reconstruction or no trained generator, or sizes do not fit.
    """
    if not cfg.reconstruction:
        raise ConfigError("tuning needs a section reconstruction; copy it from configs/t2v_train.yaml")
    options = head_options(cfg, GaussianReconstruction.Config)
    size = options.head_config.input_size
    for name, resolution in (
        ("resolution", cfg.resolution),
        ("vid_dataset.resolution", cfg.vid_dataset.options.resolution),
    ):
        if list(resolution) != [size, size]:
            raise ConfigError(
                f"{name}={list(resolution)}, but the Gaussian head takes views of {size} x {size}; use this size"
            )
    if not cfg.checkpoint and not cfg.test_model:
        raise ConfigError(
            "tuning needs a trained generator; set test_model, or Pretrain.resume_checkpoint, which also continues the "
            "step count"
        )
    return options


def generator_file(cfg: RunConfig) -> tuple[str, str]:
    """Return the setting with the generator's weights, and their path."""
    resumed = cfg.checkpoint
    return ("Pretrain.resume_checkpoint", resumed) if resumed else ("test_model", cfg.test_model)


def load_start(unet: nn.Module, head: LGM, *, cfg: RunConfig, head_file: str | None) -> None:
    """Load the weights for the start of tuning.

    The generator's weights come from `test_model`, unless Pretrain loads them later. The head's weights come from the
    same file if it contains a head, else from `head_file`; without both, the head starts untrained.

    Raises:
        DataError: a file is missing or does not fit.
    """
    option, path = generator_file(cfg)
    if option == "test_model":
        load_generator(unet, cfg)
    if Path(path).is_file() and has_head(path, option=option):  # a published folder has none
        load_head(head, path, option=option)
    elif head_file:
        load_head(head, head_file, option="reconstruction.pretrained")
    else:
        log.warning("the Gaussian head starts untrained; set reconstruction.pretrained to use trained weights")
