"""Similarity of views and true views: PSNR, SSIM and LPIPS per view, and means over views and objects.

Letters: O objects, V views, C channels, H W pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as functional
from torch import Tensor

from models.perceptual import Lpips
from utils.errors import ConfigError
from utils.images import psnr_db

log = logging.getLogger(__name__)

# Identical views would have infinite PSNR. Rounding to 8 bits limits it to 58.9 dB.
MAX_PSNR_DB = 60.0
MASK_MARGIN = 1 / 32  # margin around the true object, as a fraction of the image size
METRICS = ("psnr", "psnr_of_views", "masked_psnr", "ssim", "lpips")


@dataclass(frozen=True, kw_only=True)
class ViewScores:
    """Scores of each view of several objects; None if a metric has no value.

    Attributes:
        psnr_OV: PSNR in dB over all pixels of the view, at most MAX_PSNR_DB.
        masked_psnr_OV: PSNR in dB over the pixels within MASK_MARGIN of the true object.
        ssim_OV: structural similarity (Gaussian window of 11 pixels, sigma 1.5).
        lpips_OV: perceptual distance.
    """

    psnr_OV: Tensor
    masked_psnr_OV: Tensor | None
    ssim_OV: Tensor
    lpips_OV: Tensor | None

    def over(self, views: Sequence[int]) -> dict[str, float | None]:
        """Compute metrics over some views, see pipelines/evaluation/README.md; None if there is no value.

        For `psnr` and `masked_psnr`, the squared error is averaged over the views of an object, converted to PSNR, and
        averaged over the objects. `psnr_of_views` is the mean PSNR of single views, which is never lower.
        """
        if not len(views):
            return dict.fromkeys(METRICS)
        pick = list(views)
        return {
            "psnr": pooled_psnr(self.psnr_OV[:, pick]).mean().item(),
            "psnr_of_views": self.psnr_OV[:, pick].mean().item(),
            "masked_psnr": None
            if self.masked_psnr_OV is None
            else pooled_psnr(self.masked_psnr_OV[:, pick]).mean().item(),
            "ssim": self.ssim_OV[:, pick].mean().item(),
            "lpips": None if self.lpips_OV is None else self.lpips_OV[:, pick].mean().item(),
        }

    def rows(self, places: Sequence[int]) -> ViewScores:
        """Return the scores of some of the objects."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return ViewScores(**{name: None if value is None else value[list(places)] for name, value in values.items()})

    def curves(self) -> dict[str, list[float] | None]:
        """Return each metric by view, as a mean over the objects."""
        values = {field.name.removesuffix("_OV"): getattr(self, field.name) for field in fields(self)}
        return {name: None if value is None else value.mean(dim=0).tolist() for name, value in values.items()}


def pooled_psnr(psnr_OV: Tensor) -> Tensor:
    """Compute the PSNR of the mean squared error over the views: (O,)."""
    return psnr_db((10 ** (-psnr_OV / 10)).mean(dim=-1))


def near_object(masks_V1HW: Tensor) -> Tensor:
    """Return a mask of the pixels of the object and of those within MASK_MARGIN around them: (V, 1, H, W)."""
    reach = max(1, round(MASK_MARGIN * masks_V1HW.shape[-1]))
    return functional.max_pool2d((masks_V1HW > 0).float(), 2 * reach + 1, stride=1, padding=reach)


@torch.no_grad()
def score_views(
    views_VCHW: Tensor, true_VCHW: Tensor, *, masks_V1HW: Tensor | None = None, lpips: Lpips | None = None
) -> ViewScores:
    """Score the views of one object, as O = 1.

    Args:
        views_VCHW: images in [0, 1].
        true_VCHW: the true views.
        masks_V1HW: coverage of the true object; None: no masked PSNR.
        lpips: the LPIPS network; None: no LPIPS.

    Raises:
        ConfigError: the views are too small for the window of SSIM.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    assert views_VCHW.shape == true_VCHW.shape, (views_VCHW.shape, true_VCHW.shape)
    if min(views_VCHW.shape[-2:]) < 11:
        raise ConfigError(f"resolution: views of {tuple(views_VCHW.shape[-2:])} are too small for SSIM; use 11 or more")
    views_VCHW, true_VCHW = views_VCHW.float().clamp(0, 1), true_VCHW.float()
    psnr_V = psnr_db((views_VCHW - true_VCHW).square().mean(dim=(1, 2, 3)))
    ssim_V = structural_similarity_index_measure(views_VCHW, true_VCHW, data_range=1.0, reduction="none")
    masked_V = None
    if masks_V1HW is not None:
        weight_V1HW = near_object(masks_V1HW)
        error_V = (weight_V1HW * (views_VCHW - true_VCHW) ** 2).mean(dim=1).sum(dim=(1, 2))
        masked_V = psnr_db(error_V / weight_V1HW.sum(dim=(1, 2, 3)).clamp_min(1))
    return ViewScores(
        psnr_OV=psnr_V.clamp_max(MAX_PSNR_DB)[None].cpu(),
        masked_psnr_OV=None if masked_V is None else masked_V.clamp_max(MAX_PSNR_DB)[None].cpu(),
        ssim_OV=ssim_V.reshape(1, -1).cpu(),
        lpips_OV=None if lpips is None else lpips(views_VCHW, true_VCHW)[None].cpu(),
    )


def join(scores: Sequence[ViewScores]) -> ViewScores:
    """Join the scores of several objects; a metric that is missing for one object is left out."""

    def column(name: str) -> Tensor | None:
        values = [getattr(one, name) for one in scores]
        return None if any(value is None for value in values) else torch.cat(values)

    return ViewScores(**{field.name: column(field.name) for field in fields(ViewScores)})
