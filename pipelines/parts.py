"""Check, build, load and save the networks of a configuration. The checks come before anything is loaded."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from models.backbone import Backbone
from models.encoders import Autoencoder, Embedder, FrameLayout
from models.lora import merge_lora
from models.weights import check_files, placed, save_safetensors
from pipelines.reconstruction.loading import check_reconstruction, load_network_of
from utils.config import save_config
from utils.errors import ConfigError, DataError
from utils.files import writable_folder
from utils.settings.lora import LoraOptions
from utils.settings.run import RunConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The networks of a pipeline with their weights, in eval mode.

    Attributes:
        unet: the generator, in the precision of the run.
        autoencoder: in the precision of the run.
        embedder: in float32.
        head: the network of the reconstruction in float32, or an empty module if it has no network; None: no
            reconstruction.
    """

    unet: Backbone
    autoencoder: Autoencoder
    embedder: Embedder
    head: nn.Module | None


def load_parts(cfg: RunConfig, *, device: torch.device, dtype: torch.dtype) -> Parts:
    """Load all networks of a configuration.

    Args:
        device: the device of the weights, see `resting_place`.
        dtype: precision of the UNet and the autoencoder; no float32 copy of them is made on the device.

    Raises:
        DataError: a file is missing or does not fit.
    """
    if not cfg.test_model:
        raise DataError("test_model is empty; set it to a weight file, or use configs/mini/t2v_infer.yaml")
    check_weights(cfg, weight_files(cfg), config="configs/mini/t2v_infer.yaml")
    note_untrained(cfg, "auto_encoder", "embedder")
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


def weight_files(cfg: RunConfig) -> dict[str, str | None]:
    """The weight files of a sampling run, by the setting that names each."""
    sections = [name for name in ("auto_encoder", "embedder", "reconstruction") if getattr(cfg, name)]
    files = {f"{name}.pretrained": getattr(cfg, name).pretrained for name in sections}
    return {"test_model": cfg.test_model, **files, "lora.path": cfg.lora.path}


def published_files(cfg: RunConfig, option: str, path: str | None) -> list[Path] | None:
    """List the weight files of a published folder or hub name; None: the setting names one weight file, or nothing.

    Args:
        option, path: the setting and its value.

    Raises:
        DataError: the folder is missing, or is that of another network.
    """
    owners = {"test_model": cfg.UNet, "Pretrain.resume_checkpoint": cfg.UNet}
    owners |= {"auto_encoder.pretrained": cfg.auto_encoder, "embedder.pretrained": cfg.embedder}
    owner = owners.get(option)
    return owner.options.published_files(path, option=option) if owner and path else None


def check_weights(cfg: RunConfig, paths: Mapping[str, str | None], *, config: str) -> None:
    """Check that the weights of a run exist, without reading them.

    Args:
        paths: from the setting to the file or the published folder that it names; None and "" are ignored.
        config: see `check_files`.

    Raises:
        DataError: a file or folder is missing, or does not fit.
    """
    check_files(
        {option: path for option, path in paths.items() if published_files(cfg, option, path) is None}, config=config
    )


def note_untrained(cfg: RunConfig, *names: str) -> None:
    """Warn about networks that only work with trained weights, but have no weight file."""
    for name in names:
        section = getattr(cfg, name)
        if not section.pretrained and not getattr(section.options, "works_without_file", False):
            log.warning("%s.pretrained is empty, so its network is untrained and its results mean nothing", name)


def check_fit(cfg: RunConfig, device: torch.device) -> None:
    """Check, before anything is loaded, that sizes, networks and device fit.

    Raises:
        ConfigError: they do not; the message has the setting and the remedy.
    """
    check_resolution(cfg, cfg.resolution)
    check_widths(cfg)
    layout = check_layout(cfg)
    layout.check(len(cfg.cameras.c2w()), option="cameras")
    if cfg.known_views:
        layout.check_known(option="known_views")
    cfg.UNet.options.check_device(device)
    if cfg.takes_images and not cfg.UNet.options.takes_image_embedding and cfg.hold_views != "clean":
        raise ConfigError(
            f"hold_views={cfg.hold_views}: UNet.type={cfg.UNet.type} sees pictures only as known views without noise; "
            "set hold_views=clean"
        )
    if cfg.sampler.options.reuses and not cfg.UNet.options.can_reuse:
        raise ConfigError(
            f"sampler.reuse_steps is above 1, but UNet.type={cfg.UNet.type} cannot reuse features of its inner part; "
            "set sampler.reuse_steps=1"
        )
    check_reconstruction(cfg, device)


def check_widths(cfg: RunConfig) -> None:
    """Check that the backbone takes the latents of the autoencoder and the words of the embedder.

    Raises:
        ConfigError: it does not; the message has both numbers.
    """
    channels, given = cfg.UNet.options.latent_channels, cfg.auto_encoder.options.latent_channels
    if channels not in (None, given):
        raise ConfigError(
            f"UNet takes latents of {channels} channels, but those of auto_encoder.type={cfg.auto_encoder.type} have "
            f"{given}; use both from one model"
        )
    width, (_, given) = cfg.UNet.options.text_width, cfg.embedder.options.words_shape()
    if width not in (None, given):
        raise ConfigError(
            f"UNet takes words of {width} channels, but those of embedder.type={cfg.embedder.type} have {given}; use "
            "both from one model"
        )


def check_layout(cfg: RunConfig) -> FrameLayout:
    """Return the layout of the latents, after a check that the backbone has that of the autoencoder.

    Raises:
        ConfigError: it has another one; the message has both.
    """
    layout, taken = cfg.auto_encoder.options.layout, cfg.UNet.options.layout
    if layout != taken:
        raise ConfigError(
            f"a frame of the latents has {layout.views_per_frame} view(s) with auto_encoder.type="
            f"{cfg.auto_encoder.type}, but UNet.type={cfg.UNet.type} takes {taken.views_per_frame}; set "
            "auto_encoder.packed and UNet.packed to the same value"
        )
    return layout


def check_resolution(cfg: RunConfig, resolution: tuple[int, int]) -> None:
    """Check that the networks can halve the width and the height as often as necessary.

    Raises:
        ConfigError: they cannot; the message has the valid multiple.
    """
    multiple = cfg.UNet.options.latent_multiple * cfg.auto_encoder.options.reduction
    if any(side < multiple or side % multiple for side in resolution):
        raise ConfigError(f"resolution={list(resolution)} must be multiples of {multiple} for these networks")


def load_unet(cfg: RunConfig) -> Backbone:
    """Build `cfg.UNet` and load the weights of `cfg.test_model`, without random initialisation.

    Raises:
        DataError: test_model is empty, or the file does not fit.
    """
    if not cfg.test_model:
        raise DataError("test_model is empty; set it to a weight file, or use configs/mini/t2v_infer.yaml")
    with torch.device("meta"):
        unet = cfg.UNet.build()
    load_generator(unet, cfg)
    if cfg.lora.path:
        merge_lora(unet, cfg.lora.path, weight=cfg.lora.weight)
        log.info("UNet: %g x %s added", cfg.lora.weight, cfg.lora.path)
    return unet


def load_generator(unet: Backbone, cfg: RunConfig) -> None:
    """Load the weights of `cfg.test_model` into the UNet, and log the file and its step.

    Raises:
        DataError: the weights are missing or do not fit.
    """
    step = unet.load_weights(cfg.test_model, option="test_model")
    log.info("UNet: %s%s", cfg.test_model, "" if step is None else f", step {step}")


def save_parts(cfg: RunConfig, parts: Parts, folder: str | Path) -> None:
    """Write a folder with the configuration and the weights of all parts, as float16 safetensors."""
    folder = writable_folder(folder, option="folder")
    states = {"unet": parts.unet.state_dict(), "autoencoder": parts.autoencoder.state_dict()}
    sections = {"auto_encoder": "autoencoder"}
    if (own := parts.embedder.own_state) is not None:
        states["embedder"], sections["embedder"] = own, "embedder"
    if parts.head is not None and parts.head.state_dict():
        states["head"], sections["reconstruction"] = parts.head.state_dict(), "head"
    if cfg.elevation and cfg.elevation.pretrained:
        states["elevation"], sections["elevation"] = cfg.elevation.build().state_dict(), "elevation"
    for name, state in states.items():
        save_safetensors(folder / f"{name}.safetensors", state)
    values = {key: getattr(cfg, key).changed(pretrained=f"{name}.safetensors") for key, name in sections.items()}
    # the weights already contain the LoRA update
    cfg = dataclasses.replace(cfg, test_model="unet.safetensors", lora=LoraOptions(), **values)
    save_config(cfg, folder / "config.yaml")


def weights_in(cfg: RunConfig, folder: Path) -> RunConfig:
    """Make weight paths relative to `folder` if the file is in this folder."""

    def inside(path: str | None) -> str | None:
        return str(folder / path) if path and (folder / path).is_file() else path

    sections = {
        name: getattr(cfg, name).changed(pretrained=inside(getattr(cfg, name).pretrained))
        for name in ("auto_encoder", "embedder", "reconstruction", "elevation")
        if getattr(cfg, name)
    }
    return dataclasses.replace(cfg, test_model=inside(cfg.test_model), **sections)
