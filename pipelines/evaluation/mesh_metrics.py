"""How near two surfaces are: Chamfer distance and F-score.

Both surfaces are sampled uniformly by area. With d(p, S) the distance of a point to the nearest sample of S:

- completeness: mean of d over the samples of the true surface (how far the truth is from what was made);
- accuracy: mean of d over the samples of the made surface;
- Chamfer distance: their mean. (Others publish the sum, or squared distances; the parts are here to convert.)
- precision at t: share of the made surface's samples with d < t; recall at t: the same of the true one's; F-score:
  2 · precision · recall / (precision + recall). Source: Knapitsch et al. 2017, Tanks and Temples, section 5.

A true mesh may have surfaces that nobody can see, e.g. of parts that reach into each other; `outer` leaves them out: a
point counts when some of 64 directions leads from it into the open.

Lengths are in units of the bounding cube: the longest side of the true mesh's box is 1. Even two equal surfaces are
apart by about half the distance between samples, 0.5 · sqrt(area / number); `floor` is the same measure between two
samplings of the true surface.

Letters: N points, F faces.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import trimesh
from scipy.spatial import cKDTree

from datasets.meshes.scene import RenderMesh
from utils.cameras import sphere_directions
from utils.errors import DataError

THRESHOLDS = (0.01, 0.02, 0.05)
NUM_DIRECTIONS = 64  # in which an outer point is looked for a way into the open
OFF_SURFACE = 1e-3  # where a ray begins, in sides of the bounding cube: beyond the rounding of its own triangle
MAX_DRAWS = 20  # of points, until there are enough outer ones


@dataclass(frozen=True, kw_only=True)
class SurfaceDistance:
    """See the head of this file.

    Attributes:
        chamfer: mean of accuracy and completeness.
        accuracy: made to true.
        completeness: true to made.
        f_scores: threshold -> F-score.
        floor: Chamfer distance between two samplings of the true surface.
    """

    chamfer: float
    accuracy: float
    completeness: float
    f_scores: dict[float, float]
    floor: float


def sample_surface(mesh: RenderMesh, *, num_points: int, seed: int) -> np.ndarray:
    """Points spread uniformly by area: (N, 3).

    Raises:
        DataError: the mesh has no area.
    """
    corners_F33 = mesh.points_F33.astype(np.float64)
    faces_F3 = np.arange(3 * len(corners_F33)).reshape(-1, 3)
    surface = trimesh.Trimesh(corners_F33.reshape(-1, 3), faces_F3, process=False)
    if not surface.area > 0:
        raise DataError("the mesh has no area: all its triangles are degenerate")
    return np.asarray(trimesh.sample.sample_surface(surface, num_points, seed=seed)[0])


def sample_outer_surface(mesh: RenderMesh, *, num_points: int, seed: int) -> np.ndarray:
    """As `sample_surface`, but of what can be seen from outside.

    Raises:
        DataError: the mesh has no area, or hardly any of it can be seen.
    """
    found: list[np.ndarray] = []
    for number in range(MAX_DRAWS):
        points_N3 = sample_surface(mesh, num_points=num_points, seed=MAX_DRAWS * seed + number)
        found.append(points_N3[is_outer(mesh, points_N3)])
        if sum(map(len, found)) >= num_points:
            return np.concatenate(found)[:num_points]
    raise DataError(f"under 1/{MAX_DRAWS} of the mesh can be seen from outside; flip its normals, or repair it")


def is_outer(mesh: RenderMesh, points_N3: np.ndarray) -> np.ndarray:
    """Whether a straight line leads from each point of the surface into the open: (N,) bool."""
    from embreex.mesh_construction import TriangleMesh  # not needed by training machines
    from embreex.rtcore_scene import EmbreeScene

    points_F33 = np.ascontiguousarray(mesh.points_F33, dtype=np.float32)
    scene = EmbreeScene()
    geometry = TriangleMesh(
        scene, points_F33.reshape(-1, 3), np.arange(3 * len(points_F33), dtype=np.int32).reshape(-1, 3)
    )
    assert geometry is not None  # the scene does not keep it alive
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
    """Distance of each made point to the nearest true one, and of each true point to the nearest made one."""
    return cKDTree(true_N3).query(made_N3)[0], cKDTree(made_N3).query(true_N3)[0]


def chamfer_distance(made_N3: np.ndarray, true_N3: np.ndarray) -> float:
    """The mean of both mean nearest distances, in the points' units."""
    return float(np.mean([distances.mean() for distances in nearest_distances(made_N3, true_N3)]))


def surface_distance(
    made: RenderMesh,
    true: RenderMesh,
    *,
    num_points: int = 100_000,
    thresholds: tuple[float, ...] = THRESHOLDS,
    seed: int = 0,
    outer: bool = False,
) -> SurfaceDistance:
    """Compare a mesh with the true one, where they stand: nothing is moved, turned or scaled to fit.

    Args:
        num_points: samples of each surface.
        thresholds: of the F-score, in sides of the true mesh's bounding cube.
        outer: compare with what of the true mesh can be seen from outside.

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
