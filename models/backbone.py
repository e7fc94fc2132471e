"""The interface of a network that denoises orbits, as sampling and training use it.

A backbone is a subclass of `Backbone` with a nested `Config`, a subclass of `BackboneConfig`, registered in `MODEL`.
It must have `forward`; everything else has a default.

Letters: B batch, V views, F frames of the latents (F = V, unless `BackboneConfig.layout` is another one), C channels,
H W latent pixels, S text tokens, E channels of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from models.encoders import FrameLayout
from models.weights import load_strict


@dataclass
class DeepFeatures:
    """Features of the inner part of a network, computed at one step and reused at the next ones (arXiv:2312.00858).

    Attributes:
        num_outer: number of blocks at each end that run at every step.
        value: input of the first of the last `num_outer` blocks; None until a call sets it.
    """

    num_outer: int = 1
    value: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Options and properties of a backbone that are known before it is built. A subclass adds its options as fields."""

    @property
    def takes_images(self) -> bool:
        """Whether the backbone is an image model, which makes views from pictures."""
        return False

    @property
    def takes_image_embedding(self) -> bool:
        """Whether `forward` of an image model takes `image` and `local_image`.

        If not, pictures are known views and nothing else, so sampling needs `hold_views=clean`.
        """
        return self.takes_images

    @property
    def view_timesteps(self) -> bool:
        """Whether `forward` takes a timestep for each frame, (B, F), which is 0 for known views without noise."""
        return False

    @property
    def image_width(self) -> int | None:
        """Number of channels of the image embedding that `forward` takes; None: any number."""
        return None

    @property
    def latent_multiple(self) -> int:
        """Height and width of the latents must be multiples of this."""
        return 1

    @property
    def layout(self) -> FrameLayout:
        """Which views a frame of the latents has; it must be that of the autoencoder."""
        return FrameLayout()

    @property
    def can_reuse(self) -> bool:
        """Whether `forward` takes `deep`, for `sampler.reuse_steps`."""
        return False

    @property
    def latent_channels(self) -> int | None:
        """Number of channels of the latents; None: any number, or not known before."""
        return None

    @property
    def text_width(self) -> int | None:
        """Number of channels of a text token; None: any number, or not known before."""
        return None

    def published_files(self, path: str, *, option: str) -> list[Path] | None:
        """List the weight files of a published folder or hub name; None: `path` names one weight file.

        Raises:
            DataError: the folder is missing, or is that of another network.
        """
        return None

    def write_random(self, out: Path, *, seed: int) -> bool:
        """Write random weights to a folder in the published layout; false: there is none, and nothing is written."""
        return False

    def check_device(self, device: torch.device) -> None:
        """Check that the network can run on a device.

        Raises:
            ConfigError: it cannot; the message has the option and the remedy.
        """


class Backbone(nn.Module):
    """A network that maps (noisy latents, timestep, conditions) to a prediction, and does nothing else.

    Attributes:
        config: the options.
        twin: a faster implementation with the same weights, which sampling calls instead of the network;
            pipelines.placement sets it if there is one. None: sampling calls the network itself.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(BackboneConfig):
        """No options."""

    twin: Callable[..., Tensor] | None = None

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, x: Tensor, t: Tensor, y: Tensor, *, camera_data: Tensor | None, fps: Tensor | None) -> Tensor:
        """Predict epsilon, v or the velocity of flow matching.

        With `Config.takes_image_embedding`, `forward` also receives `image`, the image embedding (B, 1, E) of view 0,
        and `local_image`, the latent of view 0 repeated for every view (B, C, V, H, W). With `Config.can_reuse`, it
        also accepts `deep`, a `DeepFeatures`. If it is empty, the network fills it. If it is filled, the inner part of
        the network does not run.

        Args:
            x: noisy latents (B, C, F, H, W).
            t: timesteps (B,), integers, or numbers with flow matching; (B, F) with `Config.view_timesteps`.
            y: text tokens (B, S, E).
            camera_data: camera conditions (B, V, 16), see utils.cameras.camera_condition; None for single images.
            fps: frame rate (B,).

        Returns:
            (B, C, F, H, W), epsilon, v or velocity, as set in the section Diffusion.
        """
        raise NotImplementedError

    def load_weights(self, path: str | Path, *, option: str, new_parts: Sequence[str] = ()) -> int | None:
        """Load trained weights; see `load_strict` for the arguments, the result and the errors."""
        return load_strict(self, path, option=option, new_parts=new_parts)

    def parts_to_compile(self) -> list[nn.Module]:
        """List the modules to compile separately, preferably the repeated blocks."""
        return [self]

    @property
    def can_be_graphed(self) -> bool:
        """Whether the forward and backward passes of training can be captured as CUDA graphs, without CPU work."""
        return False


def check_shapes(x: Tensor, camera_data: Tensor | None, config: BackboneConfig, *, channels: int) -> None:
    """Check the shapes of the latents (B, C, F, H, W) and of the cameras (B, V, 16) that `forward` received.

    Raises:
        ValueError: C is not `channels`, H or W is no multiple of `config.latent_multiple`, B differs, or F frames do
            not have V views.
    """
    multiple = config.latent_multiple
    if x.shape[1] != channels or x.shape[3] % multiple or x.shape[4] % multiple:
        raise ValueError(
            f"latents of shape {tuple(x.shape)} do not fit: the number of channels must be {channels}, and height and "
            f"width must be multiples of {multiple}"
        )
    if camera_data is not None and camera_data.shape[:2] != (x.shape[0], config.layout.num_views(x.shape[2])):
        raise ValueError(
            f"camera_data {tuple(camera_data.shape)} does not fit latents {tuple(x.shape)}; B and V must be equal"
        )
