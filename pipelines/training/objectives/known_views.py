"""Train with known views: some views of a sample have no noise, and the network predicts the others from them.

Letters: B batch, V views, C channels, H W latent pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.training.data.global_batch import GlobalBatch
from utils.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class KnownViewOptions:
    """Options of an objective with known views; they are off by default, as published.

    Attributes:
        p_known: fraction of samples with known views. The network recognises known views by the missing noise.
        max_known: maximum number of known views of such a sample. View 0, an image model's input, is always one of
            them. Smaller numbers are more frequent: with 4, half of these samples have only view 0, an eighth have 4.
    """

    p_known: float = 0.0
    max_known: int = 4

    def __post_init__(self) -> None:
        if not 0 <= self.p_known <= 1:
            raise ConfigError(f"objective.p_known must lie in [0, 1], got {self.p_known}")
        if self.max_known < 1:
            raise ConfigError(f"objective.max_known must be >= 1, got {self.max_known}")

    def check_known(self, *, image: bool, num_views: int) -> None:
        """Check that the model supports known views and that each sample has unknown views.

        Raises:
            ConfigError: a check fails.
        """
        if self.p_known and not image:
            raise ConfigError(
                f"objective.p_known={self.p_known:g} needs an image model; set objective.p_known=0 for a text model"
            )
        if self.p_known and self.max_known >= num_views:
            raise ConfigError(f"objective.max_known={self.max_known} must be below the {num_views} views of a sample")

    def draw_known(self, global_batch: GlobalBatch, *, batch_size: int, num_views: int) -> Tensor | None:
        """Draw which views are known, (B, V) bool; with p_known=0 return None and draw nothing."""
        if not self.p_known:
            return None
        given_B = global_batch.rand(batch_size) < self.p_known
        count_B = 1 + (self.max_known * global_batch.rand(batch_size).square()).long()
        order_BV = global_batch.rand(batch_size, num_views)
        order_BV[:, 0] = -1.0
        rank_BV = order_BV.argsort(dim=1).argsort(dim=1)
        return given_B[:, None] & (rank_BV < count_B[:, None])


def give_clean(x_t_BCVHW: Tensor, x0_BCVHW: Tensor, known_BV: Tensor | None) -> Tensor:
    """Replace the known views in x_t with their x0."""
    if known_BV is None:
        return x_t_BCVHW
    return torch.where(known_BV[:, None, :, None, None], x0_BCVHW, x_t_BCVHW)


def timesteps_of_views(t_B: Tensor, known_BV: Tensor | None, num_views: int) -> Tensor:
    """Return a timestep for each view (B, V): that of the sample, or 0 for known views."""
    t_BV = t_B[:, None].expand(-1, num_views)
    return t_BV if known_BV is None else t_BV.masked_fill(known_BV, 0)


def weights_of_unknown(known_BV: Tensor | None) -> Tensor | None:
    """Return the weight of each view in the loss, (B, 1, V, 1, 1): 0 for known views, with a mean of 1 over a sample.

    A sample therefore has the same weight with and without known views, and the loss keeps its scale.
    """
    if known_BV is None:
        return None
    unknown_BV = (~known_BV).float()
    return (unknown_BV / unknown_BV.mean(dim=1, keepdim=True))[:, None, :, None, None]
