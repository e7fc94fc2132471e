"""Write untrained weights in the published format, to measure a machine or to try a configuration.

    python tools/random_weights.py --cfg configs/t2v_infer.yaml --out workspace/random_weights

writes the UNet, the autoencoder, the text-image encoder and, if there is a section `reconstruction`, the Gaussian head
that the configuration describes, and prints the overrides that sample with them. What comes out of such a model is
noise.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn

from models.lgm import FIRST_GUESS
from models.weights import save_safetensors
from utils.config import load_config
from utils.files import atomic_path, writable_folder
from utils.registry import AUTO_ENCODER, EMBEDDER, MODEL
from utils.run_config import RunConfig
from utils.script import config_arguments, run_script

log = logging.getLogger(__name__)


def random_state(module: nn.Module, *, seed: int) -> dict[str, Tensor]:
    """A state dict of the module's names and shapes: matrices of deviation 0.7 / sqrt(fan in), gains near one.

    The deviation keeps activations of residual networks bounded; nothing is left at zero.
    """
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, like in module.state_dict().items():
        scale = 0.7 / like[0].numel() ** 0.5 if like.dim() > 1 else 0.1
        value = torch.randn(like.shape, generator=generator) * scale
        state[name] = value + 1.0 if like.dim() == 1 and name.endswith(".weight") else value
    return state


def write_random_weights(cfg: RunConfig, out: Path) -> list[str]:
    """Write the files.

    Returns:
        Overrides that make `cfg` use them.
    """
    with torch.device("meta"):
        unet = MODEL.build(cfg.UNet, where="UNet")
        autoencoder = AUTO_ENCODER.build({**cfg.auto_encoder, "pretrained": None}, where="auto_encoder")
    embedder = EMBEDDER.build({**cfg.embedder, "pretrained": None}, where="embedder").model
    prefixed = {f"first_stage_model.{name}": value for name, value in random_state(autoencoder, seed=1).items()}
    files = {
        "test_model": ("random_00000000.pth", {"state_dict": random_state(unet, seed=0), "step": 0}),
        "auto_encoder.pretrained": ("autoencoder.pth", {"state_dict": prefixed}),
        "embedder.pretrained": ("open_clip_pytorch_model.bin", embedder.state_dict()),
    }
    for name, content in files.values():
        with atomic_path(out / name) as part:
            torch.save(content, part)
        log.info("wrote %s (%.0f MB)", out / name, (out / name).stat().st_size / 1e6)
    overrides = [f"{option}={out / name}" for option, (name, _) in files.items()]
    if cfg.reconstruction:
        head = out / "model.safetensors"
        save_safetensors(head, random_head(cfg.reconstruction["head"], seed=2))
        log.info("wrote %s (%.0f MB)", head, head.stat().st_size / 1e6)
        overrides.append(f"reconstruction.pretrained={head}")
    return overrides


def random_head(options: dict[str, Any], *, seed: int) -> dict[str, Tensor]:
    """As `random_state`; its Gaussians are about as large as those of a trained head, for rendering to cost as much."""
    with torch.device("meta"):
        head = MODEL.build({"type": "LGM", **options}, where="reconstruction.head")
    state = random_state(head, seed=seed)
    return state | {"conv.bias": torch.tensor(FIRST_GUESS), "conv.weight": 0.3 * state["conv.weight"]}


def main() -> None:
    parser = config_arguments(__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, type=Path, help="folder for the files")
    args = parser.parse_intermixed_args()

    import datasets  # noqa: F401 - registers
    import models  # noqa: F401 - registers
    import pipelines  # noqa: F401 - registers

    cfg = load_config(args.cfg, args.overrides)
    print(" ".join(write_random_weights(cfg, writable_folder(args.out, option="--out"))))


if __name__ == "__main__":
    run_script(main)
