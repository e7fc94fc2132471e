"""Prompts or pictures to orbits: the main path as a list of verbs.

Letters: B batch, V views, C channels, H W pixels or latent pixels.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from models.autoencoder import AutoencoderKL
from models.diffusion import DiffusionDDIM
from models.fused_head import FusedHead
from models.fused_ops import has_kernels
from models.gaussians import Gaussians
from models.weights import save_safetensors
from pipelines.acting_network import ActingNetwork
from pipelines.conditioner import CallFrame, Conditions, ImageConditioner, OrbitInput, conditioner_for
from pipelines.denoising import Denoising
from pipelines.guidance import ClassifierFreeGuidance
from pipelines.head_loading import build_reconstruction
from pipelines.known_views import KnownViews
from pipelines.loading import Parts, check_fit, load_parts, pick_device, pick_dtype, resting_place, weights_in
from pipelines.reconstruction import GaussianReconstruction, OrbitRefiner
from pipelines.sampler import Sampler
from pipelines.stage import Stage
from utils.cameras import DATA_FOV_DEG
from utils.compilation import compile_parts
from utils.config import load_config, save_config
from utils.errors import ConfigError
from utils.files import writable_folder
from utils.lora_options import LoraOptions
from utils.memory_format import channels_last
from utils.registry import DIFFUSION, SAMPLERS
from utils.run_config import RESULTS, RunConfig
from utils.stopwatch import Stopwatch

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Orbits:
    """What a call of the pipeline returns.

    Attributes:
        inputs: B sentences or pictures, as given.
        seeds: one per sample.
        views_BVCHW: (B, V, 3, H, W) float32 in [0, 1], on the CPU; sampled without 3D-aware sampling, or with it when
            only that was asked for.
        latents_BCVHW: (B, C, V, h, w) float32, scaled, on the CPU.
        c2w_V44: the cameras, see utils.cameras.
        fov_deg: field of view of the views.
        seconds: what the call took, by part: conditions, denoise (of that refine), decode, reconstruct.
        refined_views_BVCHW: the same samples with 3D-aware sampling, when both were asked for.
        refined_latents_BCVHW: their latents.
        gaussians: the objects, B scenes on the head's device in the world of `c2w_V44`, from the refined views if there
            are any; None without a head.
        gaussians_fov_deg: field of view with which they look like the views (the published head has its own).
    """

    inputs: list[OrbitInput]
    seeds: list[int]
    views_BVCHW: Tensor
    latents_BCVHW: Tensor
    c2w_V44: Tensor
    fov_deg: float
    seconds: dict[str, float]
    refined_views_BVCHW: Tensor | None = None
    refined_latents_BCVHW: Tensor | None = None
    gaussians: Gaussians | None = None
    gaussians_fov_deg: float | None = None

    @property
    def best_views_BVCHW(self) -> Tensor:
        """The refined views, or the plain ones where there are no others."""
        return self.views_BVCHW if self.refined_views_BVCHW is None else self.refined_views_BVCHW


class ViewsPipeline:
    """Holds the parts and samples with them; `from_config` and `from_folder` build it.

    Args:
        cfg: settings of the run, the defaults of every call.
        unet: the network, on its device and in its dtype.
        autoencoder: decodes latents, same device and dtype.
        embedder: text and image encoder, same device.
        diffusion: the process that the network was trained for.
        sampler: denoising loop.
        reconstruction: makes the Gaussians, and 3D-aware sampling when `cfg.UNet.use_lgm_refine`; None: views only.
        stage: brings the networks to the device; None: they all are where the UNet is.
    """

    def __init__(
        self,
        cfg: RunConfig,
        *,
        unet: nn.Module,
        autoencoder: AutoencoderKL,
        embedder: nn.Module,
        diffusion: DiffusionDDIM,
        sampler: Sampler,
        reconstruction: GaussianReconstruction | None = None,
        stage: Stage | None = None,
    ) -> None:
        self.cfg = cfg
        self.stage = stage or Stage(next(unet.parameters()).device)
        self.reconstruction = reconstruction
        self.unet, self.autoencoder = unet, autoencoder
        self.diffusion, self.sampler = diffusion, sampler
        self.conditioner = conditioner_for(cfg, unet, embedder=embedder, autoencoder=autoencoder)
        dtype = next(unet.parameters()).dtype
        autoencoder.fused = cfg.fused and has_kernels(self.stage.device, dtype)
        fuses = autoencoder.fused and not cfg.compile and not cfg.low_memory
        self.network = ActingNetwork(unet, stage=self.stage, fuses=fuses)
        if fuses and reconstruction:
            reconstruction.head.fused = FusedHead(reconstruction.head.unet, dtype=dtype)

    @classmethod
    def from_config(cls, cfg: RunConfig) -> ViewsPipeline:
        """Build and load every part that a configuration names.

        Raises:
            ConfigError, DataError: a setting or a weight file does not fit; nothing has been sampled then.
        """
        check_fit(cfg, pick_device(cfg.device))
        return cls.from_parts(cfg, load_parts(cfg, device=resting_place(cfg), dtype=pick_dtype(cfg)))

    @classmethod
    def from_parts(cls, cfg: RunConfig, parts: Parts) -> ViewsPipeline:
        """Lay out and compile parts as a configuration says, and join them."""
        unet, autoencoder = parts.unet, parts.autoencoder
        if cfg.channels_last:
            unet, autoencoder = channels_last(unet), channels_last(autoencoder)
        stage = Stage(pick_device(cfg.device), one_at_a_time=cfg.low_memory)
        reconstruction = parts.head and build_reconstruction(cfg, parts.head, autoencoder=autoencoder, stage=stage)
        if cfg.compile:
            compile_parts(unet.parts_to_compile())
            if reconstruction:
                compile_parts(reconstruction.head.parts_to_compile())
        return cls(
            cfg,
            unet=unet,
            autoencoder=autoencoder,
            embedder=parts.embedder,
            diffusion=DIFFUSION.build(cfg.Diffusion, where="Diffusion"),
            sampler=SAMPLERS.build(cfg.sampler, where="sampler"),
            reconstruction=reconstruction,
            stage=stage,
        )

    @classmethod
    def from_folder(cls, folder: str | Path, *overrides: str) -> ViewsPipeline:
        """Build from a folder that `save` wrote: its config.yaml and its weights.

        Args:
            overrides: `key=value` strings, as on the command line.
        """
        folder = Path(folder)
        cfg = load_config(folder / "config.yaml", overrides)
        return cls.from_config(weights_in(cfg, folder))

    def __call__(
        self,
        inputs: OrbitInput | Sequence[OrbitInput],
        *,
        seeds: int | Sequence[int] | None = None,
        c2w_V44: Tensor | None = None,
        guide_scale: float | None = None,
        resolution: tuple[int, int] | None = None,
        known_views: Mapping[int, Sequence[OrbitInput]] | None = None,
        results: str | None = None,
        on_step: Callable[[], None] | None = None,
    ) -> Orbits:
        """Sample one orbit an input.

        Args:
            inputs: one or several: sentences for a text model; for an image model pictures, as files or as (3, H, W)
                in [0, 1] over white.
            seeds: one for all, or one an input; a sample depends on its own seed only. The config's when left out.
            c2w_V44: cameras; the config's when left out.
            guide_scale: the config's when left out.
            resolution: width and height in pixels; the config's when left out.
            known_views: place in the orbit -> pictures of that view, one an input; these views are held, and with them
                the input itself as view 0. Image models only. See `hold_views` of the config.
            results: `plain`, `refined` (by 3D-aware sampling) or `both`; the config's when left out.
            on_step: called after every denoising step.

        Raises:
            ValueError: no input, another number of seeds than inputs, or known views for a text model.
            ConfigError: refined results without a head, or an input view of the head that is not sampled.
            DataError: a picture cannot be used.
        """
        inputs = [inputs] if isinstance(inputs, OrbitInput) else list(inputs)
        seeds = self.cfg.seed if seeds is None else seeds
        seeds = [seeds] * len(inputs) if isinstance(seeds, int) else list(seeds)
        if not inputs or len(inputs) != len(seeds):
            raise ValueError(f"need as many seeds as inputs and at least one, got {len(seeds)} and {len(inputs)}")
        results = self.results_of(results)
        device, dtype = self._place
        frame = CallFrame(
            c2w_V44=self.cfg.cameras.c2w() if c2w_V44 is None else c2w_V44,
            resolution=tuple(resolution or self.cfg.resolution),
            generators=[torch.Generator().manual_seed(seed) for seed in seeds],
            device=device,
            dtype=dtype,
        )
        reconstruction = self._reconstruction_for(frame, needed=results != "plain")
        refiner = reconstruction.refiner(frame.c2w_V44, frame.generators) if results != "plain" else None
        noise = self.draw_noise(frame.generators, num_views=len(frame.c2w_V44), resolution=frame.resolution)
        watch = Stopwatch(device)
        with torch.no_grad():
            with watch.part("conditions"):
                self.stage.use(self.conditioner.embedder, self.autoencoder)
                conditions = self.conditioner(inputs, frame)
                given = self._given(known_views or {}, conditions, frame)
            with watch.part("denoise"):
                latents = self._denoise(noise, given, frame, guide_scale, on_step, refiner, results, watch)
            with watch.part("decode"):
                views = [self.decode(one).float().cpu() for one in latents]
            gaussians = None
            if reconstruction:
                with watch.part("reconstruct"):
                    gaussians = reconstruction.world_gaussians(views[-1], frame.c2w_V44)
        return Orbits(
            inputs=inputs,
            seeds=seeds,
            views_BVCHW=views[0],
            latents_BCVHW=latents[0],
            c2w_V44=frame.c2w_V44,
            fov_deg=self.cfg.cameras.fov_deg or DATA_FOV_DEG,
            seconds=watch.seconds,
            refined_views_BVCHW=views[1] if len(views) == 2 else None,
            refined_latents_BCVHW=latents[1] if len(latents) == 2 else None,
            gaussians=gaussians,
            gaussians_fov_deg=reconstruction.config.fov if reconstruction else None,
        )

    def results_of(self, asked: str | None = None) -> str:
        """Which results a call gives: what is asked for, or the config's where 3D-aware sampling is on.

        Raises:
            ConfigError: an unknown name, or refined results without a head.
        """
        if asked is None:
            asked = self.cfg.results if self.cfg.UNet.get("use_lgm_refine") else "plain"
        if asked not in RESULTS:
            raise ConfigError(f"results={asked} is unknown; valid: {', '.join(RESULTS)}")
        if asked != "plain" and self.reconstruction is None:
            raise ConfigError(f"results={asked} needs a Gaussian head; name one with reconstruction.pretrained")
        return asked

    @property
    def steps_per_call(self) -> int:
        """How often `on_step` is called."""
        results = self.results_of()
        steps = self.reconstruction.refine_steps(self.sampler.config.num_steps) if results != "plain" else set()
        return self.sampler.num_calls(refiner_steps=steps, both=results == "both")

    def _reconstruction_for(self, frame: CallFrame, *, needed: bool) -> GaussianReconstruction | None:
        """The reconstruction, if it can work on the views of a call.

        Raises:
            ConfigError: it cannot, and it is needed.
        """
        if self.reconstruction is None:
            return None
        obstacle = self.reconstruction.config.obstacle(num_views=len(frame.c2w_V44), resolution=frame.resolution)
        if obstacle is None:
            return self.reconstruction
        if needed:
            raise ConfigError(f"{obstacle}; ask for results=plain")
        log.warning("no Gaussians: %s", obstacle)
        return None

    def save(self, folder: str | Path) -> None:
        """Write the parts and the settings as a folder that `from_folder` opens, weights as float16 safetensors."""
        folder = writable_folder(folder, option="folder")
        files = {"unet": self.unet, "autoencoder": self.autoencoder, "embedder": self.conditioner.embedder.model}
        parts = [("auto_encoder", "autoencoder"), ("embedder", "embedder")]
        if self.reconstruction:
            files["head"] = self.reconstruction.head
            parts.append(("reconstruction", "head"))
        for name, part in files.items():
            save_safetensors(folder / f"{name}.safetensors", part.state_dict())
        sections = {
            section: {**getattr(self.cfg, section), "pretrained": f"{name}.safetensors"} for section, name in parts
        }
        # what lora added is in the weights
        cfg = dataclasses.replace(self.cfg, test_model="unet.safetensors", lora=LoraOptions(), **sections)
        save_config(cfg, folder / "config.yaml")

    @property
    def _place(self) -> tuple[torch.device, torch.dtype]:
        return self.stage.device, self.network.dtype

    def draw_noise(
        self, generators: Sequence[torch.Generator], *, num_views: int, resolution: tuple[int, int]
    ) -> Tensor:
        """Start of each sample from its own generator: (B, C, V, h, w) float32 on the CPU, the same on any device."""
        width, height = (side // self.autoencoder.reduction for side in resolution)
        shape = (self.autoencoder.latent_channels, num_views, height, width)
        return torch.stack([torch.randn(shape, generator=generator) for generator in generators])

    def _given(
        self, known_views: Mapping[int, Sequence[OrbitInput]], conditions: Conditions, frame: CallFrame
    ) -> dict[int, Conditions]:
        """Conditions from each known view, and from the input as view 0 unless that is among them."""
        if known_views and not isinstance(self.conditioner, ImageConditioner):
            raise ValueError("known views need an image model; this one samples from text")
        return {0: conditions, **{view: self.conditioner(images, frame) for view, images in known_views.items()}}

    def _denoise(
        self,
        noise: Tensor,
        given: dict[int, Conditions],
        frame: CallFrame,
        guide_scale: float | None,
        on_step: Callable[[], None] | None,
        refiner: OrbitRefiner | None,
        results: str,
        watch: Stopwatch,
    ) -> list[Tensor]:
        """Latents on the CPU: one result, or the plain and the refined one."""
        scale = self.cfg.guide_scale if guide_scale is None else guide_scale
        run = Denoising(
            network=self.network,
            conditions=given[0],
            diffusion=self.diffusion,
            guidance=ClassifierFreeGuidance(scale=scale, between=tuple(self.cfg.guide_range)),
            refiner=refiner,
            known_views=self._held(given),
            generators=list(frame.generators),
            on_step=on_step,
            stopwatch=watch,
        )
        sample = self.sampler.both if results == "both" else self.sampler
        latents = sample(noise.to(frame.device), run)
        return [one.cpu() for one in (latents if results == "both" else [latents])]

    def _held(self, given: dict[int, Conditions]) -> KnownViews | None:
        """The given views in the way that the network was trained for; the input alone is only held when clean."""
        clean = self.cfg.hold_views == "clean" and isinstance(self.conditioner, ImageConditioner)
        return KnownViews.of(given, clean=clean) if clean or len(given) > 1 else None

    def decode(self, latents_BCVHW: Tensor) -> Tensor:
        """Latents to views in [0, 1], `decoder_bs` views at a time."""
        self.stage.use(self.autoencoder)
        return self.autoencoder.decode_views(latents_BCVHW.to(*self._place), chunk=self.cfg.decoder_bs)
