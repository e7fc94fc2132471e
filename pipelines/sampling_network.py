"""The UNet as sampling calls it: on its device, in its precision, and arranged for speed where that is possible."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from models.fused.unet import FusedUNet
from pipelines.placement import Stage


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
