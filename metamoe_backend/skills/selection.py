"""Which points of a map a person has drawn round."""

from collections.abc import Sequence

import numpy as np


def find_points_in_polygon(
    xs: Sequence[float] | np.ndarray, ys: Sequence[float] | np.ndarray, polygon: Sequence[tuple[float, float]]
) -> np.ndarray:
    """Row numbers [k], ascending, of the points (xs [n], ys [n]) inside `polygon` [vertices, 2].

    The polygon closes itself. Where it crosses itself, the even-odd rule says what is inside (Shimrat 1962: a ray to
    the right meets the outline an odd number of times). Fewer than three vertices hold nothing; neither do points
    without a place (NaN).
    """
    x, y = np.asarray(xs, dtype=float), np.asarray(ys, dtype=float)
    corners = np.asarray(polygon, dtype=float).reshape(-1, 2)
    inside = np.zeros(len(x), dtype=bool)
    if len(corners) < 3:
        return np.flatnonzero(inside)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if y0 == y1:
            continue  # a level edge is never crossed by a level ray
        crossed = ((y0 > y) != (y1 > y)) & (x < x0 + (x1 - x0) * (y - y0) / (y1 - y0))
        inside ^= crossed
    return np.flatnonzero(inside)


def make_box(xs: Sequence[float], ys: Sequence[float]) -> list[tuple[float, float]]:
    """The polygon of a box given by two opposite corners: xs and ys hold two numbers each."""
    left, right = min(xs), max(xs)
    low, high = min(ys), max(ys)
    return [(left, low), (right, low), (right, high), (left, high)]
