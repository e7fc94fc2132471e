"""Tells what a file is that is not the expected weight file, from its first bytes or from the names in it."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

# First bytes of files that people name by mistake.
BEGINNINGS = {
    b"version https://git-lfs": "a pointer of Git LFS; run `git lfs pull`",
    b"<": "a web page",
    b"{": "JSON text",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"GIF8": "a picture",
    b"RIFF": "a picture or a video",
    b"\x1f\x8b": "a gzip archive; unpack it",
    b"BZh": "a bzip2 archive; unpack it",
    b"\xfd7zXZ": "an xz archive; unpack it",
    b"7z\xbc\xaf": "a 7z archive; unpack it",
    b"Rar!": "a RAR archive; unpack it",
    b"GGUF": "a GGUF file",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "an array of NumPy",
    b"glTF": "a mesh",
    b"ply": "a mesh or Gaussians",
    b"%PDF": "a PDF file",
}
# Names that only one kind of network has, its description, and the setting for its file.
NETWORKS = (
    (".lora_A.", "a low-rank addition (LoRA)", "lora.path"),
    ("condition_embedder.time_embedder.", "a transformer of Wan", "test_model"),
    (".SelfAttention.relative_attention_bias.", "an encoder of texts (UMT5)", "embedder.pretrained"),
    ("cond_stage_model.", "a whole Stable Diffusion checkpoint", ""),
    ("input_blocks.0.", "a generator (UNet)", "test_model"),
    ("down_blocks.0.resnets.", "a network of diffusers", ""),
    ("unet.conv_in.weight", "a Gaussian head", "reconstruction.pretrained"),
    ("encoder.conv_in.weight", "an autoencoder", "auto_encoder.pretrained"),
    ("token_embedding.weight", "a text and image encoder", "embedder.pretrained"),
    ("kind.weight", "a classifier of views", "classifier.pretrained"),
    ("angles.weight", "an estimator of elevations", "elevation.pretrained"),
)
SAFETENSORS_START = 9  # 8 bytes with the length of the header, then its first character


def is_safetensors(path: Path) -> bool:
    """Whether a file begins like safetensors: the length of a JSON header, then the header."""
    with path.open("rb") as file:
        start = file.read(SAFETENSORS_START)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size


def kind_of_file(path: Path) -> str:
    """Return what a file is that is no weight file; "" if it is not recognised."""
    with path.open("rb") as file:
        start = file.read(512)
    if start[257:262] == b"ustar":
        return "a tar archive; unpack it"
    return next((kind for beginning, kind in BEGINNINGS.items() if start.lstrip().startswith(beginning)), "")


def kind_of_archive(path: Path) -> str:
    """Return what an archive is that torch.save did not write; "" for one that it wrote or that is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return ""
    if any("/code/" in name for name in names):
        return "a network of TorchScript; save its state dict instead"
    if any(name.endswith("data.pkl") for name in names):
        return ""
    if names and all(name.endswith(".npy") for name in names):
        return "arrays of NumPy"
    return f"a ZIP archive ({names[0]}, ...); unpack it" if names else "an empty ZIP archive"


def kind_of_content(content: Mapping[Any, Any]) -> str:
    """Describe what a file of torch.save holds instead of a state dict."""
    if not content:
        return ""
    if all(isinstance(key, int) for key in content):
        return "its keys are numbers, as in the state of an optimizer"
    names = [str(key)[:40] for key in content]
    nested = next((str(key) for key, value in content.items() if isinstance(value, Mapping) and value), None)
    found = f"it holds {', '.join(names[:6])}{', ...' if len(names) > 6 else ''}"
    return f"{found}; save its entry {nested[:40]} as a file of its own" if nested else found


def kind_of_names(names: Iterable[str]) -> str:
    """Return whose weights the names are and the setting for such a file; "" if they are not recognised."""
    names = list(names)
    for part, kind, option in NETWORKS:
        if any(part in name for name in names):
            return f"the weights of {kind}{f', which belong in {option}' if option else ''}"
    return ""
