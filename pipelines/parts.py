"""What a configuration names, built and loaded; what does not fit is refused before anything is."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from models.autoencoder import AutoencoderKL
from models.backbone import Backbone
from models.lora import merge_lora
from models.weights import load_strict, placed, save_safetensors
from pipelines.reconstruction.loading import check_reconstruction, load_network_of
from utils.config import save_config
from utils.errors import ConfigError, DataError
from utils.files import writable_folder
from utils.settings.lora import LoraOptions
from utils.settings.run import RunConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The networks of a pipeline, with weights, in eval mode.

    Attributes:
        unet: in the precision of the run.
        autoencoder: likewise.
        embedder: in float32.
        head: the network of the reconstruction, in float32, an empty module where it has none; None: views only.
    """

    unet: Backbone
    autoencoder: AutoencoderKL
    embedder: nn.Module
    head: nn.Module | None


def load_parts(cfg: RunConfig, *, device: torch.device, dtype: torch.dtype) -> Parts:
    """The parts that a configuration names, from their files.

    Args:
        device: where they rest, see `resting_place`.
        dtype: of the UNet and the autoencoder; no float32 copy of them is made on the device.

    Raises:
        DataError: a file is missing or does not fit.
    """
    unet = placed(load_unet(cfg), device, dtype).eval()
    autoencoder = cfg.auto_encoder.build()
    embedder = cfg.embedder.build()
    head = load_network_of(cfg)
    return Parts(
        unet=unet,
        autoencoder=placed(autoencoder, device, dtype).eval(),
        embedder=placed(embedder, device).eval(),
        head=None if head is None else placed(head, device),
    )


def check_fit(cfg: RunConfig, device: torch.device) -> None:
    """Refuse, before anything is loaded, sizes that the networks cannot take and a backend that the device cannot run.

    Raises:
        ConfigError: names the setting and what would do.
    """
    check_resolution(cfg, cfg.resolution)
    cfg.UNet.options.check_device(device)
    if cfg.sampler.options.reuses and not cfg.UNet.options.can_reuse:
        raise ConfigError(
            f"sampler.reuse_steps is above 1, but UNet.type={cfg.UNet.type} cannot reuse what its inner part computed; "
            "set 1"
        )
    check_reconstruction(cfg, device)


def check_resolution(cfg: RunConfig, resolution: tuple[int, int]) -> None:
    """Refuse a width or height that the networks of a configuration cannot halve as often as they do.

    Raises:
        ConfigError: names what would do.
    """
    multiple = cfg.UNet.options.latent_multiple * cfg.auto_encoder.options.reduction
    if any(side < multiple or side % multiple for side in resolution):
        raise ConfigError(f"resolution={list(resolution)} must be multiples of {multiple} for these networks")


def load_unet(cfg: RunConfig) -> Backbone:
    """The UNet of `cfg.UNet` with the weights of `cfg.test_model`, without drawing random ones first.

    Raises:
        DataError: no file is named, or it does not fit.
    """
    if not cfg.test_model:
        raise DataError("test_model is empty; name a weight file, or use configs/mini/t2v_infer.yaml, which needs none")
    with torch.device("meta"):
        unet = cfg.UNet.build()
    load_generator(unet, cfg)
    if cfg.lora.path:
        merge_lora(unet, cfg.lora.path, weight=cfg.lora.weight)
        log.info("UNet: %g x %s added", cfg.lora.weight, cfg.lora.path)
    return unet


def load_generator(unet: nn.Module, cfg: RunConfig) -> None:
    """Load the weights of `cfg.test_model` into the UNet, and say which they are.

    Raises:
        DataError: they are missing or do not fit.
    """
    step = load_strict(unet, cfg.test_model, option="test_model")
    log.info("UNet: %s%s", cfg.test_model, "" if step is None else f", step {step}")


def save_parts(cfg: RunConfig, parts: Parts, folder: str | Path) -> None:
    """Write parts and settings as a folder that is a configuration with its weights, these as float16 safetensors."""
    folder = writable_folder(folder, option="folder")
    files = {"unet": parts.unet, "autoencoder": parts.autoencoder, "embedder": parts.embedder.model}
    sections = {"auto_encoder": "autoencoder", "embedder": "embedder"}
    if parts.head is not None and parts.head.state_dict():
        files["head"] = parts.head
        sections["reconstruction"] = "head"
    for name, part in files.items():
        save_safetensors(folder / f"{name}.safetensors", part.state_dict())
    values = {key: getattr(cfg, key).changed(pretrained=f"{name}.safetensors") for key, name in sections.items()}
    # what lora added is in the weights
    cfg = dataclasses.replace(cfg, test_model="unet.safetensors", lora=LoraOptions(), **values)
    save_config(cfg, folder / "config.yaml")


def weights_in(cfg: RunConfig, folder: Path) -> RunConfig:
    """Take weight paths relative to `folder` where the file is there."""

    def inside(path: str | None) -> str | None:
        return str(folder / path) if path and (folder / path).is_file() else path

    sections = {
        name: getattr(cfg, name).changed(pretrained=inside(getattr(cfg, name).pretrained))
        for name in ("auto_encoder", "embedder", "reconstruction")
        if getattr(cfg, name)
    }
    return dataclasses.replace(cfg, test_model=inside(cfg.test_model), **sections)
