"""Which points of a map a person has drawn round."""

from collections.abc import Sequence

import numpy as np


def find_points_in_polygon(
    xs: Sequence[float] | np.ndarray, ys: Sequence[float] | np.ndarray, polygon: Sequence[tuple[float, float]]
) -> np.ndarray:
    """Row numbers [k], ascending, of the points (xs [n], ys [n]) inside `polygon` [vertices, 2].

    The polygon closes itself. Where it crosses itself, the even-odd rule says what is inside (Shimrat 1962: a ray to
    the right meets the outline an odd number of times). Fewer than three vertices hold nothing; neither do points
    without a place (NaN). Points are sorted by height once, so that each edge looks only at the points beside it: the
    cost grows with the points times how often a level line meets the outline, not with the points times the vertices.
    """
    corners = np.asarray(polygon, dtype=float).reshape(-1, 2)
    if len(corners) < 3:
        return np.empty(0, dtype=np.intp)
    rows = _find_points_in_box(xs, ys, corners)
    y = np.asarray(ys, dtype=float)[rows]
    order = np.argsort(y, kind="stable")
    rows, y = rows[order], y[order]
    x = np.asarray(xs, dtype=float)[rows]
    inside = np.zeros(len(rows), dtype=bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if y0 == y1:
            continue  # a level edge is never crossed by a level ray
        beside = slice(*np.searchsorted(y, [min(y0, y1), max(y0, y1)]))
        inside[beside] ^= x[beside] < x0 + (x1 - x0) * (y[beside] - y0) / (y1 - y0)
    return np.sort(rows[inside])


def _find_points_in_box(
    xs: Sequence[float] | np.ndarray, ys: Sequence[float] | np.ndarray, corners: np.ndarray
) -> np.ndarray:
    x, y = np.asarray(xs), np.asarray(ys)
    (left, low), (right, high) = corners.min(axis=0), corners.max(axis=0)
    return np.flatnonzero((x >= left) & (x <= right) & (y >= low) & (y <= high))


def find_nearest_point(
    xs: Sequence[float] | np.ndarray, ys: Sequence[float] | np.ndarray, x: float, y: float, reach: float
) -> int | None:
    """Row number of the point nearest to (x, y), None where none lies within `reach`."""
    if not len(xs):
        return None
    squared = (np.asarray(xs, dtype=float) - x) ** 2 + (np.asarray(ys, dtype=float) - y) ** 2
    row = int(np.argmin(np.where(np.isnan(squared), np.inf, squared)))
    return row if squared[row] <= reach**2 else None


def make_box(xs: Sequence[float], ys: Sequence[float]) -> list[tuple[float, float]]:
    """The polygon of a box given by two opposite corners: xs and ys hold two numbers each."""
    left, right = min(xs), max(xs)
    low, high = min(ys), max(ys)
    return [(left, low), (right, low), (right, high), (left, high)]
