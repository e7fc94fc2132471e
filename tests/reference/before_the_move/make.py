"""How files.tar.xz was made: by the code and the commands of commit a51d6d3, the last one before files moved.

    git worktree add /tmp/before a51d6d3
    cd /tmp/before && python <this file> <this folder>/files.tar.xz

Settings name their files relative to where a run is started, as users do. Frozen weights are -1/8, 0 or 1/8, and a
training of a network stops after the first step, in which only the last layer has gradients: so the archive is small.
The LoRA and the classifier are small by themselves, and go on longer. `went_on.json` has the losses of the same
trainings two steps further, by the code of that commit.
"""

from __future__ import annotations

import importlib
import io
import json
import logging
import os
import re
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

sys.path.insert(0, os.getcwd())
from datasets.packed_orbits import PackedShard, shard_file, write_shard
from models.gaussian_files import read_ply, read_splat
from pipelines.views_pipeline import ViewsPipeline

import pipelines  # noqa: F401 - registers
from models.weights import save_published, save_safetensors
from utils.cameras import orbit_cameras
from utils.config import load_config
from utils.registry import AUTO_ENCODER, EMBEDDER, MODEL

SIZE, NUM_VIEWS = 32, 4
UNET = {
    "type": "UNetSD_T2VBase", "dim": 32, "dim_mult": [1], "num_heads": 1, "head_dim": 8, "num_res_blocks": 1,
    "attn_scales": [1], "y_dim": 24, "context_dim": 24, "dropout": 0.0, "use_camera_condition": True,
    "use_lgm_refine": False, "use_checkpoint": True, "checkpoint_level": "transformers", "temporal_attention": True,
}  # fmt: skip
IMAGE_UNET = {**UNET, "type": "UNetSD_I2VGen", "image_dim": 16, "use_lgm_refine": False}
HEAD = {
    "input_size": 32, "splat_size": 16, "down_channels": [32, 32], "down_attention": [False, False],
    "up_channels": [32], "up_attention": [False], "rotation": "per_gaussian", "anchor": "pixels",
}  # fmt: skip
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


def coarse(module: torch.nn.Module, *, zero: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
    """Weights of three values, gains of norms 1; `zero` are zeros."""
    draw = torch.Generator().manual_seed(0)
    state = {}
    for name, value in module.state_dict().items():
        random = torch.rand(value.shape, generator=draw)
        weights = ((random > 0.8).float() - (random < 0.2).float()) / 8
        norm = name.endswith("weight") and value.ndim == 1
        fixed = not value.is_floating_point() or value.ndim == 0
        state[name] = value if fixed else torch.ones_like(value) if norm else torch.where(random < 2, weights, 0)
        if name in zero:
            state[name] = torch.zeros_like(value)
    return state


def write_orbits(folder: Path) -> None:
    """Two coloured discs and two squares, packed."""
    y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    images, captions, attributes = [], [], []
    for number, (kind, color) in enumerate((k, c) for k in ("square", "disc") for c in ("red", "blue")):
        inside = np.hypot(x, y) < 9 if kind == "disc" else np.maximum(abs(x), abs(y)) < 9
        orbit = np.zeros((NUM_VIEWS, SIZE, SIZE, 4), dtype=np.uint8)
        orbit[:, inside] = (220, 30, 30 + number, 255) if color == "red" else (30, 30 + number, 220, 255)
        images.append(orbit)
        captions.append(f"a {color} {kind}")
        attributes.append({"kind": kind, "color": color})
    c2w_V44 = orbit_cameras(num_views=NUM_VIEWS, elevation_deg=15, radius=2).numpy()
    shard = PackedShard(
        rgba_NVHW4=np.stack(images),
        c2w_NV44=np.broadcast_to(c2w_V44, (4, NUM_VIEWS, 4, 4)),
        fov_deg=39.6,
        object_ids=[f"0/{number}" for number in range(4)],
        captions=captions,
        attributes=attributes,
    )
    write_shard(shard_file(folder, 0), shard)
    for file in folder.iterdir():
        os.utime(file, (1_700_000_000, 1_700_000_000))  # whole seconds, which an archive keeps


def write_weights(folder: Path) -> None:
    unet = MODEL.build(UNET)
    save_published(folder / "start_00000007.pth", coarse(unet, zero=("out.2.weight", "out.2.bias")), 7)
    save_published(folder / "t2v_00000007.pth", coarse(unet), 7)
    save_published(folder / "i2v_00000005.pth", coarse(MODEL.build(IMAGE_UNET)), 5)
    state = {f"first_stage_model.{key}": value for key, value in coarse(AUTO_ENCODER.build(AUTOENCODER)).items()}
    torch.save({"state_dict": state | {"loss.logvar": torch.zeros(())}}, folder / "autoencoder.pth")
    save_safetensors(folder / "embedder.safetensors", coarse(EMBEDDER.build(EMBEDDER_).model))
    head = coarse(MODEL.build({"type": "LGM", **HEAD}), zero=("conv.weight",))
    head["conv.bias"] = torch.zeros_like(head["conv.bias"])
    head["conv.bias"][3] = 2.0  # opaque enough to be seen
    save_safetensors(folder / "head.safetensors", head)
    y, x = np.mgrid[:60, :80]
    inside = np.hypot(x - 50, y - 20) < 15
    picture = (inside[..., None] * np.array([30, 30, 220, 255])).astype(np.uint8)
    Image.fromarray(picture).save(folder / "disc.png")


def settings() -> dict[str, dict[str, object]]:
    """Each run's configuration."""
    common = {
        "auto_encoder": {**AUTOENCODER, "scale_factor": 1.0, "posterior": "mode", "pretrained": "w/autoencoder.pth"},
        "embedder": {**EMBEDDER_, "pretrained": "w/embedder.safetensors"},
        "Diffusion": {"type": "DiffusionDDIM"},
        "reconstruction": {
            "type": "GaussianReconstruction", "head": HEAD, "pretrained": "w/head.safetensors", "render_size": 32,
        },
        "cameras": {"num_views": NUM_VIEWS},
        "resolution": [SIZE, SIZE],
        "device": "cpu",
        "seed": 1,
    }  # fmt: skip
    sampling = {
        "TASK_TYPE": "inference_text2video_entrance",
        "UNet": {**UNET, "use_lgm_refine": True},
        "sampler": {"type": "DDIM", "num_steps": 5},
        "guide_scale": 3.0,
        "assets": {"glb": False, "html": False, "turntable": False},
    }
    training = {
        "UNet": UNET,
        "sampler": {"type": "DDIM", "num_steps": 2},
        "vid_dataset": {
            "type": "PackedOrbits", "data_dir_list": ["orbits"], "resolution": [SIZE, SIZE], "num_views": NUM_VIEWS,
            "caption_suffix": "",
        },
        "frame_lens": [NUM_VIEWS],
        "batch_sizes": {"1": 4, str(NUM_VIEWS): 2},
        "cache_dir": "latents",
        "prompt_suffix": "",
        "num_workers": 0,
        "lr": 2e-3,
        "warmup_steps": 2,
        "log_interval": 1,
        "viz_interval": 1000,
        "decay_mode": "constant",
    }  # fmt: skip
    start = {"type": "pretrain_specific_strategies", "resume_checkpoint": "w/start_00000007.pth"}
    runs = {
        "t2v_sample": sampling | {"test_model": "w/t2v_00000007.pth", "prompts": ["a red mug"]},
        "i2v_sample": sampling
        | {
            "TASK_TYPE": "inference_i2vgen_entrance",
            "UNet": IMAGE_UNET,
            "test_model": "w/i2v_00000005.pth",
            "images": ["w/disc.png"],
            "reconstruction": {},
        },
        "t2v": training
        | {
            "TASK_TYPE": "train_t2v_entrance",
            "Pretrain": start,
            "use_ema": True,
            "cache_latents": True,
            "num_steps": 8,
        },
        "lora": training
        | {
            "TASK_TYPE": "train_t2v_entrance",
            "test_model": "w/t2v_00000007.pth",
            "lora": {"rank": 1, "alpha": 2, "targets": ["to_q", "to_v", "proj_out"]},
            "cache_latents": True,
            "num_steps": 3,
        },
        "head_tune": training
        | {
            "TASK_TYPE": "train_t2v_entrance",
            "UNet": {**UNET, "use_lgm_refine": True},
            "test_model": "w/t2v_00000007.pth",
            "objective": {"num_output_views": 4, "lambda_lpips": 0.0},
            "num_steps": 1,
        },
        "classifier": training
        | {
            "TASK_TYPE": "train_classifier_entrance",
            "classifier": {"type": "ViewClassifier", "width": 8},
            "num_steps": 3,
        },
    }
    return {name: common | run | {"log_dir": f"runs/{name}"} for name, run in runs.items()}


def command(script: str, *words: str) -> str:
    """Run a script of the old commit here; returns what it logged."""
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(logging.INFO)
    sys.argv = [script, *words]
    importlib.import_module(script).main()
    logging.getLogger().removeHandler(handler)
    return said.getvalue()


def losses(log: str) -> list[float]:
    return [float(found[1]) for found in re.finditer(r"step \d+: loss ([\d.]+)", log)]


def main(archive: Path) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        for folder in ("orbits", "w", "cfg"):
            Path(folder).mkdir()
        write_orbits(Path("orbits"))
        write_weights(Path("w"))
        went_on = {}
        for name, content in settings().items():
            Path(f"cfg/{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
            sampled = name.endswith("sample")
            command("inference" if sampled else "train_net", "--cfg", f"cfg/{name}.yaml")
            if not sampled:
                shutil.copytree(f"runs/{name}", f"runs/{name}_kept")
                further = f"num_steps={content['num_steps'] + 2}"
                went_on[name] = losses(command("train_net", "--cfg", f"cfg/{name}.yaml", further))
                shutil.rmtree(f"runs/{name}")
                Path(f"runs/{name}_kept").rename(f"runs/{name}")
        ViewsPipeline.from_config(load_config("cfg/t2v_sample.yaml")).save("saved")
        for name, read in {"gaussians.ply": read_ply, "gaussians.splat": read_splat}.items():
            scene = read(f"runs/t2v_sample/a-red-mug_seed1/{name}")
            np.savez(f"{name}.npz", **{field: value.numpy() for field, value in vars(scene).items()})
        Path("went_on.json").write_text(json.dumps(went_on))
        for left in (*Path("runs").rglob("previews"), *Path("runs").rglob("log")):
            shutil.rmtree(left)
        for folder in ("views", "views_gs"):  # most of the bytes
            for view in Path("runs").rglob(f"{folder}/00[1-9].png"):
                view.unlink()
        with tarfile.open(archive, "w:xz", preset=9) as tar:
            for name in sorted(os.listdir()):
                tar.add(name)
        for path in sorted(Path().rglob("*")):
            if path.is_file():
                print(f"{path.stat().st_size:9d} {path}")
        print(archive.stat().st_size, "bytes", went_on)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
