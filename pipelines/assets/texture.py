"""Colours of a mesh from renders of its object, on its vertices or as a texture.

Letters: N points, F faces, T texels, V views, H W pixels.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as functional
from scipy.spatial import cKDTree
from torch import Tensor

from pipelines.assets.charts import unfold
from pipelines.assets.depth_maps import DepthMaps
from pipelines.assets.texels import cover_texels
from utils.errors import DataError

# The weight of a view is the cosine between view direction and normal, to this power.
SHARPNESS = 6
HIDDEN_BEHIND = 0.03  # fraction of the object's longest side; a point further behind a view's depth is hidden
COVERED = 0.9  # pixels with a lower opacity belong to an edge and have mixed colours
LEAST_WEIGHT = 1e-4  # with a lower sum of weights, no view sees the point
CELLS = 128  # along the longest side of the object, for the colours of points that no view sees
RENDER_WEIGHT = 0.02  # of renders beside true views, which are sharper


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
    device = views.c2w_V44.device
    source_N, cut_F3, uvs_N2 = unfold(points_N3, faces_F3, size=size, device=device)
    cut_points_N3, cut_normals_N3 = points_N3[source_N], normals_N3[source_N]
    corners_F32 = torch.from_numpy(uvs_N2[cut_F3] * size).to(device)
    texels_T2, faces_T, weights_T3 = cover_texels(corners_F32)

    def between(values_N3: np.ndarray) -> Tensor:
        """Interpolate values of the points at the texels: (T, 3)."""
        return (weights_T3[..., None] * torch.from_numpy(values_N3[cut_F3]).to(corners_F32)[faces_T]).sum(dim=1)

    columns, rows = texels_T2[:, 0].cpu().numpy(), size - 1 - texels_T2[:, 1].cpu().numpy()
    empty_HW = np.ones((size, size), dtype=np.uint8)
    empty_HW[rows, columns] = 0
    with ThreadPoolExecutor(max_workers=1) as pool:
        labels = pool.submit(nearest_full, empty_HW)
        colors_T3 = colors_at(between(cut_points_N3), between(cut_normals_N3), views, pictures=pictures)
    nearest_HW = labels.result()
    palette = np.empty((nearest_HW.max() + 1, 3), dtype=np.uint8)
    palette[nearest_HW[rows, columns]] = np.round(255 * colors_T3).astype(np.uint8)
    return Texture(
        points_N3=cut_points_N3,
        faces_F3=cut_F3,
        source_N=source_N,
        uvs_N2=uvs_N2,
        image_HW3=palette[nearest_HW],
    )


def nearest_full(empty_HW: np.ndarray) -> np.ndarray:
    """Number the texels that are not empty, from 1, and give each empty one the number of the nearest of them."""
    return cv2.distanceTransformWithLabels(empty_HW, cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL)[1]


def colors_at(
    places_T3: Tensor, normals_T3: Tensor, views: DepthMaps, *, pictures: DepthMaps | None = None
) -> np.ndarray:
    """Return the colours of surface points: a mean over the views that see them, with more weight for frontal views.

    A point that no view sees gets the colour of the nearest cell with visible points, see CELLS.

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
    colors_T3 = total_T3 / weights_T.clamp_min(least)[:, None]
    seen_T = weights_T > least
    if not bool(seen_T.any()):
        raise DataError("no camera sees the mesh's surface; increase assets.mesh_views")
    if not bool(seen_T.all()):
        colors_T3[~seen_T] = nearest_seen(places, colors_T3, seen_T)
    return colors_T3.clamp(0, 1).cpu().numpy()


def nearest_seen(places_T3: Tensor, colors_T3: Tensor, seen_T: Tensor) -> Tensor:
    """Return for each unseen point the mean colour of the cell with seen points that is nearest to its own cell."""
    low_3 = places_T3.amin(dim=0)
    cell_T3 = ((places_T3 - low_3) * (CELLS / (places_T3.amax(dim=0) - low_3).amax().clamp_min(1e-12))).long()
    key_T = (cell_T3[:, 0] * (CELLS + 1) + cell_T3[:, 1]) * (CELLS + 1) + cell_T3[:, 2]
    _, seen_cell_T, num_seen = key_T[seen_T].unique(return_inverse=True, return_counts=True)
    _, unseen_cell_T, num_unseen = key_T[~seen_T].unique(return_inverse=True, return_counts=True)

    def mean(values_T3: Tensor, cell_T: Tensor, counts: Tensor) -> Tensor:
        return values_T3.new_zeros(len(counts), 3).index_add_(0, cell_T, values_T3) / counts[:, None]

    middles, wanted = (
        mean(places_T3[seen_T], seen_cell_T, num_seen),
        mean(places_T3[~seen_T], unseen_cell_T, num_unseen),
    )
    # an unbalanced tree: with a balanced one, a query far from the points took 400 times as long
    tree = cKDTree(middles.cpu().numpy(), balanced_tree=False, compact_nodes=False)
    nearest = torch.from_numpy(tree.query(wanted.cpu().numpy())[1]).to(places_T3.device)
    return mean(colors_T3[seen_T], seen_cell_T, num_seen)[nearest][unseen_cell_T]


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
    c2w_44, w2c_44 = views.c2w_V44[view], views.w2c_V44[view]
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
    step = HIDDEN_BEHIND * (views.high_3 - views.low_3).max()
    return cosine_T**SHARPNESS * (alpha_T > COVERED) * (z_T - depth_T < step), color_3T.T
