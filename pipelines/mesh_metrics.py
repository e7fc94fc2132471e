"""How near two surfaces are: Chamfer distance and F-score.

Both surfaces are sampled uniformly by area. With d(p, S) the distance of a point to the nearest sample of S:

- completeness: mean of d over the samples of the true surface (how far the truth is from what was made);
- accuracy: mean of d over the samples of the made surface;
- Chamfer distance: their mean. (Others publish the sum, or squared distances; the parts are here to convert.)
- precision at t: share of the made surface's samples with d < t; recall at t: the same of the true one's; F-score:
  2 · precision · recall / (precision + recall). Source: Knapitsch et al. 2017, Tanks and Temples, section 5.

Lengths are in units of the bounding cube: the longest side of the true mesh's box is 1. Even two equal surfaces are
apart by about half the distance between samples, 0.5 · sqrt(area / number); `floor` is the same measure between two
samplings of the true surface.

Letters: N points, F faces.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from datasets.mesh_scene import RenderMesh
from utils.errors import DataError

THRESHOLDS = (0.01, 0.02, 0.05)


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
    a, b, c = mesh.points_F33.astype(np.float64).swapaxes(0, 1)
    area_F = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    if not area_F.sum() > 0:
        raise DataError("the mesh has no area: all its triangles are degenerate")
    generator = np.random.default_rng(seed)
    face_N = generator.choice(len(area_F), size=num_points, p=area_F / area_F.sum())
    root_N, share_N = np.sqrt(generator.random((num_points, 1))), generator.random((num_points, 1))
    return (1 - root_N) * a[face_N] + root_N * (1 - share_N) * b[face_N] + root_N * share_N * c[face_N]


def surface_distance(
    made: RenderMesh,
    true: RenderMesh,
    *,
    num_points: int = 100_000,
    thresholds: tuple[float, ...] = THRESHOLDS,
    seed: int = 0,
) -> SurfaceDistance:
    """Compare a mesh with the true one, where they stand: nothing is moved, turned or scaled to fit.

    Args:
        num_points: samples of each surface.
        thresholds: of the F-score, in sides of the true mesh's bounding cube.

    Raises:
        DataError: a mesh has no area.
    """
    side = float(np.ptp(true.bounds_23, axis=0).max())
    true_N3, again_N3 = (sample_surface(true, num_points=num_points, seed=seed + number) for number in (0, 1))
    made_N3 = sample_surface(made, num_points=num_points, seed=seed + 2)
    tree = cKDTree(true_N3)
    to_true_N = tree.query(made_N3)[0] / side
    to_made_N = cKDTree(made_N3).query(true_N3)[0] / side
    f_scores = {}
    for threshold in thresholds:
        precision, recall = float((to_true_N < threshold).mean()), float((to_made_N < threshold).mean())
        f_scores[threshold] = 2 * precision * recall / max(precision + recall, 1e-12)
    return SurfaceDistance(
        chamfer=float(to_true_N.mean() + to_made_N.mean()) / 2,
        accuracy=float(to_true_N.mean()),
        completeness=float(to_made_N.mean()),
        f_scores=f_scores,
        floor=float(tree.query(again_N3)[0].mean()) / side,
    )
