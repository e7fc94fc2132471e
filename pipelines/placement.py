"""Which networks are on the GPU: all of them, or with `low_memory` those at work only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from models.fused.unet import FusedUNet


class Stage:
    """Brings networks to the device that they work on.

    A network waits where its tensors were when it first came on, e.g. in the CPU's memory. Its weights stay there when
    they are copied to the device, so that they need not come back: what leaves is forgotten.

    Args:
        device: where networks work.
        one_at_a_time: whoever comes on sends the others off; else all networks are on the device already.
    """

    def __init__(self, device: torch.device, *, one_at_a_time: bool = False) -> None:
        self.device, self.one_at_a_time = device, one_at_a_time
        self._homes: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}

    def use(self, *modules: nn.Module) -> None:
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


class ActingNetwork:
    """Calls like the UNet that it is made from, whatever the precision of the latents.

    Args:
        unet: at rest or at work.
        stage: brings it to the device.
        fuses: sample with the same weights arranged as in models.fused.unet; they must not move or change then.
        graph: start its kernels all at once then.
    """

    def __init__(self, unet: nn.Module, *, stage: Stage, fuses: bool, graph: bool) -> None:
        self.unet, self.stage, self.fuses, self.graph = unet, stage, fuses, graph
        self._fused: FusedUNet | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights."""
        return next(self.unet.parameters()).dtype

    def __call__(self, x: Tensor, t: Tensor, **arguments: Any) -> Tensor:
        """See models.unet.model."""
        self.stage.use(self.unet)
        if self.fuses and self._fused is None:
            self._fused = FusedUNet(self.unet, graph=self.graph)
        return (self._fused or self.unet)(x.to(self.dtype), t, **arguments)
