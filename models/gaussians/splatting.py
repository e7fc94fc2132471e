"""Rasterises 3D Gaussians in plain PyTorch, on every device and with gradients.

All images of a call are processed together: their Gaussians are projected, listed by tile and blended. Tiles with a
similar number of Gaussians are blended at once; there is no loop over Gaussians, views or scenes. The rules are those
of the published rasteriser (arXiv:2308.04079, with the constants below).

Letters: B scenes, V cameras of each, N Gaussians, M pairs of a Gaussian and an image that shows it, T tiles,
K Gaussians of a tile, P pixels of a tile, C channels, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.gaussians.harmonics import view_colors
from models.gaussians.scene import Gaussians
from utils.torch_settings import float32_products

NEAR = 0.2  # closer Gaussians are dropped
LOW_PASS = 0.3  # pixels², added to the diagonal of the 2D covariance, so that no Gaussian is thinner than a pixel
VIEW_MARGIN = 0.3  # limit for the point of linearisation outside the image, as a fraction of the half angle
MAX_ALPHA = 0.99
MIN_ALPHA = 1 / 255  # smaller contributions are skipped
MIN_TRANSMITTANCE = 1e-4  # a ray stops before its transmittance is below this
TILE = 4  # pixels per side of a tile; 8 and 16 were slower, because small splats cover few pixels of a large tile
# Largest K · P · T of one group of tiles. It limits the memory, and on a CPU keeps the values in the cache.
GROUP_VALUES = {"cpu": 1 << 20, "cuda": 1 << 26}


@dataclass(frozen=True, kw_only=True)
class Splats:
    """Gaussians projected into the images that show them, sorted by depth, closest first.

    Attributes:
        image_M: which image, scene · V + camera.
        centers_M2: in pixels.
        conics_M3: inverse 2D covariance as (a, b, c) of a·dx² + 2b·dx·dy + c·dy².
        reach_M2: distance in pixels along x and y at which alpha falls below MIN_ALPHA.
        opacities_M: in [0, 1].
        features_MC: the blended values: RGB and the depth along the camera's axis.
    """

    image_M: Tensor
    centers_M2: Tensor
    conics_M3: Tensor
    reach_M2: Tensor
    opacities_M: Tensor
    features_MC: Tensor


def project(gaussians: Gaussians, c2w_BV44: Tensor, K_33: Tensor, *, size: tuple[int, int]) -> Splats:
    """Project each scene's Gaussians into its cameras (EWA splatting, arXiv:2308.04079, section 4).

    Args:
        c2w_BV44: camera to world, OpenCV axes.
        K_33: intrinsics in pixels, (3, 3) or (V, 3, 3).
        size: height and width of the images.
    """
    V = c2w_BV44.shape[1]
    # A Gaussian whose alpha at its centre is below MIN_ALPHA is skipped in every pixel, so it is dropped here.
    scene_G, number_G = (gaussians.opacities_BN1[..., 0] >= MIN_ALPHA).nonzero(as_tuple=True)
    w2c_BV44 = torch.linalg.inv_ex(c2w_BV44)[0]  # `inv` would wait until the device reports success
    rotation_GV33 = w2c_BV44[scene_G, :, :3, :3]
    means_GV3 = apply(rotation_GV33, gaussians.means_BN3[scene_G, number_G][:, None]) + w2c_BV44[scene_G, :, :3, 3]
    height, width = size
    visible_GV = means_GV3[..., 2] > NEAR
    pair_M, camera_M = visible_GV.nonzero(as_tuple=True)
    nearest_first = means_GV3[pair_M, camera_M, 2].detach().argsort()
    pair_M, camera_M = pair_M[nearest_first], camera_M[nearest_first]
    scene_M, number_M = scene_G[pair_M], number_G[pair_M]

    x, y, z = means_GV3[pair_M, camera_M].unbind(-1)
    fx, fy, cx, cy = (K_33[..., row, column].expand(V)[camera_M] for row, column in ((0, 0), (1, 1), (0, 2), (1, 2)))
    right, left = (width - cx) / fx, cx / fx
    below, above = (height - cy) / fy, cy / fy
    margin_x, margin_y = VIEW_MARGIN * width / (2 * fx), VIEW_MARGIN * height / (2 * fy)
    slope_x = (x / z).clamp(-left - margin_x, right + margin_x)
    slope_y = (y / z).clamp(-above - margin_y, below + margin_y)
    zero = torch.zeros_like(z)
    jacobian_M23 = torch.stack(
        [torch.stack([fx / z, zero, -fx * slope_x / z], -1), torch.stack([zero, fy / z, -fy * slope_y / z], -1)], dim=-2
    )
    affine_M23 = multiply(jacobian_M23, rotation_GV33[pair_M, camera_M])
    covariance_M22 = multiply(
        multiply(affine_M23, gaussians.covariances()[scene_M, number_M]), affine_M23.transpose(-1, -2)
    )
    a, b, c = covariance_M22[:, 0, 0] + LOW_PASS, covariance_M22[:, 0, 1], covariance_M22[:, 1, 1] + LOW_PASS
    determinant_M = a * c - b * b
    # For very long or very large Gaussians the determinant can become 0 or infinite in float32, and every pixel that
    # they cover would be NaN. They are left out, as in gsplat.
    drawn_M = ((determinant_M > 0) & determinant_M.isfinite()).nonzero()[:, 0]
    a, b, c, determinant_M, x, y, z = (values_M[drawn_M] for values_M in (a, b, c, determinant_M, x, y, z))
    fx, fy, cx, cy = (values_M[drawn_M] for values_M in (fx, fy, cx, cy))
    scene_M, number_M, camera_M = scene_M[drawn_M], number_M[drawn_M], camera_M[drawn_M]
    opacities_M = gaussians.opacities_BN1[scene_M, number_M, 0]
    colors_M3 = _colors(gaussians, c2w_BV44, scene_M, camera_M, number_M)
    with torch.no_grad():
        # opacity · exp(-r² / (2 σ²)) = MIN_ALPHA
        reach = 2 * (opacities_M / MIN_ALPHA).clamp_min(1).log()
        reach_M2 = (torch.stack([a, c], dim=-1) * reach[:, None]).sqrt()
    return Splats(
        image_M=scene_M * V + camera_M,
        centers_M2=torch.stack([fx * x / z + cx, fy * y / z + cy], dim=-1),
        conics_M3=torch.stack([c, -b, a], dim=-1) / determinant_M[:, None],
        reach_M2=reach_M2,
        opacities_M=opacities_M,
        features_MC=torch.cat([colors_M3, z[:, None]], dim=-1),
    )


def _colors(gaussians: Gaussians, c2w_BV44: Tensor, scene_M: Tensor, camera_M: Tensor, number_M: Tensor) -> Tensor:
    """The colour of each pair of a Gaussian and a view: (M, 3)."""
    if gaussians.harmonics_BNK3 is None:
        return gaussians.colors_BN3[scene_M, number_M]
    shown_BVN3 = view_colors(gaussians.colors_BN3, gaussians.harmonics_BNK3, gaussians.means_BN3, c2w_BV44)
    return shown_BVN3[scene_M, camera_M, number_M]


def apply(matrix_33: Tensor, vector_3: Tensor) -> Tensor:
    """Matrix times vector with plain sums, because reduced precision (TF32) would move centres by pixels."""
    return (matrix_33 * vector_3[..., None, :]).sum(-1)


def multiply(left: Tensor, right: Tensor) -> Tensor:
    """Product of small matrices with plain sums, for the same reason."""
    return (left[..., :, :, None] * right[..., None, :, :]).sum(-2)


def rasterise(splats: Splats, *, num_images: int, size: tuple[int, int]) -> Tensor:
    """Blend splats front to back without a background.

    Returns:
        (F, C + 1, H, W): features times their weights, then the sum of the weights (alpha).
    """
    height, width = size
    rows, columns = -(-height // TILE), -(-width // TILE)
    splat_ids, starts_T, counts_T = _tile_lists(splats, num_images, rows, columns)
    channels = splats.features_MC.shape[1] + 1
    blended = splats.features_MC.new_zeros(num_images * rows * columns, TILE * TILE, channels)
    groups, painted = _groups(counts_T), []
    for tiles_T, largest in groups:
        within = tiles_T % (rows * columns)
        corner_T2 = torch.stack([within % columns, within // columns], dim=-1) * TILE
        slots_K = torch.arange(largest, device=tiles_T.device)
        present_TK = slots_K < counts_T[tiles_T, None]
        ids_TK = splat_ids[(starts_T[tiles_T, None] + slots_K).clamp_max(len(splat_ids) - 1)]
        values = (splats.centers_M2, splats.conics_M3, splats.opacities_M, splats.features_MC)
        painted.append(_Blend.apply(corner_T2, present_TK, *(value[ids_TK] for value in values)))
    if groups:
        blended = blended.index_put((torch.cat([tiles_T for tiles_T, _ in groups]),), torch.cat(painted))
    blended = blended.view(num_images, rows, columns, TILE, TILE, channels).permute(0, 5, 1, 3, 2, 4)
    return blended.reshape(num_images, channels, rows * TILE, columns * TILE)[..., :height, :width]


@torch.no_grad()
def _tile_lists(splats: Splats, num_images: int, rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """The splats of each tile: concatenated indices, closest first, and start and count of each tile."""
    limit = torch.tensor([columns, rows], device=splats.image_M.device)
    low_M2 = ((splats.centers_M2 - splats.reach_M2) / TILE).floor().long().clamp_min(0).minimum(limit)
    high_M2 = (((splats.centers_M2 + splats.reach_M2) / TILE).floor().long() + 1).clamp_min(0).minimum(limit)
    spans_M2 = high_M2 - low_M2
    repeats_M = spans_M2.prod(-1)
    splat_ids = torch.repeat_interleave(repeats_M)
    within = torch.arange(len(splat_ids), device=limit.device) - (repeats_M.cumsum(0) - repeats_M)[splat_ids]
    across = spans_M2[splat_ids, 0]
    row, column = low_M2[splat_ids, 1] + within // across, low_M2[splat_ids, 0] + within % across
    tile = (splats.image_M[splat_ids] * rows + row) * columns + column
    order = tile.argsort(stable=True)  # a stable sort keeps the order of depth inside a tile
    counts_T = torch.bincount(tile, minlength=num_images * rows * columns)
    return splat_ids[order], counts_T.cumsum(0) - counts_T, counts_T


def _groups(counts_T: Tensor) -> list[tuple[Tensor, int]]:
    """Group tiles with similar counts, so that little padding is needed: (tiles, largest count) per group."""
    order = counts_T.argsort(descending=True)
    loads = counts_T[order].tolist()
    limit = GROUP_VALUES.get(counts_T.device.type, GROUP_VALUES["cpu"])
    groups, start = [], 0
    while start < len(loads) and loads[start] > 0:
        stop = min(len(loads), start + max(1, limit // (loads[start] * TILE * TILE)))
        while 2 * loads[stop - 1] <= loads[start]:
            stop -= 1
        groups.append((order[start:stop], loads[start]))
        start = stop
    return groups


class _Blend(torch.autograd.Function):
    """Features and alpha of every pixel of some tiles: (T, P, C + 1).

    It has its own backward pass, so that nothing of the size T · K · P is stored between the passes.
    """

    @staticmethod
    def forward(ctx, corner_T2, present_TK, centers_TK2, conics_TK3, opacities_TK, features_TKC) -> Tensor:
        ctx.save_for_backward(corner_T2, present_TK, centers_TK2, conics_TK3, opacities_TK, features_TKC)
        _, _, _, alpha_TKP = _alphas(corner_T2, present_TK, centers_TK2, conics_TK3, opacities_TK)
        weight_TKP, _ = _weights(alpha_TKP)
        with float32_products("highest"):
            blended_TPC = weight_TKP.transpose(1, 2) @ features_TKC
        return torch.cat([blended_TPC, weight_TKP.sum(1)[..., None]], dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_TPC) -> tuple[Tensor | None, ...]:
        corner_T2, present_TK, centers_TK2, conics_TK3, opacities_TK, features_TKC = ctx.saved_tensors
        dx_TKP, dy_TKP, raw_TKP, alpha_TKP = _alphas(corner_T2, present_TK, centers_TK2, conics_TK3, opacities_TK)
        weight_TKP, before_TKP = _weights(alpha_TKP)
        with float32_products("highest"):
            grad_features_TKC = weight_TKP @ grad_TPC[..., :-1]
            # gradient of the weight of this splat
            value_TKP = features_TKC @ grad_TPC[..., :-1].transpose(1, 2) + grad_TPC[..., -1][:, None]
        # More alpha adds this splat and darkens all splats behind it: Σ_{j > k} w_j v_j / (1 - α_k).
        behind_TKP = weight_TKP * value_TKP
        behind_TKP = behind_TKP.sum(1, keepdim=True) - behind_TKP.cumsum(1)
        grad_alpha_TKP = before_TKP * value_TKP - behind_TKP / (1 - alpha_TKP)
        # Capped and skipped alphas have no gradient.
        grad_power_TKP = grad_alpha_TKP * alpha_TKP * ((weight_TKP > 0) & (raw_TKP <= MAX_ALPHA))
        grad_opacities_TK = grad_power_TKP.sum(-1) / opacities_TK
        pull_x, pull_y = grad_power_TKP * dx_TKP, grad_power_TKP * dy_TKP
        grad_conics_TK3 = -torch.stack(
            [0.5 * (pull_x * dx_TKP).sum(-1), (pull_x * dy_TKP).sum(-1), 0.5 * (pull_y * dy_TKP).sum(-1)], dim=-1
        )
        pull_TK2 = torch.stack([pull_x.sum(-1), pull_y.sum(-1)], dim=-1)
        a, b, c = conics_TK3.unbind(-1)
        grad_centers_TK2 = torch.stack(
            [a * pull_TK2[..., 0] + b * pull_TK2[..., 1], b * pull_TK2[..., 0] + c * pull_TK2[..., 1]], dim=-1
        )
        return None, None, grad_centers_TK2, grad_conics_TK3, grad_opacities_TK, grad_features_TKC


def _alphas(corner_T2, present_TK, centers_TK2, conics_TK3, opacities_TK) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Distances along x and y, opacity · falloff, and alpha after cap and skipping: (T, K, P) each."""
    side = torch.arange(TILE, device=corner_T2.device, dtype=centers_TK2.dtype) + 0.5
    x_TP = corner_T2[:, :1] + side.repeat(TILE)
    y_TP = corner_T2[:, 1:] + side.repeat_interleave(TILE)
    dx_TKP = x_TP[:, None] - centers_TK2[..., :1]
    dy_TKP = y_TP[:, None] - centers_TK2[..., 1:]
    a, b, c = conics_TK3[..., None].unbind(2)
    power_TKP = -0.5 * (a * dx_TKP**2 + c * dy_TKP**2) - b * dx_TKP * dy_TKP
    raw_TKP = opacities_TK[..., None] * power_TKP.exp()
    counts_TKP = present_TK[..., None] & (raw_TKP >= MIN_ALPHA) & (power_TKP <= 0)
    return dx_TKP, dy_TKP, raw_TKP, raw_TKP.clamp_max(MAX_ALPHA) * counts_TKP


def _weights(alpha_TKP: Tensor) -> tuple[Tensor, Tensor]:
    """Blending weight of each splat in the pixel, and the transmittance in front of it."""
    after_TKP = (1 - alpha_TKP).cumprod(1)
    before_TKP = torch.cat([torch.ones_like(after_TKP[:, :1]), after_TKP[:, :-1]], dim=1)
    return alpha_TKP * before_TKP * (after_TKP >= MIN_TRANSMITTANCE), before_TKP
