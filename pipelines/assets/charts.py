"""Cut a mesh into charts, which are flat pieces of a texture.

A chart is a connected piece of the surface that looks towards one of six directions, and is projected along its mean
normal. A projection stretches less than 1 / STEEP, and needs no optimisation, so that it is fast. A chart that covers
itself, for example a spiral, is peeled into layers.

Letters: N points, F faces, E pairs of faces that share an edge, K charts.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipelines.assets.packing import pack
from pipelines.assets.texels import cover_texels
from utils.errors import DataError

DIRECTIONS_63 = np.concatenate([np.eye(3), -np.eye(3)])
STEEP = 0.3  # least cosine between the normal of a face and the direction of its chart
SMOOTHING_ROUNDS = 4  # averages of normals with those of the neighbours, so that noise does not scatter faces
SMALL_CHART = 0.003  # fraction of the surface; smaller charts join a neighbour if their faces allow it
MERGE_ROUNDS = 4
NUM_TURNS = 16  # turns within a quarter that are tried to find the smallest rectangle of a chart
OVERLAP_TEXELS = 2.0  # cells of this size are tested for faces that cover each other
FILLED = 0.6  # estimated fraction of a texture that charts fill
SAME_DEPTH = 1e-6  # fraction of the object's size; a shared edge has the same depth in both faces


def unfold(
    points_N3: np.ndarray, faces_F3: np.ndarray, *, size: int, device: torch.device | str = "cpu"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut a mesh into charts and pack them into a square texture.

    Args:
        size: side of the texture in texels.
        device: where overlaps are searched.

    Returns:
        source_N, the original index of each point; the faces (F, 3) with indices of these points; and uvs_N2 in [0, 1].

    Raises:
        DataError: the charts do not fit.
    """
    corners_F33 = points_N3[faces_F3].astype(np.float64)
    crossed_F3 = np.cross(corners_F33[:, 1] - corners_F33[:, 0], corners_F33[:, 2] - corners_F33[:, 0])
    doubled_F = np.linalg.norm(crossed_F3, axis=1)
    if not doubled_F.any():
        raise DataError("the mesh has no area, so it cannot have a texture; set assets.texture to 0")
    normals_F3 = crossed_F3 / np.maximum(doubled_F, 1e-30)[:, None]
    pairs_E2, lengths_E = neighbours(points_N3, faces_F3)
    label_F = towards(normals_F3, doubled_F, pairs_E2, lengths_E)
    texel = np.sqrt(0.5 * doubled_F.sum() / (FILLED * size**2))
    chart_F, flat_F32 = flattened(
        corners_F33, normals_F3, doubled_F, pairs_E2, label_F, cell=OVERLAP_TEXELS * texel, device=device
    )
    keys, cut_F3 = np.unique(chart_F[:, None] * len(points_N3) + faces_F3, return_inverse=True)
    cut_F3 = cut_F3.reshape(-1, 3)
    flat_N2 = np.empty((len(keys), 2))
    flat_N2[cut_F3] = flat_F32
    chart_N = keys // len(points_N3)
    flat_N2 = turned(flat_N2, chart_N)
    return keys % len(points_N3), cut_F3, pack(flat_N2, cut_F3, chart_N, size=size, scale=1 / texel) / size


def neighbours(points_N3: np.ndarray, faces_F3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs of faces that share an edge (E, 2), and the lengths of these edges."""
    edges_E2 = np.sort(faces_F3[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    key_E = edges_E2[:, 0] * len(points_N3) + edges_E2[:, 1]
    order_E = np.argsort(key_E, kind="stable")
    same = np.flatnonzero(key_E[order_E][1:] == key_E[order_E][:-1])
    first_E, second_E = order_E[same], order_E[same + 1]
    ends_E23 = points_N3[edges_E2[first_E]]
    return np.stack([first_E, second_E], axis=1) // 3, np.linalg.norm(ends_E23[:, 0] - ends_E23[:, 1], axis=1)


def towards(normals_F3: np.ndarray, weight_F: np.ndarray, pairs_E2: np.ndarray, lengths_E: np.ndarray) -> np.ndarray:
    """Choose one of DIRECTIONS_63 for each face, the same for faces beside each other where possible: (F,)."""
    smooth_F3 = normals_F3 * weight_F[:, None]
    both = np.concatenate([pairs_E2, pairs_E2[:, ::-1]])
    links = coo_array((np.ones(len(both)), (both[:, 0], both[:, 1])), shape=(len(normals_F3),) * 2).tocsr()
    for _ in range(SMOOTHING_ROUNDS):
        smooth_F3 = smooth_F3 + links @ smooth_F3
    cosines_F6 = normals_F3 @ DIRECTIONS_63.T
    label_F = np.where(cosines_F6 < STEEP, -np.inf, smooth_F3 @ DIRECTIONS_63.T).argmax(axis=1)
    for _ in range(MERGE_ROUNDS):
        chart_F = _connected(pairs_E2, label_F)
        num_charts = chart_F.max() + 1
        area_K = np.bincount(chart_F, weights=weight_F)
        steepest_K6 = np.full((num_charts, 6), np.inf)
        np.minimum.at(steepest_K6, chart_F, cosines_F6)
        inner_E, outer_E = chart_F[both].T
        joins_E = (area_K[inner_E] < SMALL_CHART * weight_F.sum()) & (area_K[outer_E] > area_K[inner_E])
        votes_K6 = np.zeros((num_charts, 6))
        np.add.at(votes_K6, (inner_E[joins_E], label_F[both[joins_E, 1]]), np.tile(lengths_E, 2)[joins_E])
        votes_K6[steepest_K6 < STEEP] = 0
        moved_K = votes_K6.max(axis=1) > 0
        if not moved_K.any():
            break
        label_F = np.where(moved_K[chart_F], votes_K6.argmax(axis=1)[chart_F], label_F)
    return label_F


def flattened(
    corners_F33: np.ndarray,
    normals_F3: np.ndarray,
    weight_F: np.ndarray,
    pairs_E2: np.ndarray,
    label_F: np.ndarray,
    *,
    cell: float,
    device: torch.device | str,
) -> tuple[np.ndarray, np.ndarray]:
    """Project the charts of labelled faces, each along its own direction; no chart covers itself.

    Args:
        cell: faces that cover each other are found if they share the middle of a cell of this size.
        device: where they are searched.

    Returns:
        chart_F and the corners (F, 3, 2) in world units, each chart somewhere in the plane.
    """
    least = SAME_DEPTH * np.ptp(corners_F33.reshape(-1, 3), axis=0).max()
    while True:
        chart_F = _connected(pairs_E2, label_F)
        axes_F33 = _frames(normals_F3, weight_F, chart_F, DIRECTIONS_63[label_F % 6])[chart_F]
        flat_F33 = np.einsum("fij,fkj->fki", axes_F33, corners_F33)
        hidden = _covered(flat_F33, chart_F, cell=cell, least=least, device=device)
        if not len(hidden):
            return chart_F, flat_F33[..., :2]
        # a layer below is another label; every round leaves one layer less to separate
        label_F = label_F.copy()
        label_F[hidden] += 6


def _connected(pairs_E2: np.ndarray, label_F: np.ndarray) -> np.ndarray:
    """Number the connected pieces of faces with the same label."""
    kept_E2 = pairs_E2[label_F[pairs_E2[:, 0]] == label_F[pairs_E2[:, 1]]]
    links = coo_array((np.ones(len(kept_E2)), (kept_E2[:, 0], kept_E2[:, 1])), shape=(len(label_F),) * 2)
    return connected_components(links, directed=False)[1].astype(np.int64)


def _frames(normals_F3: np.ndarray, weight_F: np.ndarray, chart_F: np.ndarray, labelled_F3: np.ndarray) -> np.ndarray:
    """Return two axes in the plane of each chart, and its normal: (K, 3, 3), one axis per row."""
    normal_K3 = np.stack([np.bincount(chart_F, weights=weight_F * normals_F3[:, k]) for k in range(3)], axis=1)
    normal_K3 /= np.maximum(np.linalg.norm(normal_K3, axis=1, keepdims=True), 1e-30)
    steepest_K = np.full(len(normal_K3), np.inf)
    np.minimum.at(steepest_K, chart_F, (normals_F3 * normal_K3[chart_F]).sum(axis=1))
    labelled_K3 = np.empty_like(normal_K3)
    labelled_K3[chart_F] = labelled_F3
    normal_K3 = np.where(steepest_K[:, None] < STEEP, labelled_K3, normal_K3)
    helper_K3 = np.eye(3)[np.abs(normal_K3).argmin(axis=1)]
    first_K3 = np.cross(helper_K3, normal_K3)
    first_K3 /= np.linalg.norm(first_K3, axis=1, keepdims=True)
    return np.stack([first_K3, np.cross(normal_K3, first_K3), normal_K3], axis=1)


def _covered(
    flat_F33: np.ndarray, chart_F: np.ndarray, *, cell: float, least: float, device: torch.device | str
) -> np.ndarray:
    """Find faces that lie below another face of their chart; two of the others never share a cell.

    Args:
        flat_F33: corners, with the height above the plane of the chart last.
        least: smaller differences of height are the same place.
    """
    num_charts = chart_F.max() + 1
    low_K2, high_K2 = np.full((num_charts, 2), np.inf), np.full((num_charts, 2), -np.inf)
    np.minimum.at(low_K2, chart_F, flat_F33[..., :2].min(axis=1))
    np.maximum.at(high_K2, chart_F, flat_F33[..., :2].max(axis=1))
    width_K = np.ceil((high_K2 - low_K2)[:, 0] / cell) + 1
    shift_K2 = np.stack([np.cumsum(width_K) - width_K, np.zeros(num_charts)], axis=1)  # side by side
    cells_F32 = (flat_F33[..., :2] - low_K2[chart_F, None]) / cell + shift_K2[chart_F, None]
    cells_T2, faces_T, weights_T3 = cover_texels(torch.from_numpy(cells_F32).to(device))
    height_T = (weights_T3 * torch.from_numpy(flat_F33[..., 2]).to(device)[faces_T]).sum(dim=1)
    cell_T = cells_T2[:, 1] * int(width_K.sum() + 1) + cells_T2[:, 0]
    top = torch.full((int(cell_T.max()) + 1 if len(cell_T) else 0,), -torch.inf, dtype=height_T.dtype, device=device)
    top.scatter_reduce_(0, cell_T, height_T, "amax")
    return faces_T[top[cell_T] - height_T > least].unique().cpu().numpy()


def turned(flat_N2: np.ndarray, chart_N: np.ndarray) -> np.ndarray:
    """Turn each chart so that its rectangle is small and upright.

    Args:
        chart_N: ascending.
    """
    starts_K = np.flatnonzero(np.concatenate([[True], chart_N[1:] != chart_N[:-1]]))
    best_K, angle_K = np.full(len(starts_K), np.inf), np.zeros(len(starts_K))
    for angle in np.linspace(0, np.pi / 2, NUM_TURNS, endpoint=False):
        width_K, height_K = _extent(_turn(flat_N2, np.full(len(flat_N2), angle)), starts_K).T
        area_K = width_K * height_K
        angle_K = np.where(area_K < best_K, angle + np.where(width_K > height_K, np.pi / 2, 0), angle_K)
        best_K = np.minimum(best_K, area_K)
    return _turn(flat_N2, angle_K[np.cumsum(np.isin(np.arange(len(chart_N)), starts_K)) - 1])


def _turn(flat_N2: np.ndarray, angle_N: np.ndarray) -> np.ndarray:
    cosine_N, sine_N = np.cos(angle_N), np.sin(angle_N)
    x_N, y_N = flat_N2.T
    return np.stack([cosine_N * x_N - sine_N * y_N, sine_N * x_N + cosine_N * y_N], axis=1)


def _extent(flat_N2: np.ndarray, starts_K: np.ndarray) -> np.ndarray:
    return np.maximum.reduceat(flat_N2, starts_K, axis=0) - np.minimum.reduceat(flat_N2, starts_K, axis=0)
