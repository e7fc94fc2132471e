"""The interfaces of the two encoders beside a backbone, as sampling and training use them.

An autoencoder is a subclass of `Autoencoder` with a nested `Config`, a subclass of `AutoencoderConfig`, registered in
`AUTO_ENCODER`. It must have `encode` and `decode`. An encoder of texts is a subclass of `Embedder` with a nested
`Config`, a subclass of `EmbedderConfig`, registered in `EMBEDDER`. It must have `encode_text`. Everything else has a
default.

Letters: B batch, V views, C channels, H W pixels or latent pixels, L tokens, M captions.
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
    """

    twin: Any = None
    scale_factor: float = 1.0

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.reduction, self.latent_channels = config.reduction, config.latent_channels

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
            latents_BCVHW: (B, C, V, H / reduction, W / reduction).
        """
        mean_BCVHW, std_BCVHW = self.view_posteriors(views_BVCHW, chunk=chunk)
        if self.config.posterior == "mode":
            return mean_BCVHW
        return mean_BCVHW + std_BCVHW * draw_like(mean_BCVHW, generator)

    def view_posteriors(self, views_BVCHW: Tensor, *, chunk: int = 8) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the scaled latents, each (B, C, V, H, W); arguments as in `encode_views`."""
        num_views = views_BVCHW.shape[1]
        images = rearrange(views_BVCHW, "b v c h w -> (b v) c h w") * 2 - 1
        posteriors = [self.encode(part) for part in images.split(chunk)]
        moments = (torch.cat([getattr(one, name) for one in posteriors]) for name in ("mean", "std"))
        mean_BCVHW, std_BCVHW = (rearrange(m, "(b v) c h w -> b c v h w", v=num_views) for m in moments)
        return mean_BCVHW * self.scale_factor, std_BCVHW * self.scale_factor

    def decode_views(self, latents_BCVHW: Tensor, *, chunk: int = 8, clamp: bool = True) -> Tensor:
        """Decode scaled latents to views; differentiable.

        Args:
            chunk: images per pass.
            clamp: limit the result to [0, 1]; with false, every pixel has a gradient.

        Returns:
            views_BVCHW: (B, V, 3, H, W).
        """
        num_views = latents_BCVHW.shape[2]
        latents = rearrange(latents_BCVHW, "b c v h w -> (b v) c h w") / self.scale_factor
        images = torch.cat([self.decode(part) for part in latents.split(chunk)]) / 2 + 0.5
        images = images.clamp(0, 1) if clamp else images
        return rearrange(images, "(b v) c h w -> b v c h w", v=num_views)


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


def draw_like(tensor_B: Tensor, generator: torch.Generator | Sequence[torch.Generator] | None) -> Tensor:
    """Standard normal noise, drawn on the device of the generator and moved to that of the tensor."""
    if isinstance(generator, Sequence):
        assert len(generator) == len(tensor_B), "needs one generator per sample"
        return torch.cat([draw_like(sample[None], one) for sample, one in zip(tensor_B, generator, strict=True)])
    device = generator.device if generator is not None else tensor_B.device
    noise = torch.randn(tensor_B.shape, generator=generator, device=device, dtype=torch.float32)
    return noise.to(tensor_B)
