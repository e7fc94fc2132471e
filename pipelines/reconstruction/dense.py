"""The dense head, which turns all views of an orbit into 3D Gaussians in one forward pass.

Letters: B batch, V views of an orbit, I input views of the head, C channels, H W pixels, N Gaussians.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.gaussians.dense import DenseHead
from models.gaussians.scene import Gaussians
from models.weights import load_strict
from pipelines.reconstruction.feed_forward import FeedForward, FeedForwardConfig
from utils.cameras import opencv_to_opengl
from utils.errors import ConfigError, DataError
from utils.registry import RECONSTRUCTORS

MAX_VIEWS = 32


@RECONSTRUCTORS.register
class DenseReconstruction(FeedForward):
    """A transformer over all views (models.gaussians.dense), for views at any pose around the object."""

    @dataclass(frozen=True, kw_only=True)
    class Config(FeedForwardConfig):
        """
        Attributes:
            head: sizes of the dense head, see models.gaussians.dense; with num_layers=0 it needs no weights.
            input_views: the input views of the head; empty: all views, at most 32.
            min_opacity: Gaussians that are more transparent are left out before rendering and in files.
        """

        head_type = "DenseHead"
        min_opacity: float = 0.02

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 0 <= self.min_opacity < 1:
                raise ConfigError(f"min_opacity must lie in [0, 1), got {self.min_opacity}")
            if len(set(self.input_views)) != len(self.input_views) or len(self.input_views) > MAX_VIEWS:
                raise ConfigError(
                    f"input_views={list(self.input_views)} must be at most {MAX_VIEWS} different views; empty: all"
                )

        def views_of(self, num_views: int) -> list[int]:
            return list(self.input_views) or list(range(num_views))

        def obstacle(self, *, num_views: int, resolution: tuple[int, int]) -> str | None:
            multiple, views = self.head_config.view_multiple, self.views_of(num_views)
            if any(side % multiple for side in resolution):
                return (
                    f"resolution={list(resolution)}, but the dense head takes views whose sides are multiples of "
                    f"{multiple} pixels"
                )
            if len(views) > MAX_VIEWS:
                return (
                    f"{num_views} views are sampled, but the dense head takes at most {MAX_VIEWS}; list some of them "
                    "in reconstruction.input_views"
                )
            if not all(0 <= view < num_views for view in views):
                return f"reconstruction.input_views={views}, but {num_views} views are sampled: 0 to {num_views - 1}"
            return super().obstacle(num_views=num_views, resolution=resolution)

        def head_poses(self, c2w_BV44: Tensor) -> Tensor:
            return opencv_to_opengl(c2w_BV44)  # the world is its frame

        def predicted(self, network: nn.Module, views_BICHW: Tensor, poses_BI44: Tensor) -> Gaussians:
            return network(views_BICHW, poses_BI44, fov_deg=self.fov, background=self.background)

    @classmethod
    def load_network(cls, config: Config, *, test_model: str, needed: bool) -> DenseHead | None:
        if config.head_config.num_layers == 0:
            if config.pretrained is not None:
                raise ConfigError(
                    f"reconstruction.pretrained={config.pretrained}, but reconstruction.head.num_layers=0 has no "
                    "weights; remove one of them"
                )
            return cls.build_network(config).eval()
        if config.pretrained is None:
            if needed:
                raise DataError(
                    "refine=true needs the weights of the dense head; set reconstruction.pretrained, or "
                    "reconstruction.head.num_layers=0 to do without"
                )
            return None
        with torch.device("meta"):  # without drawing random weights first
            head = cls.build_network(config)
        load_strict(head, config.pretrained, option="reconstruction.pretrained")
        return head.requires_grad_(False).eval()

    def world_gaussians(self, views_BVCHW: Tensor, c2w_V44: Tensor) -> Gaussians:
        placement = self.workshop.placement
        placement.bring(self.network)
        inputs = self.config.views_of(len(c2w_V44))
        return self._reconstructed(views_BVCHW[:, inputs].to(placement.device), c2w_V44[inputs])

    @torch.no_grad()
    def redrawn(self, views_BICHW: Tensor, c2w_V44: Tensor) -> Tensor:
        gaussians = self._reconstructed(views_BICHW, c2w_V44[self.config.views_of(len(c2w_V44))])
        return self.renders(gaussians, c2w_V44, size=views_BICHW.shape[-1])

    def _reconstructed(self, views_BICHW: Tensor, c2w_I44: Tensor) -> Gaussians:
        poses_BI44 = self.config.head_poses(c2w_I44).to(views_BICHW.device).expand(len(views_BICHW), -1, -1, -1)
        with self.precision():
            gaussians = self.config.predicted(self.network, views_BICHW.float(), poses_BI44)
        return without_faint(gaussians, self.config.min_opacity)


def without_faint(gaussians: Gaussians, min_opacity: float) -> Gaussians:
    """Leave out Gaussians that are too transparent in every scene of the batch, and hide those of single scenes."""
    opaque_BN = gaussians.opacities_BN1[..., 0] >= min_opacity
    hidden = gaussians.opacities_BN1 * opaque_BN[..., None]
    return dataclasses.replace(gaussians, opacities_BN1=hidden).only(opaque_BN.any(dim=0))
