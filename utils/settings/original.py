"""Keys of the original's configurations that are spelled otherwise here, or that nothing reads."""

from __future__ import annotations

import copy
from collections.abc import MutableMapping
from typing import Any

from utils.errors import ConfigError

# Keys of the original that are spelt or placed differently here: carrying them over silently would change results.
REPLACED_KEYS = {
    "vldm_cfg": "write `base: t2v_train.yaml` at the head of the file instead",
    "ddim_timesteps": "use sampler.num_steps",
    "max_frames": "use cameras.num_views",
    "use_fp16": "use precision: float32, bfloat16 or float16",
    "lgm_pretrain": "use reconstruction.pretrained",
    "inference_list_path": "use test_list_path",
    "noise_strength": "use Diffusion.noise_strength",
}
# Keys of the original that nothing reads, with the reason: accepted, mentioned, ignored.
RETIRED_KEYS = {
    "ENABLE": "a run that is started is enabled",
    "mean": "pixels are always mapped to [-1, 1] inside the autoencoder",
    "std": "pixels are always mapped to [-1, 1] inside the autoencoder",
    "vit_mean": "the embedder owns the normalisation of its images",
    "vit_std": "the embedder owns the normalisation of its images",
    "vit_out_dim": "the embedder knows its width",
    "vit_resolution": "the embedder knows the size of its images",
    "max_words": "the tokenizer's context length applies",
    "depth_clamp": "no depth condition",
    "misc_size": "no depth condition",
    "depth_std": "no depth condition",
    "sample_fps": "orbits have target_fps, images 1",
    "scale": "the autoencoder knows its reduction",
    "scale_factor": "the autoencoder owns it",
    "use_div_loss": "unused by the published models",
    "use_checkpoint": "set UNet.use_checkpoint",
    "use_sharded_ddp": "not part of the published models",
    "temporal_attention": "set UNet.temporal_attention",
    "guidances": "unused by the published models",
    "alpha": "unused by the published models",
    "load_from": "use Pretrain.resume_checkpoint",
}


def move_published_switches(tree: MutableMapping[str, Any]) -> None:
    """Rename switches that the original keeps in the section of another part; in place.

    `UNet.use_lgm_refine` is the run's `refine`: sampling and training read it, the network does not.

    Raises:
        ConfigError: both names are given, with different values.
    """
    network = tree.get("UNet")
    if not isinstance(network, MutableMapping) or "use_lgm_refine" not in network:
        return
    value = network.pop("use_lgm_refine")
    if not network:  # an empty section would replace the one of the file below
        del tree["UNet"]
    if tree.get("refine", value) != value:
        raise ConfigError(f"UNet.use_lgm_refine={value}, but refine={tree['refine']}; give only refine")
    tree["refine"] = value


def with_present_names(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that an earlier version wrote down, as today's would write them."""
    settings = copy.deepcopy(settings)
    move_published_switches(settings)
    return settings
