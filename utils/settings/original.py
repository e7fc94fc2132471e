"""Keys from configurations of the original code that have another name here, or that are not used."""

from __future__ import annotations

import copy
from collections.abc import MutableMapping
from typing import Any

from utils.errors import ConfigError

# Keys of the original code that have another name or place here. Ignoring them silently would change results.
REPLACED_KEYS = {
    "vldm_cfg": "write `base: t2v_train.yaml` at the top of the file instead",
    "ddim_timesteps": "use sampler.num_steps",
    "max_frames": "use cameras.num_views",
    "use_fp16": "use precision: float32, bfloat16 or float16",
    "lgm_pretrain": "use reconstruction.pretrained",
    "inference_list_path": "use test_list_path",
    "noise_strength": "use Diffusion.noise_strength",
}
# Unused keys of the original code, with the reason. They are accepted and ignored, and the log mentions them.
RETIRED_KEYS = {
    "ENABLE": "every run is enabled",
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
