"""3D Gaussians from the dense head in one pass, as they are or as the start of a fit.

Letters: V views, H W pixels, N Gaussians.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from datasets.views.posed_views import PosedViews
from models.gaussians.dense import DenseHead
from models.gaussians.scene import Gaussians
from models.weights import load_strict
from pipelines.reconstruction.dense import MAX_VIEWS, without_faint
from pipelines.reconstruction.fitting.gaussians import GaussianFit
from pipelines.reconstruction.fitting.hull import Hull
from utils.cameras import fov_deg_of, opencv_to_opengl
from utils.errors import ConfigError, DataError
from utils.registry import FITS, MODEL, Section

log = logging.getLogger(__name__)

WHITE = 1.0  # the background with which the shipped head was trained
MIN_OPACITY = 0.02


@FITS.register(name="dense")
class DenseFit(GaussianFit):
    """The Gaussians of the dense head; with `num_steps` they are fitted further, as those of `gs`."""

    @dataclass(frozen=True, kw_only=True)
    class Config(GaussianFit.Config):
        """Options of `gs`, and these.

        num_steps: 0 keeps what the head predicts.
        num_gaussians: the most opaque ones are kept.
        weights: of the head; configs/mini/dense_head.yaml trains one. Empty: the head's first guess alone.
        head: sizes of the head, see models.gaussians.dense.
        view_size: the views are resized to this height and width for the head.
        """

        LEAST_STEPS: ClassVar[int] = 0

        num_steps: int = 0
        num_gaussians: int = 16384
        weights: str = ""
        head: dict[str, Any] = field(default_factory=dict)
        view_size: int = 128

        def __post_init__(self) -> None:
            super().__post_init__()
            multiple = self.head_section.options.view_multiple
            if self.view_size < multiple or self.view_size % multiple:
                raise ConfigError(f"view_size={self.view_size} must be a positive multiple of {multiple}")

        @property
        def obstacle(self) -> str | None:
            if not self.weights or Path(self.weights).is_file():
                return None
            return (
                f"weights={self.weights}: no such file; set it to those of a dense head (configs/mini/dense_head.yaml "
                "trains one), or leave it out"
            )

        @property
        def head_section(self) -> Section:
            """The checked section of the head."""
            alone = {} if self.weights else {"num_layers": 0}
            return MODEL.section({"type": "DenseHead", **self.head, **alone}, where="head")

    config: Config

    def start_values(self, views: PosedViews, hull: Hull) -> dict[str, Tensor]:
        config = self.config
        head: DenseHead = config.head_section.build()
        if config.weights:
            load_strict(head, config.weights, option="weights")
        head = head.to(views.c2w_V44.device).eval()
        found = without_faint(predicted(head, views, size=config.view_size), MIN_OPACITY)
        if not found.means_BN3.shape[1]:
            raise DataError("the dense head sees no object in these views; fit them with --method gs")
        if (number := found.means_BN3.shape[1]) > config.num_gaussians:
            log.info("%d of %d Gaussians are kept, the most opaque ones (num_gaussians)", config.num_gaussians, number)
            found = found.only(found.opacities_BN1[0, :, 0].topk(config.num_gaussians).indices)
        return {
            "means": found.means_BN3[0],
            "log_scales": found.scales_BN3[0].log(),
            "quats": found.quats_BN4[0],
            "opacity_logits": found.opacities_BN1[0].clamp(1e-4, 1 - 1e-4).logit(),
            "color_logits": found.colors_BN3[0].clamp(1e-4, 1 - 1e-4).logit(),
        }


@torch.no_grad()
def predicted(head: DenseHead, views: PosedViews, *, size: int) -> Gaussians:
    """Predict the Gaussians of an object.

    Args:
        views: normalised views; of more than the head takes, evenly chosen ones are used.
        size: height and width to which they are resized.

    Raises:
        DataError: the views are not square, or have different fields of view.
    """
    height, width = views.size
    fov_deg_V = fov_deg_of(views.K_V33, width)
    if height != width or float(fov_deg_V.max() - fov_deg_V.min()) > 0.1:
        raise DataError(
            f"the dense head takes square views of one field of view, but these have {width} x {height} pixels and "
            f"{float(fov_deg_V.min()):.1f} to {float(fov_deg_V.max()):.1f} degrees; use --method gs"
        )
    pick = torch.arange(len(views))
    if len(views) > MAX_VIEWS:
        pick = torch.linspace(0, len(views) - 1, MAX_VIEWS).round().long()
        log.info("the dense head sees %d of %d views", MAX_VIEWS, len(views))
    shown_V3HW = views.over(WHITE)[pick.to(views.c2w_V44.device)]
    if height != size:
        mode = {"mode": "area"} if height > size else {"mode": "bilinear", "antialias": True}
        shown_V3HW = functional.interpolate(shown_V3HW, size=(size, size), **mode)
    poses_V44 = opencv_to_opengl(views.c2w_V44[pick.to(views.c2w_V44.device)])
    return head(shown_V3HW[None], poses_V44[None], fov_deg=float(fov_deg_V[0]), background=WHITE)
