"""View-dependent colour of 3D Gaussians: real spherical harmonics of degree 1 to 3 (arXiv:2308.04079).

The colour of a Gaussian in a view is its constant colour plus a sum of coefficients times functions of the direction
from the camera to its centre. Order and signs of the functions are those of files of Gaussian splatting
(Condon-Shortley phase): degree by degree, within a degree from order -l to l.

Letters: B scenes, V cameras of each, N Gaussians, K coefficients beyond the constant one (3, 8 or 15), M directions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor

SH_C0 = 0.28209479177387814  # the constant function, 1 / (2 sqrt(pi))
NUM_COEFFICIENTS = {1: 3, 2: 8, 3: 15}  # K of each degree
DEGREES = {number: degree for degree, number in NUM_COEFFICIENTS.items()}
# Enough directions for the 16 functions up to degree 3; evenly spaced, so that the system is well conditioned.
NUM_DIRECTIONS = 64


def basis(directions_M3: Tensor, *, num: int) -> Tensor:
    """Evaluate the functions without the constant one.

    Args:
        directions_M3: (..., 3) of length one.
        num: K.

    Returns:
        (..., K).

    Source: the constants are those of real spherical harmonics, e.g. appendix A of KHR_gaussian_splatting.
    """
    x, y, z = directions_M3.unbind(-1)
    found = [-0.4886025119029199 * y, 0.4886025119029199 * z, -0.4886025119029199 * x]
    if num > NUM_COEFFICIENTS[1]:
        found += [
            1.092548430592079 * x * y,
            -1.092548430592079 * y * z,
            0.3153915652525200 * (2 * z * z - x * x - y * y),
            -1.092548430592079 * x * z,
            0.5462742152960395 * (x * x - y * y),
        ]
    if num > NUM_COEFFICIENTS[2]:
        found += [
            -0.5900435899266435 * y * (3 * x * x - y * y),
            2.890611442640554 * x * y * z,
            -0.4570457994644657 * y * (4 * z * z - x * x - y * y),
            0.3731763325901154 * z * (2 * z * z - 3 * x * x - 3 * y * y),
            -0.4570457994644657 * x * (4 * z * z - x * x - y * y),
            1.445305721320277 * z * (x * x - y * y),
            -0.5900435899266435 * x * (x * x - 3 * y * y),
        ]
    return torch.stack(found, dim=-1)


def view_colors(colors_BN3: Tensor, harmonics_BNK3: Tensor, means_BN3: Tensor, c2w_BV44: Tensor) -> Tensor:
    """Return the colour of every Gaussian in every view, at least 0: (B, V, N, 3)."""
    directions_BVN3 = functional.normalize(means_BN3[:, None] - c2w_BV44[:, :, None, :3, 3], dim=-1)
    weights_BVNK = basis(directions_BVN3, num=harmonics_BNK3.shape[2])
    # Sums instead of matrix products, because training may reduce the precision of products.
    return (colors_BN3[:, None] + (weights_BVNK[..., None] * harmonics_BNK3[:, None]).sum(-2)).clamp_min(0)


def turned(harmonics_BNK3: Tensor, turn_33: Tensor) -> Tensor:
    """Return the coefficients of Gaussians that are rotated: the colour turns with them.

    The functions of a degree, rotated, are sums of the functions of the same degree. The sums are found by least
    squares over directions, which is exact.

    Args:
        turn_33: the rotation, for column vectors.
    """
    num = harmonics_BNK3.shape[2]
    generator = torch.Generator().manual_seed(0)
    directions_M3 = functional.normalize(
        torch.randn(NUM_DIRECTIONS, 3, generator=generator, dtype=torch.float64), dim=-1
    )
    before_M3 = directions_M3 @ turn_33.detach().cpu().double()  # R^T d as rows
    change_KK = torch.linalg.lstsq(basis(directions_M3, num=num), basis(before_M3, num=num)).solution
    return torch.einsum("kj,bnjc->bnkc", change_KK.to(harmonics_BNK3), harmonics_BNK3)
