"""Rasterise 3D Gaussians in plain PyTorch: runs and differentiates everywhere.

Tiles of the image are processed in groups of similar load, all their Gaussians at once; nothing loops over Gaussians.
The rules are those of the published rasteriser (arXiv:2308.04079, with the constants below).

Letters: N Gaussians, M of them in front of the camera, T tiles, K Gaussians of a tile, P pixels of a tile, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.gaussians import Gaussians

NEAR = 0.2  # Gaussians nearer than this are dropped
LOW_PASS = 0.3  # pixels², added to the diagonal of the 2D covariance: nothing is thinner than a pixel
MAX_ALPHA = 0.99
MIN_ALPHA = 1 / 255  # weaker contributions are skipped
MIN_TRANSMITTANCE = 1e-4  # a ray stops before it would fall under this
TILE = 16  # pixels of a tile's side
# Values that one group of tiles may hold at once; bounds memory, not the result.
GROUP_VALUES = 4_000_000


@dataclass(frozen=True, kw_only=True)
class Splats:
    """Gaussians projected into one view, nearest first.

    Attributes:
        centers_M2: in pixels.
        conics_M3: inverse 2D covariance as (a, b, c) of a·dx² + 2b·dx·dy + c·dy².
        radii_M: pixels beyond which alpha is under MIN_ALPHA.
        opacities_M: in [0, 1].
        colors_M3: RGB.
    """

    centers_M2: Tensor
    conics_M3: Tensor
    radii_M: Tensor
    opacities_M: Tensor
    colors_M3: Tensor


def project(gaussians: Gaussians, scene: int, c2w_44: Tensor, K_33: Tensor) -> Splats:
    """Project the Gaussians of one scene of a batch into one camera (EWA splatting, arXiv:2308.04079, section 4).

    Args:
        c2w_44: camera to world, OpenCV axes.
        K_33: intrinsics in pixels.
    """
    w2c_44 = torch.linalg.inv(c2w_44)
    rotation_33 = w2c_44[:3, :3]
    camera_N3 = gaussians.means_BN3[scene] @ rotation_33.T + w2c_44[:3, 3]
    order = camera_N3[:, 2].detach().argsort()
    order = order[camera_N3[order, 2] > NEAR]
    x, y, z = camera_N3[order].unbind(-1)
    fx, fy = K_33[0, 0], K_33[1, 1]
    zero = torch.zeros_like(z)
    jacobian_M23 = torch.stack(
        [torch.stack([fx / z, zero, -fx * x / z**2], -1), torch.stack([zero, fy / z, -fy * y / z**2], -1)], dim=-2
    )
    affine_M23 = jacobian_M23 @ rotation_33
    covariance_M22 = affine_M23 @ gaussians.covariances()[scene, order] @ affine_M23.transpose(-1, -2)
    a, b, c = covariance_M22[:, 0, 0] + LOW_PASS, covariance_M22[:, 0, 1], covariance_M22[:, 1, 1] + LOW_PASS
    determinant = a * c - b * b
    opacities_M = gaussians.opacities_BN1[scene, order, 0]
    with torch.no_grad():
        largest = 0.5 * (a + c) + (0.25 * (a - c) ** 2 + b * b).sqrt()
        # opacity · exp(-r² / (2 λ)) = MIN_ALPHA
        reach = 2 * (opacities_M / MIN_ALPHA).clamp_min(1).log()
        radii_M = (largest * reach).sqrt()
    return Splats(
        centers_M2=torch.stack([fx * x / z + K_33[0, 2], fy * y / z + K_33[1, 2]], dim=-1),
        conics_M3=torch.stack([c, -b, a], dim=-1) / determinant[:, None],
        radii_M=radii_M,
        opacities_M=opacities_M,
        colors_M3=gaussians.colors_BN3[scene, order],
    )


def render(
    gaussians: Gaussians,
    c2w_V44: Tensor,
    K_33: Tensor,
    *,
    size: tuple[int, int],
    background: float | Tensor,
    scene: int = 0,
) -> tuple[Tensor, Tensor]:
    """Render one scene from several cameras.

    Args:
        gaussians: on the device and in the dtype of the cameras.
        c2w_V44: camera to world, OpenCV axes.
        K_33: intrinsics in pixels, pixel centres at +0.5.
        size: height and width.
        background: grey value, or RGB (3,).
        scene: which one of the batch.

    Returns:
        colors_V3HW and alphas_V1HW, in [0, 1].
    """
    background_3 = torch.as_tensor(background, dtype=c2w_V44.dtype, device=c2w_V44.device).expand(3)
    views = [rasterise(project(gaussians, scene, c2w_44, K_33), size=size) for c2w_44 in c2w_V44]
    colors = torch.stack([color for color, _ in views])
    alphas = torch.stack([alpha for _, alpha in views])
    return colors + (1 - alphas) * background_3[:, None, None], alphas


def rasterise(splats: Splats, *, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Blend splats front to back: premultiplied colour (3, H, W) and alpha (1, H, W)."""
    height, width = size
    rows, columns = -(-height // TILE), -(-width // TILE)
    splat_ids, starts_T, counts_T = _tile_lists(splats, rows, columns)
    blended = splats.colors_M3.new_zeros(rows * columns, TILE * TILE, 4)
    for tiles in _groups(counts_T):
        if len(tiles):
            blended = blended.index_put(
                (tiles,), _blend(splats, splat_ids, starts_T[tiles], counts_T[tiles], tiles, columns)
            )
    image_HW4 = blended.view(rows, columns, TILE, TILE, 4).transpose(1, 2).reshape(rows * TILE, columns * TILE, 4)
    image_4HW = image_HW4[:height, :width].permute(2, 0, 1)
    return image_4HW[:3], image_4HW[3:]


@torch.no_grad()
def _tile_lists(splats: Splats, rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which splats touch which tile: concatenated indices, nearest first, and each tile's start and count."""
    low_M2 = ((splats.centers_M2 - splats.radii_M[:, None]) / TILE).floor().long()
    high_M2 = ((splats.centers_M2 + splats.radii_M[:, None]) / TILE).floor().long() + 1
    limit = torch.tensor([columns, rows], device=low_M2.device)
    low_M2, high_M2 = low_M2.clamp_min(0).minimum(limit), high_M2.clamp_min(0).minimum(limit)
    spans_M2 = high_M2 - low_M2
    repeats_M = spans_M2.prod(-1)
    splat_ids = torch.repeat_interleave(torch.arange(len(repeats_M), device=low_M2.device), repeats_M)
    within = torch.arange(len(splat_ids), device=low_M2.device) - (repeats_M.cumsum(0) - repeats_M)[splat_ids]
    across = spans_M2[splat_ids, 0]
    tile = (low_M2[splat_ids, 1] + within // across) * columns + low_M2[splat_ids, 0] + within % across
    order = tile.argsort(stable=True)  # keeps the order of depth inside a tile
    counts_T = torch.bincount(tile, minlength=rows * columns)
    return splat_ids[order], counts_T.cumsum(0) - counts_T, counts_T


def _groups(counts_T: Tensor) -> list[Tensor]:
    """Tiles of similar load together, so that little is padded; empty tiles are left out."""
    order = counts_T.argsort(descending=True)
    loads = counts_T[order].tolist()
    groups, start = [], 0
    while start < len(loads) and loads[start] > 0:
        room = max(1, GROUP_VALUES // (loads[start] * TILE * TILE))
        stop = start + 1
        while stop < len(loads) and stop - start < room and 2 * loads[stop] > loads[start]:
            stop += 1
        groups.append(order[start:stop])
        start = stop
    return groups


def _blend(
    splats: Splats, splat_ids: Tensor, starts_T: Tensor, counts_T: Tensor, tiles_T: Tensor, columns: int
) -> Tensor:
    """Colour and alpha of every pixel of some tiles: (T, P, 4)."""
    slots_K = torch.arange(int(counts_T.max()), device=starts_T.device)
    present_TK = slots_K < counts_T[:, None]
    ids_TK = splat_ids[(starts_T[:, None] + slots_K).clamp_max(len(splat_ids) - 1)]
    side = torch.arange(TILE, device=starts_T.device) + 0.5
    x_TP = (tiles_T % columns * TILE)[:, None] + side.repeat(TILE)
    y_TP = (tiles_T // columns * TILE)[:, None] + side.repeat_interleave(TILE)
    centers_TK2, conics_TK3 = splats.centers_M2[ids_TK], splats.conics_M3[ids_TK]
    dx_TKP = x_TP[:, None] - centers_TK2[..., :1]
    dy_TKP = y_TP[:, None] - centers_TK2[..., 1:]
    a, b, c = conics_TK3[..., None].unbind(2)
    power_TKP = -0.5 * (a * dx_TKP**2 + c * dy_TKP**2) - b * dx_TKP * dy_TKP
    alpha_TKP = (splats.opacities_M[ids_TK][..., None] * power_TKP.exp()).clamp_max(MAX_ALPHA)
    alpha_TKP = alpha_TKP * (present_TK[..., None] & (alpha_TKP >= MIN_ALPHA) & (power_TKP <= 0))
    after_TKP = (1 - alpha_TKP).cumprod(1)
    before_TKP = torch.cat([torch.ones_like(after_TKP[:, :1]), after_TKP[:, :-1]], dim=1)
    weight_TKP = alpha_TKP * before_TKP * (after_TKP >= MIN_TRANSMITTANCE)
    color_TP3 = torch.einsum("tkp,tkc->tpc", weight_TKP, splats.colors_M3[ids_TK])
    return torch.cat([color_TP3, weight_TKP.sum(1)[..., None]], dim=-1)
