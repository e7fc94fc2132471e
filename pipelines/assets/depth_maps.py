"""An object seen from all around, rendered from its Gaussians: what its mesh takes depth and colours from.

Letters: V views, H W pixels, N Gaussians.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.spatial import cKDTree
from torch import Tensor

from models.gaussians.rendering import render
from models.gaussians.scene import OTHER_GAUSSIANS, Gaussians
from utils.cameras import cameras_at, intrinsics, sphere_directions
from utils.errors import DataError

FAINT = 0.05  # Gaussians under this opacity are haze around an object, not part of its surface
# Rendered depth is a mean of centres and lies behind what one sees: with a head's blobs, which let light through, by
# about so many standard deviations along their shortest axes (measured on held-out objects of the zoo: it halves the
# distance of the mesh to the true surface). Flat Gaussians on a surface move hardly at all.
REACH = 3.0
# A Gaussian floats when its NEIGHBOURS nearest ones are ALONE times as far away as usual, and as its own size.
NEIGHBOURS, ALONE = 8, 3.0
# The object's box leaves out this share of the Gaussians at either end of each axis: stray ones would blow it up.
STRAY_SHARE = 0.002
CAMERA_DISTANCE = 3.0  # in radii of the object: near enough to look into hollows, far enough for a small field of view
FRAME = 1.05  # of the object's ball that a picture shows
SMALLEST_RADIUS = 1e-3
CHUNK_PIXELS = 1 << 20  # rendered at once; bounds memory


@dataclass(frozen=True, kw_only=True)
class DepthMaps:
    """Renderings of an object.

    Attributes:
        low_3: lower corner of the object's box.
        high_3: upper corner.
        c2w_V44: cameras around its middle.
        K_33: intrinsics in pixels.
        colors_V3HW: RGB of the object alone, not darkened where it is transparent; in [0, 1].
        alphas_V1HW: in [0, 1].
        depths_V1HW: of the surface along the camera's axis, 0 where nothing is.
    """

    low_3: Tensor
    high_3: Tensor
    c2w_V44: Tensor
    K_33: Tensor
    colors_V3HW: Tensor
    alphas_V1HW: Tensor
    depths_V1HW: Tensor


def render_depth_maps(
    gaussians: Gaussians, *, num_views: int, size: int, lowest_deg: float, rasterizer: str = "auto"
) -> DepthMaps:
    """Render one scene from cameras spread evenly over a sphere, from `lowest_deg` up to the zenith.

    Args:
        size: height and width in pixels.
        lowest_deg: height angle under which no camera stands.
        rasterizer: see models.gaussians.rendering.

    Raises:
        DataError: nothing can be seen.
    """
    solid = gaussians.only(gaussians.opacities_BN1[0, :, 0] >= FAINT)
    solid = without_floaters(solid)
    if solid.means_BN3.shape[1] < 4:
        raise DataError(f"fewer than 4 Gaussians are opaque enough to have a surface; {OTHER_GAUSSIANS}")
    low_3, high_3 = object_box(solid)
    middle_3, radius = (low_3 + high_3) / 2, max(float((high_3 - low_3).norm()) / 2, SMALLEST_RADIUS)
    distance = CAMERA_DISTANCE * radius
    fov_deg = 2 * math.degrees(math.asin(min(0.99, FRAME * radius / distance)))
    c2w_V44 = sphere_cameras(num_views, distance=distance, lowest_deg=lowest_deg).to(middle_3)
    c2w_V44[:, :3, 3] += middle_3
    K_33 = intrinsics(fov_deg, size).to(middle_3)
    chunks = c2w_V44.split(max(1, CHUNK_PIXELS // size**2))
    with torch.no_grad():
        drawn = [
            render(solid, chunk[None], K_33, size=(size, size), background=0.0, backend=rasterizer) for chunk in chunks
        ]
    alphas_V1HW = torch.cat([chunk.alphas_BV1HW[0] for chunk in drawn])
    if not bool((alphas_V1HW > 0.5).any()):
        raise DataError(f"the Gaussians are too transparent to have a surface; {OTHER_GAUSSIANS}")
    colors_V3HW = torch.cat([chunk.colors_BV3HW[0] for chunk in drawn])
    depths_V1HW = torch.cat([chunk.depths_BV1HW[0] for chunk in drawn])
    reach = REACH * float(solid.scales_BN3.amin(dim=-1).median())
    return DepthMaps(
        low_3=low_3,
        high_3=high_3,
        c2w_V44=c2w_V44,
        K_33=K_33,
        colors_V3HW=(colors_V3HW / alphas_V1HW.clamp_min(1e-3)).clamp(0, 1),
        alphas_V1HW=alphas_V1HW,
        depths_V1HW=(depths_V1HW - reach).clamp_min(0),
    )


def without_floaters(gaussians: Gaussians) -> Gaussians:
    """One scene without the Gaussians that stand alone: neighbours far away, for this scene and for their own size."""
    means_N3 = gaussians.means_BN3[0].cpu().numpy()
    if len(means_N3) <= NEIGHBOURS:
        return gaussians
    apart_N = torch.from_numpy(cKDTree(means_N3).query(means_N3, NEIGHBOURS + 1)[0][:, 1:].mean(axis=1))
    own_N = gaussians.covariances()[0].diagonal(dim1=-2, dim2=-1).amax(-1).sqrt().cpu()
    alone_N = (apart_N > ALONE * apart_N.median()) & (apart_N > ALONE * own_N)
    return gaussians.only((~alone_N).to(gaussians.means_BN3.device))


def object_box(gaussians: Gaussians) -> tuple[Tensor, Tensor]:
    """Corners of the box that holds a scene, but for stray Gaussians: two standard deviations around each centre."""
    reach_N3 = 2 * gaussians.covariances()[0].diagonal(dim1=-2, dim2=-1).sqrt()
    lows_N3 = (gaussians.means_BN3[0] - reach_N3).sort(dim=0).values
    highs_N3 = (gaussians.means_BN3[0] + reach_N3).sort(dim=0).values
    stray = int(STRAY_SHARE * len(lows_N3))
    return lows_N3[stray], highs_N3[len(highs_N3) - 1 - stray]


def sphere_cameras(num_views: int, *, distance: float, lowest_deg: float) -> Tensor:
    """Cameras spread evenly over a sphere, highest last: (V, 4, 4)."""
    x_V, y_V, z_V = sphere_directions(num_views, lowest_deg=lowest_deg).unbind(dim=1)
    azimuth_deg_V, elevation_deg_V = torch.rad2deg(torch.atan2(y_V, x_V)), torch.rad2deg(z_V.asin())
    return cameras_at(azimuth_deg_V, elevation_deg_V, torch.full_like(z_V, distance))
