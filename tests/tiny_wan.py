"""A folder in the published layout of Wan with tiny random weights, and the sections that load it."""

from __future__ import annotations

import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import models  # noqa: F401 - registers
from utils.registry import AUTO_ENCODER, EMBEDDER

WIDTH, NUM_TOKENS = 24, 20
NETWORK = {"base_dim": 4, "z_dim": 4}
AUTOENCODER = {"type": "WanAutoencoder", "network": NETWORK}
TEXT = {"type": "UMT5TextEncoder", "width": WIDTH, "num_tokens": NUM_TOKENS, "precision": "float32"}


@cache
def _made() -> tempfile.TemporaryDirectory:
    folder = tempfile.TemporaryDirectory(prefix="tiny_wan_")
    AUTO_ENCODER.resolve(AUTOENCODER)[1].write_random(Path(folder.name), seed=1)
    EMBEDDER.resolve(TEXT)[1].write_random(Path(folder.name), seed=2)
    return folder


def write_wan(folder: Path) -> dict[str, Any]:
    """Write vae/, text_encoder/ and tokenizer/ to `folder`; returns the sections that load them."""
    shutil.copytree(_made().name, folder, dirs_exist_ok=True)
    return {
        "auto_encoder": {**AUTOENCODER, "pretrained": str(folder)},
        "embedder": {**TEXT, "pretrained": str(folder), "cache_dir": str(folder.parent / "text_cache")},
    }
