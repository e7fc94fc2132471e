"""Scales the pictures of an orbit about their middle by one factor; cameras do not change.

A picture from a user is centred and scaled to a fraction of its frame, whatever the true size of the object. A model
for such pictures must be trained with orbits at other than their true scale.

Letters: N pictures, H W pixels; 4 is RGBA with straight alpha.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def scale_from_id(object_id: str, scale_range: Sequence[float]) -> float:
    """The factor of an object: a hash of its id, uniform in the logarithm between the two ends."""
    digest = hashlib.blake2b(f"scale of {object_id}".encode(), digest_size=8).digest()
    share = int.from_bytes(digest, "big") / 2**64
    low, high = (math.log(end) for end in scale_range)
    return math.exp(low + share * (high - low))


def zoom(rgba_NHW4: Tensor, scale_N: Tensor) -> Tensor:
    """Scale the content of pictures about their middle; beyond the old edges they are transparent.

    Args:
        rgba_NHW4: uint8.
        scale_N: factor of each picture; above 1 the content becomes larger.

    Returns:
        rgba_NHW4: uint8, of the same size.
    """
    rgba_N4HW = rgba_NHW4.movedim(-1, 1).float() / 255
    # Colours are weighted by alpha, so that the colours of transparent pixels do not bleed in at the edges.
    weighted_N4HW = torch.cat([rgba_N4HW[:, :3] * rgba_N4HW[:, 3:], rgba_N4HW[:, 3:]], dim=1)
    theta_N23 = torch.zeros(len(scale_N), 2, 3, device=rgba_NHW4.device)
    theta_N23[:, 0, 0] = theta_N23[:, 1, 1] = 1 / scale_N.to(theta_N23)
    grid_NHW2 = F.affine_grid(theta_N23, list(weighted_N4HW.shape), align_corners=False)
    zoomed_N4HW = F.grid_sample(weighted_N4HW, grid_NHW2, mode="bicubic", align_corners=False)
    # Bicubic weights overshoot in colour and alpha by the same factor, which the quotient removes.
    rgb_N3HW = zoomed_N4HW[:, :3] / zoomed_N4HW[:, 3:].clamp_min(1 / 255)
    straight_N4HW = torch.cat([rgb_N3HW, zoomed_N4HW[:, 3:]], dim=1).clamp(0, 1)
    return (straight_N4HW * 255).round().byte().movedim(1, -1)
