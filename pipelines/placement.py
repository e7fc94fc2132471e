"""Where networks are, and in which form they act in sampling.

On a GPU in half precision a network may have a twin with the same weights, arranged for speed. This is the one place
that decides who gets one. A network without a twin simply runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from models.autoencoder import AutoencoderKL
from models.backbone import Backbone
from models.fused.autoencoder import FusedCoder
from models.fused.head import FusedHead
from models.fused.kernels.choice import has_kernels
from models.fused.unet import FusedUNet
from models.gaussians.lgm import LGM
from models.unet.model import OrbitUNet
from utils.settings.run import RunConfig

# Twins share memory with their network; those of COPYING also hold weights of their own, which must not move.
SHARING: dict[type[nn.Module], Callable[..., Any]] = {AutoencoderKL: lambda network: FusedCoder(network.network)}
COPYING: dict[type[nn.Module], Callable[..., Any]] = {
    OrbitUNet: lambda network, cfg, dtype: FusedUNet(network, graph=cfg.cuda_graph),
    LGM: lambda network, cfg, dtype: FusedHead(network.unet, dtype=dtype),
}


def give_twins(cfg: RunConfig, *networks: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Set or remove the twins of loaded networks, as the settings and the device allow.

    Compiled networks keep their own forward pass, and so do those that wait in the CPU's memory (`low_memory`).

    Args:
        device: where the networks work.
        dtype: of the generator; the head's twin works in it too.
    """
    fused = cfg.fused and has_kernels(device, dtype)
    for network in networks:
        kind = type(network)  # a subclass may compute something else
        if kind in SHARING:
            network.twin = SHARING[kind](network) if fused else None
        elif kind in COPYING:
            stays = fused and not cfg.compile and not cfg.low_memory
            network.twin = COPYING[kind](network, cfg, dtype) if stays else None


class Placement:
    """Brings networks to the device that they work on.

    A network waits where its tensors were when it was first brought, e.g. in the CPU's memory. Its weights stay there
    when they are copied to the device, so nothing is copied back: the copies are dropped.

    Args:
        device: where networks work.
        one_at_a_time: moving some networks in moves the others out (`low_memory`); else all networks are on the device
            already.
    """

    def __init__(self, device: torch.device, *, one_at_a_time: bool = False) -> None:
        self.device, self.one_at_a_time = device, one_at_a_time
        self._homes: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}

    def bring(self, *modules: nn.Module) -> None:
        """Have these networks on the device, and with `one_at_a_time` no others. Those that are there stay."""
        if not self.one_at_a_time:
            return
        leaving = [module for module in self._homes if module not in modules]
        for module in leaving:
            for tensor, home in self._homes.pop(module):
                tensor.data = home
        if leaving and self.device.type == "cuda":
            torch.cuda.empty_cache()
        for module in modules:
            if module not in self._homes:
                tensors = [*module.parameters(), *module.buffers()]
                self._homes[module] = [(tensor, tensor.data) for tensor in tensors]
                for tensor in tensors:
                    tensor.data = self._copied(tensor.data)

    def _copied(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device)


class SamplingNetwork:
    """A backbone as the sampler calls it: on its device, in its precision, by its twin where it has one.

    Args:
        backbone: at rest or at work.
        placement: brings it to the device.
    """

    def __init__(self, backbone: Backbone, *, placement: Placement) -> None:
        self.backbone, self.placement = backbone, placement

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.backbone.parameters()).dtype

    def __call__(self, x: Tensor, t: Tensor, **arguments: Any) -> Tensor:
        """See models.backbone; x may have another precision."""
        self.placement.bring(self.backbone)
        return (self.backbone.twin or self.backbone)(x.to(self.dtype), t, **arguments)
