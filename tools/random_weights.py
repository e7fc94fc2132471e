"""Write untrained weights in the published format, to measure a machine or to try a configuration.

    python tools/random_weights.py --cfg configs/t2v_infer.yaml --out workspace/random_weights

writes the UNet, the autoencoder and the text-image encoder that the configuration describes, and prints the overrides
that sample with them. What comes out of such a model is noise.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn

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
    """Write the three files.

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
    return [f"{option}={out / name}" for option, (name, _) in files.items()]


def main() -> None:
    parser = config_arguments(__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, type=Path, help="folder for the three files")
    args = parser.parse_intermixed_args()

    import datasets  # noqa: F401 - registers
    import models  # noqa: F401 - registers
    import pipelines  # noqa: F401 - registers

    cfg = load_config(args.cfg, args.overrides)
    print(" ".join(write_random_weights(cfg, writable_folder(args.out, option="--out"))))


if __name__ == "__main__":
    run_script(main)
