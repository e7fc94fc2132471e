"""Activations of images as rows of channels, for the fused operations.

Letters: F images, H W height and width, L = H·W pixels of an image, R = F·L rows, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from models.fused.kernels.choice import operations


@dataclass(frozen=True)
class Rows:
    """Activations of images with H = `height` and W = `width`.

    Attributes:
        x_RC: contiguous.
        ops: the module with the operations: models.fused.kernels.triton_forward, autograd or reference.
    """

    x_RC: Tensor
    height: int
    width: int
    ops: ModuleType

    @classmethod
    def of(cls, images_FCHW: Tensor) -> Rows:
        """Make rows from images; without a copy if they are channels last."""
        F_, C, H, W = images_FCHW.shape
        ops = operations(images_FCHW.device, images_FCHW.dtype)
        return cls(images_FCHW.permute(0, 2, 3, 1).reshape(F_ * H * W, C), H, W, ops)

    @property
    def places(self) -> int:
        return self.height * self.width

    def images(self) -> Tensor:
        """The images (F, C, H, W) in channels-last memory, without a copy."""
        return self.x_RC.view(-1, self.height, self.width, self.x_RC.shape[1]).permute(0, 3, 1, 2)

    def holding(self, x_RC: Tensor) -> Rows:
        """Other values for the same pixels."""
        return replace(self, x_RC=x_RC)

    def normed(self, norm: nn.GroupNorm, *, rows: int | None = None, **options: Any) -> Tensor:
        """Group norm over each image, or over `rows` rows; options as in models.fused.kernels.reference.group_norm."""
        return self.ops.group_norm(self.x_RC, norm.weight, norm.bias, rows=rows or self.places, eps=norm.eps, **options)

    def product(
        self, norm: nn.GroupNorm, weight: Tensor, *, rows: int | None = None, **options: Any
    ) -> tuple[Rows, Rows]:
        """The rows, and a product of their group norm, as in models.fused.kernels.reference.normed_product."""
        x_RC, out_RC = self.ops.normed_product(
            self.x_RC,
            norm.weight,
            norm.bias,
            weight,
            size=(self.height, self.width),
            rows=rows or self.places,
            eps=norm.eps,
            **options,
        )
        return self.holding(x_RC), self.holding(out_RC)

    def convolved(self, conv: nn.Conv2d) -> Rows:
        """A convolution without its bias."""
        out = F.conv2d(self.images(), conv.weight, stride=conv.stride, padding=conv.padding)
        return Rows(out.permute(0, 2, 3, 1).reshape(-1, out.shape[1]), *out.shape[2:], self.ops)

    def through(self, conv: nn.Conv2d) -> Rows:
        """A convolution with its bias."""
        rows = self.convolved(conv)
        rows.x_RC.add_(conv.bias)
        return rows

    def residual(self, block: Any, *, shortcut: nn.Conv2d | None, scale: float = 1.0) -> Rows:
        """Two convolutions with norms (`norm1`, `conv1`, `norm2`, `conv2` of a block), added to the input or to its
        1 x 1 convolution, and scaled."""
        _, h = self.product(block.norm1, block.conv1.weight, silu=True)
        _, h = h.product(block.norm2, block.conv2.weight, silu=True, shift=block.conv1.bias[None])
        skip_RC, bias_C = self.x_RC, block.conv2.bias
        if shortcut is not None:
            skip_RC, bias_C = F.linear(skip_RC, shortcut.weight.flatten(1)), bias_C + shortcut.bias
        return h.holding(self.ops.add(skip_RC, h.x_RC, bias_C, scale=scale))

    def doubled(self) -> Rows:
        """Enlarge to twice the size with nearest neighbours."""
        x_RC = self.ops.doubled(self.x_RC, height=self.height, width=self.width)
        return Rows(x_RC, 2 * self.height, 2 * self.width, self.ops)
