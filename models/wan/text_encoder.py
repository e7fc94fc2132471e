"""The text encoder of Wan: UMT5 with its tokenizer, which is only in memory while it encodes.

The words of a prompt are kept on disk, one file per prompt. The encoder (5.7 billion weights) is loaded when a prompt
has no file, and freed afterwards. Training encodes all captions before it starts.

Letters: B batch, L tokens, C channels.
"""

from __future__ import annotations

import gc
import hashlib
import html
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ftfy
import torch
from torch import Tensor
from tqdm import tqdm

from models.encoders import Embedder, EmbedderConfig
from models.wan.folder import part_folder, weight_files
from models.wan.random_folder import write_random_text_encoder
from models.weights import read_weights, save_safetensors
from utils.errors import ConfigError, DataError, first_line
from utils.files import write_json
from utils.registry import EMBEDDER

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

log = logging.getLogger(__name__)

ENCODER, TOKENIZER, OPTION = "text_encoder", "tokenizer", "embedder.pretrained"
ENCODER_FILE = "encoder.json"  # in the folder of an encoder's words
WORDS = "words"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BATCH_SIZE = 8  # prompts per pass
NUM_BLOCKS, BLOCK_BYTES = 64, 4096  # of each weight file, for the identity of an encoder


def cleaned(prompt: str) -> str:
    """Clean a prompt as the pipelines of Wan do: broken characters, HTML entities, and white space."""
    text = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return re.sub(r"\s+", " ", text).strip()


@EMBEDDER.register
class UMT5TextEncoder(Embedder):
    """Encodes prompts with UMT5 (arXiv:2304.09151), as the pipelines of Wan do (arXiv:2503.20314, section 4.2).

    The words after the end of a prompt are zeros. It embeds no images.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(EmbedderConfig):
        """
        Attributes:
            pretrained: a published folder with text_encoder/ and tokenizer/, or a hub name; null: only prompts that
                are already in `cache_dir`.
            cache_dir: folder for the words of prompts, about 0.1 MB each; they stay valid for the same encoder.
            num_tokens: L; longer prompts are cut, with a warning.
            width: C, as in the config.json of the encoder.
            precision: bfloat16 (11 GB in memory) or float32 (23 GB).
            device: where it encodes; null: on the device of the run. `cpu` if the GPU is too small for it.
        """

        cache_dir: str = "workspace/text_cache"
        num_tokens: int = 512
        width: int = 4096
        precision: str = "bfloat16"
        device: str | None = None

        def __post_init__(self) -> None:
            if self.precision not in DTYPES:
                raise ConfigError(f"embedder.precision={self.precision} is unknown; valid: {', '.join(DTYPES)}")
            if self.device not in (None, "cpu"):
                raise ConfigError(f"embedder.device={self.device} is unknown; valid: cpu, null")
            for name in ("num_tokens", "width"):
                if getattr(self, name) < 1:
                    raise ConfigError(f"embedder.{name} must be >= 1, got {getattr(self, name)}")
            if not self.cache_dir:
                raise ConfigError("embedder.cache_dir is empty; name a folder, e.g. workspace/text_cache")

        @property
        def works_without_file(self) -> bool:
            return True

        def words_shape(self) -> tuple[int, int]:
            return self.num_tokens, self.width

        def published_files(self, path: str, *, option: str) -> list[Path]:
            """The files of the encoder; none if it is missing, because the cache may have all prompts."""
            try:
                return weight_files(part_folder(path, ENCODER, option=option, download=False), option=option)
            except DataError:
                return []

        def check_prompts(self, prompts: Sequence[str]) -> None:
            missing = PromptCache(self).missing(prompts)
            if missing:
                check_encoder(self, missing)

        def write_random(self, out: Path, *, seed: int) -> bool:
            write_random_text_encoder(out / ENCODER, out / TOKENIZER, width=self.width, seed=seed)
            return True

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.cache = PromptCache(config)
        # The encoder is loaded later. This tells to which device the module was moved.
        self.register_buffer("place", torch.empty(0), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where it encodes."""
        return torch.device(self.config.device) if self.config.device else self.place.device

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Encode prompts: (B, L, C) float32, zeros after the end of each prompt.

        Raises:
            DataError: the cache lacks a prompt, and there is no encoder.
        """
        self._encode(self.cache.missing(prompts))
        words = [self.cache.read(prompt) for prompt in prompts]
        return torch.stack([self.padded(one_LC) for one_LC in words]).to(self.place.device)

    def prepare(self, prompts: Sequence[str]) -> int:
        """Encode the prompts that the cache lacks. Returns the number of tokens of the longest prompt."""
        self._encode(self.cache.missing(prompts))
        return max((len(self.cache.read(prompt)) for prompt in prompts), default=1)

    def padded(self, words_BLC: Tensor) -> Tensor:
        """Add zeros up to `num_tokens` to (..., L, C)."""
        return torch.nn.functional.pad(words_BLC, (0, 0, 0, self.config.num_tokens - words_BLC.shape[-2]))

    def identity(self, *, with_images: bool) -> dict[str, str]:
        if with_images:
            self._refuse("embeds no images; use a backbone that takes no image embedding, or another embedder")
        return {"text_weights": f"{self.cache.encoder_id()} {self.config.num_tokens} {self.config.precision}"}

    @torch.no_grad()
    def _encode(self, prompts: Sequence[str]) -> None:
        """Load the encoder, encode prompts into the cache, and free the encoder."""
        if not prompts:
            return
        config = self.config
        folder = check_encoder(config, prompts)
        log.info("loading the text encoder of %s to encode %d prompts", folder, len(prompts))
        tokenizer, encoder = load_tokenizer(config), load_encoder(config, self.device)
        try:
            starts = range(0, len(prompts), BATCH_SIZE)
            for start in tqdm(starts, desc="encoding prompts", unit="batch", disable=len(starts) < 2):
                batch = prompts[start : start + BATCH_SIZE]
                for prompt, words_LC in zip(batch, _words_of(batch, tokenizer, encoder, config), strict=True):
                    self.cache.write(prompt, words_LC)
        finally:
            del encoder
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()


def _words_of(
    prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase, encoder: UMT5EncoderModel, config: Any
) -> list[Tensor]:
    """Words of each prompt up to its end: (L, C), L differs."""
    texts = [cleaned(prompt) for prompt in prompts]
    lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=True).input_ids]
    for text, length in zip(texts, lengths, strict=True):
        if length > config.num_tokens:
            log.warning("prompt %r... has %d tokens; only the first %d are used", text[:40], length, config.num_tokens)
    # Padding to the longest prompt is enough: the mask hides it, and positions are relative.
    batch = tokenizer(
        texts, padding="longest", max_length=config.num_tokens, truncation=True, add_special_tokens=True,
        return_attention_mask=True, return_tensors="pt",
    )  # fmt: skip
    device = encoder.device
    words_BLC = encoder(batch.input_ids.to(device), batch.attention_mask.to(device)).last_hidden_state.cpu()
    return [words[:length] for words, length in zip(words_BLC, batch.attention_mask.sum(dim=1).tolist(), strict=True)]


def check_encoder(config: UMT5TextEncoder.Config, prompts: Sequence[str]) -> Path:
    """Check that the files of the encoder and its tokenizer exist, and return the folder of the encoder.

    Args:
        prompts: those that need it, for the error message.

    Raises:
        DataError: they do not.
    """
    lacks = f"embedder.cache_dir={config.cache_dir} lacks {len(prompts)} prompts (first: {prompts[0][:40]!r})"
    if not config.pretrained:
        raise DataError(f"{lacks}, and embedder.pretrained is empty; set it to a folder with text_encoder/")
    try:
        part_folder(config.pretrained, TOKENIZER, option=OPTION)
        folder = part_folder(config.pretrained, ENCODER, option=OPTION)
        weight_files(folder, option=OPTION)
    except DataError as err:
        raise DataError(f"{lacks}, and {err}") from err
    return folder


def load_tokenizer(config: UMT5TextEncoder.Config) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a published folder."""
    from transformers import AutoTokenizer

    folder = part_folder(config.pretrained, TOKENIZER, option=OPTION)
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as err:
        raise DataError(
            f"{OPTION}={folder} is not a readable tokenizer ({first_line(err)}); download it again"
        ) from err


def load_encoder(config: UMT5TextEncoder.Config, device: torch.device) -> UMT5EncoderModel:
    """Load the encoder of a published folder in its precision, frozen, on a device.

    Raises:
        DataError: a file is broken, or names or shapes are not those of UMT5.
    """
    from transformers import UMT5Config, UMT5EncoderModel

    folder = part_folder(config.pretrained, ENCODER, option=OPTION)
    sizes = UMT5Config.from_json_file(folder / "config.json")
    if sizes.d_model != config.width:
        raise DataError(
            f"{OPTION}={folder} has {sizes.d_model} channels (d_model), but embedder.width={config.width}; set both to "
            "the same number"
        )
    dtype = DTYPES[config.precision]
    try:
        encoder, report = UMT5EncoderModel.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as err:
        raise DataError(f"{OPTION}={folder} cannot be read ({first_line(err)}); download it again") from err
    wrong = [f"{len(names)} {kind} (first: {sorted(names)[0]})" for kind, names in report.items() if names]
    if wrong:
        raise DataError(f"{OPTION}={folder} is not an encoder of UMT5: {', '.join(wrong)}; download it again")
    return encoder.requires_grad_(False).eval().to(device)


class PromptCache:
    """The words of prompts on disk: `cache_dir`/ID OF THE ENCODER/DIGEST OF THE PROMPT.safetensors.

    If the files of the encoder are not there, the words of the only encoder in the folder are used.
    """

    def __init__(self, config: UMT5TextEncoder.Config) -> None:
        self.config, self.root = config, Path(config.cache_dir)
        self._id: str | None = None

    def encoder_id(self) -> str:
        """Return the name of the encoder: from its files, or if they are missing, from the cache.

        Raises:
            DataError: its files are missing, and the cache does not have exactly one encoder.
        """
        if self._id is None:
            self._id = self._id_of_files() or self._only_id()
        return self._id

    def _id_of_files(self) -> str:
        """Digest of config.json, the tokenizer, and a sample of the weights; "" if the encoder is missing."""
        if not self.config.pretrained:
            return ""
        try:
            encoder = part_folder(self.config.pretrained, ENCODER, option=OPTION, download=False)
            tokenizer = part_folder(self.config.pretrained, TOKENIZER, option=OPTION, download=False)
            weights = weight_files(encoder, option=OPTION)
        except DataError:
            return ""
        digest = hashlib.sha256()
        for file in (encoder / "config.json", *sorted(tokenizer.iterdir())):
            if file.is_file():
                digest.update(file.name.encode() + file.read_bytes())
        for file in weights:
            digest.update(_sample_of(file))
        return digest.hexdigest()[:16]

    def _only_id(self) -> str:
        found = sorted(path.parent.name for path in self.root.glob(f"*/{ENCODER_FILE}"))
        if len(found) != 1:
            reason = f"has words of {len(found)} encoders" if found else "is empty"
            raise DataError(
                f"embedder.cache_dir={self.root} {reason}, and {OPTION}={self.config.pretrained} has no text_encoder/ "
                "and tokenizer/; set it to a folder that has both"
            )
        return found[0]

    def file_of(self, prompt: str) -> Path:
        """Return the file of a prompt: its name depends on the cleaned text, `num_tokens` and `precision`."""
        key = f"{self.config.num_tokens} {self.config.precision}\n{cleaned(prompt)}"
        return self.root / self.encoder_id() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"

    def missing(self, prompts: Sequence[str]) -> list[str]:
        """Return the prompts without a readable file, each once."""
        try:
            self.encoder_id()
        except DataError:  # `check_encoder` tells what is missing
            return list(dict.fromkeys(prompts))
        found = {str(self.file_of(prompt)): prompt for prompt in prompts if not self.file_of(prompt).is_file()}
        return list(found.values())

    def read(self, prompt: str) -> Tensor:
        """Return the words (L, C) of a prompt, up to its end, in float32.

        Raises:
            DataError: the file is damaged.
        """
        file = self.file_of(prompt)
        words_LC = read_weights(file, option="embedder.cache_dir").state.get(WORDS)
        if words_LC is None or words_LC.shape[1:] != (self.config.width,) or len(words_LC) > self.config.num_tokens:
            raise DataError(f"embedder.cache_dir={file} has no words of embedder.width={self.config.width}; delete it")
        return words_LC.float()

    def write(self, prompt: str, words_LC: Tensor) -> None:
        """Write the words of a prompt, and beside the first ones what encoded them."""
        file = self.file_of(prompt)
        about = file.parent / ENCODER_FILE
        save_safetensors(file, {WORDS: words_LC}, metadata={"prompt": cleaned(prompt)}, dtype=words_LC.dtype)
        if not about.is_file():
            write_json(about, {"encoder": str(self.config.pretrained), "precision": self.config.precision})


def _sample_of(file: Path) -> bytes:
    """Name, size and some blocks of a file, evenly spaced: two trainings differ almost everywhere."""
    size = file.stat().st_size
    digest = hashlib.sha256(f"{file.name} {size}".encode())
    with file.open("rb") as opened:
        for block in range(NUM_BLOCKS):
            opened.seek(size * block // NUM_BLOCKS)
            digest.update(opened.read(BLOCK_BYTES))
    return digest.digest()
