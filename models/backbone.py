"""What sampling and training ask of a network that denoises orbits.

A backbone is a subclass of `Backbone` with a nested `Config`, a subclass of `BackboneConfig`, registered in `MODEL`.
It must have `forward`; everything else has a default.

Letters: B batch, V views, C channels, H W latent pixels, S text tokens, E channels of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class DeepFeatures:
    """What the inner part of a network computed at one step, for the next ones (arXiv:2312.00858).

    Attributes:
        num_outer: blocks at either end that run at every step.
        value: input of the first of the last blocks; None until a call fills it.
    """

    num_outer: int = 1
    value: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """What is asked of a backbone before it is built. A subclass adds its options as fields."""

    @property
    def takes_images(self) -> bool:
        """Whether `forward` takes `image` and `local_image`: an image model."""
        return False

    @property
    def image_width(self) -> int | None:
        """Channels of the image embedding that `forward` takes; None: any number."""
        return None

    @property
    def latent_multiple(self) -> int:
        """Height and width of the latents must be multiples of this."""
        return 1

    @property
    def can_reuse(self) -> bool:
        """Whether `forward` takes `deep`, for `sampler.reuse_steps`."""
        return False

    def check_device(self, device: torch.device) -> None:
        """Refuse a device on which the network cannot run.

        Raises:
            ConfigError: names the option and what would do.
        """


class Backbone(nn.Module):
    """A network that maps (noisy latents, timestep, conditions) to a prediction, and does nothing else.

    Attributes:
        config: the options.
        twin: a callable that takes the place of the network in sampling, with the same weights arranged for speed;
            pipelines.placement sets it where it knows one. None: the network itself runs.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(BackboneConfig):
        """No options."""

    twin: Callable[..., Tensor] | None = None

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, x: Tensor, t: Tensor, y: Tensor, *, camera_data: Tensor | None, fps: Tensor | None) -> Tensor:
        """Predict.

        An image model (`Config.takes_images`) is also given `image`, the image embedding (B, 1, E) of view 0, and
        `local_image`, its latent at every view (B, C, V, H, W). With `Config.can_reuse` it may be given `deep`, a
        `DeepFeatures`: empty, it is filled; filled, the inner part of the network does not run.

        Args:
            x: noisy latents (B, C, V, H, W).
            t: timesteps (B,), integers.
            y: text tokens (B, S, E).
            camera_data: camera conditions (B, V, 16), see utils.cameras.camera_condition; None for single images.
            fps: frame rate (B,).

        Returns:
            (B, C, V, H, W), epsilon or v as the section Diffusion says.
        """
        raise NotImplementedError

    def parts_to_compile(self) -> list[nn.Module]:
        """Modules of which each is worth compiling by itself, best the blocks that repeat."""
        return [self]

    @property
    def can_be_graphed(self) -> bool:
        """Whether the two passes of training can be captured as CUDA graphs: no work on the CPU in between."""
        return False
