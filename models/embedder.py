"""The text and image encoder: an open_clip model, the published one or a small one of our own.

Letters: B batch, L tokens, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.checksums import digest_of
from models.encoders import Embedder, EmbedderConfig
from utils.errors import ConfigError
from utils.registry import EMBEDDER, nearest

# models/clip.py is imported when an encoder is built, because importing open_clip takes longer than all other imports.
PUBLISHED_ARCH = "ViT-H-14"
CONTEXT_LENGTH, TEXT_WIDTH = 77, 1024  # tokens of a text and their channels, as published


class Embeddings(NamedTuple):
    """Output of the encoder for images and texts, in the published order.

    Attributes:
        image: (B, C) image embedding, or None.
        text: (B, C) text embedding (the projected end-of-text token), or None.
        words: (B, L, width) hidden states of all tokens after the final norm, or None.
    """

    image: Tensor | None
    text: Tensor | None
    words: Tensor | None


@EMBEDDER.register
class FrozenOpenCLIPTtxtVisualEmbedder(Embedder):
    """Embeds prompts and images. `.model` is the open_clip model; its state dict has the published names."""

    retired_keys: ClassVar[dict[str, str]] = {"vit_resolution": "the architecture sets the size of the images"}

    @dataclass(frozen=True, kw_only=True)
    class Config(EmbedderConfig):
        """
        Attributes:
            arch: an open_clip architecture name; `model_cfg` replaces it.
            layer: `penultimate`: words are taken before the last text block, as published; `last`: after it.
            pretrained: weight file (open_clip_pytorch_model.bin or safetensors); null for untrained weights.
            model_cfg: sizes of an architecture of our own: embed_dim, vision_cfg, text_cfg of open_clip.
            num_merges: use only this number of merges of the tokenizer, for a small vocabulary (any text can still be
                encoded, with more tokens); null: all merges.
        """

        arch: str = PUBLISHED_ARCH
        layer: str = "penultimate"
        model_cfg: dict[str, Any] = field(default_factory=dict)
        num_merges: int | None = None

        def __post_init__(self) -> None:
            if self.layer not in ("penultimate", "last"):
                raise ConfigError(f"layer={self.layer} is unknown; valid: penultimate, last")
            if self.num_merges is not None and self.num_merges < 0:
                raise ConfigError(f"num_merges must be >= 0, got {self.num_merges}")
            if self.num_merges is not None and not self.model_cfg:
                raise ConfigError(
                    f"num_merges={self.num_merges} changes the vocabulary; set model_cfg too, or num_merges=null"
                )
            if not self.model_cfg and self.arch != PUBLISHED_ARCH:
                from models.clip import known_archs

                if self.arch not in known_archs():
                    raise ConfigError(f"arch={self.arch} is unknown to open_clip{nearest(self.arch, known_archs())}")
            missing = {"embed_dim", "vision_cfg", "text_cfg"} - set(self.model_cfg)
            if self.model_cfg and missing:
                raise ConfigError(f"model_cfg has no {', '.join(sorted(missing))}; add it")

        @property
        def embeds_tokens(self) -> bool:
            return True

        @property
        def can_be_trained(self) -> bool:
            return True

        def words_shape(self) -> tuple[int, int]:
            sizes = self.model_cfg.get("text_cfg", {})
            return sizes.get("context_length", CONTEXT_LENGTH), sizes.get("width", TEXT_WIDTH)

    def __init__(self, config: Config) -> None:
        from models import clip

        super().__init__(config)
        self.pixel_moments = (clip.MEAN, clip.STD)
        sizes = dict(config.model_cfg or clip.sizes_of(config.arch))
        if config.num_merges is not None:
            sizes["text_cfg"] = {**sizes["text_cfg"], "vocab_size": clip.vocab_size(config.num_merges)}
        self.model = clip.build_clip(sizes, pretrained=config.pretrained)
        self.tokenizer = clip.ShortTokenizer(num_merges=config.num_merges, context_length=self.model.context_length)
        if self.tokenizer.vocab_size > self.model.vocab_size:
            raise ConfigError(
                f"embedder.model_cfg.text_cfg.vocab_size={self.model.vocab_size} is smaller than the tokenizer's "
                f"{self.tokenizer.vocab_size}; set embedder.num_merges instead"
            )
        num_blocks = len(self.model.transformer.resblocks)
        self.num_blocks = num_blocks - 1 if config.layer == "penultimate" else num_blocks
        self.eval()

    @property
    def width(self) -> int:
        return self.model.ln_final.weight.shape[0]

    @property
    def image_width(self) -> int:
        return self.model.visual.output_dim

    @property
    def context_length(self) -> int:
        return self.model.context_length

    @property
    def own_state(self) -> dict[str, Tensor]:
        return self.model.state_dict()

    def identity(self, *, with_images: bool) -> dict[str, str]:
        embeddings = {"image_weights": digest_of(self.model.visual)} if with_images else {}
        return embeddings | {"text_weights": digest_of(self.model, without="visual.")}

    def forward(self, image: Tensor | None = None, text: Sequence[str] | None = None) -> Embeddings:
        """Embed normalised images and texts.

        Args:
            image: (B, 3, H, W) in the size of the architecture, normalised like the images of CLIP.
            text: B prompts.
        """
        image_BC = None if image is None else self.model.encode_image(image)
        text_BC, words_BLC = (None, None) if text is None else self.embed_tokens(self.tokenize(text))
        return Embeddings(image=image_BC, text=text_BC, words=words_BLC)

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Encode prompts to words_BLC, on the device of the model."""
        return self.embed_tokens(self.tokenize(prompts))[1]

    def encode_image(self, images_B3HW: Tensor) -> Tensor:
        """Embed images in [0, 1] of any size to (B, C)."""
        return self.model.encode_image(self.preprocess(images_B3HW))

    def preprocess(self, images_B3HW: Tensor) -> Tensor:
        """Resize images in [0, 1] to the size of the architecture and normalise them like CLIP."""
        size = self.model.visual.image_size
        size = (size, size) if isinstance(size, int) else tuple(size)
        if tuple(images_B3HW.shape[-2:]) != size:
            images_B3HW = functional.interpolate(images_B3HW, size, mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = (images_B3HW.new_tensor(v)[:, None, None] for v in self.pixel_moments)
        return (images_B3HW - mean) / std

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Token numbers (B, L) on the device of the model; a prompt that is too long is cut, with a warning."""
        return self.tokenizer.ids(prompts).to(self.model.token_embedding.weight.device)

    def forget_images(self) -> None:
        """Free the image encoder (two thirds of the published weights); afterwards only text can be embedded."""
        self.model.visual = _NoImages(self.model.visual.output_dim)

    def embed_tokens(self, ids_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Encode token numbers to (text_BC, words_BLC)."""
        model = self.model
        hidden_BLC = model.token_embedding(ids_BL) + model.positional_embedding
        for block in model.transformer.resblocks[: self.num_blocks]:
            hidden_BLC = block(hidden_BLC, attn_mask=model.attn_mask)
        words_BLC = model.ln_final(hidden_BLC)
        end_of_text_B = ids_BL.argmax(dim=-1)  # the end token has the largest token number
        text_BC = words_BLC[torch.arange(len(ids_BL), device=ids_BL.device), end_of_text_B] @ model.text_projection
        return text_BC, words_BLC


class _NoImages(nn.Module):
    """Replaces the image encoder after `forget_images`."""

    def __init__(self, output_dim: int) -> None:
        super().__init__()
        self.output_dim = output_dim

    def forward(self, *_images: Tensor, **_options: Any) -> Tensor:
        raise RuntimeError("this encoder embeds only text, because forget_images was called")
