"""Device placement of networks, and their faster twins in sampling.

On a GPU in half precision a network may have a twin: a faster implementation with the same weights. Only this file
decides which networks get a twin. A network without a twin runs itself.
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

# All twins share memory with their network. Those in COPYING also have own copies of weights, which must not move.
SHARING: dict[type[nn.Module], Callable[..., Any]] = {AutoencoderKL: lambda network: FusedCoder(network.network)}
COPYING: dict[type[nn.Module], Callable[..., Any]] = {
    OrbitUNet: lambda network, cfg, dtype: FusedUNet(network, graph=cfg.cuda_graph),
    LGM: lambda network, cfg, dtype: FusedHead(network.unet, dtype=dtype),
}


def give_twins(cfg: RunConfig, *networks: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Set or remove the twins of loaded networks, according to the settings and the device.

    Compiled networks get no twin. Networks that move between CPU and GPU (`low_memory`) get no twin from COPYING.

    Args:
        device: the device of the computation.
        dtype: the precision of the generator and of the head's twin.
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
    """Moves networks to the device.

    The weights of a network remain in their first place, e.g. in CPU memory, and the device gets a copy. Moving a
    network out therefore only deletes this copy.

    Args:
        device: the device of the computation.
        one_at_a_time: moving some networks in moves the others out (`low_memory`); if false, all networks must already
            be on the device.
    """

    def __init__(self, device: torch.device, *, one_at_a_time: bool = False) -> None:
        self.device, self.one_at_a_time = device, one_at_a_time
        self._homes: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}

    def bring(self, *modules: nn.Module) -> None:
        """Move these networks to the device, and with `one_at_a_time` move the others out."""
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
    """Calls a backbone for the sampler: on its device, in its precision, and through its twin if it has one."""

    def __init__(self, backbone: Backbone, *, placement: Placement) -> None:
        self.backbone, self.placement = backbone, placement

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return next(self.backbone.parameters()).dtype

    def __call__(self, x: Tensor, t: Tensor, **arguments: Any) -> Tensor:
        """Predict as `Backbone.forward` does; x may have any precision."""
        self.placement.bring(self.backbone)
        return (self.backbone.twin or self.backbone)(x.to(self.dtype), t, **arguments)
