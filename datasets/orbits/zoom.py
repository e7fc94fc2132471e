"""Pictures of an orbit made larger or smaller about their middle, all by one factor: cameras stay as they are.

A picture that somebody gives is centred and scaled to a share of its frame, whatever the object's true size; a model
that is to take such pictures must have seen orbits at other than their true scale.

Letters: N pictures, H W pixels; 4 is RGBA with straight alpha.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def scale_of(object_id: str, scale_range: Sequence[float]) -> float:
    """The factor of an object, always the same one: between the two ends, even in its logarithm."""
    digest = hashlib.blake2b(f"scale of {object_id}".encode(), digest_size=8).digest()
    share = int.from_bytes(digest, "big") / 2**64
    low, high = (math.log(end) for end in scale_range)
    return math.exp(low + share * (high - low))


def zoom(rgba_NHW4: Tensor, scale_N: Tensor) -> Tensor:
    """Scale the content of pictures about their middle; what is beyond the edges is transparent.

    Args:
        rgba_NHW4: uint8.
        scale_N: how much larger the content becomes, each picture by its own factor.

    Returns:
        rgba_NHW4: uint8, of the same size.
    """
    rgba_N4HW = rgba_NHW4.movedim(-1, 1).float() / 255
    # Colours are weighted by what they cover, so that those of transparent pixels do not come in at the edges.
    weighted_N4HW = torch.cat([rgba_N4HW[:, :3] * rgba_N4HW[:, 3:], rgba_N4HW[:, 3:]], dim=1)
    theta_N23 = torch.zeros(len(scale_N), 2, 3, device=rgba_NHW4.device)
    theta_N23[:, 0, 0] = theta_N23[:, 1, 1] = 1 / scale_N.to(theta_N23)
    grid_NHW2 = F.affine_grid(theta_N23, list(weighted_N4HW.shape), align_corners=False)
    zoomed_N4HW = F.grid_sample(weighted_N4HW, grid_NHW2, mode="bicubic", align_corners=False)
    # Bicubic weights overshoot in colour and coverage alike: the quotient does not.
    rgb_N3HW = zoomed_N4HW[:, :3] / zoomed_N4HW[:, 3:].clamp_min(1 / 255)
    straight_N4HW = torch.cat([rgb_N3HW, zoomed_N4HW[:, 3:]], dim=1).clamp(0, 1)
    return (straight_N4HW * 255).round().byte().movedim(1, -1)
