"""The interfaces of the two encoders beside a backbone, as sampling and training use them.

An autoencoder is a subclass of `Autoencoder` with a nested `Config`, a subclass of `AutoencoderConfig`, registered in
`AUTO_ENCODER`. It must have `encode` and `decode`. An encoder of texts is a subclass of `Embedder` with a nested
`Config`, a subclass of `EmbedderConfig`, registered in `EMBEDDER`. It must have `encode_text`. Everything else has a
default.

Letters: B batch, V views, F frames of the latents, P views of a frame, I chosen views, C channels, H W pixels or latent
pixels, L tokens, M captions. Each view is a frame (F = V), unless the layout of the autoencoder is another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch
from einops import rearrange
from torch import Tensor, nn

from utils.errors import ConfigError


@dataclass(frozen=True)
class FrameLayout:
    """How the V views of an orbit become the F frames of its latents.

    With `views_per_frame` 1, each view is a frame. With P, the latents are those of a video of V + 1 pictures: frame 0
    is view 0, and each following frame has P views. The last view of the last frame is view 0 again, so that the orbit
    is closed. A single view is a single frame.

    Attributes:
        views_per_frame: P, the compression of the autoencoder in time.
    """

    views_per_frame: int = 1

    def check(self, num_views: int, *, option: str) -> None:
        """Check that frames can be made of so many views.

        Args:
            option: the setting with the number of views, for the message.

        Raises:
            ConfigError: they cannot; the message has the next numbers that fit.
        """
        P = self.views_per_frame
        if num_views > 1 and num_views % P:
            fits = [number for number in (num_views // P * P, -(-num_views // P) * P) if number]
            raise ConfigError(
                f"{option}: {num_views} views do not fill frames of {P} views (auto_encoder.packed=true); use "
                f"{' or '.join(map(str, fits))} views, or set auto_encoder.packed=false"
            )

    def check_known(self, *, option: str) -> None:
        """Check that views other than view 0 can be known, which needs a frame for each.

        Args:
            option: the setting with the known views, for the message.

        Raises:
            ConfigError: they share frames with views that are not known.
        """
        if self.views_per_frame > 1:
            raise ConfigError(
                f"{option}: only view 0 can be known, because the others share frames of the latents "
                "(auto_encoder.packed=true); use one picture (objective.max_known=1), or set auto_encoder.packed=false"
            )

    def check_rolls(self, *, option: str) -> None:
        """Check that latents of another first view are those of the orbit in another order; as in `check_known`."""
        if self.views_per_frame > 1:
            raise ConfigError(
                f"{option}: latents with several views in a frame (auto_encoder.packed=true) cannot begin at another "
                "view; set it to false, or set auto_encoder.packed=false"
            )

    def num_frames(self, num_views: int) -> int:
        """F for a number of views that `check` accepts."""
        P = self.views_per_frame
        return num_views if P == 1 or num_views == 1 else 1 + num_views // P

    def num_views(self, num_frames: int) -> int:
        """V for a number of frames; the inverse of `num_frames`."""
        P = self.views_per_frame
        return num_frames if P == 1 or num_frames == 1 else (num_frames - 1) * P

    def closed(self, views_BV: Tensor) -> Tensor:
        """Append view 0 to dimension 1 of an orbit of several views, if the layout closes orbits."""
        if self.views_per_frame == 1 or views_BV.shape[1] == 1:
            return views_BV
        return torch.cat([views_BV, views_BV[:, :1]], dim=1)

    def by_frame(self, values_BV: Tensor) -> Tensor:
        """Sort values of views by frame: (B, V, ...) to (B, F, P, ...). Frame 0 has the values of view 0 P times."""
        P = self.views_per_frame
        first = values_BV[:, :1].repeat_interleave(P, dim=1)
        return torch.cat([first, self.closed(values_BV)[:, 1:]], dim=1).unflatten(1, (-1, P))


class Posterior(Protocol):
    """A normal distribution of latents: its mean and its standard deviation, each (B, C, H, W)."""

    mean: Tensor
    std: Tensor


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Options and properties of an autoencoder that are known before it is built.

    Attributes:
        pretrained: weight file; null for untrained weights.
        posterior: latents of `encode_views` are a `sample` of the distribution or its `mode`.
    """

    pretrained: str | None = None
    posterior: str = "sample"

    def __post_init__(self) -> None:
        if self.posterior not in ("sample", "mode"):
            raise ConfigError(f"posterior={self.posterior} is unknown; valid: sample, mode")

    @property
    def reduction(self) -> int:
        """Side of an image divided by the side of its latent."""
        raise NotImplementedError

    @property
    def latent_channels(self) -> int:
        """C of the latents."""
        raise NotImplementedError

    @property
    def layout(self) -> FrameLayout:
        """How views become frames of the latents."""
        return FrameLayout()

    @property
    def can_be_trained(self) -> bool:
        """Whether TASK_TYPE=train_autoencoder_entrance can train it."""
        return False

    def published_files(self, path: str, *, option: str) -> list[Path] | None:
        """List the weight files of a published folder or hub name; None: `path` names one weight file.

        Raises:
            DataError: the folder is missing, or is that of another network.
        """
        return None

    def write_random(self, out: Path, *, seed: int) -> bool:
        """Write random weights to a folder in the published layout; false: there is none, and nothing is written."""
        return False


class Autoencoder(nn.Module):
    """Encodes images to latents and decodes them. Only this class knows the scale of the latents.

    Attributes:
        config: the options.
        twin: faster encoder and decoder with the same weights, used where no gradients are needed;
            pipelines.placement sets it if there is one. None: the networks themselves are used.
        scale_factor: `encode_views` multiplies latents by this.
        reduction: side of an image divided by the side of its latent.
        latent_channels: C of the latents.
        layout: how views become frames of the latents.
    """

    twin: Any = None
    scale_factor: float = 1.0

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.reduction, self.latent_channels = config.reduction, config.latent_channels
        self.layout = config.layout

    def encode(self, image_B3HW: Tensor) -> Posterior:
        """Encode images in [-1, 1], each alone, to the posterior distribution of their unscaled latents."""
        raise NotImplementedError

    def decode(self, latent_BCHW: Tensor) -> Tensor:
        """Decode unscaled latents, each alone, to images of about [-1, 1], without clamping."""
        raise NotImplementedError

    def encode_views(
        self,
        views_BVCHW: Tensor,
        *,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        chunk: int = 8,
    ) -> Tensor:
        """Encode views to scaled latents.

        Args:
            views_BVCHW: (B, V, 3, H, W) in [0, 1].
            generator: draws the noise if `posterior` is `sample`. A list of one generator per sample makes the latents
                of a sample independent of its batch.
            chunk: images per pass.

        Returns:
            latents_BCFHW: (B, C, F, H / reduction, W / reduction).
        """
        mean_BCFHW, std_BCFHW = self.view_posteriors(views_BVCHW, chunk=chunk)
        if self.config.posterior == "mode":
            return mean_BCFHW
        return mean_BCFHW + std_BCFHW * draw_like(mean_BCFHW, generator)

    def view_posteriors(self, views_BVCHW: Tensor, *, chunk: int = 8) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the scaled latents, each (B, C, F, H, W); arguments as in `encode_views`."""
        mean_BCFHW, std_BCFHW = self.encode_orbits(views_BVCHW * 2 - 1, chunk=chunk)
        return mean_BCFHW * self.scale_factor, std_BCFHW * self.scale_factor

    def decode_views(
        self, latents_BCFHW: Tensor, *, views_BI: Tensor | None = None, chunk: int = 8, clamp: bool = True
    ) -> Tensor:
        """Decode scaled latents to views; differentiable.

        Args:
            views_BI: indices of the views to decode, (I,) or (B, I) for different ones of each orbit; None: all views.
            chunk: images per pass.
            clamp: limit the result to [0, 1]; with false, every pixel has a gradient.

        Returns:
            views_BVCHW: (B, V or I, 3, H, W).
        """
        images_BVCHW = self.decode_orbits(latents_BCFHW / self.scale_factor, views_BI=views_BI, chunk=chunk) / 2 + 0.5
        return images_BVCHW.clamp(0, 1) if clamp else images_BVCHW

    def encode_orbits(self, images_BVCHW: Tensor, *, chunk: int) -> tuple[Tensor, Tensor]:
        """Encode views in [-1, 1] to mean and standard deviation of the unscaled latents, each (B, C, F, H, W).

        A subclass with another layout overrides this function and the next one.
        """
        num_views = images_BVCHW.shape[1]
        posteriors = [self.encode(part) for part in images_BVCHW.flatten(0, 1).split(chunk)]
        moments = (torch.cat([getattr(one, name) for one in posteriors]) for name in ("mean", "std"))
        mean_BCFHW, std_BCFHW = (rearrange(m, "(b v) c h w -> b c v h w", v=num_views) for m in moments)
        return mean_BCFHW, std_BCFHW

    def decode_orbits(self, latents_BCFHW: Tensor, *, views_BI: Tensor | None, chunk: int) -> Tensor:
        """Decode unscaled latents to views of about [-1, 1]; for `views_BI` see `decode_views`."""
        latents_BVCHW = chosen_views(latents_BCFHW.transpose(1, 2), views_BI)
        images = torch.cat([self.decode(part) for part in latents_BVCHW.flatten(0, 1).split(chunk)])
        return images.unflatten(0, latents_BVCHW.shape[:2])


@dataclass(frozen=True, kw_only=True)
class EmbedderConfig:
    """Options and properties of an encoder of texts that are known before it is built.

    Attributes:
        pretrained: weight file; null for untrained weights.
    """

    pretrained: str | None = None

    @property
    def works_without_file(self) -> bool:
        """Whether it is of use without a weight file, because it reads words that were encoded before."""
        return False

    @property
    def embeds_tokens(self) -> bool:
        """Whether training embeds token numbers in each step; false: it gets the words when a batch is made."""
        return False

    @property
    def can_be_trained(self) -> bool:
        """Whether TASK_TYPE=train_embedder_entrance can train it."""
        return False

    def words_shape(self) -> tuple[int, int]:
        """(L, C) of the words of a prompt."""
        raise NotImplementedError

    def published_files(self, path: str, *, option: str) -> list[Path] | None:
        """See `AutoencoderConfig.published_files`."""
        return None

    def write_random(self, out: Path, *, seed: int) -> bool:
        """Write random weights to a folder in the published layout; false: there is none, and nothing is written."""
        return False

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Check, before anything is loaded, that these prompts can be encoded.

        Raises:
            DataError: they cannot; the message has the first such prompt and the remedy.
        """


class Embedder(nn.Module):
    """Encodes texts for the cross-attention of a backbone, and images if it can.

    Attributes:
        config: the options.
    """

    def __init__(self, config: EmbedderConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def image_width(self) -> int | None:
        """Number of channels of an image embedding; None: it embeds no images."""
        return None

    @property
    def own_state(self) -> dict[str, Tensor] | None:
        """The weights for a folder of a pipeline; None: they stay in the files that `pretrained` names."""
        return None

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Encode prompts to words_BLC, on the embedder's device."""
        raise NotImplementedError

    def identity(self, *, with_images: bool) -> dict[str, str]:
        """Return what identifies the encoder, as plain values: words and image embeddings depend on nothing else."""
        raise NotImplementedError

    def prepare(self, prompts: Sequence[str]) -> int | None:
        """Get ready to encode these prompts, now or in another process.

        Returns:
            Number of tokens of the longest prompt, if all words after a prompt's end are zeros; else None. The latent
            cache stores no more tokens than this, and `padded` adds the zeros.
        """
        return None

    def padded(self, words_BLC: Tensor) -> Tensor:
        """Complete words that were cut to the length that `prepare` returned."""
        return words_BLC

    def encode_image(self, images_B3HW: Tensor) -> Tensor:
        """Embed images in [0, 1] of any size to (B, C).

        Raises:
            ConfigError: the encoder embeds no images.
        """
        self._refuse("embeds no images; use a backbone that takes no image embedding, or another embedder")

    def forget_images(self) -> None:
        """Free the image encoder, if there is one; afterwards only text can be embedded."""

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Token numbers (B, L) on the embedder's device, if `config.embeds_tokens`."""
        self._refuse("has no token numbers for training; set cache_latents=true")

    def embed_tokens(self, ids_BL: Tensor) -> tuple[Tensor | None, Tensor]:
        """Encode token numbers to (text_BC, words_BLC), if `config.embeds_tokens`."""
        self._refuse("has no token numbers for training; set cache_latents=true")

    def _refuse(self, reason: str) -> NoReturn:
        raise ConfigError(f"embedder.type={type(self).__name__} {reason}")


def chosen_views(values_BV: Tensor, views_BI: Tensor | None) -> Tensor:
    """Choose views, (I,) or (B, I), in dimension 1; None: all."""
    if views_BI is None:
        return values_BV
    B = len(values_BV)
    return values_BV[torch.arange(B, device=values_BV.device)[:, None], views_BI.expand(B, -1).to(values_BV.device)]


def draw_like(tensor_B: Tensor, generator: torch.Generator | Sequence[torch.Generator] | None) -> Tensor:
    """Standard normal noise, drawn on the device of the generator and moved to that of the tensor."""
    if isinstance(generator, Sequence):
        assert len(generator) == len(tensor_B), "needs one generator per sample"
        return torch.cat([draw_like(sample[None], one) for sample, one in zip(tensor_B, generator, strict=True)])
    device = generator.device if generator is not None else tensor_B.device
    noise = torch.randn(tensor_B.shape, generator=generator, device=device, dtype=torch.float32)
    return noise.to(tensor_B)
