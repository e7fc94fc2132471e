"""A folder in the published layout of Wan with tiny random weights, and the sections that load it."""

from __future__ import annotations

import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import models  # noqa: F401 - registers
from utils.registry import AUTO_ENCODER, EMBEDDER, MODEL

WIDTH, NUM_TOKENS = 24, 20
NETWORK = {"base_dim": 4, "z_dim": 4}
AUTOENCODER = {"type": "WanAutoencoder", "network": NETWORK}
UNET = {
    "type": "WanOrbit", "in_dim": 4, "num_layers": 2, "num_heads": 2, "head_dim": 12, "ffn_dim": 32, "text_dim": WIDTH,
    "freq_dim": 16,
}  # fmt: skip
TEXT = {"type": "UMT5TextEncoder", "width": WIDTH, "num_tokens": NUM_TOKENS, "precision": "float32"}


@cache
def _made() -> tempfile.TemporaryDirectory:
    folder = tempfile.TemporaryDirectory(prefix="tiny_wan_")
    AUTO_ENCODER.resolve(AUTOENCODER)[1].write_random(Path(folder.name), seed=1)
    MODEL.resolve(UNET)[1].write_random(Path(folder.name), seed=0)
    EMBEDDER.resolve(TEXT)[1].write_random(Path(folder.name), seed=2)
    return folder


def write_wan(folder: Path) -> dict[str, Any]:
    """Write a published folder to `folder`; returns the settings that load its parts."""
    shutil.copytree(_made().name, folder, dirs_exist_ok=True)
    return {
        "UNet": UNET,
        "test_model": str(folder),
        "Diffusion": {"type": "FlowMatching"},
        "sampler": {"type": "UniPC", "num_steps": 2, "spacing": "trailing"},
        "auto_encoder": {**AUTOENCODER, "pretrained": str(folder)},
        "embedder": {**TEXT, "pretrained": str(folder), "cache_dir": str(folder.parent / "text_cache")},
    }
