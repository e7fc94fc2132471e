"""What heads have in common: networks that turn views into 3D Gaussians in one forward pass, and that are trained.

A head is a subclass of `FeedForward` in its own file. Its `Config`, a subclass of `FeedForwardConfig`, names the
network (`head_type`), the frame of its cameras (`head_poses`) and the call of the network (`predicted`); training and
sampling use these.

Letters: B batch, V views of an orbit, I input views of the head, C channels, H W pixels.
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from models.gaussians.scene import Gaussians
from pipelines.reconstruction.base import Reconstructor, ReconstructorConfig
from utils.registry import MODEL, Section


@dataclass(frozen=True, kw_only=True)
class FeedForwardConfig(ReconstructorConfig):
    """Options of every head.

    Attributes:
        head: sizes of the network.
        input_views: the input views of the head; empty: as the head chooses them.
    """

    head_type: ClassVar[str]  # the class of the network, a name of MODEL
    head: dict[str, Any] = field(default_factory=dict)
    input_views: list[int] = field(default_factory=list)

    @cached_property
    def head_section(self) -> Section:
        """The checked section of the head."""
        return MODEL.section({"type": self.head_type, **self.head}, where="reconstruction.head")

    @property
    def head_config(self) -> Any:
        """The checked sizes of the head."""
        return self.head_section.options

    @property
    def names_views(self) -> bool:
        return bool(self.input_views)

    @abstractmethod
    def head_poses(self, c2w_BV44: Tensor) -> Tensor:
        """Move cameras to the frame of the head: (..., V, 4, 4), camera to world with OpenGL axes."""

    @abstractmethod
    def predicted(self, network: nn.Module, views_BICHW: Tensor, poses_BI44: Tensor) -> Gaussians:
        """Call the network, with gradients.

        Args:
            network: the head.
            views_BICHW: RGB in [0, 1].
            poses_BI44: cameras of the views, from `head_poses`.
        """


class FeedForward(Reconstructor):
    """A reconstruction by a head."""

    Config = FeedForwardConfig

    @classmethod
    def build_network(cls, config: FeedForwardConfig) -> nn.Module:
        return config.head_section.build()

    def parts_to_compile(self) -> list[nn.Module]:
        return self.network.parts_to_compile()

    def precision(self) -> Any:
        """Return an autocast to the autoencoder's precision if that is lower; the head's weights do not change."""
        autoencoder = self.workshop.autoencoder
        dtype = torch.float32 if autoencoder is None else next(autoencoder.parameters()).dtype
        if dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.workshop.placement.device.type, dtype=dtype)
