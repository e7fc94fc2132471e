"""The Gaussian head (LGM), which turns some views of an orbit into 3D Gaussians in one forward pass.

Letters: B batch, V views of an orbit, I input views of the head, C channels, H W pixels or latent pixels.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from models.gaussians.lgm import LGM, evenly_spaced, head_input
from models.gaussians.scene import Gaussians
from models.weights import has_head, load_head
from pipelines.reconstruction.feed_forward import FeedForward, FeedForwardConfig
from utils.cameras import head_cameras, head_to_world, opencv_to_opengl
from utils.errors import ConfigError, DataError
from utils.registry import RECONSTRUCTORS

log = logging.getLogger(__name__)


@RECONSTRUCTORS.register
class GaussianReconstruction(FeedForward):
    """LGM (arXiv:2402.05054) as VideoMV uses it (arXiv:2403.12010, section 3.3)."""

    @dataclass(frozen=True, kw_only=True)
    class Config(FeedForwardConfig):
        """
        Attributes:
            head: sizes of the Gaussian head, see models.gaussians.lgm.
            pretrained: weights of the head; null: the weights with the prefix `lgm_big.` in `test_model`.
            input_views: as many as the head takes; empty: evenly spaced, starting at view 0.
            fov_deg: field of view with which the head was trained; null: that of the data.
            published_sampling_axes: see utils.cameras.head_cameras.
        """

        head_type = "LGM"
        published_sampling_axes: bool = False

        def __post_init__(self) -> None:
            super().__post_init__()
            wanted = self.head_config.num_input_views
            if self.input_views and len(self.input_views) != wanted:
                raise ConfigError(
                    f"input_views={list(self.input_views)}, but the head takes {wanted} views; list as many"
                )

        def views_of(self, num_views: int) -> list[int]:
            return list(self.input_views) or evenly_spaced(num_views, self.head_config.num_input_views)

        def obstacle(self, *, num_views: int, resolution: tuple[int, int]) -> str | None:
            size, wanted = self.head_config.input_size, self.head_config.num_input_views
            if tuple(resolution) != (size, size):
                return f"resolution={list(resolution)}, but the Gaussian head takes views of {size} x {size}"
            views = self.views_of(num_views)
            if len(set(views)) == wanted and all(0 <= view < num_views for view in views):
                return None
            if not self.input_views:
                return f"{num_views} views are sampled, but the Gaussian head needs {wanted} evenly spaced views"
            return (
                f"reconstruction.input_views={views}, but {num_views} views are sampled, and the Gaussian head needs "
                f"{wanted} different views from 0 to {num_views - 1}"
            )

        def head_poses(self, c2w_BV44: Tensor) -> Tensor:
            return head_cameras(c2w_BV44, fov_deg=self.fov).poses_V44

        def predicted(self, network: nn.Module, views_BICHW: Tensor, poses_BI44: Tensor) -> Gaussians:
            return network(head_input(views_BICHW, poses_BI44, fov_deg=self.fov))

    @classmethod
    def load_network(cls, config: Config, *, test_model: str, needed: bool) -> LGM | None:
        option, path = "reconstruction.pretrained", config.pretrained
        if path is None:
            option, path = "test_model", test_model
            if not (Path(path).is_file() and has_head(path, option=option)):  # a published folder has none
                if needed:
                    raise DataError(
                        f"test_model={path} contains no Gaussian head (lgm_big.*), but refine=true needs one; set "
                        "reconstruction.pretrained to its weight file, or set refine=false"
                    )
                log.info("no Gaussians: test_model contains no head, and reconstruction.pretrained is not set")
                return None
        with torch.device("meta"):  # without drawing random weights first
            head = cls.build_network(config)
        load_head(head, path, option=option)
        return head.requires_grad_(False).eval()

    def world_gaussians(self, views_BVCHW: Tensor, c2w_V44: Tensor) -> Gaussians:
        """Reconstruct objects in the world frame, with true rotations as files and viewers need them."""
        placement = self.workshop.placement
        placement.bring(self.network)
        return self.gaussians(views_BVCHW.to(placement.device), c2w_V44).moved(head_to_world(c2w_V44))

    def gaussians(self, views_BVCHW: Tensor, c2w_V44: Tensor) -> Gaussians:
        """Reconstruct objects in the head's frame, with gradients.

        Args:
            views_BVCHW: all views of each orbit in [0, 1], on the head's device.
            c2w_V44: the cameras of the views.
        """
        return self.from_inputs(views_BVCHW[:, self.config.views_of(views_BVCHW.shape[1])], c2w_V44)

    def from_inputs(self, views_BICHW: Tensor, c2w_V44: Tensor) -> Gaussians:
        """Reconstruct from the input views only; the cameras are those of all views of the orbit."""
        inputs = self.config.views_of(len(c2w_V44))
        poses_I44 = self.poses(c2w_V44)[inputs].to(views_BICHW.device)
        poses_BI44 = poses_I44.expand(len(views_BICHW), -1, -1, -1)
        with self.precision():
            return self.config.predicted(self.network, views_BICHW.float(), poses_BI44)

    def poses(self, c2w_V44: Tensor) -> Tensor:
        """Convert cameras to the head's frame: camera to world with OpenGL axes."""
        axes = self.config.published_sampling_axes
        return head_cameras(c2w_V44, fov_deg=self.config.fov, published_sampling_axes=axes).poses_V44

    def views(self, gaussians: Gaussians, c2w_V44: Tensor, *, size: int) -> Tensor:
        """Render objects in the head's frame from cameras in the world frame: (B, V, 3, size, size) in [0, 1]."""
        return self.renders(gaussians, opencv_to_opengl(self.poses(c2w_V44)), size=size)

    @torch.no_grad()
    def redrawn(self, views_BICHW: Tensor, c2w_V44: Tensor) -> Tensor:
        """Reconstruct and render in the head's frame, which avoids the conversion to the world frame."""
        return self.views(self.from_inputs(views_BICHW, c2w_V44), c2w_V44, size=views_BICHW.shape[-1])
