"""Turns prompts or images into conditions of the network. Text and image modes differ only in this file.

Letters: B batch, N texts, V views, S tokens, C channels, H W pixels or latent pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from models.backbone import Backbone
from models.encoders import Autoencoder, Embedder
from utils.cameras import camera_condition
from utils.errors import ConfigError
from utils.object_image import input_view
from utils.prompts import with_suffix
from utils.settings.run import RunConfig

# An input of the pipeline: a prompt, or an image as a file or as (3, H, W) in [0, 1] over white.
OrbitInput = str | Path | Tensor


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The inputs of B orbits: prompts, images, or images with a prompt each.

    Attributes:
        images: the images, or None.
        prompts: the prompts, or None.
    """

    images: list[OrbitInput] | None = None
    prompts: list[str] | None = None

    @property
    def named(self) -> list[OrbitInput]:
        """The inputs for messages and results: the images, or the prompts if there are none."""
        return (self.prompts or []) if self.images is None else self.images


@dataclass(frozen=True)
class Conditions:
    """Arguments of the network for both guidance branches.

    Attributes:
        conditional: tensors by argument name, batch first.
        unconditional: the same names.
        latents_BC1HW: scaled latents of the input image in float32, before they get the precision of the network; None
            without an image.
        views_B3HW: the input images as they were encoded, in [0, 1] over white; None without an image.
    """

    conditional: dict[str, Tensor]
    unconditional: dict[str, Tensor]
    latents_BC1HW: Tensor | None = None
    views_B3HW: Tensor | None = None

    @cached_property
    def both(self) -> dict[str, Tensor]:
        """Both branches as one batch, the conditional branch first."""
        return {name: torch.cat([value, self.unconditional[name]]) for name, value in self.conditional.items()}


@dataclass(frozen=True, kw_only=True)
class CallOptions:
    """Options of one call of the pipeline, shared by all its samples.

    Attributes:
        c2w_V44: cameras.
        resolution: width and height of the views in pixels.
        generators: one per sample, for all random numbers.
        device: device of the network's arguments.
        dtype: precision of the network's arguments.
    """

    c2w_V44: Tensor
    resolution: tuple[int, int]
    generators: Sequence[torch.Generator]
    device: torch.device
    dtype: torch.dtype

    def shared_conditions(self, *, fps: int) -> dict[str, Tensor]:
        """Return cameras (in float32) and frame rate, which are equal for all samples and both branches."""
        B = len(self.generators)
        camera_BV16 = camera_condition(self.c2w_V44).expand(B, -1, -1)
        return {
            "camera_data": camera_BV16.to(self.device),
            "fps": torch.full((B,), fps, device=self.device),
        }


@dataclass(frozen=True, kw_only=True)
class TextConditioner:
    """Turns prompts and cameras into conditions.

    A network with image conditions gets zeros for them, as in training with `objective.p_no_image`.

    Attributes:
        embedder: encodes the prompts.
        negative_prompt: text of the unconditional branch.
        prompt_suffix: appended to a prompt if it does not end with it.
        fps: frame rate, a condition of the network.
        autoencoder: for a network that takes image embeddings, to know the shape of its latents.
    """

    embedder: Embedder
    negative_prompt: str
    prompt_suffix: str
    fps: int
    autoencoder: Autoencoder | None = None

    def __call__(self, prompts: Sequence[str], call: CallOptions) -> Conditions:
        """Encode the prompts; all samples of the batch have the same cameras."""
        words_BSC = self.embedder.encode_text([self.full_prompt(prompt) for prompt in prompts])
        negative_BSC = self.embedder.encode_text([self.negative_prompt]).expand_as(words_BSC)
        shared = call.shared_conditions(fps=self.fps) | self._no_image(call)
        return Conditions(
            {"y": words_BSC.to(call.device, call.dtype), **shared},
            {"y": negative_BSC.to(call.device, call.dtype), **shared},
        )

    def full_prompt(self, prompt: str) -> str:
        """Append the suffix to a prompt."""
        return with_suffix(prompt, self.prompt_suffix)

    def _no_image(self, call: CallOptions) -> dict[str, Tensor]:
        """Return the zero image embedding and image latent of a network with image conditions."""
        if self.autoencoder is None:
            return {}
        width, height = (side // self.autoencoder.reduction for side in call.resolution)
        B, V, place = len(call.generators), len(call.c2w_V44), {"device": call.device, "dtype": call.dtype}
        return {
            "image": torch.zeros(B, 1, self.embedder.image_width, **place),
            "local_image": torch.zeros(B, self.autoencoder.latent_channels, V, height, width, **place),
        }


@dataclass(frozen=True, kw_only=True)
class ImageConditioner:
    """Turns images, with or without prompts, and cameras into conditions.

    Attributes:
        embedder: encodes the texts and embeds the images.
        autoencoder: encodes the images.
        text: text of the conditional branch for images without prompts; empty for the published model.
        negative_prompt: text of the unconditional branch.
        fps: frame rate, a condition of the network.
        with_embedding: give the network the image embedding and the image latent; if false, pictures are known views
            only.
        use_zero_infer: use a zero image embedding in the unconditional branch, as published; if false, use that of the
            image.
        zero_local_image: also use a zero latent in the unconditional branch; if false, use that of the image, as
            published.
        recenter: cut out and centre the object in an image file, unless it is already centred.
        object_share, remove_background: see `utils.object_image.input_view`.
        prompts: makes the conditions of prompts without images; None: the network was not trained for prompts.
    """

    embedder: Embedder
    autoencoder: Autoencoder
    text: str
    negative_prompt: str
    fps: int
    with_embedding: bool
    use_zero_infer: bool
    zero_local_image: bool
    recenter: bool
    object_share: float
    remove_background: bool = False
    prompts: TextConditioner | None = None

    def __call__(
        self, images: Sequence[OrbitInput], call: CallOptions, prompts: Sequence[str] | None = None
    ) -> Conditions:
        """Embed and encode the images; all samples of the batch have the same cameras.

        Args:
            prompts: one per image, only if `self.prompts` is set; None: `text` for all images.
        """
        texts = [self.text] if prompts is None else [self.prompts.full_prompt(prompt) for prompt in prompts]
        views_B3HW = self.views(images, call)
        image_BC = self.embedder.encode_image(views_B3HW.float()) if self.with_embedding else None
        latents_BC1HW = self.encode(views_B3HW, call)
        words_NSC = self.embedder.encode_text([*texts, self.negative_prompt])
        shared = call.shared_conditions(fps=self.fps)

        def branch(words_NSC: Tensor, given: dict[str, Tensor]) -> dict[str, Tensor]:
            own = {"y": words_NSC.expand(len(images), -1, -1), **given}
            return {name: value.to(call.device, call.dtype) for name, value in own.items()} | shared

        given, dropped = self._image_arguments(image_BC, latents_BC1HW, num_views=len(call.c2w_V44))
        return Conditions(branch(words_NSC[:-1], given), branch(words_NSC[-1:], dropped), latents_BC1HW, views_B3HW)

    def _image_arguments(
        self, image_BC: Tensor | None, latents_BC1HW: Tensor, *, num_views: int
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the network's image embedding and image latent, as given and for the unconditional branch."""
        if image_BC is None:
            return {}, {}
        latents_BCVHW = latents_BC1HW.expand(-1, -1, num_views, -1, -1)
        given = {"image": image_BC[:, None], "local_image": latents_BCVHW}
        zeros = {"image": self.use_zero_infer, "local_image": self.zero_local_image}
        return given, {name: torch.zeros_like(value) if zeros[name] else value for name, value in given.items()}

    def views(self, images: Sequence[OrbitInput], call: CallOptions) -> Tensor:
        """Read and prepare the images: (B, 3, H, W) in [0, 1] over white, on the device.

        Raises:
            DataError: a file cannot be used.
            ValueError: a tensor does not have the resolution of the call.
        """
        options = {"resolution": call.resolution, "recenter": self.recenter, "object_share": self.object_share}
        options["remove_background"] = self.remove_background
        views = [image if isinstance(image, Tensor) else input_view(image, **options) for image in images]
        for view in views:
            if view.shape != (3, *call.resolution[::-1]):
                raise ValueError(
                    f"an image of shape {tuple(view.shape)} does not fit resolution={call.resolution}; resize it"
                )
        return torch.stack(views).to(call.device)

    def encode(self, views_B3HW: Tensor, call: CallOptions) -> Tensor:
        """Encode images to scaled latents (B, C, 1, h, w) float32; noise comes from each sample's own generator."""
        dtype = next(self.autoencoder.parameters()).dtype
        return self.autoencoder.encode_views(views_B3HW[:, None].to(dtype), generator=list(call.generators)).float()


def texts_of(cfg: RunConfig, prompts: Sequence[str]) -> list[str]:
    """List all texts that the sampling of some prompts encodes."""
    own = [with_suffix(prompt, cfg.prompt_suffix) for prompt in prompts]
    return [*own, *([cfg.image_prompt] if cfg.takes_images else []), cfg.negative_prompt]


def check_model_kind(unet: Backbone, embedder: Embedder, *, image: bool, option: str) -> None:
    """Check that a network is of the required kind and that its image embeddings fit the embedder.

    Args:
        image: True: an image model is required; False: a text model.
        option: the setting that requires it, for the message.

    Raises:
        ConfigError: the network does not fit.
    """
    config = unet.config
    if config.takes_images != image:
        name = "UNetSD_I2VGen" if image else "UNetSD_T2VBase"
        raise ConfigError(f"{option} needs {'an image' if image else 'a text'} model; set UNet.type={name}")
    width, given = config.image_width, embedder.image_width
    if config.takes_image_embedding and width not in (None, given):
        raise ConfigError(
            f"UNet.image_dim={width}, but the embedder's image embedding has {given} channels; set UNet.image_dim to it"
        )


def conditioner_for(
    cfg: RunConfig, unet: Backbone, *, embedder: Embedder, autoencoder: Autoencoder
) -> TextConditioner | ImageConditioner:
    """Make the conditioner for the kind of the network, text or image."""
    check_model_kind(unet, embedder, image=unet.config.takes_images, option="UNet")
    of_prompts = TextConditioner(
        embedder=embedder,
        negative_prompt=cfg.negative_prompt,
        prompt_suffix=cfg.prompt_suffix,
        fps=cfg.target_fps,
        autoencoder=autoencoder if unet.config.takes_image_embedding else None,
    )
    if not unet.config.takes_images:
        return of_prompts
    return ImageConditioner(
        embedder=embedder,
        autoencoder=autoencoder,
        text=cfg.image_prompt,
        negative_prompt=cfg.negative_prompt,
        fps=cfg.target_fps,
        with_embedding=unet.config.takes_image_embedding,
        use_zero_infer=cfg.use_zero_infer,
        zero_local_image=cfg.zero_local_image,
        recenter=cfg.recenter,
        object_share=cfg.object_share,
        remove_background=cfg.remove_background,
        prompts=of_prompts if cfg.takes_prompts else None,
    )
