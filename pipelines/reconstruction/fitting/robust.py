"""The loss of a fit, and which views to trust.

Generated views disagree a little, and single views can be wrong altogether. Each remedy is a setting: a loss that grows
linearly with large errors, a colour correction per view, and weights of views that are estimated anew from what the fit
cannot explain (iteratively reweighted least squares, Holland and Welsch 1977).

Letters: V views, R pixels of a step, P patches of h x w pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from utils.errors import ConfigError

SSIM_WINDOW = 7  # patches with a shorter side have no structural term
TINY = 1e-2  # residual below which all views are equally good; views of 8 bits have about 1e-3
SPREAD = 0.15  # least spread of the logarithms of residuals, so that equally good views are all trusted
TRUSTED, REJECTED = 2.0, 3.5  # in spreads above the median: full weight below the first, none above the second
PULL = 1e-3  # weight that keeps colour corrections near none


@dataclass(frozen=True, kw_only=True)
class RobustOptions:
    """Options of the loss.

    Attributes:
        charbonnier: errors far above this number count linearly, smaller ones by their square; 0: all by their square.
        mask_weight: weight of the difference between opacity and mask.
        affine_color: fit an affine map of colours per view. View 0 has none, so that it fixes the colours.
        structural_weight: weight of 1 - SSIM of patches.
        structural_from: fraction of the steps after which this term begins.
        reweight_at: fractions of the steps at which all views are compared with their renders, and the weights of the
            views estimated anew; empty: all views keep the same weight.
        input_weight: weight of view 0, the input of an image model, relative to the others.
    """

    charbonnier: float = 0.03
    mask_weight: float = 0.5
    affine_color: bool = True
    structural_weight: float = 0.1
    structural_from: float = 0.3
    reweight_at: list[float] = field(default_factory=lambda: [0.15, 0.3, 0.5, 0.75])
    input_weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("charbonnier", "mask_weight", "structural_weight", "input_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} must be a number of at least 0, got {getattr(self, name)}")
        if not 0 <= self.structural_from <= 1:
            raise ConfigError(f"structural_from must lie in [0, 1], got {self.structural_from}")
        if not all(0 < fraction < 1 for fraction in self.reweight_at):
            raise ConfigError(f"reweight_at must lie in (0, 1), got {list(self.reweight_at)}")


class RobustLoss(nn.Module):
    """The loss over the pixels of a step.

    Attributes:
        affine_V34: the colour correction of each view.
        weight_V: the weights of the views, in [0, 1], without `input_weight`.
    """

    def __init__(self, options: RobustOptions, *, num_views: int) -> None:
        super().__init__()
        self.options = options
        self.affine_V34 = nn.Parameter(torch.eye(3, 4).repeat(num_views, 1, 1), requires_grad=options.affine_color)
        self.register_buffer("weight_V", torch.ones(num_views))
        self.register_buffer("still_34", torch.eye(3, 4), persistent=False)  # no correction
        self.register_buffer("free_V11", (torch.arange(num_views) > 0).float()[:, None, None], persistent=False)

    def corrected(self, colors_R3: Tensor, alphas_R1: Tensor, view_R: Tensor) -> Tensor:
        """Apply the views' colour corrections to colours that are multiplied by alpha."""
        if not self.options.affine_color:
            return colors_R3
        affine_R34 = (self.still_34 + self.free_V11 * (self.affine_V34 - self.still_34))[view_R]
        return (affine_R34[..., :3] * colors_R3[:, None]).sum(-1) + affine_R34[..., 3] * alphas_R1

    def forward(
        self,
        colors_R3: Tensor,
        alphas_R1: Tensor,
        true_R3: Tensor,
        masks_R1: Tensor,
        view_R: Tensor,
        *,
        patch: tuple[int, int, int],
        background_3: Tensor,
        done: float,
    ) -> Tensor:
        """Return the loss, a scalar.

        Args:
            colors_R3: predicted colours, multiplied by alpha.
            alphas_R1: predicted opacities.
            true_R3: colours of the views, not multiplied by the mask.
            masks_R1: masks of the views.
            view_R: index of each pixel's view.
            patch: (P, h, w), see PixelBatch.
            background_3: colour behind the object.
            done: fraction of the fit that is done.
        """
        options = self.options
        shown_R3 = self.corrected(colors_R3, alphas_R1, view_R) + (1 - alphas_R1) * background_3
        target_R3 = true_R3 * masks_R1 + (1 - masks_R1) * background_3
        difference_R3 = shown_R3 - target_R3
        weight_R1 = self._weights(view_R)
        loss = (weight_R1 * rho(difference_R3, options.charbonnier)).mean()
        if options.mask_weight:
            loss = loss + options.mask_weight * (weight_R1 * rho(alphas_R1 - masks_R1, options.charbonnier)).mean()
        _, height, width = patch
        if options.structural_weight and done >= options.structural_from and min(height, width) >= SSIM_WINDOW:
            per_patch = _by_patch(shown_R3, patch), _by_patch(target_R3, patch)
            unlike_P = 1 - _ssim(*per_patch)
            weight_P = _by_patch(weight_R1, patch)[:, 0, 0, 0]
            loss = loss + options.structural_weight * (weight_P * unlike_P).mean()
        if options.affine_color:
            loss = loss + PULL * (self.affine_V34 - self.still_34).square().sum(dim=(1, 2)).mean()
        return loss

    def _weights(self, view_R: Tensor) -> Tensor:
        weight_V = self.weight_V.clone()
        weight_V[0] *= self.options.input_weight
        # views without weight are not drawn; sums instead of an index, which would wait for the device
        mean = weight_V.sum() / (weight_V > 0).sum()
        return (weight_V / mean)[view_R, None]

    @torch.no_grad()
    def estimate_weights(self, *errors: Tensor) -> None:
        """Estimate the weights of the views from the errors of their renders.

        A view must be no outlier in any of the errors. A colour correction, for example, hides that a view has other
        colours, but cannot undo it exactly.

        Args:
            errors: (V,) each.
        """
        score_V = torch.stack([outlyingness(error_V) for error_V in errors]).amax(dim=0)
        self.weight_V.copy_(((REJECTED - score_V) / (REJECTED - TRUSTED)).clamp(0, 1))


def outlyingness(residual_V: Tensor, *, tiny: float = TINY) -> Tensor:
    """Return how far each view's residual lies above the median, in robust standard deviations of the logarithm.

    Args:
        tiny: residual below which all views are equally good.
    """
    log_V = (residual_V + tiny).log()
    middle = log_V.median()
    spread = (1.4826 * (log_V - middle).abs().median()).clamp_min(SPREAD)
    return (log_V - middle) / spread


def rho(difference: Tensor, scale: float) -> Tensor:
    """Return the square of small differences and, far above `scale`, 2 scale |difference| (Charbonnier)."""
    if not scale:
        return difference.square()
    return 2 * scale * ((difference.square() + scale**2).sqrt() - scale)


def _by_patch(values_RC: Tensor, patch: tuple[int, int, int]) -> Tensor:
    return values_RC.unflatten(0, patch).movedim(-1, 1)


def _ssim(one_PCHW: Tensor, two_PCHW: Tensor) -> Tensor:
    """Structural similarity of each patch, over windows of SSIM_WINDOW pixels (Wang et al. 2004): (P,)."""

    def mean(values: Tensor) -> Tensor:
        return functional.avg_pool2d(values, SSIM_WINDOW, stride=1)

    mean_1, mean_2 = mean(one_PCHW), mean(two_PCHW)
    var_1, var_2 = mean(one_PCHW.square()) - mean_1.square(), mean(two_PCHW.square()) - mean_2.square()
    covariance = mean(one_PCHW * two_PCHW) - mean_1 * mean_2
    c1, c2 = 0.01**2, 0.03**2
    similar = (2 * mean_1 * mean_2 + c1) * (2 * covariance + c2)
    return (similar / ((mean_1.square() + mean_2.square() + c1) * (var_1 + var_2 + c2))).mean(dim=(1, 2, 3))
