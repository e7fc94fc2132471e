"""Reads configurations of the original code as they are.

Some keys have another name or place here (`REPLACED_KEYS`); they are read as what they mean. Others are not used
(`RETIRED_KEYS`). A file of the original also leaves out sections, which were defaults in its code: they come from our
published configuration for the same TASK_TYPE. Every such key is one line in the log.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

from utils.errors import ConfigError

log = logging.getLogger(__name__)

# Our configuration for a task of the original, in configs/.
PUBLISHED_FILES = {
    "train_t2v_entrance": "t2v_train.yaml",
    "train_i2v_entrance": "i2vgen_xl_train.yaml",
    "inference_text2video_entrance": "t2v_infer.yaml",
    "inference_i2vgen_entrance": "i2vgen_xl_infer.yaml",
}
# The training task that a sampling task belongs to.
TRAINED_BY = {
    "inference_text2video_entrance": "train_t2v_entrance",
    "inference_i2vgen_entrance": "train_i2v_entrance",
}
# Keys of the original code that have another name or place here.
REPLACED_KEYS = {
    "ddim_timesteps": "sampler.num_steps",
    "max_frames": "cameras.num_views",
    "use_fp16": "precision",
    "lgm_pretrain": "reconstruction.pretrained",
    "inference_list_path": "test_list_path",
    "noise_strength": "Diffusion.noise_strength",
}
BASE_KEYS = ("vldm_cfg", "_BASE")  # name the file below this one
# Unused keys of the original code, with the reason. They are accepted and ignored, and the log mentions them.
RETIRED_KEYS = {
    "ENABLE": "every run is enabled",
    "DATASET": "the data set is vid_dataset.type",
    "mean": "pixels are always mapped to [-1, 1] inside the autoencoder",
    "std": "pixels are always mapped to [-1, 1] inside the autoencoder",
    "vit_mean": "the embedder normalises its images itself",
    "vit_std": "the embedder normalises its images itself",
    "vit_out_dim": "the embedder defines its width",
    "vit_resolution": "the embedder defines the size of its images",
    "max_words": "the tokenizer's context length applies",
    "depth_clamp": "there is no depth condition",
    "misc_size": "there is no depth condition",
    "depth_std": "there is no depth condition",
    "sample_fps": "the frame rate of orbits is target_fps, and that of images is 1",
    "scale": "the autoencoder defines its reduction",
    "scale_factor": "the autoencoder defines it",
    "use_div_loss": "unused by the published models",
    "use_checkpoint": "set UNet.use_checkpoint",
    "use_sharded_ddp": "not part of the published models",
    "temporal_attention": "set UNet.temporal_attention",
    "guidances": "unused by the published models",
    "alpha": "unused by the published models",
    "load_from": "use Pretrain.resume_checkpoint",
}


def is_original(values: Mapping[str, Any]) -> bool:
    """Whether a file has the form of the original: keys that only the original knows, and no `base`."""
    return "base" not in values and any(key in values for key in (*BASE_KEYS, *REPLACED_KEYS, *RETIRED_KEYS))


def read_as_present(values: dict[str, Any], places: dict[str, str]) -> None:
    """Replace keys of the original by those that they mean here, in place, and log each.

    Args:
        values: plain values of one file or of the command line.
        places: where each key stands, by its full name; gets the new names.

    Raises:
        ConfigError: the old and the new name have different values.
    """
    if "use_lgm_refine" in (values.get("UNet") if isinstance(values.get("UNet"), dict) else ()):
        switch = _shown("UNet.use_lgm_refine", values["UNet"]["use_lgm_refine"], places.get("UNet.use_lgm_refine", ""))
        move_published_switches(values)
        places.setdefault("refine", places.get("UNet.use_lgm_refine", ""))
        log.info("%s is read as refine=%s", switch, values["refine"])
    for old, new in REPLACED_KEYS.items():
        if old not in values:
            continue
        value = values.pop(old)
        place = places.get(old, "")
        given = _given(values, new)
        if old == "noise_strength" and given is not None:
            log.info("%s has no effect: training reads Diffusion.noise_strength=%s", _shown(old, value, place), given)
            continue
        meant = _precision(value, place) if old == "use_fp16" else value
        if given is not None and given != meant:
            raise ConfigError(f"{_shown(old, value, place)} means {new}={meant}, but {new}={given}; give only {new}")
        _set(values, new, meant)
        places.setdefault(new, place)
        log.info("%s is read as %s=%s", _shown(old, value, place), new, meant)


def check_training_of(sampling: str, values: dict[str, Any], path: Path, *, place: str) -> None:
    """Check a file that sampling of the original names as the configuration of its training, and complete it.

    `lgm_pretrain` is removed, because the original reads it only in training.

    Args:
        sampling: the TASK_TYPE of the sampling.
        place: where `lgm_pretrain` stands.

    Raises:
        ConfigError: the file belongs to the other kind of model.
    """
    trained_by = TRAINED_BY[sampling]
    task = values.setdefault("TASK_TYPE", trained_by)
    if task != trained_by:
        raise ConfigError(
            f"vldm_cfg={path} has TASK_TYPE={task}, but TASK_TYPE={sampling} samples a model of {trained_by}; name the "
            f"configuration of its training, e.g. configs/{PUBLISHED_FILES[trained_by]}"
        )
    if values.pop("lgm_pretrain", None):
        log.info("%s: lgm_pretrain is for training; in sampling the Gaussian head comes from test_model", place)


def drop_retired(values: dict[str, Any], places: Mapping[str, str]) -> None:
    """Remove keys that have no effect, in place, and log each with the reason."""
    for key in [key for key in values if key in RETIRED_KEYS]:
        log.info("%s has no effect: %s", _shown(key, values.pop(key), places.get(key, "")), RETIRED_KEYS[key])


def move_published_switches(tree: MutableMapping[str, Any]) -> None:
    """Rename published switches in place.

    `UNet.use_lgm_refine` becomes `refine` at the top level, because sampling and training read it and the network does
    not.

    Raises:
        ConfigError: both names are given with different values.
    """
    network = tree.get("UNet")
    if not isinstance(network, MutableMapping) or "use_lgm_refine" not in network:
        return
    value = network.pop("use_lgm_refine")
    if not network:  # an empty section would replace that of the base file
        del tree["UNet"]
    if tree.get("refine", value) != value:
        raise ConfigError(f"UNet.use_lgm_refine={value}, but refine={tree['refine']}; give only refine")
    tree["refine"] = value


def with_present_names(settings: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of saved settings with the present names of all keys."""
    settings = copy.deepcopy(settings)
    move_published_switches(settings)
    return settings


def _precision(value: Any, place: str) -> str:
    names = {True: "float16", False: "float32", "true": "float16", "false": "float32"}
    known = value if isinstance(value, bool) else str(value).lower()
    if known not in names:
        raise ConfigError(f"{_shown('use_fp16', value, place)} is not true or false")
    return names[known]


def _given(values: Mapping[str, Any], name: str) -> Any:
    section, _, key = name.rpartition(".")
    inside = values.get(section, {}) if section else values
    return inside.get(key) if isinstance(inside, Mapping) else None


def _set(values: dict[str, Any], name: str, value: Any) -> None:
    section, _, key = name.rpartition(".")
    if not section:
        values[key] = value
    elif isinstance(values.setdefault(section, {}), dict):
        values[section][key] = value
    else:
        raise ConfigError(f"{section}={values[section]} is not a section; write `key: value` lines in it")


def _shown(key: str, value: Any, place: str) -> str:
    text = " ".join(str(value).split())
    return f"{place}{': ' if place else ''}{key}={text[:60]}{'...' if len(text) > 60 else ''}"
