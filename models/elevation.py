"""A small network that estimates from which elevation a picture shows an object.

It gives a distribution over angles instead of one angle: a picture of a ball or of a flat card fits many elevations.
The estimate is the median of the distribution, which has the smallest expected absolute error.

Letters: B batch, C channels, H W pixels, A angles of the distribution.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.weights import load_strict
from utils.errors import ConfigError
from utils.registry import MODEL

ANGLE_STEP_DEG = 2.5  # between neighbouring angles of the distribution
MARGIN_DEG = 10.0  # angles beyond the range, so that the median reaches the ends of the range
WIDTHS = (1, 2, 3, 3)  # channels of each level, in units of `width`


@MODEL.register
class ElevationNetwork(nn.Module):
    """Computes logits of the elevation from pictures over white."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """
        Attributes:
            width: channels after the first convolution; the further levels have 2, 3 and 3 times as many.
            lowest_deg: smallest elevation that is estimated, in degrees above the horizon.
            highest_deg: largest elevation.
            size: width and height of the pictures in pixels.
            pretrained: weight file; null for untrained weights.
        """

        width: int = 32
        lowest_deg: float = -10.0
        highest_deg: float = 45.0
        size: int = 128
        pretrained: str | None = None

        def __post_init__(self) -> None:
            if self.width < 8 or self.width % 8:
                raise ConfigError(f"width must be a multiple of 8, got {self.width}")
            if self.size < 32:
                raise ConfigError(f"size must be >= 32, got {self.size}")
            if not -90 < self.lowest_deg < self.highest_deg < 90:
                raise ConfigError(
                    f"lowest_deg and highest_deg must be an increasing range in (-90, 90), got {self.lowest_deg:g} and "
                    f"{self.highest_deg:g}"
                )

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        low, high = config.lowest_deg - MARGIN_DEG, config.highest_deg + MARGIN_DEG
        angles_deg_A = torch.arange(low, high + ANGLE_STEP_DEG / 2, ANGLE_STEP_DEG)
        self.register_buffer("angles_deg_A", angles_deg_A, persistent=False)
        widths = [config.width * level for level in WIDTHS]
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 5, stride=2, padding=2)]
        for before, after in itertools.pairwise(widths):
            layers += [nn.GroupNorm(8, before), nn.SiLU(), nn.Conv2d(before, after, 3, stride=2, padding=1)]
            layers += [Residual(after)]
        self.features = nn.Sequential(*layers, nn.GroupNorm(8, widths[-1]), nn.SiLU())
        hidden = 2 * widths[-1]  # mean and maximum over the pixels
        self.hidden = nn.Linear(hidden, hidden)
        self.angles = nn.Linear(hidden, len(angles_deg_A))
        if config.pretrained:
            load_strict(self, config.pretrained, option="elevation.pretrained")

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Compute the logits of the angles, (B, A), from images in [0, 1] over white."""
        features_BCHW = self.features(1 - 2 * images_B3HW)  # the background is a constant
        pooled_BC = torch.cat([features_BCHW.mean(dim=(2, 3)), features_BCHW.amax(dim=(2, 3))], dim=1)
        return self.angles(functional.silu(self.hidden(pooled_BC)))

    @torch.no_grad()
    def estimate(self, images_B3HW: Tensor) -> Tensor:
        """Estimate elevations from images in [0, 1] over white: (B,) float32 degrees, within the range.

        Raises:
            ValueError: the images have another size than `config.size`.
        """
        size = self.config.size
        if images_B3HW.shape[-2:] != (size, size):
            raise ValueError(f"the elevation network reads {size} x {size} pixels, got {tuple(images_B3HW.shape)}")
        median_deg_B = median_deg(self(images_B3HW).float().softmax(dim=1), self.angles_deg_A)
        return median_deg_B.clamp(self.config.lowest_deg, self.config.highest_deg)


class Residual(nn.Module):
    """Two convolutions beside the identity; it begins as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(8, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(8, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW + self.layers(x_BCHW)


def median_deg(share_BA: Tensor, angles_deg_A: Tensor) -> Tensor:
    """Compute the median of distributions over evenly spaced angles: (B,) degrees.

    Each share is spread evenly over one step around its angle, so that the median varies continuously.

    Args:
        share_BA: not negative, with the sum 1 for each row.
    """
    step = angles_deg_A[1] - angles_deg_A[0]
    below_BA = share_BA.cumsum(dim=1)
    index_B1 = (below_BA < 0.5).sum(dim=1, keepdim=True).clamp_max(len(angles_deg_A) - 1)
    share_B1 = share_BA.gather(1, index_B1)
    before_B1 = below_BA.gather(1, index_B1) - share_B1
    within_B1 = ((0.5 - before_B1) / share_B1.clamp_min(1e-12)).clamp(0, 1)
    return (angles_deg_A[index_B1] + (within_B1 - 0.5) * step)[:, 0]
