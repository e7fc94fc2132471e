"""Write untrained weights in the published format, to measure a machine or to try a configuration.

    python tools/random_weights.py --cfg configs/t2v_infer.yaml --out workspace/random_weights

writes the UNet, the autoencoder, the text and image encoder and, if there is a section `reconstruction`, the Gaussian
head of the configuration. It prints the overrides that use these files. The samples of such a model are noise.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from models.random_weights import random_state
from models.weights import save_safetensors
from utils.config import load_config
from utils.files import atomic_path, writable_folder
from utils.script import config_arguments, run_script
from utils.settings.run import RunConfig

log = logging.getLogger(__name__)


def write_random_weights(cfg: RunConfig, out: Path) -> list[str]:
    """Write the weight files.

    Returns:
        Overrides with which `cfg` uses them.
    """
    with torch.device("meta"):
        unet = cfg.UNet.build()
        autoencoder = cfg.auto_encoder.changed(pretrained=None).build()
    embedder = cfg.embedder.changed(pretrained=None).build().model
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
        with torch.device("meta"):
            lgm = cfg.reconstruction.cls.build_network(cfg.reconstruction.options)
        save_safetensors(head, random_state(lgm, seed=2))
        log.info("wrote %s (%.0f MB)", head, head.stat().st_size / 1e6)
        overrides.append(f"reconstruction.pretrained={head}")
    return overrides


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
