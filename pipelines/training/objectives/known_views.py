"""Some views of a training sample are given clean, and the network learns the others from them.

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
    """Options of an objective that can give clean views, all off as published.

    Attributes:
        p_known: share of samples of which some views carry no noise; by that the network sees which are given.
        max_known: views that such a sample has given at most, view 0 (an image model's input) always among them;
            fewer are drawn more often: with 4, half of the samples have view 0 alone, an eighth have 4.
    """

    p_known: float = 0.0
    max_known: int = 4

    def __post_init__(self) -> None:
        if not 0 <= self.p_known <= 1:
            raise ConfigError(f"objective.p_known must lie in [0, 1], got {self.p_known}")
        if self.max_known < 1:
            raise ConfigError(f"objective.max_known must be >= 1, got {self.max_known}")

    def check_known(self, *, image: bool, num_views: int) -> None:
        """Refuse what cannot be sampled from, or leaves nothing to learn.

        Raises:
            ConfigError: see above.
        """
        if self.p_known and not image:
            raise ConfigError(f"objective.p_known={self.p_known:g}: a text model has no view to be given; set 0")
        if self.p_known and self.max_known >= num_views:
            raise ConfigError(f"objective.max_known={self.max_known} must be below the {num_views} views of a sample")

    def draw_known(self, global_batch: GlobalBatch, *, batch_size: int, num_views: int) -> Tensor | None:
        """Which views are given, (B, V) bool; None, with nothing drawn, where no sample can have any."""
        if not self.p_known:
            return None
        given_B = global_batch.rand(batch_size) < self.p_known
        count_B = 1 + (self.max_known * global_batch.rand(batch_size).square()).long()
        order_BV = global_batch.rand(batch_size, num_views)
        order_BV[:, 0] = -1.0
        rank_BV = order_BV.argsort(dim=1).argsort(dim=1)
        return given_B[:, None] & (rank_BV < count_B[:, None])


def give_clean(x_t_BCVHW: Tensor, x0_BCVHW: Tensor, known_BV: Tensor | None) -> Tensor:
    """x_t with its known views without noise."""
    if known_BV is None:
        return x_t_BCVHW
    return torch.where(known_BV[:, None, :, None, None], x0_BCVHW, x_t_BCVHW)


def weights_of_unknown(known_BV: Tensor | None) -> Tensor | None:
    """What each view counts in the loss, (B, 1, V, 1, 1): known ones nothing, the others of a sample one on average.

    So a sample counts as much with known views as without, and the loss keeps its scale.
    """
    if known_BV is None:
        return None
    unknown_BV = (~known_BV).float()
    return (unknown_BV / unknown_BV.mean(dim=1, keepdim=True))[:, None, :, None, None]
