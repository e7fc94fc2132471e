"""Writes folders in the published layout of Wan with random weights, to measure a machine or to try a configuration.

Every config.json and every header of a weight file says that the weights are random.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from models.random_weights import random_value
from models.wan.folder import TRANSFORMER, TRANSFORMER_CLASS
from utils.errors import DataError
from utils.files import atomic_folder, write_json

NOTE = "random weights, for tests and measurements"
MAX_SHARD_BYTES = 5 * 10**9  # as published
DTYPE = torch.bfloat16
# The sizes of the published encoder, umt5-xxl; smaller ones are scaled with the width.
TEXT_WIDTH, TEXT_LAYERS, TEXT_VOCABULARY, HEAD_DIM = 4096, 24, 256384, 64
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,;:!?'\"()-/&%#+*"


def write_random_part(
    folder: Path,
    network: nn.Module,
    config: Mapping[str, Any],
    *,
    seed: int,
    stem: str = "diffusion_pytorch_model",
    left_out: tuple[str, ...] = (),
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write config.json and random weights in bfloat16, whole or not at all.

    Args:
        network: its names and shapes; on the meta device.
        stem: first part of the names of weight files.
        left_out: names that share their values with another, which published files leave out.
        max_shard_bytes: a part with more bytes is written in shards with an index.

    Raises:
        DataError: the folder is there and does not hold random weights.
    """
    _check_ours(folder)
    shapes = {name: value for name, value in network.state_dict().items() if name not in left_out}
    shards = list(_shards(shapes, max_shard_bytes))
    generator = torch.Generator().manual_seed(seed)
    with atomic_folder(folder) as part:
        write_json(part / "config.json", {**config, "_comment": NOTE})
        weight_map = {}
        for number, names in enumerate(tqdm(shards, desc=f"writing {folder.name}", disable=len(shards) < 2), start=1):
            count = f"-{number:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
            file = f"{stem}{count}.safetensors"
            values = {name: random_value(name, shapes[name], generator=generator).to(DTYPE) for name in names}
            save_file(values, part / file, metadata={"format": "pt", "note": NOTE})
            weight_map |= dict.fromkeys(names, file)
        if len(shards) > 1:
            size = sum(_bytes_of(value) for value in shapes.values())
            index = {"metadata": {"total_size": size, "note": NOTE}, "weight_map": weight_map}
            write_json(part / f"{stem}.safetensors.index.json", index)


def _check_ours(folder: Path) -> None:
    marks = (folder / "config.json", folder / "note.json")
    if folder.exists() and not any(mark.is_file() and NOTE in mark.read_text(encoding="utf-8") for mark in marks):
        raise DataError(f"{folder} is there and does not hold random weights; choose another folder")


def _bytes_of(value: Tensor) -> int:
    return value.numel() * DTYPE.itemsize


def _shards(shapes: Mapping[str, Tensor], max_bytes: int) -> Iterator[list[str]]:
    """Names of each shard, in order; a tensor that is larger than a shard gets one alone."""
    names, size = [], 0
    for name, value in shapes.items():
        if names and size + _bytes_of(value) > max_bytes:
            yield names
            names, size = [], 0
        names.append(name)
        size += _bytes_of(value)
    yield names


def write_random_transformer(
    out: Path, options: Mapping[str, Any], *, seed: int, max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Write model_index.json and the transformer of diffusers' class with these options."""
    from diffusers import WanTransformer3DModel

    with torch.device("meta"):
        network = WanTransformer3DModel(**options)
    config = {"_class_name": TRANSFORMER_CLASS, **network.config}
    index = {"_class_name": "WanPipeline", "_comment": NOTE, "transformer": ["diffusers", TRANSFORMER_CLASS]}
    index |= {"vae": ["diffusers", "AutoencoderKLWan"], "text_encoder": ["transformers", "UMT5EncoderModel"]}
    write_random_part(out / TRANSFORMER, network, config, seed=seed, max_shard_bytes=max_shard_bytes)
    write_json(out / "model_index.json", index | {"tokenizer": ["transformers", "T5TokenizerFast"]})


def write_random_text_encoder(
    folder: Path, tokenizer_folder: Path, *, width: int, seed: int, max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Write an encoder of UMT5 with random weights, and a tokenizer of single letters.

    Args:
        width: channels of a token; 4096 gives the sizes of the published encoder.
    """
    from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -4.0) for letter in LETTERS)]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0)
    config = UMT5Config(
        vocab_size=max(len(tokenizer), TEXT_VOCABULARY * width // TEXT_WIDTH),
        d_model=width,
        d_kv=HEAD_DIM,
        d_ff=5 * width // 2,
        num_layers=max(2, TEXT_LAYERS * width // TEXT_WIDTH),
        num_heads=max(1, width // HEAD_DIM),
    )
    with torch.device("meta"):
        encoder = UMT5EncoderModel(config)
    values = config.to_dict() | {"architectures": ["UMT5EncoderModel"]}
    # the encoder's embedding is the shared one
    options = {"stem": "model", "left_out": ("encoder.embed_tokens.weight",), "max_shard_bytes": max_shard_bytes}
    write_random_part(folder, encoder, values, seed=seed, **options)
    _check_ours(tokenizer_folder)
    with atomic_folder(tokenizer_folder) as part:
        tokenizer.save_pretrained(part)
        write_json(part / "note.json", {"_comment": NOTE})
