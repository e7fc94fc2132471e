"""Write untrained weights in the published format, to measure a machine or to try a configuration.

    python tools/random_weights.py --cfg configs/t2v_infer.yaml --out workspace/random_weights

writes the UNet, the autoencoder, the text and image encoder and, if there is a section `reconstruction`, the Gaussian
head of the configuration. It prints the overrides that use these files. The samples of such a model are noise.

For configs/wan it writes one folder in the published layout of Wan, whose files say that they are random.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from models.random_weights import random_state
from models.weights import save_safetensors
from utils.config import load_config
from utils.files import atomic_path, writable_folder
from utils.registry import Section
from utils.script import config_arguments, run_script
from utils.settings.run import RunConfig

log = logging.getLogger(__name__)


def write_random_weights(cfg: RunConfig, out: Path) -> list[str]:
    """Write the weight files.

    Returns:
        Overrides with which `cfg` uses them.
    """
    parts = {"test_model": cfg.UNet, "auto_encoder.pretrained": cfg.auto_encoder, "embedder.pretrained": cfg.embedder}
    overrides = []
    for seed, (option, section) in enumerate(parts.items()):
        if section.options.write_random(out, seed=seed):
            log.info("wrote random weights of %s into the folder %s", option, out)
            overrides.append(f"{option}={out}")
            continue
        name, content = _published_file(option, section, seed=seed)
        with atomic_path(out / name) as part:
            torch.save(content, part)
        log.info("wrote %s (%.0f MB)", out / name, (out / name).stat().st_size / 1e6)
        overrides.append(f"{option}={out / name}")
    if cfg.reconstruction:
        head = out / "model.safetensors"
        with torch.device("meta"):
            lgm = cfg.reconstruction.cls.build_network(cfg.reconstruction.options)
        save_safetensors(head, random_state(lgm, seed=2))
        log.info("wrote %s (%.0f MB)", head, head.stat().st_size / 1e6)
        overrides.append(f"reconstruction.pretrained={head}")
    return overrides


def _published_file(option: str, section: Section, *, seed: int) -> tuple[str, Mapping[str, Any]]:
    """Return name and content of the published file of a part."""
    if option == "embedder.pretrained":
        return "open_clip_pytorch_model.bin", section.changed(pretrained=None).build().own_state
    with torch.device("meta"):
        network = section.build() if option == "test_model" else section.changed(pretrained=None).build()
    state = random_state(network, seed=seed)
    if option == "test_model":
        return "random_00000000.pth", {"state_dict": state, "step": 0}
    return "autoencoder.pth", {"state_dict": {f"first_stage_model.{name}": value for name, value in state.items()}}


def main(argv: Sequence[str] | None = None) -> None:
    parser = config_arguments(__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, type=Path, help="folder for the files")
    args = parser.parse_intermixed_args(argv)

    import datasets  # noqa: F401 - registers
    import models  # noqa: F401 - registers
    import pipelines  # noqa: F401 - registers

    cfg = load_config(args.cfg, args.overrides)
    print(" ".join(write_random_weights(cfg, writable_folder(args.out, option="--out"))))


if __name__ == "__main__":
    run_script(main)
