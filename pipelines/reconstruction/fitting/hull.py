"""The visual hull: the largest object whose silhouettes are the masks of the views (Laurentini 1994).

It is found on a grid by testing every voxel against every mask. It bounds rays, and fits start from it.

Letters: V views, X Y Z voxels, H W pixels, R rays, M rays that meet the box, N points.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as functional
from scipy import ndimage
from torch import Tensor

from datasets.views.posed_views import PosedViews
from pipelines.assets.surface import Surface, Volume, triangulate
from pipelines.reconstruction.fitting.robust import outlyingness
from utils.cameras import BALL_RADIUS
from utils.errors import DataError

log = logging.getLogger(__name__)

COARSE_GRID = 64  # voxels along a side of the first grid, which covers the whole ball
# Masks are compared with the first grid at this size, so that a cell is not smaller than the image of a voxel.
SILHOUETTE = 32
SMALL_DIFFERENCE = 0.05  # fraction of a mask; smaller differences do not count
UNLIKE = 3.5  # a mask is left out if its difference lies this many robust deviations above the median
OBJECT = 0.5  # a pixel with a larger mask shows the object
MARGIN = 3  # number of empty voxels around the object
FAR = 1e9  # squared distance in voxels of a line without solid voxels
CHUNK_PAIRS = 1 << 26  # pairs of voxels that are compared at once; limits memory
COARSE_BLOCK = 4  # rays are intersected with blocks of this number of voxels per side


@dataclass(frozen=True, kw_only=True)
class Hull:
    """Signed distances to the surface of the hull: negative inside, in world units.

    Attributes:
        distance_XYZ: one value per voxel centre.
        low_3: world position of voxel (0, 0, 0).
        voxel: size of a voxel.
    """

    distance_XYZ: Tensor
    low_3: Tensor
    voxel: float

    @cached_property
    def high_3(self) -> Tensor:
        """World position of the last voxel."""
        return self.low_3 + self.voxel * self._last_3

    @cached_property
    def _last_3(self) -> Tensor:
        """Indices of the last voxel, kept on the device, because every step of a fit needs them."""
        return torch.tensor(self.distance_XYZ.shape, device=self.low_3.device) - 1

    def distance_at(self, points_N3: Tensor) -> Tensor:
        """Interpolate the distances: (...,). Outside the grid, the nearest value of its border is used."""
        places = 2 * (points_N3 - self.low_3) / (self.high_3 - self.low_3) - 1
        grid = places.flip(-1).reshape(1, -1, 1, 1, 3)  # grid_sample wants (z, y, x)
        found = functional.grid_sample(self.distance_XYZ[None, None], grid, padding_mode="border", align_corners=True)
        return found.reshape(points_N3.shape[:-1])

    def voxels_of(self, points_N3: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the indices of the nearest voxel of points, (...,) each."""
        index_N3 = ((points_N3 - self.low_3) / self.voxel).round().long().clamp_min(0)
        x, y, z = index_N3.minimum(self._last_3).unbind(-1)
        return x, y, z

    def contains(self, points_N3: Tensor) -> Tensor:
        """Whether points lie in the hull or within a voxel of it: (...,) bool."""
        return self.distance_XYZ[self.voxels_of(points_N3)] < self.voxel

    def intervals(self, origins_R3: Tensor, directions_R3: Tensor) -> tuple[Tensor, Tensor]:
        """Intersect rays with the hull.

        Args:
            directions_R3: of any length; distances are in this length.

        Returns:
            near_R and far_R, the first and the last place on the ray that lies in the hull; far < near for a ray that
            does not meet it.
        """
        coarse_XYZ = self._coarse()
        block = COARSE_BLOCK * self.voxel
        corner_3, shape_3 = self.low_3 - 0.5 * self.voxel, torch.tensor(coarse_XYZ.shape, device=self.low_3.device)
        safe_R3 = torch.where(directions_R3.abs() < 1e-9, 1e-9, directions_R3)
        first, second = (corner_3 - origins_R3) / safe_R3, (corner_3 + block * shape_3 - origins_R3) / safe_R3
        start_R = torch.minimum(first, second).amax(dim=-1).clamp_min(0)
        end_R = torch.maximum(first, second).amin(dim=-1)
        met = (end_R > start_R).nonzero()[:, 0]
        near_R, far_R = torch.ones_like(start_R), torch.zeros_like(start_R)
        if not len(met):
            return near_R, far_R
        num_samples = math.ceil(2 * float(shape_3.double().norm()))
        step_M = (end_R - start_R)[met] / num_samples
        place_M3 = ((origins_R3 + start_R[:, None] * directions_R3)[met] - corner_3) / block
        stride_M3 = step_M[:, None] * directions_R3[met] / block
        first_M, last_M = torch.full_like(step_M, num_samples), torch.full_like(step_M, -1)
        for sample in range(num_samples):
            index_M3 = (place_M3 + (sample + 0.5) * stride_M3).long().clamp_min(0).minimum(shape_3 - 1)
            solid_M = coarse_XYZ[index_M3.unbind(-1)]
            first_M = torch.where(solid_M & (last_M < 0), sample, first_M)
            last_M = torch.where(solid_M, sample, last_M)
        found_M = last_M >= 0
        near_R[met] = torch.where(found_M, start_R[met] + (first_M - 0.5).clamp_min(0) * step_M, 1.0)
        far_R[met] = torch.where(found_M, start_R[met] + (last_M + 1.5) * step_M, 0.0)
        return near_R, far_R

    def _coarse(self) -> Tensor:
        """Blocks of COARSE_BLOCK voxels per side that meet the hull or a voxel beside it."""
        solid_XYZ = (self.distance_XYZ < self.voxel).float()[None, None]
        return functional.max_pool3d(solid_XYZ, COARSE_BLOCK, ceil_mode=True)[0, 0] > 0

    def surface(self) -> Surface:
        """The hull as a mesh."""
        return triangulate(
            Volume(values_XYZ=self.distance_XYZ.cpu().numpy(), origin_3=self.low_3.cpu().numpy(), voxel=self.voxel)
        )


def carve(views: PosedViews, *, grid: int, tolerance: float = 0.0) -> Hull:
    """Carve the visual hull.

    A point belongs to it if every view shows the object there. Outside the frame of a view, the pixels of its border
    count, because an object that reaches the border may go on.

    With a tolerance, a first hull accepts points that up to this fraction of the views deny. Views whose masks differ
    much more from it than the others do, for example because they show another object, are then left out.

    Args:
        grid: number of voxels along the longest side of the object.
        tolerance: fraction of the views that may be wrong.

    Raises:
        DataError: the hull is empty.
    """
    radius = BALL_RADIUS * (1 + 2 / COARSE_GRID)
    device = views.masks_V1HW.device
    low_3 = torch.full((3,), -radius, device=device)
    voxel = 2 * radius / (COARSE_GRID - 1)
    # The first grid has large voxels: its masks are wider by half a voxel, so that no thin part is missed.
    solid_XYZ = _solid(views, low_3, voxel, (COARSE_GRID,) * 3, tolerance=tolerance, wider=0.87 * voxel)
    if tolerance and bool(solid_XYZ.any()):
        unlike_V = _unlike(views, low_3 + voxel * solid_XYZ.nonzero())
        worst = unlike_V.argsort(descending=True)[: int(tolerance * len(views) + 1e-6)].tolist()
        left_out = sorted(view for view in worst if unlike_V[view] > UNLIKE)
        if left_out:
            log.info("the hull leaves out views whose masks differ: %s", ", ".join(views.names[k] for k in left_out))
        keep = torch.ones(len(views), dtype=torch.bool)
        keep[left_out] = False
        agreeing = views.only(keep)
        agreed_XYZ = _solid(agreeing, low_3, voxel, (COARSE_GRID,) * 3, tolerance=0.0, wider=0.87 * voxel)
        if bool(agreed_XYZ.any()):
            views, solid_XYZ, tolerance = agreeing, agreed_XYZ, 0.0
    found = solid_XYZ.nonzero()
    if not len(found):
        raise DataError(
            "the masks of the views have no common object, so the hull is empty; check the cameras' convention with "
            "tools/convert_cameras.py, or raise hull_tolerance if some views are wrong"
        )
    first_3, last_3 = found.amin(dim=0) - 1, found.amax(dim=0) + 1
    sides_3 = (last_3 - first_3) * voxel
    fine = float(sides_3.max()) / (grid - 1)
    shape = ((sides_3 / fine).ceil().long() + 1 + 2 * MARGIN).tolist()
    low_3 = low_3 + first_3 * voxel - MARGIN * fine
    solid_XYZ = _solid(views, low_3, fine, tuple(shape), tolerance=tolerance, wider=0.0)
    if not solid_XYZ.any():
        solid_XYZ = _solid(views, low_3, fine, tuple(shape), tolerance=tolerance, wider=0.87 * fine)
    distance_XYZ = distance_to(solid_XYZ) - distance_to(~solid_XYZ)
    distance_XYZ = (distance_XYZ - 0.5 * distance_XYZ.sign()) * fine
    return Hull(distance_XYZ=distance_XYZ, low_3=low_3, voxel=fine)


def distance_to(solid_XYZ: Tensor) -> Tensor:
    """Return the distance of each voxel to the nearest solid one, in voxels: float32.

    On a CPU, scipy needs fewer operations; it has no version for a GPU.
    """
    if not solid_XYZ.is_cuda:
        return torch.from_numpy(ndimage.distance_transform_edt(~solid_XYZ.numpy())).float()
    return distance_by_axis(solid_XYZ)


def distance_by_axis(solid_XYZ: Tensor) -> Tensor:
    """The same, exactly, one axis after the other: the least sum of squares over all voxels of a line."""
    squared_XYZ = torch.where(solid_XYZ, 0.0, FAR)
    for dim in range(3):
        lines_LN = squared_XYZ.movedim(dim, -1).reshape(-1, solid_XYZ.shape[dim])
        number_N = torch.arange(lines_LN.shape[1], device=lines_LN.device, dtype=lines_LN.dtype)
        steps_NN = (number_N[:, None] - number_N).square()
        parts = lines_LN.split(max(1, CHUNK_PAIRS // lines_LN.shape[1] ** 2))
        least_LN = torch.cat([(part_LN[:, None] + steps_NN).amin(dim=-1) for part_LN in parts])
        squared_XYZ = least_LN.view(squared_XYZ.movedim(dim, -1).shape).movedim(-1, dim)
    return squared_XYZ.sqrt()


def _unlike(views: PosedViews, points_N3: Tensor) -> Tensor:
    """Return how much each mask differs from the silhouette of a hull, in robust deviations above the median: (V,).

    Args:
        points_N3: the voxels of the hull.
    """
    height, width = views.size
    uncovered, excess = [], []
    for mask_1HW, c2w_44, K_33 in zip(views.masks_V1HW, views.c2w_V44, views.K_V33, strict=True):
        camera_N3 = (points_N3 - c2w_44[:3, 3]) @ c2w_44[:3, :3]
        pixel_N3 = camera_N3 @ K_33.T
        cell_N2 = pixel_N3[:, :2] / pixel_N3[:, 2:] * SILHOUETTE / torch.tensor([width, height]).to(pixel_N3)
        inside_N = ((cell_N2 >= 0) & (cell_N2 < SILHOUETTE)).all(dim=1)
        column, row = cell_N2[inside_N].long().unbind(-1)
        silhouette = torch.zeros(SILHOUETTE, SILHOUETTE, dtype=torch.bool, device=points_N3.device)
        silhouette[row, column] = True
        mask = functional.adaptive_max_pool2d(mask_1HW, (SILHOUETTE, SILHOUETTE))[0] > OBJECT
        uncovered.append((mask & ~silhouette).sum() / mask.sum().clamp_min(1))
        excess.append((silhouette & ~mask).sum() / silhouette.sum().clamp_min(1))
    excess_V = torch.stack(excess)
    # a tolerant hull is larger than the object, so every silhouette has some excess
    return outlyingness(torch.stack(uncovered) + (excess_V - excess_V.median()).clamp_min(0), tiny=SMALL_DIFFERENCE)


def _solid(
    views: PosedViews, low_3: Tensor, voxel: float, shape: tuple[int, int, int], *, tolerance: float, wider: float
) -> Tensor:
    """Return which voxels of a grid are in the hull.

    Args:
        wider: masks are dilated by this length in world units.
    """
    axes = [low_3[k] + voxel * torch.arange(shape[k], device=low_3.device) for k in range(3)]
    num_views, (height, width) = len(views.c2w_V44), views.masks_V1HW.shape[-2:]
    against_XYZ = torch.zeros(shape, dtype=torch.int16, device=low_3.device)
    for mask_1HW, c2w_44, K_33 in zip(views.masks_V1HW, views.c2w_V44, views.K_V33, strict=True):
        w2c_44 = torch.linalg.inv(c2w_44)
        if wider:
            reach = math.ceil(wider * float(K_33[0, 0]) / max(float(c2w_44[:3, 3].norm()), 1e-6))
            mask_1HW = functional.max_pool2d(mask_1HW[None], 2 * reach + 1, stride=1, padding=reach)[0]
        x, y, z = (
            (axes[0] * row[0])[:, None, None] + (axes[1] * row[1])[:, None] + (axes[2] * row[2] + row[3])
            for row in w2c_44[:3]
        )
        column, row = K_33[0, 0] * x / z + K_33[0, 2], K_33[1, 1] * y / z + K_33[1, 2]
        places = torch.stack([2 * column / width - 1, 2 * row / height - 1], dim=-1).flatten(0, 1)[None]
        shown = functional.grid_sample(mask_1HW[None], places, padding_mode="border", align_corners=False)
        against_XYZ += (z <= 0) | (shown[0, 0].unflatten(0, shape[:2]) <= OBJECT)
    return against_XYZ <= int(tolerance * num_views + 1e-6)
