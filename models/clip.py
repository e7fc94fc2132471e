"""The model and tokenizer of open_clip, with sizes of our own. Only models/embedder.py uses this module."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from typing import Any

import open_clip
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.tokenizer import SimpleTokenizer, bytes_to_unicode
from torch import Tensor

from models.weights import load_state, read_weights
from utils.errors import ConfigError

log = logging.getLogger(__name__)

MEAN, STD = OPENAI_DATASET_MEAN, OPENAI_DATASET_STD  # for pixels in [0, 1]
NUM_BYTE_TOKENS = 512  # two tokens per byte: inside a word and at its end
NUM_SPECIAL_TOKENS = 2  # start and end of text


def known_archs() -> list[str]:
    """Architecture names of open_clip."""
    return open_clip.list_models()


def sizes_of(arch: str) -> dict[str, Any]:
    """The configuration of an open_clip architecture, for `build_clip`."""
    return open_clip.get_model_config(arch)


def vocab_size(num_merges: int) -> int:
    """Vocabulary size of a tokenizer with this number of merges."""
    return NUM_BYTE_TOKENS + num_merges + NUM_SPECIAL_TOKENS


def build_clip(sizes: dict[str, Any], *, pretrained: str | None) -> open_clip.CLIP:
    """An open_clip model. Its slow random initialisation is skipped if there is a weight file."""
    sizes = {key: sizes[key] for key in ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu") if key in sizes}
    try:
        if not pretrained:
            return open_clip.CLIP(**sizes)
        state = read_weights(pretrained, option="embedder.pretrained").state
        with torch.device("meta"):
            model = open_clip.CLIP(**sizes)
    except TypeError as err:
        raise ConfigError(f"embedder.model_cfg does not describe an open_clip model: {err}") from err
    length = model.context_length
    model.attn_mask = torch.full((length, length), float("-inf")).triu_(
        1
    )  # the causal mask, which is not part of weight files
    load_state(model, state, source=f"embedder.pretrained={pretrained}")
    return model


@cache
def _whole_tokenizer() -> SimpleTokenizer:
    """Reading its 48,894 merges takes a tenth of a second, so a process does it once."""
    return SimpleTokenizer()


class ShortTokenizer(SimpleTokenizer):
    """open_clip's byte-pair tokenizer with only its first merges.

    Merges are ordered by frequency, and all bytes are in the vocabulary, so any text can be encoded.
    """

    def __init__(self, *, num_merges: int | None, context_length: int) -> None:
        whole = _whole_tokenizer()
        vars(self).update(vars(whole), cache=dict(whole.cache), context_length=context_length)
        if num_merges is None:
            return
        merges = list(self.bpe_ranks)[:num_merges]
        if len(merges) < num_merges:
            raise ConfigError(
                f"embedder.num_merges={num_merges} must be at most {len(merges)}, the number of merges of open_clip"
            )
        byte_tokens = list(bytes_to_unicode().values())
        words = [*byte_tokens, *(token + "</w>" for token in byte_tokens), *("".join(pair) for pair in merges)]
        special = list(self.cache)
        self.encoder = {word: number for number, word in enumerate([*words, *special])}
        self.decoder = {number: word for word, number in self.encoder.items()}
        self.bpe_ranks = {pair: rank for rank, pair in enumerate(merges)}
        self.vocab_size = len(self.encoder)
        self.all_special_ids = [self.encoder[token] for token in special]
        self.sot_token_id, self.eot_token_id = self.all_special_ids

    def ids(self, prompts: Sequence[str]) -> Tensor:
        """(B, L) int64: start, words, end, zeros. A prompt that is too long is cut at its end."""
        ids_BL = torch.zeros(len(prompts), self.context_length, dtype=torch.long)
        room = self.context_length - NUM_SPECIAL_TOKENS
        for row, prompt in zip(ids_BL, prompts, strict=True):
            tokens = self.encode(prompt)
            if len(tokens) > room:
                log.warning("prompt %r... has %d tokens; only the first %d are used", prompt[:40], len(tokens), room)
            tokens = [self.sot_token_id, *tokens[:room], self.eot_token_id]
            row[: len(tokens)] = torch.tensor(tokens)
        return ids_BL
