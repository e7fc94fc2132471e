"""The parts of a pipeline: from a configuration or a folder, laid out, compiled or fused, and back into a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import torch
from torch import nn

from models.autoencoder import AutoencoderKL
from models.diffusion import DiffusionDDIM
from models.fused.head import FusedHead
from models.fused.kernels.reference import has_kernels
from pipelines.parts import (
    Parts,
    check_fit,
    load_parts,
    pick_device,
    pick_dtype,
    resting_place,
    save_parts,
    weights_in,
)
from pipelines.placement import Stage
from pipelines.reconstruction.feed_forward import GaussianReconstruction
from pipelines.reconstruction.loading import build_reconstruction
from pipelines.sampling.conditioner import conditioner_for
from pipelines.sampling.sampler import Sampler
from pipelines.sampling_network import ActingNetwork
from utils.config import load_config
from utils.memory_format import channels_last
from utils.registry import DIFFUSION, SAMPLERS
from utils.settings.run import RunConfig
from utils.torch_settings import compile_parts


class Assembly:
    """Holds the parts of a pipeline, arranged as a configuration says.

    Args:
        cfg: settings of the run, the defaults of every call.
        unet: the network, on its device and in its dtype.
        autoencoder: decodes latents, same device and dtype.
        embedder: text and image encoder, same device.
        diffusion: the process that the network was trained for.
        sampler: denoising loop.
        reconstruction: makes the Gaussians, and 3D-aware sampling when `cfg.UNet.use_lgm_refine`; None: views only.
        stage: brings the networks to the device; None: they all are where the UNet is.
    """

    def __init__(
        self,
        cfg: RunConfig,
        *,
        unet: nn.Module,
        autoencoder: AutoencoderKL,
        embedder: nn.Module,
        diffusion: DiffusionDDIM,
        sampler: Sampler,
        reconstruction: GaussianReconstruction | None = None,
        stage: Stage | None = None,
    ) -> None:
        self.cfg = cfg
        self.stage = stage or Stage(next(unet.parameters()).device)
        self.reconstruction = reconstruction
        self.unet, self.autoencoder = unet, autoencoder
        self.diffusion, self.sampler = diffusion, sampler
        self.conditioner = conditioner_for(cfg, unet, embedder=embedder, autoencoder=autoencoder)
        dtype = next(unet.parameters()).dtype
        autoencoder.fused = cfg.fused and has_kernels(self.stage.device, dtype)
        fuses = autoencoder.fused and not cfg.compile and not cfg.low_memory
        self.network = ActingNetwork(unet, stage=self.stage, fuses=fuses, graph=cfg.cuda_graph)
        if fuses and reconstruction:
            reconstruction.head.fused = FusedHead(reconstruction.head.unet, dtype=dtype)

    @classmethod
    def from_config(cls, cfg: RunConfig) -> Self:
        """Build and load every part that a configuration names.

        Raises:
            ConfigError, DataError: a setting or a weight file does not fit; nothing has been sampled then.
        """
        check_fit(cfg, pick_device(cfg.device))
        return cls.from_parts(cfg, load_parts(cfg, device=resting_place(cfg), dtype=pick_dtype(cfg)))

    @classmethod
    def from_parts(cls, cfg: RunConfig, parts: Parts) -> Self:
        """Lay out and compile parts as a configuration says, and join them."""
        unet, autoencoder = parts.unet, parts.autoencoder
        if cfg.channels_last:
            unet, autoencoder = channels_last(unet), channels_last(autoencoder)
        stage = Stage(pick_device(cfg.device), one_at_a_time=cfg.low_memory)
        reconstruction = parts.head and build_reconstruction(cfg, parts.head, autoencoder=autoencoder, stage=stage)
        if cfg.compile:
            compile_parts(unet.parts_to_compile())
            if reconstruction:
                compile_parts(reconstruction.head.parts_to_compile())
        return cls(
            cfg,
            unet=unet,
            autoencoder=autoencoder,
            embedder=parts.embedder,
            diffusion=DIFFUSION.build(cfg.Diffusion, where="Diffusion"),
            sampler=SAMPLERS.build(cfg.sampler, where="sampler"),
            reconstruction=reconstruction,
            stage=stage,
        )

    @classmethod
    def from_folder(cls, folder: str | Path, *overrides: str) -> Self:
        """Build from a folder that `save` wrote: its config.yaml and its weights.

        Args:
            overrides: `key=value` strings, as on the command line.
        """
        folder = Path(folder)
        cfg = load_config(folder / "config.yaml", overrides)
        return cls.from_config(weights_in(cfg, folder))

    def save(self, folder: str | Path) -> None:
        """Write the parts and the settings as a folder that `from_folder` opens, weights as float16 safetensors."""
        parts = Parts(
            unet=self.unet,
            autoencoder=self.autoencoder,
            embedder=self.conditioner.embedder,
            head=self.reconstruction and self.reconstruction.head,
        )
        save_parts(self.cfg, parts, folder)

    @property
    def _place(self) -> tuple[torch.device, torch.dtype]:
        return self.stage.device, self.network.dtype
