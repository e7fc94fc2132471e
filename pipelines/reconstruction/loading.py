"""Check, load and build the reconstruction of a run."""

from __future__ import annotations

import logging

import torch
from torch import nn

from models.encoders import Autoencoder
from models.gaussians.rendering import pick_rasterizer
from pipelines.placement import Placement
from pipelines.reconstruction.base import Reconstructor, Workshop
from utils.errors import ConfigError
from utils.settings.run import RunConfig
from utils.torch_settings import channels_last

log = logging.getLogger(__name__)


def check_reconstruction(cfg: RunConfig, device: torch.device, *, needed: bool = False) -> None:
    """Check, before anything is loaded, that the reconstruction fits the sampled views.

    The check applies if the reconstruction is needed or if the user chose its input views. If only the 3D files depend
    on it, the run continues without them; see `load_network_of`.

    Args:
        needed: whether the reconstruction is needed even with refine=false.

    Raises:
        ConfigError: it does not fit; the message has the setting and the remedy.
    """
    if not cfg.reconstruction:
        if cfg.refine:
            raise ConfigError("refine=true needs a section reconstruction; copy it from configs/t2v_infer.yaml")
        return
    pick_rasterizer(cfg.rasterizer, device)
    obstacle = _obstacle(cfg)
    if obstacle and (cfg.refine or needed):
        raise ConfigError(f"{obstacle}; change this setting{', or set refine=false' if cfg.refine else ''}")
    if obstacle and cfg.reconstruction.options.names_views:
        raise ConfigError(f"{obstacle}; change this setting, or set reconstruction={{}} to sample without 3D files")


def load_network_of(cfg: RunConfig) -> nn.Module | None:
    """Load the network of `cfg.reconstruction` on the CPU.

    Returns:
        The network, or None when the run has no reconstruction. This is so if the section is empty, or if the
        reconstruction is not needed and has no weights or does not fit the sampled views.

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
    cfg: RunConfig, network: nn.Module, *, autoencoder: Autoencoder, placement: Placement
) -> Reconstructor:
    """Build the reconstruction from loaded networks, which the placement moves to the device."""
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
    """Return the reconstruction if it exists and fits the views of a call, else None.

    Args:
        needed: raise an error if it does not fit; otherwise the call continues without Gaussians.

    Raises:
        ConfigError: it is needed but does not fit.
    """
    obstacle = reconstruction and reconstruction.config.obstacle(num_views=num_views, resolution=resolution)
    if obstacle is None:
        return reconstruction
    if needed:
        raise ConfigError(f"{obstacle}; change this setting, or set results=plain")
    log.warning("no Gaussians: %s", obstacle)
    return None


def _obstacle(cfg: RunConfig) -> str | None:
    return cfg.reconstruction.options.obstacle(num_views=len(cfg.cameras.c2w()), resolution=cfg.resolution)
