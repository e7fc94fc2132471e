"""What sampling and evaluation ask of a reconstruction: from the views of an orbit to 3D Gaussians.

A reconstruction is a subclass of `Reconstructor` with a nested `Config`, a subclass of `Reconstructor.Config`,
registered in `RECONSTRUCTORS`. It must have `world_gaussians`; everything else has a default, 3D-aware sampling too.

Letters: B batch, V views of an orbit, I of them that the reconstruction sees, C channels, H W pixels or latent pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.autoencoder import AutoencoderKL
from models.gaussians.rendering import render
from models.gaussians.scene import Gaussians
from models.weights import load_strict
from pipelines.placement import Placement
from utils.cameras import DATA_FOV_DEG, intrinsics
from utils.errors import ConfigError

GUIDANCE_ORDERS = ("after", "before")
RESIZES = ("nearest", "area")


@dataclass(frozen=True, kw_only=True)
class ReconstructorConfig:
    """Options of every reconstruction. A subclass adds its own as fields.

    Attributes:
        pretrained: weights of the network, where it has one.
        refine_at: fractions of the denoising steps at which x0 is refined; published: steps 20, 30 and 40 of 50.
        guidance: `after` refines both branches and then mixes them, as published; `before` mixes them and refines once,
            at half the cost.
        render_size: pixels of a render's side.
        resize: how renders come to the size of the views: `nearest` as published, or `area`, their means.
        background: grey behind renders.
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
                f"render_size must be >= 8 and background lie in [0, 1], got {self.render_size}, {self.background}"
            )
        if self.fov_deg is not None and not 0 < self.fov_deg < 180:
            raise ConfigError(f"fov_deg must lie in (0, 180), got {self.fov_deg}")

    @property
    def fov(self) -> float:
        """Field of view in degrees."""
        return DATA_FOV_DEG if self.fov_deg is None else self.fov_deg

    @property
    def names_views(self) -> bool:
        """Whether the user chose the views that are seen; a run then stops where they do not fit."""
        return False

    def views_of(self, num_views: int) -> list[int]:
        """Which views of an orbit are seen; who sees fewer than all also has its own `Reconstructor.redrawn`."""
        return list(range(num_views))

    def obstacle(self, *, num_views: int, resolution: tuple[int, int]) -> str | None:
        """Why orbits of so many views of that width and height cannot be reconstructed; None when they can.

        Renders are square, so views must be.
        """
        width, height = resolution
        return None if width == height else f"resolution={[width, height]}, but a reconstruction needs square views"


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """What a reconstruction works with.

    Attributes:
        autoencoder: of the latents, on the device or brought there.
        placement: brings networks to the device.
        rasterizer: draws Gaussians, see models.gaussians.rendering.
        decode_chunk: images that are decoded, or rendered, at once.
        encode_chunk: images that are encoded at once.
    """

    autoencoder: AutoencoderKL | None
    placement: Placement
    rasterizer: str = "auto"
    decode_chunk: int = 4
    encode_chunk: int = 4


class Reconstructor(ABC):
    """Turns views into objects, and objects into views that agree with each other.

    Args:
        config: the options.
        network: what `load_network` returned.
        workshop: what it works with.
    """

    Config = ReconstructorConfig

    def __init__(self, config: ReconstructorConfig, *, network: nn.Module, workshop: Workshop) -> None:
        self.config, self.network, self.workshop = config, network, workshop

    @abstractmethod
    def world_gaussians(self, views_BVCHW: Tensor, c2w_V44: Tensor) -> Gaussians:
        """B objects in the world of utils.cameras.

        Args:
            views_BVCHW: whole orbits, RGB in [0, 1].
            c2w_V44: their cameras.
        """

    @classmethod
    def build_network(cls, config: ReconstructorConfig) -> nn.Module:
        """The network with random weights; an empty one where there is none."""
        return nn.Module()

    @classmethod
    def load_network(cls, config: ReconstructorConfig, *, test_model: str, needed: bool) -> nn.Module | None:
        """The network with its weights, on the CPU; None where there are no weights, which the log says.

        Args:
            test_model: the generator's weight file, which may hold this network too.
            needed: the run cannot go on without it.

        Raises:
            DataError: the weights do not fit, or are missing and needed.
        """
        network = cls.build_network(config)
        if config.pretrained:
            load_strict(network, config.pretrained, option="reconstruction.pretrained")
        return network.requires_grad_(False).eval()

    def parts_to_compile(self) -> list[nn.Module]:
        """Modules of which each is worth compiling by itself."""
        return []

    @torch.no_grad()
    def redrawn(self, views_BICHW: Tensor, c2w_V44: Tensor) -> Tensor:
        """All views of the objects that some of the views show: (B, V, 3, H, W) in [0, 1].

        Args:
            views_BICHW: those that `config.views_of` names.
            c2w_V44: cameras of the whole orbit.
        """
        return self.renders(self.world_gaussians(views_BICHW, c2w_V44), c2w_V44, size=views_BICHW.shape[-1])

    def renders(self, gaussians: Gaussians, c2w_V44: Tensor, *, size: int) -> Tensor:
        """The objects from every camera: (B, V, 3, size, size) in [0, 1].

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
        """For one call of the sampler.

        Args:
            c2w_V44: cameras of the views that are sampled.
            generators: one a sample; they draw the encoder's noise where its posterior is sampled.
        """
        return OrbitRefiner(reconstructor=self, c2w_V44=c2w_V44, generators=list(generators))

    def refine_steps(self, num_steps: int) -> set[int]:
        """Indices of the steps at which to refine: the same fractions of the way for any number of steps."""
        return {int(fraction * num_steps + 1e-6) for fraction in self.config.refine_at}


@dataclass(kw_only=True)
class OrbitRefiner:
    """Decode x0, reconstruct, render, encode: another x0, whose views show one object (arXiv:2403.12010, section 3.3).

    This is the `Refiner` of pipelines.sampling.guidance.

    Attributes:
        reconstructor: makes and draws the objects.
        c2w_V44: cameras of the call.
        generators: of its samples.
    """

    reconstructor: Reconstructor
    c2w_V44: Tensor
    generators: list[torch.Generator]

    @property
    def after_guidance(self) -> bool:
        """Guidance `before` the reconstruction leaves one x0 to refine."""
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
        inputs = own.config.views_of(len(self.c2w_V44))
        views_BICHW = autoencoder.decode_views(x0_BCVHW[:, :, inputs].to(dtype), chunk=workshop.decode_chunk)
        views_BVCHW = own.redrawn(views_BICHW, self.c2w_V44)
        latents_BCVHW = autoencoder.encode_views(
            views_BVCHW.to(dtype), generator=self.generators, chunk=workshop.encode_chunk
        )
        return latents_BCVHW.to(x0_BCVHW.dtype)


def resized(views_BVCHW: Tensor, size: int, *, mode: str) -> Tensor:
    """Square views at another size; unchanged when they have it."""
    if views_BVCHW.shape[-1] == size:
        return views_BVCHW
    return functional.interpolate(views_BVCHW.flatten(0, 1), size=(size, size), mode=mode).unflatten(
        0, views_BVCHW.shape[:2]
    )
