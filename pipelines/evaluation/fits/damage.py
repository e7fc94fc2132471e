"""Damages views of an object on purpose, to measure how much a fit suffers, and whether it names the damaged views.

Letters: V views, C channels, H W pixels.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from datasets.views.posed_views import PosedViews

# The share of the orbit at which each damaged view lies: 4, 10, 15 and 20 of 24.
PLACES = {"another object": 4 / 24, "shifted": 10 / 24, "recoloured": 15 / 24, "blurred": 20 / 24}
SHIFT = 1 / 16  # of the width
DARKER = 0.8  # of the recoloured view, whose red and blue are exchanged
BLUR = 1 / 51  # standard deviation of the blur, of the width


def damaged_numbers(num_views: int) -> dict[str, int]:
    """Return the number of the view with each kind of damage."""
    return {kind: round(place * num_views) for kind, place in PLACES.items()}


def damaged(views: PosedViews, other: PosedViews) -> PosedViews:
    """Damage four of the views, see PLACES; view 0 stays.

    Args:
        other: views of another object from the same cameras.
    """
    colors_V3HW, masks_V1HW = views.colors_V3HW.clone(), views.masks_V1HW.clone()
    width = views.size[1]
    number = damaged_numbers(len(views))
    view = number["another object"]
    colors_V3HW[view], masks_V1HW[view] = other.colors_V3HW[view], other.masks_V1HW[view]
    view, shift = number["shifted"], max(1, round(SHIFT * width))
    colors_V3HW[view] = colors_V3HW[view].roll(shift, dims=-1)
    masks_V1HW[view] = masks_V1HW[view].roll(shift, dims=-1)
    view = number["recoloured"]
    colors_V3HW[view] = DARKER * colors_V3HW[view].flip(0)
    view = number["blurred"]
    colors_V3HW[view], masks_V1HW[view] = _blurred(colors_V3HW[view], masks_V1HW[view], sigma=BLUR * width)
    return dataclasses.replace(views, colors_V3HW=colors_V3HW, masks_V1HW=masks_V1HW)


def _blurred(color_3HW: Tensor, mask_1HW: Tensor, *, sigma: float) -> tuple[Tensor, Tensor]:
    """Blur a view with its mask: what is seen over any background is blurred."""
    from torchvision.transforms.functional import gaussian_blur  # takes a second

    window = 2 * max(1, round(2.5 * sigma)) + 1
    soft_4HW = gaussian_blur(torch.cat([color_3HW * mask_1HW, mask_1HW]), [window, window], [sigma, sigma])
    return (soft_4HW[:3] / soft_4HW[3:].clamp_min(1e-3)).clamp(0, 1), soft_4HW[3:].clamp(0, 1)
