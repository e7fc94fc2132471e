"""Find the texels of a texture that triangles cover.

Letters: F faces, T texels.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK_TEXELS = 1 << 22  # texels that are tested at once; limits memory


def cover_texels(triangles_F32: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find the texels inside each triangle, on the device of the triangles, in float64.

    Args:
        triangles_F32: corners in texels; the centre of texel (i, j) is (i + 0.5, j + 0.5).

    Returns:
        texels_T2 (column, row), the triangle of each texel, and its barycentric weights.
    """
    triangles_F32 = triangles_F32.double()
    low_F2 = (triangles_F32.amin(dim=1) - 0.5).floor().long().clamp_min(0)
    spans_F2 = ((triangles_F32.amax(dim=1) - 0.5).ceil().long() + 1 - low_F2).clamp_min(0)
    chunk_F = spans_F2.prod(dim=1).cumsum(0) // CHUNK_TEXELS
    sizes = chunk_F.unique_consecutive(return_counts=True)[1].tolist()
    texels, faces, weights, first = [], [], [], 0
    for size, corners, low, spans in zip(
        sizes, triangles_F32.split(sizes), low_F2.split(sizes), spans_F2.split(sizes), strict=True
    ):
        texels_T2, faces_T, weights_T3 = _covered(corners, low, spans)
        texels.append(texels_T2)
        faces.append(faces_T + first)
        weights.append(weights_T3)
        first += size
    return torch.cat(texels), torch.cat(faces), torch.cat(weights)


def _covered(triangles_F32: Tensor, low_F2: Tensor, spans_F2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Test the texels of the triangles' boxes, see `cover_texels`."""
    counts_F = spans_F2.prod(dim=1)
    faces_T = torch.repeat_interleave(counts_F)
    within_T = torch.arange(len(faces_T), device=faces_T.device) - (counts_F.cumsum(0) - counts_F)[faces_T]
    width_T = spans_F2[faces_T, 0]
    texels_T2 = low_F2[faces_T] + torch.stack([within_T % width_T, within_T // width_T], dim=1)
    a, b, c = triangles_F32[faces_T].unbind(dim=1)
    place = texels_T2 + 0.5
    # without an area the weights are not finite, and no comparison holds
    first_two = torch.stack([_cross(b - place, c - place), _cross(c - place, a - place)], dim=1)
    weights_T2 = first_two / _cross(b - a, c - a)[:, None]
    weights_T3 = torch.cat([weights_T2, 1 - weights_T2.sum(dim=1, keepdim=True)], dim=1)
    inside = (weights_T3 >= 0).all(dim=1)
    return texels_T2[inside], faces_T[inside], weights_T3[inside]


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
