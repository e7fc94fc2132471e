"""Depth maps and colours of an object from all directions, rendered from its Gaussians or its field, for its mesh.

Letters: V views, H W pixels, N Gaussians.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from scipy.spatial import cKDTree
from torch import Tensor

from models.gaussians.rendering import Rendering, render
from models.gaussians.scene import OTHER_GAUSSIANS, Gaussians
from utils.cameras import cameras_at, intrinsics, sphere_directions
from utils.errors import DataError

FAINT = 0.05  # Gaussians with a lower opacity are haze around an object, not part of its surface
# Rendered depth is a mean of the centres of Gaussians, so it lies behind the visible surface. For the transparent
# Gaussians of a head, the offset is about this number of standard deviations along their shortest axes (measured on
# held-out objects of the zoo: it halves the distance of the mesh to the true surface). For flat Gaussians on a surface
# the offset is almost zero.
REACH = 3.0
# The same for the Gaussians of a fit when they are drawn opaque. Measured on a held-out object of the zoo with 2,000
# Gaussians and 80 steps: Chamfer distance 0.0285 as they are, 0.0106 drawn opaque, 0.0079 with this offset too.
OPAQUE_REACH = 2.0
OPAQUE = 0.99  # opacity of Gaussians that are drawn opaque
# A Gaussian is a floater if the mean distance to its NEIGHBOURS nearest Gaussians is more than ALONE times the median
# of this distance, and more than ALONE times its own size.
NEIGHBOURS, ALONE = 8, 3.0
# The object's box leaves out this fraction of the Gaussians at each end of each axis, so that stray Gaussians do not
# make it too large.
STRAY_SHARE = 0.002
CAMERA_DISTANCE = 3.0  # in radii of the object: near enough to see into hollows, far enough for a small field of view
FRAME = 1.05  # size of the image relative to the bounding sphere of the object
SMALLEST_RADIUS = 1e-3
CHUNK_PIXELS = 1 << 20  # number of pixels that are rendered at once; limits memory

# Renders an object: (c2w_V44, K_33, size, background) to images with one scene.
Draw = Callable[[Tensor, Tensor, tuple[int, int], float], Rendering]


@dataclass(frozen=True, kw_only=True)
class DepthMaps:
    """Renders of an object.

    Attributes:
        low_3: lower corner of the object's box.
        high_3: upper corner of the object's box.
        c2w_V44: the cameras.
        K_33: intrinsics in pixels, (3, 3) or (V, 3, 3).
        colors_V3HW: RGB of the object without background, divided by alpha; in [0, 1].
        alphas_V1HW: opacity in [0, 1].
        depths_V1HW: depth of the surface along the camera's axis; 0 where there is no surface.
    """

    low_3: Tensor
    high_3: Tensor
    c2w_V44: Tensor
    K_33: Tensor
    colors_V3HW: Tensor
    alphas_V1HW: Tensor
    depths_V1HW: Tensor

    @property
    def K_V33(self) -> Tensor:
        """Intrinsics of each view."""
        return self.K_33.expand(len(self.c2w_V44), 3, 3)

    @functools.cached_property
    def w2c_V44(self) -> Tensor:
        """World to camera; `inv` of each view would wait until the device reports success."""
        return torch.linalg.inv_ex(self.c2w_V44)[0]

    def places(self, view: int, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """Project coordinates in the frame of a camera to its image: (..., 2) in [-1, 1], for grid_sample."""
        height, width = self.alphas_V1HW.shape[-2:]
        K_33 = self.K_V33[view]
        column, row = K_33[0, 0] * x / z + K_33[0, 2], K_33[1, 1] * y / z + K_33[1, 2]
        return torch.stack([2 * column / width - 1, 2 * row / height - 1], dim=-1)


def render_depth_maps(
    gaussians: Gaussians, *, num_views: int, size: int, lowest_deg: float, rasterizer: str = "auto"
) -> DepthMaps:
    """Render one scene from cameras that are evenly spaced on a sphere, from `lowest_deg` up to the zenith.

    Args:
        size: height and width in pixels.
        lowest_deg: lowest height angle of a camera.
        rasterizer: see models.gaussians.rendering.

    Raises:
        DataError: nothing is visible.
    """
    solid = gaussians.only(gaussians.opacities_BN1[0, :, 0] >= FAINT)
    solid = without_floaters(solid)
    if solid.means_BN3.shape[1] < 4:
        raise DataError(f"fewer than 4 Gaussians are opaque enough to have a surface; {OTHER_GAUSSIANS}")
    low_3, high_3 = object_box(solid)

    def draw(c2w_V44: Tensor, K_33: Tensor, image_size: tuple[int, int], background: float) -> Rendering:
        return render(solid, c2w_V44[None], K_33, size=image_size, background=background, backend=rasterizer)

    views = draw_depth_maps(draw, low_3, high_3, num_views=num_views, size=size, lowest_deg=lowest_deg)
    if not bool((views.alphas_V1HW > 0.5).any()):
        raise DataError(f"the Gaussians are too transparent to have a surface; {OTHER_GAUSSIANS}")
    reach = REACH * float(solid.scales_BN3.amin(dim=-1).median())
    return replace(views, depths_V1HW=(views.depths_V1HW - reach).clamp_min(0))


@torch.no_grad()
def with_opaque_depths(views: DepthMaps, gaussians: Gaussians, *, rasterizer: str = "auto") -> DepthMaps:
    """Replace the depths of fitted Gaussians by those of the same Gaussians drawn opaque.

    Half transparent Gaussians on a surface show also what lies behind them, up to the other side of the object, so that
    their mean depth lies far inside. Colours and opacities stay, so that the object does not grow at its edges.

    Args:
        views: renders of the Gaussians.
        gaussians: one scene.
        rasterizer: see models.gaussians.rendering.
    """
    solid = gaussians.only(gaussians.opacities_BN1[0, :, 0] >= FAINT)
    solid = replace(solid, opacities_BN1=torch.full_like(solid.opacities_BN1, OPAQUE))

    def draw(c2w_V44: Tensor, K_33: Tensor, size: tuple[int, int], background: float) -> Rendering:
        return render(solid, c2w_V44[None], K_33, size=size, background=background, backend=rasterizer)

    size = (views.alphas_V1HW.shape[-2], views.alphas_V1HW.shape[-1])
    drawn = depth_maps_at(draw, views.c2w_V44, views.K_33, size, views.low_3, views.high_3)
    reach = OPAQUE_REACH * float(solid.scales_BN3.amin(dim=-1).median())
    return replace(views, depths_V1HW=(drawn.depths_V1HW - reach).clamp_min(0))


@torch.no_grad()
def draw_depth_maps(
    draw: Draw, low_3: Tensor, high_3: Tensor, *, num_views: int, size: int, lowest_deg: float
) -> DepthMaps:
    """Render any object from cameras around its box, see `render_depth_maps`.

    Args:
        low_3: lower corner of the object's box.
        high_3: upper corner of the object's box.
    """
    middle_3, radius = (low_3 + high_3) / 2, max(float((high_3 - low_3).norm()) / 2, SMALLEST_RADIUS)
    distance = CAMERA_DISTANCE * radius
    fov_deg = 2 * math.degrees(math.asin(min(0.99, FRAME * radius / distance)))
    c2w_V44 = sphere_cameras(num_views, distance=distance, lowest_deg=lowest_deg).to(middle_3)
    c2w_V44[:, :3, 3] += middle_3
    return depth_maps_at(draw, c2w_V44, intrinsics(fov_deg, size).to(middle_3), (size, size), low_3, high_3)


@torch.no_grad()
def depth_maps_at(
    draw: Draw, c2w_V44: Tensor, K_33: Tensor, size: tuple[int, int], low_3: Tensor, high_3: Tensor
) -> DepthMaps:
    """Render an object from given cameras."""
    cameras = c2w_V44.split(max(1, CHUNK_PIXELS // (size[0] * size[1])))
    matrices = K_33.expand(len(c2w_V44), 3, 3).split(len(cameras[0]))
    drawn = [draw(chunk, K_V33, size, 0.0) for chunk, K_V33 in zip(cameras, matrices, strict=True)]
    alphas_V1HW = torch.cat([chunk.alphas_BV1HW[0] for chunk in drawn])
    colors_V3HW = torch.cat([chunk.colors_BV3HW[0] for chunk in drawn])
    return DepthMaps(
        low_3=low_3,
        high_3=high_3,
        c2w_V44=c2w_V44,
        K_33=K_33,
        colors_V3HW=(colors_V3HW / alphas_V1HW.clamp_min(1e-3)).clamp(0, 1),
        alphas_V1HW=alphas_V1HW,
        depths_V1HW=torch.cat([chunk.depths_BV1HW[0] for chunk in drawn]),
    )


def without_floaters(gaussians: Gaussians) -> Gaussians:
    """Remove isolated Gaussians from one scene, see NEIGHBOURS and ALONE."""
    means_N3 = gaussians.means_BN3[0].cpu().numpy()
    if len(means_N3) <= NEIGHBOURS:
        return gaussians
    apart_N = torch.from_numpy(cKDTree(means_N3).query(means_N3, NEIGHBOURS + 1, workers=-1)[0][:, 1:].mean(axis=1))
    own_N = gaussians.covariances()[0].diagonal(dim1=-2, dim2=-1).amax(-1).sqrt().cpu()
    alone_N = (apart_N > ALONE * apart_N.median()) & (apart_N > ALONE * own_N)
    return gaussians.only((~alone_N).to(gaussians.means_BN3.device))


def object_box(gaussians: Gaussians) -> tuple[Tensor, Tensor]:
    """Return the corners of a scene's box: two standard deviations around each centre, without stray Gaussians."""
    reach_N3 = 2 * gaussians.covariances()[0].diagonal(dim1=-2, dim2=-1).sqrt()
    lows_N3 = (gaussians.means_BN3[0] - reach_N3).sort(dim=0).values
    highs_N3 = (gaussians.means_BN3[0] + reach_N3).sort(dim=0).values
    stray = int(STRAY_SHARE * len(lows_N3))
    return lows_N3[stray], highs_N3[len(highs_N3) - 1 - stray]


def sphere_cameras(num_views: int, *, distance: float, lowest_deg: float) -> Tensor:
    """Place cameras evenly on a sphere, the highest last: (V, 4, 4)."""
    x_V, y_V, z_V = sphere_directions(num_views, lowest_deg=lowest_deg).unbind(dim=1)
    azimuth_deg_V, elevation_deg_V = torch.rad2deg(torch.atan2(y_V, x_V)), torch.rad2deg(z_V.asin())
    return cameras_at(azimuth_deg_V, elevation_deg_V, torch.full_like(z_V, distance))
