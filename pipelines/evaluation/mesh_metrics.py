"""Distance between two surfaces: Chamfer distance and F-score.

Both surfaces are sampled uniformly by area. d is the distance of a sample to the nearest sample of the other surface:

- completeness: mean of d over the samples of the true surface;
- accuracy: mean of d over the samples of the measured surface;
- Chamfer distance: the mean of both. (Others publish the sum, or squared distances; the parts allow a conversion.)
- precision at t: fraction of the measured surface's samples with d < t; recall at t: the same for the true surface;
  F-score: 2 · precision · recall / (precision + recall). Source: Knapitsch et al. 2017, Tanks and Temples, section 5.

A true mesh may have invisible surfaces, e.g. where its parts overlap. `outer` leaves them out: a point is used if a ray
in at least one of 64 directions does not hit the mesh.

Lengths are in units of the bounding cube: the longest side of the true mesh's box is 1. Even for two equal surfaces, d
is about half the distance between samples, 0.5 · sqrt(area / number). `floor` is the Chamfer distance between two
samplings of the true surface.

Volumes are compared on a grid over the bounding cube of both meshes: the fraction of the voxels inside either mesh that
are inside both. A voxel is inside if its centre has a positive winding number, so that overlapping closed parts count
once. Both this and the distances of all surfaces, `surface_distance(..., outer=False)`, are the metrics of SyncDreamer
(arXiv:2309.03453): half the sum of the two mean nearest distances, in a unit box, and the IoU on a grid of 64^3.

Letters: N points, F faces, X Y Z voxels, C crossings of a face with a line of voxels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import trimesh
from scipy.spatial import cKDTree

from datasets.meshes.scene import RenderMesh
from pipelines.assets.texture import cover_texels
from utils.cameras import sphere_directions
from utils.errors import DataError

THRESHOLDS = (0.01, 0.02, 0.05)
NUM_DIRECTIONS = 64  # number of rays from a point, to test whether it is visible from outside
OFF_SURFACE = 1e-3  # start of a ray in units of the bounding cube; larger than the rounding error of its own triangle
# Voxel lines are shifted by this fraction of a voxel, so that they do not run through edges of regular meshes.
OFF_GRID = (0.00137, 0.00251)
CLOSE_POINTS = 1e-5  # in world units; closer points are one
MAX_DRAWS = 20  # maximum number of draws of points, to find enough outer points


@dataclass(frozen=True, kw_only=True)
class SurfaceDistance:
    """Distances of a measured surface to the true surface, as defined at the top of this file.

    Attributes:
        chamfer: mean of accuracy and completeness.
        accuracy: mean distance from the measured to the true surface.
        completeness: mean distance from the true to the measured surface.
        f_scores: F-score by threshold.
        floor: Chamfer distance between two samplings of the true surface.
    """

    chamfer: float
    accuracy: float
    completeness: float
    f_scores: dict[float, float]
    floor: float


def sample_surface(mesh: RenderMesh, *, num_points: int, seed: int) -> np.ndarray:
    """Draw points uniformly by area: (N, 3).

    Raises:
        DataError: the mesh has no area.
    """
    corners_F33 = mesh.points_F33.astype(np.float64)
    faces_F3 = np.arange(3 * len(corners_F33)).reshape(-1, 3)
    surface = trimesh.Trimesh(corners_F33.reshape(-1, 3), faces_F3, process=False)
    if not surface.area > 0:
        raise DataError("the mesh has no area, because all its triangles are degenerate; repair it")
    return np.asarray(trimesh.sample.sample_surface(surface, num_points, seed=seed)[0])


def sample_outer_surface(mesh: RenderMesh, *, num_points: int, seed: int) -> np.ndarray:
    """Draw points like `sample_surface`, but only on parts that are visible from outside.

    Raises:
        DataError: the mesh has no area, or almost nothing of it is visible.
    """
    found: list[np.ndarray] = []
    for number in range(MAX_DRAWS):
        points_N3 = sample_surface(mesh, num_points=num_points, seed=MAX_DRAWS * seed + number)
        found.append(points_N3[is_outer(mesh, points_N3)])
        if sum(map(len, found)) >= num_points:
            return np.concatenate(found)[:num_points]
    raise DataError(f"less than 1/{MAX_DRAWS} of the mesh is visible from outside; flip its normals, or repair it")


def is_outer(mesh: RenderMesh, points_N3: np.ndarray) -> np.ndarray:
    """Whether each point of the surface is visible from outside: (N,) bool."""
    from embreex.mesh_construction import TriangleMesh  # not needed by training machines
    from embreex.rtcore_scene import EmbreeScene

    points_F33 = np.ascontiguousarray(mesh.points_F33, dtype=np.float32)
    scene = EmbreeScene()
    geometry = TriangleMesh(
        scene, points_F33.reshape(-1, 3), np.arange(3 * len(points_F33), dtype=np.int32).reshape(-1, 3)
    )
    assert geometry is not None  # the variable keeps the geometry alive, because the scene does not
    step = OFF_SURFACE * float(np.ptp(mesh.bounds_23, axis=0).max())
    outer_N = np.zeros(len(points_N3), dtype=bool)
    for direction_3 in sphere_directions(NUM_DIRECTIONS).numpy():
        rest = np.flatnonzero(~outer_N)
        if not len(rest):
            break
        origins = (points_N3[rest] + step * direction_3).astype(np.float32)
        directions = np.broadcast_to(direction_3.astype(np.float32), origins.shape).copy()
        outer_N[rest] = scene.run(origins, directions) < 0
    return outer_N


def nearest_distances(made_N3: np.ndarray, true_N3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance of each measured point to the nearest true point, and the other way round."""
    return cKDTree(true_N3).query(made_N3)[0], cKDTree(made_N3).query(true_N3)[0]


def chamfer_distance(made_N3: np.ndarray, true_N3: np.ndarray) -> float:
    """Compute the Chamfer distance, the mean of both mean nearest distances, in the units of the points."""
    return float(np.mean([distances.mean() for distances in nearest_distances(made_N3, true_N3)]))


def volume_iou(made: RenderMesh, true: RenderMesh, *, grid: int = 64) -> float:
    """Compute the intersection over union of the volumes of two meshes, see the top of this file.

    Args:
        grid: voxels along each side of the cube.

    Raises:
        DataError: neither mesh encloses a voxel.
    """
    low_3 = np.minimum(made.bounds_23[0], true.bounds_23[0]).astype(np.float64)
    high_3 = np.maximum(made.bounds_23[1], true.bounds_23[1]).astype(np.float64)
    side = float((high_3 - low_3).max())
    corner_3 = (low_3 + high_3 - side) / 2
    first_XYZ, second_XYZ = (is_inside(mesh, corner_3, side=side, grid=grid) for mesh in (made, true))
    either = int((first_XYZ | second_XYZ).sum())
    if not either:
        raise DataError("the meshes enclose no volume; flip their normals, or repair them")
    return int((first_XYZ & second_XYZ).sum()) / either


def is_closed(mesh: RenderMesh) -> bool:
    """Whether the faces at each edge cancel: as many run along it in one direction as in the other.

    This holds for every union of closed parts, also where parts touch or intersect each other.
    """
    points_N3 = np.round(mesh.points_F33.reshape(-1, 3).astype(np.float64) / CLOSE_POINTS).astype(np.int64)
    _, corners_N = np.unique(points_N3, axis=0, return_inverse=True)
    faces_F3 = corners_N.reshape(-1, 3)
    edges_E2 = faces_F3[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    key_E = edges_E2.min(axis=1) * len(points_N3) + edges_E2.max(axis=1)
    _, edge_E = np.unique(key_E, return_inverse=True)
    return not np.bincount(edge_E, weights=np.sign(edges_E2[:, 1] - edges_E2[:, 0])).any()


def is_inside(mesh: RenderMesh, corner_3: np.ndarray, *, side: float, grid: int) -> np.ndarray:
    """Whether the centres of voxels lie inside a mesh: (X, Y, Z) bool.

    The winding number of a point is the number of faces above it that look up, minus those that look down.

    Args:
        corner_3: lowest corner of the cube.
        side: its length.
    """
    points_F33 = (mesh.points_F33.astype(np.float64) - corner_3) / side * grid
    points_F33[..., :2] += OFF_GRID
    covered = cover_texels(torch.from_numpy(points_F33[..., :2].copy()))
    columns_C2, faces_C, weights_C3 = (values.numpy() for values in covered)
    kept_C = (columns_C2 < grid).all(axis=1)
    columns_C2, faces_C, weights_C3 = columns_C2[kept_C], faces_C[kept_C], weights_C3[kept_C]
    height_C = (weights_C3 * points_F33[faces_C, :, 2]).sum(axis=1)
    across_F = np.cross(points_F33[:, 1] - points_F33[:, 0], points_F33[:, 2] - points_F33[:, 0])[:, 2]
    # a face at height h lies above the centres of the voxels 0 to ceil(h - 0.5) - 1
    below_C = np.ceil(height_C - 0.5).astype(np.int64).clip(0, grid)
    crossings_XYZ = np.zeros((grid, grid, grid + 1), dtype=np.int32)
    np.add.at(crossings_XYZ, (columns_C2[:, 0], columns_C2[:, 1], below_C), np.sign(across_F[faces_C]).astype(np.int32))
    winding_XYZ = crossings_XYZ[..., ::-1].cumsum(axis=2)[..., ::-1][..., 1:]
    return winding_XYZ > 0


def surface_distance(
    made: RenderMesh,
    true: RenderMesh,
    *,
    num_points: int = 100_000,
    thresholds: tuple[float, ...] = THRESHOLDS,
    seed: int = 0,
    outer: bool = False,
) -> SurfaceDistance:
    """Compare a mesh with the true mesh, without alignment.

    Args:
        num_points: number of samples of each surface.
        thresholds: distances of the F-score, in units of the true mesh's bounding cube.
        outer: use only the parts of the true mesh that are visible from outside.

    Raises:
        DataError: a mesh has no area.
    """
    draw = sample_outer_surface if outer else sample_surface
    side = float(np.ptp(true.bounds_23, axis=0).max())
    true_N3, again_N3 = (draw(true, num_points=num_points, seed=seed + number) for number in (0, 1))
    made_N3 = sample_surface(made, num_points=num_points, seed=seed + 2)
    to_true_N, to_made_N = (distances / side for distances in nearest_distances(made_N3, true_N3))
    f_scores = {}
    for threshold in thresholds:
        precision, recall = float((to_true_N < threshold).mean()), float((to_made_N < threshold).mean())
        f_scores[threshold] = 2 * precision * recall / max(precision + recall, 1e-12)
    return SurfaceDistance(
        chamfer=float(to_true_N.mean() + to_made_N.mean()) / 2,
        accuracy=float(to_true_N.mean()),
        completeness=float(to_made_N.mean()),
        f_scores=f_scores,
        floor=float(cKDTree(true_N3).query(again_N3)[0].mean()) / side,
    )
