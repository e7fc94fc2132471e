"""The interface of a reconstruction, which turns the views of an orbit into 3D Gaussians.

A reconstruction is a subclass of `Reconstructor` with a nested `Config`, a subclass of `Reconstructor.Config`,
registered in `RECONSTRUCTORS`. It must have `world_gaussians`. Everything else has a default, including 3D-aware
sampling.

Letters: B batch, V views of an orbit, I input views of the reconstruction, C channels, H W pixels or latent pixels.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.encoders import Autoencoder
from models.gaussians.rendering import render
from models.gaussians.scene import Gaussians
from models.weights import load_strict
from pipelines.placement import Placement
from utils.cameras import DATA_FOV_DEG, intrinsics
from utils.errors import ConfigError

log = logging.getLogger(__name__)

GUIDANCE_ORDERS = ("after", "before")
RESIZES = ("nearest", "area")


@dataclass(frozen=True, kw_only=True)
class ReconstructorConfig:
    """Options of every reconstruction. A subclass adds its own as fields.

    Attributes:
        pretrained: weights of the network, if the reconstruction has one.
        refine_at: fractions of the denoising steps at which x0 is refined; published: steps 20, 30 and 40 of 50.
        guidance: `after` refines both guidance branches and then mixes them, as published; `before` mixes them and
            refines once, at half the cost.
        render_size: height and width of a render in pixels.
        resize: how renders are resized to the views: `nearest` as published, or `area` (mean over pixels).
        background: grey value behind the renders, in [0, 1].
        fov_deg: field of view of the views; null: that of the data.
    """

    pretrained: str | None = None
    refine_at: list[float] = field(default_factory=lambda: [0.4, 0.6, 0.8])
    guidance: str = "after"
    render_size: int = 512
    resize: str = "nearest"
    background: float = 0.5
    fov_deg: float | None = None

    def __post_init__(self) -> None:
        for name, valid in {"guidance": GUIDANCE_ORDERS, "resize": RESIZES}.items():
            if getattr(self, name) not in valid:
                raise ConfigError(f"{name}={getattr(self, name)} is unknown; valid: {', '.join(valid)}")
        if not all(0 <= fraction < 1 for fraction in self.refine_at):
            raise ConfigError(f"refine_at must lie in [0, 1), got {list(self.refine_at)}")
        if self.render_size < 8 or not 0 <= self.background <= 1:
            raise ConfigError(
                f"render_size must be >= 8 and background in [0, 1], got {self.render_size} and {self.background}"
            )
        if self.fov_deg is not None and not 0 < self.fov_deg < 180:
            raise ConfigError(f"fov_deg must lie in (0, 180), got {self.fov_deg}")

    @property
    def fov(self) -> float:
        """Field of view in degrees, with the default applied."""
        return DATA_FOV_DEG if self.fov_deg is None else self.fov_deg

    @property
    def names_views(self) -> bool:
        """Whether the user chose the input views; if so, a run stops when they do not fit."""
        return False

    def views_of(self, num_views: int) -> list[int]:
        """List the input views; a subclass with fewer than all views must also override `Reconstructor.redrawn`."""
        return list(range(num_views))

    def obstacle(self, *, num_views: int, resolution: tuple[int, int]) -> str | None:
        """Return why orbits with these sizes cannot be reconstructed, or None when they can.

        Views must be square, because renders are square.
        """
        width, height = resolution
        return None if width == height else f"resolution={[width, height]}, but a reconstruction needs square views"


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """Objects and settings that a reconstruction needs at run time.

    Attributes:
        autoencoder: encodes views and decodes latents; None where no latents are used.
        placement: moves networks to the device.
        rasterizer: see models.gaussians.rendering.
        decode_chunk: number of images to decode or render at once.
        encode_chunk: number of images to encode at once.
    """

    autoencoder: Autoencoder | None
    placement: Placement
    rasterizer: str = "auto"
    decode_chunk: int = 4
    encode_chunk: int = 4


class Reconstructor(ABC):
    """Reconstruct objects from views, and render consistent views of these objects.

    Args:
        config: the options.
        network: the result of `load_network`.
        workshop: objects and settings at run time.
    """

    Config = ReconstructorConfig

    def __init__(self, config: ReconstructorConfig, *, network: nn.Module, workshop: Workshop) -> None:
        self.config, self.network, self.workshop = config, network, workshop

    @abstractmethod
    def world_gaussians(self, views_BVCHW: Tensor, c2w_V44: Tensor) -> Gaussians:
        """Reconstruct B objects in the world frame of utils.cameras.

        Args:
            views_BVCHW: all views of each orbit, RGB in [0, 1].
            c2w_V44: the cameras of the views.
        """

    @classmethod
    def build_network(cls, config: ReconstructorConfig) -> nn.Module:
        """Build the network with random weights, or an empty module for a reconstruction without a network."""
        return nn.Module()

    @classmethod
    def load_network(cls, config: ReconstructorConfig, *, test_model: str, needed: bool) -> nn.Module | None:
        """Load the network with its weights on the CPU; without weights, log this and return None.

        Args:
            test_model: the generator's weight file, which may also contain this network.
            needed: whether the run needs the network.

        Raises:
            DataError: the weights do not fit, or they are needed but missing.
        """
        network = cls.build_network(config)
        if config.pretrained:
            load_strict(network, config.pretrained, option="reconstruction.pretrained")
        elif network.state_dict():
            log.warning("reconstruction.pretrained is empty, so its network is untrained and its results mean nothing")
        return network.requires_grad_(False).eval()

    def parts_to_compile(self) -> list[nn.Module]:
        """List the modules to compile separately."""
        return []

    @torch.no_grad()
    def redrawn(self, views_BICHW: Tensor, c2w_V44: Tensor) -> Tensor:
        """Reconstruct the objects from the input views and render all views: (B, V, 3, H, W) in [0, 1].

        Args:
            views_BICHW: the views in `config.views_of`.
            c2w_V44: the cameras of all views of the orbit.
        """
        return self.renders(self.world_gaussians(views_BICHW, c2w_V44), c2w_V44, size=views_BICHW.shape[-1])

    def renders(self, gaussians: Gaussians, c2w_V44: Tensor, *, size: int) -> Tensor:
        """Render the objects from every camera: (B, V, 3, size, size) in [0, 1].

        Args:
            gaussians: B scenes in the frame of the cameras.
            c2w_V44: camera to world, OpenCV axes.
        """
        config, B = self.config, len(gaussians.means_BN3)
        K_33 = intrinsics(config.fov, config.render_size)
        parts = []
        for cameras_V44 in c2w_V44.split(max(1, self.workshop.decode_chunk // B)):
            drawn = render(
                gaussians,
                cameras_V44.expand(B, -1, -1, -1),
                K_33,
                size=(config.render_size, config.render_size),
                background=config.background,
                backend=self.workshop.rasterizer,
            )
            parts.append(resized(drawn.colors_BV3HW, size, mode=config.resize))
        return torch.cat(parts, dim=1)

    def refiner(self, c2w_V44: Tensor, generators: Sequence[torch.Generator]) -> OrbitRefiner:
        """Make the refiner for one call of the sampler.

        Args:
            c2w_V44: cameras of the sampled views.
            generators: one per sample, for the noise of the encoder if its posterior is sampled.
        """
        return OrbitRefiner(reconstructor=self, c2w_V44=c2w_V44, generators=list(generators))

    def refine_steps(self, num_steps: int) -> set[int]:
        """Return the indices of the steps with refinement: the same fractions for any number of steps."""
        return {int(fraction * num_steps + 1e-6) for fraction in self.config.refine_at}


@dataclass(kw_only=True)
class OrbitRefiner:
    """Decode x0, reconstruct, render and encode: a new x0 whose views show one object (arXiv:2403.12010, section 3.3).

    It implements the `Refiner` of pipelines.sampling.guidance.

    Attributes:
        reconstructor: reconstructs and renders the objects.
        c2w_V44: cameras of the call.
        generators: one per sample.
    """

    reconstructor: Reconstructor
    c2w_V44: Tensor
    generators: list[torch.Generator]

    @property
    def after_guidance(self) -> bool:
        """Whether guidance comes first (`guidance=before`), so that there is only one x0 to refine."""
        return self.reconstructor.config.guidance == "before"

    def steps(self, num_steps: int) -> set[int]:
        """See `Reconstructor.refine_steps`."""
        return self.reconstructor.refine_steps(num_steps)

    @torch.no_grad()
    def __call__(self, x0_BCVHW: Tensor, step: int) -> Tensor:
        own, workshop = self.reconstructor, self.reconstructor.workshop
        autoencoder = workshop.autoencoder
        workshop.placement.bring(own.network, autoencoder)
        dtype = next(autoencoder.parameters()).dtype
        inputs = torch.tensor(own.config.views_of(len(self.c2w_V44)))
        views_BICHW = autoencoder.decode_views(x0_BCVHW.to(dtype), views_BI=inputs, chunk=workshop.decode_chunk)
        views_BVCHW = own.redrawn(views_BICHW, self.c2w_V44)
        latents_BCVHW = autoencoder.encode_views(
            views_BVCHW.to(dtype), generator=self.generators, chunk=workshop.encode_chunk
        )
        return latents_BCVHW.to(x0_BCVHW.dtype)


def resized(views_BVCHW: Tensor, size: int, *, mode: str) -> Tensor:
    """Resize square views; they are returned unchanged when they already have this size."""
    if views_BVCHW.shape[-1] == size:
        return views_BVCHW
    return functional.interpolate(views_BVCHW.flatten(0, 1), size=(size, size), mode=mode).unflatten(
        0, views_BVCHW.shape[:2]
    )
