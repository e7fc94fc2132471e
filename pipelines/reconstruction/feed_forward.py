"""Views to Gaussians, and back to views that agree with each other.

Letters: B batch, V views of an orbit, I of them the head's input, C channels, H W pixels or latent pixels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from models.autoencoder import AutoencoderKL
from models.gaussians.lgm import LGM, evenly_spaced, head_input
from models.gaussians.rendering import render
from models.gaussians.scene import Gaussians
from pipelines.placement import Stage
from utils.cameras import DATA_FOV_DEG, head_cameras, head_to_world, intrinsics, opencv_to_opengl
from utils.errors import ConfigError
from utils.registry import MODEL, RECONSTRUCTORS

GUIDANCE_ORDERS = ("after", "before")
RESIZES = ("nearest", "area")


@RECONSTRUCTORS.register
class GaussianReconstruction:
    """Reconstruct, render, encode: another x0 whose views show one object (arXiv:2403.12010, section 3.3)."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """
        Attributes:
            head: sizes of the Gaussian head, see models.gaussians.lgm.
            pretrained: its weights; null takes those that `test_model` holds under `lgm_big.`.
            input_views: which views it sees; empty: evenly spaced, beginning with view 0.
            refine_at: shares of the denoising steps at which x0 is refined; published: steps 20, 30 and 40 of 50.
            guidance: `after` refines both branches and then mixes them, as published; `before` mixes them and refines
                once, at half the cost.
            render_size: pixels of a render's side.
            resize: how renders come to the size of the views: `nearest` as published, or `area`, their means.
            background: grey behind renders.
            fov_deg: field of view that the head was trained with; null: that of the data.
            published_sampling_axes: see utils.cameras.head_cameras.
        """

        head: dict[str, Any] = field(default_factory=dict)
        pretrained: str | None = None
        input_views: list[int] = field(default_factory=list)
        refine_at: list[float] = field(default_factory=lambda: [0.4, 0.6, 0.8])
        guidance: str = "after"
        render_size: int = 512
        resize: str = "nearest"
        background: float = 0.5
        fov_deg: float | None = None
        published_sampling_axes: bool = False

        def __post_init__(self) -> None:
            for name, valid in {"guidance": GUIDANCE_ORDERS, "resize": RESIZES}.items():
                if getattr(self, name) not in valid:
                    raise ConfigError(f"{name}={getattr(self, name)} is unknown; valid: {', '.join(valid)}")
            if not all(0 <= fraction < 1 for fraction in self.refine_at):
                raise ConfigError(f"refine_at must lie in [0, 1), got {list(self.refine_at)}")
            if self.render_size < 8 or not 0 <= self.background <= 1:
                raise ConfigError(
                    f"render_size must be >= 8 and background lie in [0, 1], got {self.render_size}, {self.background}"
                )
            if self.fov_deg is not None and not 0 < self.fov_deg < 180:
                raise ConfigError(f"fov_deg must lie in (0, 180), got {self.fov_deg}")
            wanted = self.head_config.num_input_views
            if self.input_views and len(self.input_views) != wanted:
                raise ConfigError(f"input_views={list(self.input_views)}, but the head takes {wanted} views")

        @property
        def head_config(self) -> LGM.Config:
            """The checked sizes of the head."""
            return MODEL.resolve({"type": "LGM", **self.head}, where="reconstruction.head")[1]

        @property
        def fov(self) -> float:
            """Field of view in degrees."""
            return DATA_FOV_DEG if self.fov_deg is None else self.fov_deg

        def views_of(self, num_views: int) -> list[int]:
            """Which of so many views the head sees."""
            return list(self.input_views) or evenly_spaced(num_views, self.head_config.num_input_views)

        def obstacle(self, *, num_views: int, resolution: tuple[int, int]) -> str | None:
            """Why the head cannot work on orbits of so many views of that width and height; None when it can."""
            size, wanted = self.head_config.input_size, self.head_config.num_input_views
            if tuple(resolution) != (size, size):
                return f"resolution={list(resolution)}, but the Gaussian head takes views of {size} x {size}"
            views = self.views_of(num_views)
            if len(set(views)) == wanted and all(0 <= view < num_views for view in views):
                return None
            if not self.input_views:
                return f"{num_views} views are sampled, but the Gaussian head needs {wanted} evenly spaced views"
            return (
                f"reconstruction.input_views={views}, but {num_views} views are sampled: the Gaussian head needs "
                f"{wanted} different ones from 0 to {num_views - 1}"
            )

    def __init__(
        self,
        config: Config,
        *,
        head: LGM,
        autoencoder: AutoencoderKL,
        stage: Stage | None = None,
        rasterizer: str = "auto",
        decode_chunk: int = 4,
        encode_chunk: int = 4,
    ) -> None:
        """
        Args:
            head: with its weights, in float32.
            autoencoder: of the latents; its precision is that of the head's layers too.
            stage: brings both to the device; None: they are there.
            rasterizer: see models.gaussians.rendering.
            decode_chunk: images that are decoded, or rendered, at once.
            encode_chunk: images that are encoded at once.
        """
        self.config = config
        self.head, self.autoencoder, self.stage = head, autoencoder, stage
        self.rasterizer = rasterizer
        self.decode_chunk, self.encode_chunk = decode_chunk, encode_chunk

    def gaussians(self, views_BVCHW: Tensor, c2w_V44: Tensor) -> Gaussians:
        """Objects in the head's frame; gradients pass.

        Args:
            views_BVCHW: whole orbits in [0, 1], on the head's device.
            c2w_V44: their cameras.

        """
        inputs = self.config.views_of(views_BVCHW.shape[1])
        poses_I44 = self.poses(c2w_V44)[inputs].to(views_BVCHW.device)
        return self.from_inputs(views_BVCHW[:, inputs], poses_I44.expand(len(views_BVCHW), -1, -1, -1))

    def from_inputs(self, views_BICHW: Tensor, poses_BI44: Tensor) -> Gaussians:
        """Objects from the head's input views and poses."""
        with self._precision():
            return self.head(head_input(views_BICHW.float(), poses_BI44, fov_deg=self.config.fov))

    def world_gaussians(self, views_BVCHW: Tensor, c2w_V44: Tensor) -> Gaussians:
        """Objects in the world of utils.cameras, described by true rotations; for files and viewers."""
        if self.stage:
            self.stage.use(self.head)
        device = next(self.head.parameters()).device
        return self.gaussians(views_BVCHW.to(device), c2w_V44).moved(head_to_world(c2w_V44))

    def poses(self, c2w_V44: Tensor) -> Tensor:
        """Cameras in the head's frame: camera to world with OpenGL axes."""
        return head_cameras(
            c2w_V44, fov_deg=self.config.fov, published_sampling_axes=self.config.published_sampling_axes
        ).poses_V44

    def views(self, gaussians: Gaussians, c2w_V44: Tensor, *, size: int) -> Tensor:
        """Renders of objects in the head's frame from every camera: (B, V, 3, size, size) in [0, 1]."""
        config, B = self.config, len(gaussians.means_BN3)
        K_33 = intrinsics(config.fov, config.render_size)
        parts = []
        for poses_V44 in opencv_to_opengl(self.poses(c2w_V44)).split(max(1, self.decode_chunk // B)):
            drawn = render(
                gaussians,
                poses_V44.expand(B, -1, -1, -1),
                K_33,
                size=(config.render_size, config.render_size),
                background=config.background,
                backend=self.rasterizer,
            )
            parts.append(resized(drawn.colors_BV3HW, size, mode=config.resize))
        return torch.cat(parts, dim=1)

    def refiner(self, c2w_V44: Tensor, generators: Sequence[torch.Generator]) -> OrbitRefiner:
        """For one call of the sampler.

        Args:
            c2w_V44: cameras of the views that are sampled.
            generators: one a sample; they draw the encoder's noise where its posterior is sampled.
        """
        return OrbitRefiner(reconstruction=self, c2w_V44=c2w_V44, generators=list(generators))

    def refine_steps(self, num_steps: int) -> set[int]:
        """Where to refine: the same share of the way for any number of steps."""
        return {int(fraction * num_steps + 1e-6) for fraction in self.config.refine_at}

    def _precision(self) -> Any:
        """The head's layers run in the autoencoder's precision where that is lower; its weights stay as they are."""
        parameter = next(self.autoencoder.parameters())
        if parameter.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(next(self.head.parameters()).device.type, dtype=parameter.dtype)


@dataclass(kw_only=True)
class OrbitRefiner:
    """Replaces x0 by renders of its reconstruction: the `Refiner` of pipelines.sampling.sampler.

    Attributes:
        reconstruction: does it.
        c2w_V44: cameras of the call.
        generators: of its samples.
    """

    reconstruction: GaussianReconstruction
    c2w_V44: Tensor
    generators: list[torch.Generator]

    @property
    def after_guidance(self) -> bool:
        """Guidance `before` the reconstruction leaves one x0 to refine."""
        return self.reconstruction.config.guidance == "before"

    def steps(self, num_steps: int) -> set[int]:
        """See `GaussianReconstruction.refine_steps`."""
        return self.reconstruction.refine_steps(num_steps)

    @torch.no_grad()
    def __call__(self, x0_BCVHW: Tensor, step: int) -> Tensor:
        own = self.reconstruction
        if own.stage:
            own.stage.use(own.head, own.autoencoder)
        autoencoder, dtype = own.autoencoder, next(own.autoencoder.parameters()).dtype
        inputs = own.config.views_of(len(self.c2w_V44))
        poses_I44 = own.poses(self.c2w_V44)[inputs].to(x0_BCVHW.device)
        views_BICHW = autoencoder.decode_views(x0_BCVHW[:, :, inputs].to(dtype), chunk=own.decode_chunk)
        gaussians = own.from_inputs(views_BICHW, poses_I44.expand(len(x0_BCVHW), -1, -1, -1))
        views_BVCHW = own.views(gaussians, self.c2w_V44, size=views_BICHW.shape[-1])
        latents_BCVHW = autoencoder.encode_views(
            views_BVCHW.to(dtype), generator=self.generators, chunk=own.encode_chunk
        )
        return latents_BCVHW.to(x0_BCVHW.dtype)


def resized(views_BVCHW: Tensor, size: int, *, mode: str) -> Tensor:
    """Square views at another size; unchanged when they have it."""
    if views_BVCHW.shape[-1] == size:
        return views_BVCHW
    return functional.interpolate(views_BVCHW.flatten(0, 1), size=(size, size), mode=mode).unflatten(
        0, views_BVCHW.shape[:2]
    )
