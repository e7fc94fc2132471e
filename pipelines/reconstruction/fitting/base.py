"""The interface of a fit, which optimises a model of one object until its renders equal the object's views.

A method is a subclass of `ObjectFit` with a nested `Config`, a subclass of `ObjectFit.Config`, registered in `FITS`. It
must have `parameter_groups`, `draw`, `predict` and `render`. pipelines.reconstruction.fitting.loop optimises it.

Letters: V views, H W pixels, R pixels of a step, N Gaussians.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from datasets.views.posed_views import PosedViews
from models.gaussians.rendering import Rendering
from models.gaussians.scene import Gaussians
from pipelines.assets.surface import Volume
from pipelines.reconstruction.fitting.hull import Hull
from pipelines.reconstruction.fitting.robust import RobustOptions
from utils.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class FitConfig(RobustOptions):
    """Options of every method. A subclass adds its own as fields.

    Attributes:
        num_steps: number of steps of Adam.
        last_rate: final learning rate as a fraction of the initial one.
        hull_grid: number of voxels along the longest side of the visual hull.
        hull_tolerance: fraction of the views whose masks may be wrong, see `carve`.
    """

    LEAST_STEPS: ClassVar[int] = 1

    num_steps: int = 1000
    last_rate: float = 0.05
    hull_grid: int = 128
    hull_tolerance: float = 0.2

    @property
    def obstacle(self) -> str | None:
        """Why a fit cannot start with these options, or None when it can."""
        return None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_steps < self.LEAST_STEPS:
            raise ConfigError(f"num_steps must be at least {self.LEAST_STEPS}, got {self.num_steps}")
        if not 0 < self.last_rate <= 1:
            raise ConfigError(f"last_rate must lie in (0, 1], got {self.last_rate}")
        if not 16 <= self.hull_grid <= 512:
            raise ConfigError(f"hull_grid must lie in [16, 512], got {self.hull_grid}")
        if not 0 <= self.hull_tolerance < 0.5:
            raise ConfigError(f"hull_tolerance must lie in [0, 0.5), got {self.hull_tolerance}")


@dataclass(frozen=True, kw_only=True)
class PixelBatch:
    """Pixels of one step, as P patches of h x w neighbouring pixels; R = P h w.

    Attributes:
        view_R: index of the view.
        row_R: row.
        column_R: column.
        patch: (P, h, w); (R, 1, 1) for pixels that are no neighbours.
    """

    view_R: Tensor
    row_R: Tensor
    column_R: Tensor
    patch: tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a model shows at the pixels of a step.

    Attributes:
        colors_R3: colours multiplied by alpha, without background.
        alphas_R1: opacity in [0, 1].
        penalty: regularisation terms with their weights, a scalar.
    """

    colors_R3: Tensor
    alphas_R1: Tensor
    penalty: Tensor


class ObjectFit(nn.Module, ABC):
    """A model of one object that is fitted to its views.

    Args:
        config: the options.
        views: the views, on the device of the fit, in the frame of the hull; the object lies in the ball of radius
            BALL_RADIUS around the origin. None for a model that was fitted before and is only rendered.
        hull: the visual hull of the views.
    """

    Config = FitConfig

    has_volume = False  # whether `volume` returns signed distances

    def __init__(self, config: FitConfig, *, views: PosedViews | None, hull: Hull) -> None:
        super().__init__()
        self.config, self.views, self.hull = config, views, hull
        # indices of the views from which `draw` chooses
        self.drawn_views = None if views is None else torch.arange(len(views), device=views.c2w_V44.device)

    def trust(self, weight_V: Tensor) -> None:
        """Draw no pixels of views whose weight is zero.

        Args:
            weight_V: the weights of the loss; at least one is positive.
        """
        self.drawn_views = (weight_V > 0).nonzero()[:, 0]

    @abstractmethod
    def parameter_groups(self) -> list[dict[str, Any]]:
        """List the groups of parameters for Adam, each with its initial learning rate `lr`."""

    @abstractmethod
    def draw(self, step: int, generator: torch.Generator) -> PixelBatch:
        """Choose the pixels of a step, of `drawn_views`. Random numbers come from `generator`, on the CPU."""

    @abstractmethod
    def predict(self, pixels: PixelBatch, step: int, generator: torch.Generator) -> Prediction:
        """Render the pixels of a step, with gradients."""

    @abstractmethod
    def render(self, c2w_V44: Tensor, K_V33: Tensor, *, size: tuple[int, int], background: float) -> Rendering:
        """Render the object from any cameras, without gradients; the batch has one scene.

        Args:
            c2w_V44: camera to world.
            K_V33: intrinsics in pixels.
            size: height and width.
            background: grey value in [0, 1].
        """

    def after_step(self, step: int, optimizer: torch.optim.Optimizer, generator: torch.Generator) -> None:
        """Change the model between steps, e.g. move Gaussians that show nothing."""

    def gaussians(self) -> Gaussians | None:
        """Return the object as Gaussians, or None for a model without Gaussians."""
        return None

    def volume(self, *, grid: int) -> Volume | None:
        """Return signed distances of the surface, or None: the mesh is then made from depth maps.

        Args:
            grid: number of voxels along the longest side.
        """
        return None
