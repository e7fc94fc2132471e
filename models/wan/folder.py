"""Finds the parts of a published folder of Wan and reads their tensors.

The layout is that of diffusers: a folder for each part (transformer, vae, text_encoder, tokenizer) with its
config.json and its weights as safetensors, in one file or in shards with an index. A setting names the whole folder,
the folder of its part, or the folder's name on the Hugging Face hub.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.weights import load_state, read_weights
from utils.errors import DataError, first_line
from utils.files import read_json

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
INDEX_END = ".safetensors.index.json"
EXAMPLE = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
TRANSFORMER, TRANSFORMER_CLASS = "transformer", "WanTransformer3DModel"
# Options of our backbone by their keys in config.json.
OUR_NAMES = {
    "patch_size": "patch", "num_attention_heads": "num_heads", "attention_head_dim": "head_dim",
    "in_channels": "in_dim", "out_channels": "in_dim", "text_dim": "text_dim", "freq_dim": "freq_dim",
    "ffn_dim": "ffn_dim", "num_layers": "num_layers",
}  # fmt: skip
# Published transformers by layers, heads and input channels, to name a folder that does not fit.
MODELS = {
    (30, 12, 16): "Wan2.1-T2V-1.3B",
    (40, 40, 16): "Wan2.1-T2V-14B or Wan2.2-T2V-A14B",
    (40, 40, 36): "Wan2.1-I2V-14B or Wan2.2-I2V-A14B",
    (30, 24, 48): "Wan2.2-TI2V-5B",
    (30, 12, 96): "Wan2.1-VACE-1.3B",
    (40, 40, 96): "Wan2.1-VACE-14B",
}


def is_own_file(path: str | Path, part: str) -> bool:
    """Whether a path is a weight file of ours. A file in the folder of a published part stands for the folder."""
    file = Path(path)
    return file.is_file() and not (file.parent.name == part and (file.parent / "config.json").is_file())


def part_folder(path: str | Path, part: str, *, option: str, download: bool = True) -> Path:
    """Return the local folder of a part; a part of a hub's folder is downloaded unless it is already there.

    Args:
        path: the whole folder, the folder of the part, a weight file in it, or a hub name such as EXAMPLE.
        part: `transformer`, `vae`, `text_encoder` or `tokenizer`.
        option: the setting that names the folder, for the error message.
        download: false: of a hub's folder, only what was downloaded before.

    Raises:
        DataError: the folder or the part is missing.
    """
    folder = Path(path).parent if Path(path).is_file() else Path(path)
    if not folder.exists() and HUB_NAME.fullmatch(str(path)):
        folder = _from_hub(str(path), part, option=option, download=download)
    if not folder.exists():
        raise DataError(
            f"{option}={path}: no such folder; download it with `hf download {EXAMPLE} --local-dir {path}`, or set "
            f"{option} to a name on the Hugging Face hub"
        )
    if (folder / part).is_dir():
        return folder / part
    if folder.is_dir() and folder.name == part:
        return folder
    raise DataError(f"{option}={path} has no folder {part}/; name a folder in the layout of diffusers, as {EXAMPLE}")


def _from_hub(name: str, part: str, *, option: str, download: bool) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=[f"{part}/*"], local_files_only=not download))
    except (OSError, ValueError) as err:
        raise DataError(
            f"{option}={name}: no such folder here, and the Hugging Face hub does not give it ({first_line(err)}); "
            f"download it elsewhere and set {option} to its folder"
        ) from err


def read_config(folder: Path, *, option: str) -> dict[str, Any]:
    """Read the config.json of a part.

    Raises:
        DataError: it is missing or broken.
    """
    return read_json(folder / "config.json", option=option, kind=dict)


def weight_files(folder: Path, *, option: str) -> list[Path]:
    """List the safetensors files of a part: those of its index, or its only one.

    Raises:
        DataError: there is none, or a shard is missing.
    """
    indices = sorted(folder.glob(f"*{INDEX_END}"))
    if indices:
        content = read_json(indices[0], option=option, kind=dict)
        names = content.get("weight_map")
        if not isinstance(names, dict) or not names:
            raise DataError(f"{option}={indices[0]} has no weight_map; download it again")
        files = [folder / name for name in sorted(set(names.values()))]
    else:
        files = sorted(folder.glob("*.safetensors"))
    missing = [file.name for file in files if not file.is_file()]
    if not files or missing:
        found = f"{len(missing)} of {len(files)} shards are missing (first: {missing[0]})" if missing else "is empty"
        raise DataError(f"{option}={folder}: {found}; download the folder again, all of its *.safetensors")
    return files


def read_part(folder: Path, *, option: str) -> dict[str, Tensor]:
    """Read all tensors of a part by name, mapped from their files.

    Raises:
        DataError: a file is missing or broken, or two files have the same tensor.
    """
    state: dict[str, Tensor] = {}
    for file in weight_files(folder, option=option):
        found = read_weights(file, option=option).state
        twice = sorted(state.keys() & found.keys())
        if twice:
            raise DataError(f"{option}={folder}: {twice[0]} is in two files; keep those of one model in the folder")
        state |= found
    return state


def check_config(found: Mapping[str, Any], wanted: Mapping[str, tuple[str, Any]], *, source: str, network: str) -> None:
    """Compare the config.json of a part with the options of its network.

    Args:
        found: the content of config.json; keys that are not there are not compared.
        wanted: by the key of config.json, the name of our option ("" if it is fixed) and its value.
        source: setting and folder, for the error message.
        network: what the options belong to, e.g. `UNet`.

    Raises:
        DataError: they differ; the message has the published model of the folder, if it is known, and all differences.
    """
    other = {key: found[key] for key, (_, value) in wanted.items() if key in found and _plain(found[key]) != value}
    if not other:
        return
    name = MODELS.get((found.get("num_layers"), found.get("num_attention_heads"), found.get("in_channels")))
    shown = ", ".join(f"{key}={value}" for key, value in other.items())
    ours = ", ".join(f"{wanted[key][0] or key}={wanted[key][1]}" for key in other)
    raise DataError(
        f"{source} is another model{f', {name}' if name else ''} ({shown}), but {network} has {ours}; name the folder "
        f"of the model that the configuration is for, or use the configuration of that model"
    )


def _plain(value: Any) -> Any:
    """Lists and tuples alike."""
    return list(value) if isinstance(value, list | tuple) else value


def check_transformer(folder: Path, options: Mapping[str, Any], *, option: str) -> None:
    """Compare the config.json of a transformer with the options of diffusers' class for the same layers.

    Raises:
        DataError: it is another model, for instance one of 14 billion weights or one that takes a picture.
    """
    found = read_config(folder, option=option)
    found["out_channels"] = found.get("out_channels") or found.get("in_channels")
    wanted = {key: (f"UNet.{OUR_NAMES[key]}" if key in OUR_NAMES else "", _plain(options[key])) for key in options}
    fixed = {"_class_name": TRANSFORMER_CLASS, "image_dim": None, "added_kv_proj_dim": None, "cross_attn_norm": True}
    wanted |= {key: ("", value) for key, value in (fixed | {"qk_norm": "rms_norm_across_heads"}).items()}
    check_config(found, wanted, source=f"{option}={folder}", network="the configuration")


def load_transformer(network: nn.Module, folder: Path, *, option: str, new_parts: Sequence[str]) -> None:
    """Load a published transformer into a network that has its layers and some more.

    Args:
        new_parts: members that the published model does not have; their output is zero at first. They become zeros if
            the network is on the meta device, else they keep their values.

    Raises:
        DataError: a file is missing or broken, or any name or shape differs.
    """
    state = read_part(folder, option=option)
    for name, value in network.state_dict().items():
        if name.split(".")[0] in new_parts and name not in state:
            state[name] = torch.zeros(value.shape) if value.is_meta else value
    load_state(network, state, source=f"{option}={folder}")
