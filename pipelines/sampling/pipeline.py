"""The sampling pipeline: from prompts or images to orbits and 3D Gaussians.

Letters: B batch, V views, F frames of the latents (F = V, unless `auto_encoder.packed`), C channels, H W pixels or
latent pixels.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from models.backbone import Backbone
from models.diffusion import DiffusionProcess
from models.elevation import ElevationNetwork
from models.encoders import Autoencoder, Embedder
from models.gaussians.scene import Gaussians
from pipelines.parts import Parts, check_fit, check_resolution, load_parts, save_parts, weights_in
from pipelines.placement import Placement, SamplingNetwork, give_twins
from pipelines.reconstruction.base import Reconstructor
from pipelines.reconstruction.loading import build_reconstruction, usable
from pipelines.sampling.conditioner import (
    CallOptions,
    Conditions,
    ImageConditioner,
    Inputs,
    OrbitInput,
    TextConditioner,
    conditioner_for,
    texts_of,
)
from pipelines.sampling.guidance import Refiner, guidance_between
from pipelines.sampling.input_elevation import (
    cameras_at_elevation,
    estimate_elevations,
    load_estimator,
    preparation_of,
)
from pipelines.sampling.inputs import are_sentences, matched_prompts, refused_prompts
from pipelines.sampling.known_views import KnownViews
from pipelines.sampling.sampler import Denoising, OrbitSampler
from utils.cameras import DATA_FOV_DEG
from utils.config import load_config
from utils.devices import pick_device, pick_dtype, resting_place
from utils.errors import ConfigError, DataError
from utils.registry import nearest
from utils.settings.paths import config_names
from utils.settings.run import RunConfig
from utils.settings.sampling import RESULTS
from utils.stopwatch import Stopwatch
from utils.torch_settings import channels_last, compile_parts

# Short names of configurations, for `from_pretrained`.
PRETRAINED = {"mini": "mini/real_infer"}
# Settings that decide which networks are loaded and how; `with_settings` keeps them.
NETWORK_SETTINGS = (
    "UNet", "auto_encoder", "embedder", "elevation", "Diffusion", "reconstruction", "test_model", "lora", "device",
    "precision", "channels_last", "compile", "fused", "cuda_graph", "low_memory",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Orbits:
    """Result of a call of the pipeline.

    Attributes:
        inputs: the B images, or the B prompts if there are no images.
        seeds: one per sample.
        views_BVCHW: (B, V, 3, H, W) float32 in [0, 1], on the CPU; sampled without 3D-aware sampling, or with it for
            results=refined.
        latents_BCVHW: (B, C, F, h, w) float32, scaled, on the CPU.
        c2w_V44: the cameras, see utils.cameras.
        fov_deg: field of view of the views.
        seconds: duration of each part: conditions, denoise (which includes refine), decode, reconstruct.
        prompts: the prompts of the images, if they have any.
        refined_views_BVCHW: the same samples with 3D-aware sampling, for results=both.
        refined_latents_BCVHW: the latents of the refined views.
        gaussians: the objects, B scenes on the head's device in the world frame of `c2w_V44`, from the refined views if
            there are any; None without a head.
        input_views_B3HW: the images as the network received them, in [0, 1] over white, on the CPU; None: no images.
        gaussians_fov_deg: field of view for rendering the Gaussians like the views (the published head has its own).
    """

    inputs: list[OrbitInput]
    seeds: list[int]
    views_BVCHW: Tensor
    latents_BCVHW: Tensor
    c2w_V44: Tensor
    fov_deg: float
    seconds: dict[str, float]
    prompts: list[str] | None = None
    refined_views_BVCHW: Tensor | None = None
    refined_latents_BCVHW: Tensor | None = None
    gaussians: Gaussians | None = None
    input_views_B3HW: Tensor | None = None
    gaussians_fov_deg: float | None = None

    @property
    def best_views_BVCHW(self) -> Tensor:
        """The refined views if there are any, else the plain views."""
        return self.views_BVCHW if self.refined_views_BVCHW is None else self.refined_views_BVCHW


def name_of(one: OrbitInput) -> str:
    """Name an input in a message."""
    return "an image" if isinstance(one, Tensor) else repr(str(one))


class ViewsPipeline:
    """Samples orbits with the networks, the sampler and the reconstruction of a configuration.

    Args:
        cfg: settings of the run, which are the defaults of every call.
        unet: the network, on its device and in its dtype.
        autoencoder: decodes latents; same device and dtype.
        embedder: text and image encoder; same device.
        diffusion: the diffusion process with which the network was trained.
        sampler: the denoising loop.
        reconstruction: makes the Gaussians, also for 3D-aware sampling with `cfg.refine`; None: views only.
        placement: moves the networks to the device; None: all networks are on the device of the UNet.
    """

    def __init__(
        self,
        cfg: RunConfig,
        *,
        unet: Backbone,
        autoencoder: Autoencoder,
        embedder: Embedder,
        diffusion: DiffusionProcess,
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
        """Build and load all parts of a configuration.

        Raises:
            ConfigError, DataError: a setting or a weight file does not fit.
        """
        check_fit(cfg, pick_device(cfg.device))
        return cls.from_parts(cfg, load_parts(cfg, device=resting_place(cfg), dtype=pick_dtype(cfg)))

    @classmethod
    def from_parts(cls, cfg: RunConfig, parts: Parts) -> Self:
        """Make a pipeline of loaded parts, with the memory format and compilation of the configuration."""
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

    def with_settings(self, cfg: RunConfig) -> Self:
        """Return a pipeline with the same loaded networks and other settings of sampling, such as cameras or steps.

        Raises:
            ConfigError: a setting of the networks themselves differs, or the settings do not fit them.
        """
        for name in NETWORK_SETTINGS:
            if getattr(cfg, name) != getattr(self.cfg, name):
                raise ConfigError(f"{name} belongs to the loaded networks and cannot change; load a pipeline with it")
        check_fit(cfg, self.placement.device)
        other = copy.copy(self)
        other.cfg, other.sampler = cfg, cfg.sampler.build()
        if self.reconstruction:
            options = {"autoencoder": self.autoencoder, "placement": self.placement}
            other.reconstruction = build_reconstruction(cfg, self.reconstruction.network, **options)
        embedder = self.conditioner.embedder
        other.conditioner = conditioner_for(cfg, self.unet, embedder=embedder, autoencoder=self.autoencoder)
        return other

    @classmethod
    def from_folder(cls, folder: str | Path, *overrides: str) -> Self:
        """Load a pipeline from a folder that `save` wrote, with its config.yaml and its weights.

        Args:
            overrides: `key=value` strings, as on the command line.
        """
        folder = Path(folder)
        cfg = load_config(folder / "config.yaml", overrides)
        return cls.from_config(weights_in(cfg, folder))

    @classmethod
    def from_pretrained(cls, name: str | Path, *overrides: str) -> Self:
        """Load a pipeline by name.

        Args:
            name: `mini`, the small model for real objects that comes with the project; the name of another
                configuration that samples, for example `mini/t2v_infer`; or a folder that `save` wrote.
            overrides: `key=value` strings, as on the command line.

        Raises:
            ConfigError: there is no such model, or a setting does not fit.
            DataError: a weight file is missing, as those of large models, which do not come with the project.
        """
        if os.path.isdir(name):
            return cls.from_folder(name, *overrides)
        chosen = PRETRAINED.get(str(name), str(name))
        choices = [*PRETRAINED, *(one for one in config_names() if one.endswith("_infer"))]
        if chosen not in choices and not os.path.isfile(chosen):
            raise ConfigError(f"from_pretrained({str(name)!r}): no such model or folder{nearest(str(name), choices)}")
        return cls.from_config(load_config(chosen, overrides))

    def save(self, folder: str | Path) -> None:
        """Write a folder for `from_folder`, with the settings and the weights as float16 safetensors."""
        parts = Parts(
            unet=self.unet,
            autoencoder=self.autoencoder,
            embedder=self.conditioner.embedder,
            head=self.reconstruction and self.reconstruction.network,
        )
        save_parts(self.cfg, parts, folder)

    def __call__(
        self,
        inputs: OrbitInput | Sequence[OrbitInput] | None = None,
        *,
        prompts: str | Sequence[str] | None = None,
        seeds: int | Sequence[int] | None = None,
        c2w_V44: Tensor | None = None,
        guide_scale: float | None = None,
        resolution: tuple[int, int] | None = None,
        known_views: Mapping[int, Sequence[OrbitInput]] | None = None,
        results: str | None = None,
        on_step: Callable[[], None] | None = None,
        on_x0: Callable[[Tensor], None] | None = None,
    ) -> Orbits:
        """Sample one orbit per input.

        Args:
            inputs: one or several inputs: prompts for a text model, images for an image model, as files or as (3, H, W)
                in [0, 1] over white. With takes_prompts=true a text that is neither a file nor ends like the name of a
                picture is a prompt. None: only `prompts`.
            prompts: prompts for an image model with takes_prompts=true: alone, or with images, then one for all images
                or one per image. A text model takes them here or as `inputs`.
            seeds: one seed for all inputs, or one per input; a sample depends only on its own seed. Default: that of
                the config, as for all following arguments.
            c2w_V44: cameras. The default, with input_elevation_deg=auto, is at the estimated elevation of the image.
            guide_scale: guidance scale.
            resolution: width and height in pixels.
            known_views: images of known views by the index of the view, one image per input. These views and the input
                (view 0) are fixed. For image models only. See `hold_views` of the config.
            results: `plain`, `refined` (with 3D-aware sampling) or `both`.
            on_step: called after every denoising step; an error that it raises ends the call.
            on_x0: called at every step with the latents x0 (B, C, F, h, w) as they are predicted then.

        Raises:
            ValueError: there is no input, the numbers of seeds or prompts and inputs differ, or there are known views
                without an image.
            ConfigError: the network does not take prompts, refined results need a head, an input view of the head is
                not sampled, or the resolution, the number of views or the known views do not fit the networks.
            DataError: an image cannot be used, or conditions, latents or views are not finite.
        """
        given_inputs = self._inputs(inputs, prompts)
        inputs, seeds = given_inputs.named, self._seeds(seeds, num_inputs=len(given_inputs.named))
        results = self.results_of(results)
        call = self._call_options(seeds, self._cameras(given_inputs) if c2w_V44 is None else c2w_V44, resolution)
        num_views, refined = len(call.c2w_V44), results != "plain"
        head = usable(self.reconstruction, num_views=num_views, resolution=call.resolution, needed=refined)
        refiner = head.refiner(call.c2w_V44, call.generators) if refined else None
        noise = self.draw_noise(call.generators, num_views=num_views, resolution=call.resolution)
        watch = Stopwatch(call.device)
        with torch.no_grad():
            with watch.part("conditions"):
                given = self._given(given_inputs, known_views or {}, call)
                self._check_conditions(given, inputs)
            with watch.part("denoise"):
                options = {"refiner": refiner, "guide_scale": guide_scale, "on_step": on_step, "on_x0": on_x0}
                run = self._denoising(given, call, **options, watch=watch)
                latents = self._denoise(noise, run, results)
                for one in latents:
                    self._check_finite(one, inputs, what="latents", options=("test_model", "lora.path"))
            with watch.part("decode"):
                views = []
                for one in latents:
                    decoded = self.decode(one, clamp=False)  # infinity would become white
                    self._check_finite(decoded, inputs, what="views", options=("auto_encoder.pretrained",))
                    views.append(decoded.clamp(0, 1).float().cpu())
            gaussians = self._reconstruct(head, views[-1], call, watch)
        seen_B3HW = given[0].views_B3HW
        facts = {"seeds": seeds, "c2w_V44": call.c2w_V44, "seconds": watch.seconds}
        facts["input_views_B3HW"] = None if seen_B3HW is None else seen_B3HW.float().cpu()
        return self._orbits(views, latents, gaussians, given_inputs, **facts)

    @torch.no_grad()
    def prepare(
        self,
        inputs: OrbitInput | Sequence[OrbitInput] | None = None,
        *,
        prompts: str | Sequence[str] | None = None,
        seeds: int | Sequence[int] | None = None,
        c2w_V44: Tensor | None = None,
        known_views: Mapping[int, Sequence[OrbitInput]] | None = None,
    ) -> Denoising:
        """Return what the sampler of a call would receive, without 3D-aware sampling, to examine single predictions.

        For arguments and errors see `__call__`.
        """
        given_inputs = self._inputs(inputs, prompts)
        seeds = self._seeds(seeds, num_inputs=len(given_inputs.named))
        call = self._call_options(seeds, self._cameras(given_inputs) if c2w_V44 is None else c2w_V44, None)
        given = self._given(given_inputs, known_views or {}, call)
        options = {"refiner": None, "guide_scale": None, "on_step": None, "on_x0": None}
        return self._denoising(given, call, **options, watch=Stopwatch(call.device))

    def results_of(self, asked: str | None = None) -> str:
        """Return the kind of results of a call: `asked`, or the setting of the config with refine=true, else plain.

        Raises:
            ConfigError: the name is unknown, or refined results need a head.
        """
        if asked is None:
            asked = self.cfg.results if self.cfg.refine else "plain"
        if asked not in RESULTS:
            raise ConfigError(f"results={asked} is unknown; valid: {', '.join(RESULTS)}")
        if asked != "plain" and self.reconstruction is None:
            raise ConfigError(f"results={asked} needs a Gaussian head; set reconstruction.pretrained, or results=plain")
        return asked

    @property
    def steps_per_call(self) -> int:
        """Number of times that a call with default arguments calls `on_step`."""
        results = self.results_of()
        steps = self.reconstruction.refine_steps(self.sampler.config.num_steps) if results != "plain" else set()
        return self.sampler.num_calls(refiner_steps=steps, both=results == "both")

    def prepare_texts(self, prompts: Sequence[str]) -> None:
        """Encode the texts of some prompts together, if the embedder is only in memory while it encodes."""
        self.placement.bring(self.conditioner.embedder)
        self.conditioner.embedder.prepare(texts_of(self.cfg, prompts))

    def draw_noise(
        self, generators: Sequence[torch.Generator], *, num_views: int, resolution: tuple[int, int]
    ) -> Tensor:
        """Draw the noise of each sample from its own generator: (B, C, F, h, w) float32, always on the CPU."""
        width, height = (side // self.autoencoder.reduction for side in resolution)
        shape = (self.autoencoder.latent_channels, self.autoencoder.layout.num_frames(num_views), height, width)
        return torch.stack([torch.randn(shape, generator=generator) for generator in generators])

    @property
    def _place(self) -> tuple[torch.device, torch.dtype]:
        return self.placement.device, self.network.dtype

    def _inputs(self, inputs: OrbitInput | Sequence[OrbitInput] | None, prompts: str | Sequence[str] | None) -> Inputs:
        """Sort the inputs of a call into prompts and images.

        Raises:
            ValueError: the network does not take prompts or takes nothing else, or their number does not fit.
        """
        inputs = [inputs] if isinstance(inputs, OrbitInput) else list(inputs or [])
        prompts = [prompts] if isinstance(prompts, str) else prompts and list(prompts)
        if isinstance(self.conditioner, TextConditioner):
            if inputs and prompts:
                raise ValueError("a text model takes prompts only; give them as inputs or as prompts=, not both")
            return Inputs(prompts=inputs or prompts)
        if not prompts and self.conditioner.prompts is not None and are_sentences(inputs):
            return Inputs(prompts=inputs)
        if not prompts:
            return Inputs(images=inputs)
        if self.conditioner.prompts is None:
            raise ConfigError(refused_prompts(self.cfg, prompts))
        return (
            Inputs(images=inputs, prompts=matched_prompts(prompts, len(inputs))) if inputs else Inputs(prompts=prompts)
        )

    def _seeds(self, seeds: int | Sequence[int] | None, *, num_inputs: int) -> list[int]:
        """Return one seed per input."""
        seeds = self.cfg.seed if seeds is None else seeds
        seeds = [seeds] * num_inputs if isinstance(seeds, int) else list(seeds)
        if not num_inputs or num_inputs != len(seeds):
            raise ValueError(f"got {len(seeds)} seeds and {num_inputs} inputs; give at least one, and a seed for each")
        return seeds

    def _cameras(self, inputs: Inputs) -> Tensor:
        """Return the cameras of the configuration, with input_elevation_deg=auto at the elevation of the image.

        Raises:
            ConfigError: there are several images, but all samples of a call have the same cameras.
        """
        if inputs.images is None or not self.cfg.estimates_elevation:
            return self.cfg.cameras.c2w()
        if len(inputs.images) > 1:
            raise ConfigError(
                f"input_elevation_deg=auto: a call with {len(inputs.images)} images has one orbit of cameras; give one "
                "image per call, or c2w_V44"
            )
        [elevation_deg] = estimate_elevations(self._estimator, inputs.images, **preparation_of(self.cfg))
        return cameras_at_elevation(self.cfg, elevation_deg)

    @cached_property
    def _estimator(self) -> ElevationNetwork:
        return load_estimator(self.cfg)

    def _call_options(self, seeds: list[int], c2w_V44: Tensor, resolution: tuple[int, int] | None) -> CallOptions:
        if resolution is not None:
            check_resolution(self.cfg, resolution)
        self.autoencoder.layout.check(len(c2w_V44), option="c2w_V44")
        device, dtype = self._place
        return CallOptions(
            c2w_V44=c2w_V44,
            resolution=tuple(resolution or self.cfg.resolution),
            generators=[torch.Generator().manual_seed(seed) for seed in seeds],
            device=device,
            dtype=dtype,
        )

    def _given(
        self, inputs: Inputs, known_views: Mapping[int, Sequence[OrbitInput]], call: CallOptions
    ) -> dict[int, Conditions]:
        """Return the conditions of the input (view 0) and of each known view, by the index of the view."""
        self.placement.bring(self.conditioner.embedder, self.autoencoder)
        of_images = self.conditioner if isinstance(self.conditioner, ImageConditioner) else None
        if known_views and not of_images:
            raise ValueError("known_views need an image model, but this is a text model; leave known_views out")
        if known_views and inputs.images is None:
            raise ValueError("known_views need an image as view 0, but there are only prompts; give images too")
        if known_views:
            self.autoencoder.layout.check_known(option="known_views")
        if inputs.images is None:
            of_prompts = of_images.prompts if of_images else self.conditioner
            return {0: of_prompts(inputs.prompts, call)}
        conditions = of_images(inputs.images, call, inputs.prompts)  # first, because the order draws random numbers
        return {0: conditions, **{view: of_images(images, call) for view, images in known_views.items()}}

    def _check_conditions(self, given: Mapping[int, Conditions], inputs: list[OrbitInput]) -> None:
        """Check the conditions before sampling. Both branches together, because a GPU waits at each check."""
        for conditions in given.values():
            for name, value in conditions.conditional.items():
                options = ("auto_encoder.pretrained",) if name == "local_image" else ("embedder.pretrained",)
                both = torch.stack([value, conditions.unconditional[name]], dim=1)
                self._check_finite(both, inputs, what=f"conditions ({name})", options=options)
            if conditions.latents_BC1HW is not None and "local_image" not in conditions.conditional:
                options = ("auto_encoder.pretrained",)
                self._check_finite(conditions.latents_BC1HW, inputs, what="latents of the image", options=options)

    def _check_finite(self, values_B: Tensor, inputs: list[OrbitInput], *, what: str, options: tuple[str, ...]) -> None:
        """Check that values of samples are numbers.

        Args:
            values_B: (B, ...).
            what: name of the values, for the message.
            options: settings with the weights that may be the cause.

        Raises:
            DataError: they are not; the message has the inputs and the remedy.
        """
        finite_B = values_B.isfinite().flatten(1).all(dim=1)
        if finite_B.all():
            return
        names = [name_of(one) for one, finite in zip(inputs, finite_B.tolist(), strict=True) if not finite]
        files = {"test_model": self.cfg.test_model, "lora.path": self.cfg.lora.path}
        files |= {f"{name}.pretrained": getattr(self.cfg, name).pretrained for name in ("auto_encoder", "embedder")}
        weights = " and ".join(f"{option}={files[option]}" for option in options if files[option]) or "the weights"
        remedy = ", or set precision=float32" if self.network.dtype != torch.float32 else ""
        raise DataError(f"the {what} of {', '.join(names)} are not finite (NaN or infinity); check {weights}{remedy}")

    def _denoising(
        self,
        given: dict[int, Conditions],
        call: CallOptions,
        *,
        refiner: Refiner | None,
        guide_scale: float | None,
        on_step: Callable[[], None] | None,
        on_x0: Callable[[Tensor], None] | None,
        watch: Stopwatch,
    ) -> Denoising:
        """Collect the arguments of the sampler for this call."""
        scale = self.cfg.guide_scale if guide_scale is None else guide_scale
        return Denoising(
            network=self.network,
            conditions=given[0],
            diffusion=self.diffusion,
            guidance=guidance_between(
                given[0].conditional, given[0].unconditional, scale=scale, between=tuple(self.cfg.guide_range)
            ),
            refiner=refiner,
            view_timesteps=self.unet.config.view_timesteps,
            known_views=self._held(given),
            generators=list(call.generators),
            on_step=on_step,
            on_x0=on_x0,
            stopwatch=watch,
        )

    def _denoise(self, noise: Tensor, run: Denoising, results: str) -> list[Tensor]:
        """Sample latents and return them on the CPU: one result, or the plain and the refined result."""
        sample = self.sampler.both if results == "both" else self.sampler
        latents = sample(noise.to(self.placement.device), run)
        return [one.cpu() for one in (latents if results == "both" else [latents])]

    def _held(self, given: dict[int, Conditions]) -> KnownViews | None:
        """Return the views to fix, as set in `hold_views`; the input alone is fixed only with hold_views=clean."""
        clean = self.cfg.hold_views == "clean" and given[0].latents_BC1HW is not None
        return KnownViews.of(given, clean=clean) if clean or len(given) > 1 else None

    def decode(self, latents_BCVHW: Tensor, *, views: Sequence[int] | None = None, clamp: bool = True) -> Tensor:
        """Decode latents to all views or to those with the given indices, `decoder_bs` views at a time.

        They lie in [0, 1], if `clamp` is true.
        """
        self.placement.bring(self.autoencoder)
        return self.autoencoder.decode_views(
            latents_BCVHW.to(*self._place),
            views_BI=None if views is None else torch.tensor(views),
            chunk=self.cfg.decoder_bs,
            clamp=clamp,
        )

    def _reconstruct(
        self, head: Reconstructor | None, views_BVCHW: Tensor, call: CallOptions, watch: Stopwatch
    ) -> Gaussians | None:
        """Reconstruct the objects, or return None without a head."""
        if head is None:
            return None
        with watch.part("reconstruct"):
            return head.world_gaussians(views_BVCHW, call.c2w_V44)

    def _orbits(
        self, views: list[Tensor], latents: list[Tensor], gaussians: Gaussians | None, inputs: Inputs, **call: Any
    ) -> Orbits:
        """Collect the results and the facts of the call."""
        return Orbits(
            inputs=inputs.named,
            prompts=None if inputs.images is None else inputs.prompts,
            views_BVCHW=views[0],
            latents_BCVHW=latents[0],
            fov_deg=self.cfg.cameras.fov_deg or DATA_FOV_DEG,
            refined_views_BVCHW=views[1] if len(views) == 2 else None,
            refined_latents_BCVHW=latents[1] if len(latents) == 2 else None,
            gaussians=gaussians,
            gaussians_fov_deg=None if gaussians is None else self.reconstruction.config.fov,
            **call,
        )
