"""Colours of a mesh from renders of its object, on its vertices or as a texture.

Letters: N points, F faces, T texels, V views, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as functional
import xatlas
from scipy import ndimage
from scipy.spatial import cKDTree
from torch import Tensor

from pipelines.assets.depth_maps import DepthMaps
from utils.errors import DataError

# The weight of a view is the cosine between view direction and normal, to this power.
SHARPNESS = 6
HIDDEN_BEHIND = 0.03  # fraction of the object's longest side; a point further behind a view's depth is hidden
COVERED = 0.9  # pixels with a lower opacity belong to an edge and have mixed colours
LEAST_WEIGHT = 1e-4  # with a lower sum of weights, no view sees the point
RENDER_WEIGHT = 0.02  # of renders beside true views, which are sharper
PADDING = 2  # number of texels between charts
CHUNK_TEXELS = 1 << 22  # texels that are tested at once; limits memory


@dataclass(frozen=True, kw_only=True)
class Texture:
    """An unwrapped mesh and its texture.

    Attributes:
        points_N3: points of the mesh, duplicated at seams.
        faces_F3: faces with indices of these points.
        source_N: index of each point in the original mesh.
        uvs_N2: texture coordinates in [0, 1], origin at the lower left corner of the image.
        image_HW3: sRGB as uint8, first row at the top; also filled between charts, so that no seam is visible.
    """

    points_N3: np.ndarray
    faces_F3: np.ndarray
    source_N: np.ndarray
    uvs_N2: np.ndarray
    image_HW3: np.ndarray


def bake(
    points_N3: np.ndarray,
    faces_F3: np.ndarray,
    normals_N3: np.ndarray,
    views: DepthMaps,
    *,
    size: int,
    pictures: DepthMaps | None = None,
) -> Texture:
    """Unwrap a mesh and compute its texture from the views.

    Args:
        normals_N3: unit normals of the points.
        views: renders from all directions.
        pictures: see `colors_at`.
        size: height and width of the texture in pixels.

    Raises:
        DataError: the mesh cannot be unwrapped.
    """
    source_N, cut_F3, uvs_N2 = unfold(points_N3, faces_F3, size=size)
    cut_points_N3, cut_normals_N3 = points_N3[source_N], normals_N3[source_N]
    device = views.c2w_V44.device
    corners_F32 = torch.from_numpy(uvs_N2[cut_F3] * size).to(device)
    texels_T2, faces_T, weights_T3 = cover_texels(corners_F32)

    def between(values_N3: np.ndarray) -> Tensor:
        """Interpolate values of the points at the texels: (T, 3)."""
        return (weights_T3[..., None] * torch.from_numpy(values_N3[cut_F3]).to(corners_F32)[faces_T]).sum(dim=1)

    colors_T3 = colors_at(between(cut_points_N3), between(cut_normals_N3), views, pictures=pictures)
    columns, rows = texels_T2[:, 0].cpu().numpy(), size - 1 - texels_T2[:, 1].cpu().numpy()
    image_HW3 = np.zeros((size, size, 3), dtype=np.uint8)
    painted_HW = np.zeros((size, size), dtype=bool)
    image_HW3[rows, columns] = np.round(255 * colors_T3).astype(np.uint8)
    painted_HW[rows, columns] = True
    nearest = ndimage.distance_transform_edt(~painted_HW, return_distances=False, return_indices=True)
    return Texture(
        points_N3=cut_points_N3,
        faces_F3=cut_F3,
        source_N=source_N,
        uvs_N2=uvs_N2,
        image_HW3=image_HW3[tuple(nearest)],
    )


def unfold(points_N3: np.ndarray, faces_F3: np.ndarray, *, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut a mesh into charts and pack them; returns the original index of each point, the faces and the UVs."""
    atlas = xatlas.Atlas()
    atlas.add_mesh(points_N3.astype(np.float32), faces_F3.astype(np.uint32))
    packing = xatlas.PackOptions()
    packing.resolution, packing.padding, packing.bilinear = size, PADDING, True
    atlas.generate(xatlas.ChartOptions(), packing)
    if atlas.atlas_count != 1:
        raise DataError(f"the mesh does not fit one texture of {size} pixels; increase assets.texture, or set it to 0")
    source_N, cut_F3, uvs_N2 = atlas[0]
    return source_N.astype(np.int64), cut_F3.astype(np.int64), uvs_N2.astype(np.float64)


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


def colors_at(
    places_T3: Tensor, normals_T3: Tensor, views: DepthMaps, *, pictures: DepthMaps | None = None
) -> np.ndarray:
    """Return the colours of surface points: a mean over the views that see them, with more weight for frontal views.

    A point that no view sees gets the colour of the nearest visible point.

    Args:
        views: renders from all directions.
        pictures: true views, whose colours are used where they see the surface; renders fill the rest, with a smooth
            transition.

    Returns:
        (T, 3) sRGB in [0, 1].
    """
    places, normals = places_T3.to(views.c2w_V44), functional.normalize(normals_T3.to(views.c2w_V44), dim=-1)
    total_T3, weights_T = _summed(places, normals, views)
    least = LEAST_WEIGHT
    if pictures is not None:
        least *= RENDER_WEIGHT
        total_T3, weights_T = total_T3 * RENDER_WEIGHT, weights_T * RENDER_WEIGHT
        for values, more in zip((total_T3, weights_T), _summed(places, normals, pictures), strict=True):
            values += more
    colors_T3 = (total_T3 / weights_T.clamp_min(least)[:, None]).cpu().numpy()
    seen_T = (weights_T > least).cpu().numpy()
    if not seen_T.any():
        raise DataError("no camera sees the mesh's surface; increase assets.mesh_views")
    if not seen_T.all():
        known_T3 = places.cpu().numpy()
        _, nearest = cKDTree(known_T3[seen_T]).query(known_T3[~seen_T])
        colors_T3[~seen_T] = colors_T3[seen_T][nearest]
    return colors_T3.clip(0, 1)


def _summed(places_T3: Tensor, normals_T3: Tensor, views: DepthMaps) -> tuple[Tensor, Tensor]:
    """Return the sum of the weighted colours of all views at each point, and the sum of the weights."""
    total_T3, weights_T = torch.zeros_like(places_T3), torch.zeros_like(places_T3[:, 0])
    for view in range(len(views.c2w_V44)):
        weight_T, color_T3 = _seen(places_T3, normals_T3, views, view)
        total_T3 += weight_T[:, None] * color_T3
        weights_T += weight_T
    return total_T3, weights_T


def _seen(places_T3: Tensor, normals_T3: Tensor, views: DepthMaps, view: int) -> tuple[Tensor, Tensor]:
    """Return the weight and the colour of one view at each point."""
    c2w_44 = views.c2w_V44[view]
    w2c_44 = torch.linalg.inv(c2w_44)
    camera_T3 = places_T3 @ w2c_44[:3, :3].T + w2c_44[:3, 3]
    z_T = camera_T3[:, 2]
    at_T2 = views.places(view, *camera_T3.unbind(-1))
    alpha, depth = views.alphas_V1HW[view], views.depths_V1HW[view]
    # Use the minimum over neighbouring pixels, so that a point does not get the colour of an object in front of it.
    neighbours = torch.cat([alpha, torch.where(alpha > 0.5, depth, torch.inf)])
    worst_2HW = -functional.max_pool2d(-neighbours[None], kernel_size=3, stride=1, padding=1)[0]
    grid = at_T2[None, None]
    color_3T = functional.grid_sample(views.colors_V3HW[view][None], grid, align_corners=False)[0, :, 0]
    alpha_T, depth_T = functional.grid_sample(worst_2HW[None], grid, mode="nearest", align_corners=False)[0, :, 0]
    towards_T3 = functional.normalize(c2w_44[:3, 3] - places_T3, dim=-1)
    cosine_T = (towards_T3 * normals_T3).sum(-1).clamp_min(0)
    step = HIDDEN_BEHIND * float((views.high_3 - views.low_3).max())
    return cosine_T**SHARPNESS * (alpha_T > COVERED) * (z_T - depth_T < step), color_3T.T
