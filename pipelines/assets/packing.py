"""Pack charts into a square texture: they fall one after another, the tallest first, onto the ones below.

Each chart is described by its lowest and highest texel in every column, so that it can lie in a hollow of the skyline
(Levy et al. 2002, "Least squares conformal maps", section 4).

Letters: N points, F faces, K charts, C columns.
"""

from __future__ import annotations

import numpy as np

from utils.errors import DataError

PADDING = 2  # number of texels between charts
ATTEMPTS, ENOUGH = 20, 4  # scales that are tried in all, and from the first one on that fits
CLOSE = 0.97  # a packing that fills this fraction of the height is good enough, and so is a scale that near to the best
LEAP = 3.0  # largest factor between two scales


def pack(flat_N2: np.ndarray, faces_F3: np.ndarray, chart_N: np.ndarray, *, size: int, scale: float) -> np.ndarray:
    """Place charts in a square, all with the same scale, which is as large as possible.

    Args:
        flat_N2: the points of the charts, each chart somewhere in the plane.
        chart_N: chart of each point, ascending from 0.
        size: side of the square in texels.
        scale: texels per unit that is tried first.

    Returns:
        (N, 2) in texels.

    Raises:
        DataError: the charts do not fit at any scale, because there are too many of them.
    """
    starts_K = np.flatnonzero(np.concatenate([[True], chart_N[1:] != chart_N[:-1]]))
    flat_N2 = flat_N2 - np.minimum.reduceat(flat_N2, starts_K, axis=0)[chart_N]
    edges_E2 = np.unique(np.sort(faces_F3[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1), axis=0)
    fitting, low, high = None, 0.0, np.inf  # the largest scale that fits, the smallest that does not
    more = ENOUGH
    for _ in range(ATTEMPTS):
        placed_K2, height = _fallen(scale * flat_N2, edges_E2, chart_N, size=size)
        if height > size:
            high = scale
        else:
            fitting, low = scale * flat_N2 + placed_K2[chart_N], scale
        more -= fitting is not None
        if CLOSE * size <= height <= size or high < low / CLOSE or not more:
            break
        guess = scale * float(np.clip(np.sqrt(size / height), 1 / LEAP, LEAP))
        guess = guess if height <= size else min(guess, CLOSE * scale)
        scale = guess if low < guess < high else (low + high) / 2
    if fitting is None:
        raise DataError(f"the mesh does not fit one texture of {size} pixels; increase assets.texture, or set it to 0")
    return fitting


def _fallen(flat_N2: np.ndarray, edges_E2: np.ndarray, chart_N: np.ndarray, *, size: int) -> tuple[np.ndarray, float]:
    """Let the charts fall; returns where each has its lower left corner (K, 2), and the height of the pile.

    If a chart is wider than the square, the height is only a number that is too large.
    """
    widths_K, low_C, high_C = outlines(flat_N2, edges_E2, chart_N)
    if widths_K.max() > size:
        return np.zeros((len(widths_K), 2)), 4.0 * size
    ends_K = np.cumsum(widths_K)
    tall_K = np.maximum.reduceat(high_C, ends_K - widths_K)
    skyline_C = np.zeros(size)
    placed_K2 = np.empty((len(widths_K), 2))
    for chart in np.lexsort((-widths_K, -tall_K)):
        width, within = widths_K[chart], slice(ends_K[chart] - widths_K[chart], ends_K[chart])
        low, high = low_C[within], high_C[within]
        # the chart's columns beside each other, at every place: as a sliding window, but without its checks
        beside = np.ndarray((width, size - width + 1), skyline_C.dtype, skyline_C, strides=2 * skyline_C.strides)
        rests = (beside - low[:, None]).max(axis=0)
        column = int(rests.argmin())
        placed_K2[chart] = column + PADDING / 2, rests[column]
        skyline_C[column : column + width] = np.maximum(skyline_C[column : column + width], rests[column] + high)
    return placed_K2, float(skyline_C.max())


def outlines(
    flat_N2: np.ndarray, edges_E2: np.ndarray, chart_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the number of columns of each chart, and in each of its columns the lowest and highest place.

    Half the padding is on each side: the first column of a chart begins PADDING / 2 before its first point.
    """
    reach = PADDING / 2
    widths_K = np.ones(chart_N[-1] + 1, dtype=np.int64)
    np.maximum.at(widths_K, chart_N, np.ceil(flat_N2[:, 0] + 2 * reach).astype(np.int64))
    first_K = np.cumsum(widths_K) - widths_K
    ends_E22 = flat_N2[edges_E2]
    ends_E22 = np.take_along_axis(ends_E22, ends_E22[..., :1].argsort(axis=1), axis=1)
    (left_E, left_v_E), (right_E, right_v_E) = ends_E22[:, 0].T, ends_E22[:, 1].T
    # an edge touches the columns up to `reach` beside it
    from_E = np.floor(left_E).astype(np.int64)
    count_E = np.ceil(right_E + 2 * reach).astype(np.int64).clip(min=from_E + 1) - from_E
    edge_C = np.repeat(np.arange(len(count_E)), count_E)
    column_C = np.arange(len(edge_C)) - np.repeat(np.cumsum(count_E) - count_E, count_E) + from_E[edge_C]
    slope_E = (right_v_E - left_v_E) / np.maximum(right_E - left_E, 1e-9)
    at = [
        left_v_E[edge_C] + slope_E[edge_C] * (np.clip(place_C, left_E[edge_C], right_E[edge_C]) - left_E[edge_C])
        for place_C in (column_C - 2 * reach, column_C + 1)
    ]
    index_C = first_K[chart_N[edges_E2[edge_C, 0]]] + column_C
    low_C, high_C = np.full(widths_K.sum(), np.inf), np.full(widths_K.sum(), -np.inf)
    np.minimum.at(low_C, index_C, np.minimum(*at) - reach)
    np.maximum.at(high_C, index_C, np.maximum(*at) + reach)
    return widths_K, low_C, high_C
