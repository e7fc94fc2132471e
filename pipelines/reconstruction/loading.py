"""The reconstruction of a run: whether it can be used, and its weights."""

from __future__ import annotations

import logging

import torch
from torch import nn

from models.autoencoder import AutoencoderKL
from models.gaussians.rendering import pick_rasterizer
from pipelines.placement import Placement
from pipelines.reconstruction.base import Reconstructor, Workshop
from utils.errors import ConfigError
from utils.settings.run import RunConfig
from utils.torch_settings import channels_last

log = logging.getLogger(__name__)


def check_reconstruction(cfg: RunConfig, device: torch.device, *, needed: bool = False) -> None:
    """Refuse, before anything is loaded, a reconstruction that is needed or told its views, and cannot work on what is
    sampled.

    Where only the files of the object depend on it, the run goes on without them; see `load_network_of`.

    Args:
        needed: also where nothing is refined.

    Raises:
        ConfigError: names the setting and what would do.
    """
    if not cfg.reconstruction:
        if cfg.refine:
            raise ConfigError("refine=true needs a section reconstruction; see configs/t2v_infer.yaml")
        return
    pick_rasterizer(cfg.rasterizer, device)
    obstacle = _obstacle(cfg)
    if obstacle and (cfg.refine or needed):
        raise ConfigError(f"{obstacle}; change that{', or set refine=false' if cfg.refine else ''}")
    if obstacle and cfg.reconstruction.options.names_views:
        raise ConfigError(f"{obstacle}; change that, or sample without it: reconstruction={{}}")


def load_network_of(cfg: RunConfig) -> nn.Module | None:
    """The network of `cfg.reconstruction`, on the CPU; None when the run does without a reconstruction: none is named,
    or it is not needed and has no weights or cannot work on what the run samples.

    Raises:
        DataError: the weights are missing or do not fit.
    """
    if not cfg.reconstruction:
        return None
    if obstacle := _obstacle(cfg):
        log.warning("no Gaussians: %s", obstacle)
        return None
    section = cfg.reconstruction
    return section.cls.load_network(section.options, test_model=cfg.test_model, needed=cfg.refine)


def build_reconstruction(
    cfg: RunConfig, network: nn.Module, *, autoencoder: AutoencoderKL, placement: Placement
) -> Reconstructor:
    """What `cfg.reconstruction` describes, of loaded networks that the placement brings to the device."""
    if cfg.channels_last and placement.device.type == "cuda":
        channels_last(network)
    workshop = Workshop(
        autoencoder=autoencoder,
        placement=placement,
        rasterizer=cfg.rasterizer,
        decode_chunk=cfg.decoder_bs,
        encode_chunk=cfg.chunk_size,
    )
    return cfg.reconstruction.build(network=network, workshop=workshop)


def usable(
    reconstruction: Reconstructor | None, *, num_views: int, resolution: tuple[int, int], needed: bool
) -> Reconstructor | None:
    """The reconstruction, if there is one and it can work on the views of a call.

    Args:
        needed: refuse where it cannot; else the call goes on without Gaussians.

    Raises:
        ConfigError: it cannot, and it is needed.
    """
    obstacle = reconstruction and reconstruction.config.obstacle(num_views=num_views, resolution=resolution)
    if obstacle is None:
        return reconstruction
    if needed:
        raise ConfigError(f"{obstacle}; ask for results=plain")
    log.warning("no Gaussians: %s", obstacle)
    return None


def _obstacle(cfg: RunConfig) -> str | None:
    return cfg.reconstruction.options.obstacle(num_views=len(cfg.cameras.c2w()), resolution=cfg.resolution)
