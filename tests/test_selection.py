"""A lasso holds exactly the points that lie inside it."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from metamoe_backend.skills.selection import find_nearest_point, find_points_in_polygon, make_box

numbers = st.floats(-10, 10, allow_nan=False)
clouds = st.lists(st.tuples(numbers, numbers), min_size=1, max_size=60).map(np.array)


def test_concave_polygon_leaves_its_notch_out() -> None:
    letter_u = [(0, 0), (3, 0), (3, 3), (2, 3), (2, 1), (1, 1), (1, 3), (0, 3)]
    xs, ys = [0.5, 1.5, 2.5, 1.5, 5], [2, 2, 2, 0.5, 1]
    assert find_points_in_polygon(xs, ys, letter_u).tolist() == [0, 2, 3]


def test_even_odd_where_the_lasso_crosses_itself() -> None:
    pentagram = [(np.cos(a), np.sin(a)) for a in np.pi / 2 + np.arange(5) * 4 * np.pi / 5]
    assert find_points_in_polygon([0.0, 0.0], [0.0, 0.8], pentagram).tolist() == [1]


def test_degenerate_polygons_and_missing_places_hold_nothing() -> None:
    assert not len(find_points_in_polygon([0.0], [0.0], []))
    assert not len(find_points_in_polygon([0.0], [0.0], [(-1, -1), (1, 1)]))
    assert not len(find_points_in_polygon([0.0], [0.0], [(-1, 0), (0, 0), (1, 0)]))
    assert find_points_in_polygon([np.nan, 0.0], [0.0, 0.0], make_box([-1, 1], [-1, 1])).tolist() == [1]
    assert not len(find_points_in_polygon([], [], make_box([-1, 1], [-1, 1])))


@settings(deadline=None)
@given(clouds, st.tuples(numbers, numbers), st.tuples(numbers, numbers))
def test_box_is_two_comparisons(cloud: np.ndarray, one: tuple[float, float], other: tuple[float, float]) -> None:
    xs, ys = [one[0], other[0]], [one[1], other[1]]
    inside = (min(xs) < cloud[:, 0]) & (cloud[:, 0] < max(xs)) & (min(ys) < cloud[:, 1]) & (cloud[:, 1] < max(ys))
    edge = np.isin(cloud[:, 0], xs) | np.isin(cloud[:, 1], ys)
    found = np.zeros(len(cloud), dtype=bool)
    found[find_points_in_polygon(cloud[:, 0], cloud[:, 1], make_box(xs, ys))] = True
    assert (found == inside)[~edge].all()


@settings(deadline=None)
@given(clouds, st.integers(3, 40), st.booleans())
def test_circle_is_a_distance_whichever_way_it_is_drawn(cloud: np.ndarray, half: int, backwards: bool) -> None:
    corners = 2 * half
    angles = np.arange(corners) * 2 * np.pi / corners
    circle = np.column_stack([5 * np.cos(angles), 5 * np.sin(angles)])[:: -1 if backwards else 1]
    found = set(find_points_in_polygon(cloud[:, 0], cloud[:, 1], circle).tolist())
    distance = np.hypot(cloud[:, 0], cloud[:, 1])
    inner = 5 * np.cos(np.pi / corners)
    assert set(np.flatnonzero(distance < inner - 1e-9)) <= found <= set(np.flatnonzero(distance <= 5 + 1e-9))


@settings(deadline=None)
@given(clouds, st.lists(st.tuples(numbers, numbers), min_size=3, max_size=12))
def test_any_polygon_agrees_with_counting_the_edges_to_the_right(
    cloud: np.ndarray, polygon: list[tuple[float, float]]
) -> None:
    cloud = np.vstack([cloud, polygon])  # corners are points too
    crossings = np.zeros(len(cloud), dtype=int)
    for (x0, y0), (x1, y1) in zip(polygon, [*polygon[1:], polygon[0]], strict=True):
        for row, (x, y) in enumerate(cloud):
            crossings[row] += (y0 > y) != (y1 > y) and x < x0 + (x1 - x0) * (y - y0) / (y1 - y0)
    found = find_points_in_polygon(cloud[:, 0], cloud[:, 1], polygon)
    assert found.tolist() == np.flatnonzero(crossings % 2).tolist()


def test_the_nearest_point_is_found_within_reach_only() -> None:
    xs, ys = [0.0, 1.0, np.nan], [0.0, 0.0, 0.0]
    assert find_nearest_point(xs, ys, 0.8, 0.1, 0.5) == 1
    assert find_nearest_point(xs, ys, 0.8, 3.0, 0.5) is None
    assert find_nearest_point([], [], 0.0, 0.0, 1.0) is None
