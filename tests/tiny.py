"""A family of untrained models small enough for tests, as files in the formats that users have."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

import pipelines  # noqa: F401 - registers
from models.weights import save_published, save_safetensors
from utils.config import load_config
from utils.registry import AUTO_ENCODER, EMBEDDER, INFER_ENGINE, MODEL
from utils.settings.run import RunConfig

UNET = {
    "type": "UNetSD_T2VBase", "dim": 32, "dim_mult": [1], "num_heads": 2, "head_dim": 16, "num_res_blocks": 1,
    "attn_scales": [], "y_dim": 24, "context_dim": 24, "dropout": 0.0,
}  # fmt: skip
# For tests in which views become smaller and larger again, with attention at every resolution. It has 2.8 times as many
# tensors, and tests that build, train and save a network take as much longer.
TWO_LEVELS = {**UNET, "dim_mult": [1, 2], "attn_scales": [1, 0.5]}
AUTOENCODER = {"type": "AutoencoderKL", "ddconfig": {"ch": 32, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1}}
EMBEDDER_ = {
    "type": "FrozenOpenCLIPTtxtVisualEmbedder",
    "num_merges": 100,
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
        "text_cfg": {"context_length": 16, "width": 24, "heads": 2, "layers": 2},
    },
}
IMAGE_UNET = {**UNET, "type": "UNetSD_I2VGen", "image_dim": EMBEDDER_["model_cfg"]["embed_dim"]}
HEAD = {
    "input_size": 32,
    "splat_size": 16,
    "down_channels": [32, 32, 32],
    "down_attention": [False, False, False],  # only the middle attends; the reference case attends in levels too
    "up_channels": [32, 32],
    "up_attention": [False, False],
    "rotation": "per_gaussian",
    "anchor": "pixels",
}
V_DIFFUSION = {
    "type": "DiffusionDDIM", "schedule": "cosine", "mean_type": "v", "noise_strength": 0.1,
    "schedule_param": {"zero_terminal_snr": True},
}  # fmt: skip


@cache
def _made(write: Callable[..., None], *args: Any) -> tuple[tempfile.TemporaryDirectory, torch.Tensor]:
    folder = tempfile.TemporaryDirectory(prefix="tiny_")
    write(Path(folder.name), *args)
    return folder, torch.get_rng_state()


def _copy(write: Callable[..., None], folder: Path, *args: Any) -> None:
    """What `write` writes and the random state that it leaves; it is called once in a process."""
    made, random_state = _made(write, *args)
    for file in Path(made.name).iterdir():
        shutil.copyfile(file, folder / file.name)
    torch.set_rng_state(random_state)


def _write_family(folder: Path) -> None:
    torch.manual_seed(0)
    unet = MODEL.build(UNET)
    torch.nn.init.normal_(unet.out[-1].weight, std=0.1)
    save_published(folder / "t2v_00000007.pth", unet.state_dict(), 7)
    autoencoder = AUTO_ENCODER.build(AUTOENCODER)
    state = {f"first_stage_model.{key}": value for key, value in autoencoder.state_dict().items()}
    torch.save({"state_dict": state | {"loss.logvar": torch.zeros(())}}, folder / "autoencoder.pth")
    save_safetensors(folder / "embedder.safetensors", EMBEDDER.build(EMBEDDER_).model.state_dict())
    (folder / "prompts.txt").write_text("# two prompts\na red mug\n\na blue chair, 3d asset\n")


def write_family(folder: Path) -> dict[str, Any]:
    """Write untrained weights to `folder` and return the configuration that loads them."""
    _copy(_write_family, folder)
    return {
        "TASK_TYPE": "inference_text2video_entrance",
        "UNet": UNET,
        "auto_encoder": {**AUTOENCODER, "pretrained": str(folder / "autoencoder.pth")},
        "embedder": {**EMBEDDER_, "pretrained": str(folder / "embedder.safetensors")},
        "Diffusion": {"type": "DiffusionDDIM"},
        "sampler": {"type": "DDIM", "num_steps": 3},
        "test_model": str(folder / "t2v_00000007.pth"),
        "test_list_path": str(folder / "prompts.txt"),
        "log_dir": str(folder / "out"),
        "resolution": [32, 32],
        "cameras": {"num_views": 3},
        "device": "cpu",
        "seed": 11,
        "guide_scale": 3.0,
    }


def _write_head(folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    head = MODEL.build({"type": "LGM", **HEAD})
    with torch.no_grad():
        head.conv.bias[3] = 2.0  # opaque enough to be seen
    save_safetensors(folder / "model.safetensors", head.state_dict())


def write_head(folder: Path, *, seed: int = 3, **changes: Any) -> dict[str, Any]:
    """Write an untrained Gaussian head and return what a configuration needs to sample 8 views with it."""
    _copy(_write_head, folder, seed)
    path = folder / "model.safetensors"
    section = {"type": "GaussianReconstruction", "head": HEAD, "pretrained": str(path), "render_size": 32}
    return {
        "reconstruction": section | changes,
        "cameras": {"num_views": 8},
        "sampler": {"type": "DDIM", "num_steps": 5},
    }


def _write_image_family(folder: Path) -> None:
    _copy(_write_family, folder)
    unet = MODEL.build(IMAGE_UNET)
    torch.nn.init.normal_(unet.out[-1].weight, std=0.1)
    save_published(folder / "i2v_00000005.pth", unet.state_dict(), 5)
    y, x = np.mgrid[:60, :80]
    shapes = {"square.png": ((abs(x - 20) < 9) & (abs(y - 30) < 9), (220, 30, 30))}
    shapes["disc.png"] = (np.hypot(x - 50, y - 20) < 15, (30, 30, 220))
    for name, (inside, rgb) in shapes.items():
        Image.fromarray((inside[..., None] * np.array([*rgb, 255])).astype(np.uint8)).save(folder / name)


def write_image_family(folder: Path) -> dict[str, Any]:
    """The same for an image model, with two pictures to start from: a red square and a blue disc, off the middle."""
    config = write_family(folder)
    _copy(_write_image_family, folder)
    (folder / "images.txt").write_text(f"# two pictures\n{folder / 'square.png'}\n\n{folder / 'disc.png'}\n")
    return config | {
        "TASK_TYPE": "inference_i2vgen_entrance",
        "UNet": IMAGE_UNET,
        "Diffusion": V_DIFFUSION,
        "test_model": str(folder / "i2v_00000005.pth"),
        "test_list_path": str(folder / "images.txt"),
    }


def write_config(path: Path, config: dict[str, Any]) -> Path:
    """Write a configuration as YAML."""
    path.write_text(yaml.dump(config, Dumper=yaml.CSafeDumper))
    return path


def load(folder: Path, config: dict[str, Any], *overrides: str) -> RunConfig:
    """Write a configuration to `folder` and read it as the scripts do."""
    return load_config(write_config(folder / "run.yaml", config), overrides)


def run(cfg: RunConfig) -> list[Path]:
    """Sample as inference.py does; returns the samples' folders."""
    return INFER_ENGINE.build({"type": cfg.TASK_TYPE}, cfg=cfg).run()
