"""Prompts or pictures to orbits: the main path as a list of verbs.

Letters: B batch, V views, C channels, H W pixels or latent pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from models.autoencoder import AutoencoderKL
from models.backbone import Backbone
from models.diffusion import DiffusionDDIM
from models.gaussians.scene import Gaussians
from pipelines.parts import Parts, check_fit, check_resolution, load_parts, save_parts, weights_in
from pipelines.placement import Placement, SamplingNetwork, give_twins
from pipelines.reconstruction.base import Reconstructor
from pipelines.reconstruction.loading import build_reconstruction, usable
from pipelines.sampling.conditioner import CallOptions, Conditions, ImageConditioner, OrbitInput, conditioner_for
from pipelines.sampling.guidance import ClassifierFreeGuidance, Refiner
from pipelines.sampling.known_views import KnownViews
from pipelines.sampling.sampler import Denoising, OrbitSampler
from utils.cameras import DATA_FOV_DEG
from utils.config import load_config
from utils.devices import pick_device, pick_dtype, resting_place
from utils.errors import ConfigError
from utils.settings.run import RunConfig
from utils.settings.sampling import RESULTS
from utils.stopwatch import Stopwatch
from utils.torch_settings import channels_last, compile_parts


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
    """Networks, sampler and reconstruction as a configuration arranges them; a call samples.

    Args:
        cfg: settings of the run, the defaults of every call.
        unet: the network, on its device and in its dtype.
        autoencoder: decodes latents, same device and dtype.
        embedder: text and image encoder, same device.
        diffusion: the process that the network was trained for.
        sampler: denoising loop.
        reconstruction: makes the Gaussians, and 3D-aware sampling with `cfg.refine`; None: views only.
        placement: brings the networks to the device; None: they all are where the UNet is.
    """

    def __init__(
        self,
        cfg: RunConfig,
        *,
        unet: Backbone,
        autoencoder: AutoencoderKL,
        embedder: nn.Module,
        diffusion: DiffusionDDIM,
        sampler: OrbitSampler,
        reconstruction: Reconstructor | None = None,
        placement: Placement | None = None,
    ) -> None:
        self.cfg = cfg
        self.placement = placement or Placement(next(unet.parameters()).device)
        self.reconstruction = reconstruction
        self.unet, self.autoencoder = unet, autoencoder
        self.diffusion, self.sampler = diffusion, sampler
        self.conditioner = conditioner_for(cfg, unet, embedder=embedder, autoencoder=autoencoder)
        self.network = SamplingNetwork(unet, placement=self.placement)
        networks = [unet, autoencoder, *([reconstruction.network] if reconstruction else [])]
        give_twins(cfg, *networks, device=self.placement.device, dtype=self.network.dtype)

    @classmethod
    def from_config(cls, cfg: RunConfig) -> Self:
        """Build and load every part that a configuration names.

        Raises:
            ConfigError, DataError: a setting or a weight file does not fit; nothing has been sampled then.
        """
        check_fit(cfg, pick_device(cfg.device))
        return cls.from_parts(cfg, load_parts(cfg, device=resting_place(cfg), dtype=pick_dtype(cfg)))

    @classmethod
    def from_parts(cls, cfg: RunConfig, parts: Parts) -> Self:
        """Lay out and compile parts as a configuration says, and join them."""
        unet, autoencoder = parts.unet, parts.autoencoder
        if cfg.channels_last:
            unet, autoencoder = channels_last(unet), channels_last(autoencoder)
        placement = Placement(pick_device(cfg.device), one_at_a_time=cfg.low_memory)
        reconstruction = None
        if parts.head is not None:
            reconstruction = build_reconstruction(cfg, parts.head, autoencoder=autoencoder, placement=placement)
        if cfg.compile:
            compile_parts(unet.parts_to_compile())
            if reconstruction:
                compile_parts(reconstruction.parts_to_compile())
        return cls(
            cfg,
            unet=unet,
            autoencoder=autoencoder,
            embedder=parts.embedder,
            diffusion=cfg.Diffusion.build(),
            sampler=cfg.sampler.build(),
            reconstruction=reconstruction,
            placement=placement,
        )

    @classmethod
    def from_folder(cls, folder: str | Path, *overrides: str) -> Self:
        """Build from a folder that `save` wrote: its config.yaml and its weights.

        Args:
            overrides: `key=value` strings, as on the command line.
        """
        folder = Path(folder)
        cfg = load_config(folder / "config.yaml", overrides)
        return cls.from_config(weights_in(cfg, folder))

    def save(self, folder: str | Path) -> None:
        """Write the parts and the settings as a folder that `from_folder` opens, weights as float16 safetensors."""
        parts = Parts(
            unet=self.unet,
            autoencoder=self.autoencoder,
            embedder=self.conditioner.embedder,
            head=self.reconstruction and self.reconstruction.network,
        )
        save_parts(self.cfg, parts, folder)

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
            ConfigError: refined results without a head, or an input view of the head that is not sampled, or
                a resolution that the networks cannot take.
            DataError: a picture cannot be used.
        """
        inputs, seeds = self._lists(inputs, seeds)
        results = self.results_of(results)
        call = self._call_options(seeds, c2w_V44, resolution)
        num_views, refined = len(call.c2w_V44), results != "plain"
        head = usable(self.reconstruction, num_views=num_views, resolution=call.resolution, needed=refined)
        refiner = head.refiner(call.c2w_V44, call.generators) if refined else None
        noise = self.draw_noise(call.generators, num_views=num_views, resolution=call.resolution)
        watch = Stopwatch(call.device)
        with torch.no_grad():
            with watch.part("conditions"):
                given = self._given(inputs, known_views or {}, call)
            with watch.part("denoise"):
                run = self._denoising(
                    given, call, refiner=refiner, guide_scale=guide_scale, on_step=on_step, watch=watch
                )
                latents = self._denoise(noise, run, results)
            with watch.part("decode"):
                views = [self.decode(one).float().cpu() for one in latents]
            gaussians = self._reconstruct(head, views[-1], call, watch)
        return self._orbits(
            views, latents, gaussians, inputs=inputs, seeds=seeds, c2w_V44=call.c2w_V44, seconds=watch.seconds
        )

    def results_of(self, asked: str | None = None) -> str:
        """Which results a call gives: what is asked for, or the config's where 3D-aware sampling is on.

        Raises:
            ConfigError: an unknown name, or refined results without a head.
        """
        if asked is None:
            asked = self.cfg.results if self.cfg.refine else "plain"
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

    def draw_noise(
        self, generators: Sequence[torch.Generator], *, num_views: int, resolution: tuple[int, int]
    ) -> Tensor:
        """Start of each sample from its own generator: (B, C, V, h, w) float32 on the CPU, the same on any device."""
        width, height = (side // self.autoencoder.reduction for side in resolution)
        shape = (self.autoencoder.latent_channels, num_views, height, width)
        return torch.stack([torch.randn(shape, generator=generator) for generator in generators])

    @property
    def _place(self) -> tuple[torch.device, torch.dtype]:
        return self.placement.device, self.network.dtype

    def _lists(
        self, inputs: OrbitInput | Sequence[OrbitInput], seeds: int | Sequence[int] | None
    ) -> tuple[list[OrbitInput], list[int]]:
        """One seed for each input."""
        inputs = [inputs] if isinstance(inputs, OrbitInput) else list(inputs)
        seeds = self.cfg.seed if seeds is None else seeds
        seeds = [seeds] * len(inputs) if isinstance(seeds, int) else list(seeds)
        if not inputs or len(inputs) != len(seeds):
            raise ValueError(f"need as many seeds as inputs and at least one, got {len(seeds)} and {len(inputs)}")
        return inputs, seeds

    def _call_options(
        self, seeds: list[int], c2w_V44: Tensor | None, resolution: tuple[int, int] | None
    ) -> CallOptions:
        if resolution is not None:
            check_resolution(self.cfg, resolution)
        device, dtype = self._place
        return CallOptions(
            c2w_V44=self.cfg.cameras.c2w() if c2w_V44 is None else c2w_V44,
            resolution=tuple(resolution or self.cfg.resolution),
            generators=[torch.Generator().manual_seed(seed) for seed in seeds],
            device=device,
            dtype=dtype,
        )

    def _given(
        self, inputs: list[OrbitInput], known_views: Mapping[int, Sequence[OrbitInput]], call: CallOptions
    ) -> dict[int, Conditions]:
        """Conditions from each known view, and from the input as view 0 unless that is among them."""
        self.placement.bring(self.conditioner.embedder, self.autoencoder)
        conditions = self.conditioner(inputs, call)
        if known_views and not isinstance(self.conditioner, ImageConditioner):
            raise ValueError("known views need an image model; this one samples from text")
        return {0: conditions, **{view: self.conditioner(images, call) for view, images in known_views.items()}}

    def _denoising(
        self,
        given: dict[int, Conditions],
        call: CallOptions,
        *,
        refiner: Refiner | None,
        guide_scale: float | None,
        on_step: Callable[[], None] | None,
        watch: Stopwatch,
    ) -> Denoising:
        """What the sampler works with in this call."""
        scale = self.cfg.guide_scale if guide_scale is None else guide_scale
        return Denoising(
            network=self.network,
            conditions=given[0],
            diffusion=self.diffusion,
            guidance=ClassifierFreeGuidance(scale=scale, between=tuple(self.cfg.guide_range)),
            refiner=refiner,
            known_views=self._held(given),
            generators=list(call.generators),
            on_step=on_step,
            stopwatch=watch,
        )

    def _denoise(self, noise: Tensor, run: Denoising, results: str) -> list[Tensor]:
        """Latents on the CPU: one result, or the plain and the refined one."""
        sample = self.sampler.both if results == "both" else self.sampler
        latents = sample(noise.to(self.placement.device), run)
        return [one.cpu() for one in (latents if results == "both" else [latents])]

    def _held(self, given: dict[int, Conditions]) -> KnownViews | None:
        """The given views in the way that the network was trained for; the input alone is only held when clean."""
        clean = self.cfg.hold_views == "clean" and isinstance(self.conditioner, ImageConditioner)
        return KnownViews.of(given, clean=clean) if clean or len(given) > 1 else None

    def decode(self, latents_BCVHW: Tensor) -> Tensor:
        """Latents to views in [0, 1], `decoder_bs` views at a time."""
        self.placement.bring(self.autoencoder)
        return self.autoencoder.decode_views(latents_BCVHW.to(*self._place), chunk=self.cfg.decoder_bs)

    def _reconstruct(
        self, head: Reconstructor | None, views_BVCHW: Tensor, call: CallOptions, watch: Stopwatch
    ) -> Gaussians | None:
        """The objects, if there is a head that can make them."""
        if head is None:
            return None
        with watch.part("reconstruct"):
            return head.world_gaussians(views_BVCHW, call.c2w_V44)

    def _orbits(self, views: list[Tensor], latents: list[Tensor], gaussians: Gaussians | None, **call: Any) -> Orbits:
        """One result, or the plain and the refined one, with the objects and what is known of the call."""
        return Orbits(
            views_BVCHW=views[0],
            latents_BCVHW=latents[0],
            fov_deg=self.cfg.cameras.fov_deg or DATA_FOV_DEG,
            refined_views_BVCHW=views[1] if len(views) == 2 else None,
            refined_latents_BCVHW=latents[1] if len(latents) == 2 else None,
            gaussians=gaussians,
            gaussians_fov_deg=None if gaussians is None else self.reconstruction.config.fov,
            **call,
        )
