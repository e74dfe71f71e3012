"""The map with a thousand, a hundred thousand and a million questions: what the server does for a person, in seconds.

open: read the points and draw the figure, as the browser gets it. zoom: draw it from nearer. recolour: draw it by
task. lasso: find the four fifths of the points inside an outline of 200 corners, their ids and how many there are of
each task, cluster and skill. label: give them one skill, on disk and in the database. figure_bytes: what goes to the
browser; memory_mb: of the whole process in the end, less what it had before it opened the workspace.
"""

import gc
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
from timing import parse_options, report

from metamoe_backend.figures.maps import assign_colours, colour_by_group, find_extent, make_map_figure
from metamoe_backend.skills.selection import find_points_in_polygon
from metamoe_backend.store.acts import undo
from metamoe_backend.store.connection import Store
from metamoe_backend.store.maps import fetch_clusters, fetch_map_points, fetch_newest_map_id
from metamoe_backend.store.skills import find_or_create_skill, label_questions
from metamoe_backend.workspace import Workspace
from tests.synthetic import build_map_workspace

SIZES, QUICK_SIZES, ROUNDS = (1_000, 100_000, 1_000_000), (1_000, 100_000), 3
SHARE = 0.8
Figures = dict[str, list[float]]


def measure(folder: str) -> Figures:
    """One list a figure, one entry a round, on the workspace in `folder`."""
    process = psutil.Process()
    before = process.memory_info().rss
    figures: Figures = {}

    def timed(name: str, call: Callable[[], object]) -> object:
        start = time.perf_counter()
        result = call()
        figures.setdefault(f"{name}_s", []).append(time.perf_counter() - start)
        return result

    with Store.open(Workspace(Path(folder))) as store:
        map_id = fetch_newest_map_id(store)
        assert map_id is not None
        skill = find_or_create_skill(store, "deduction", "ana")
        for _ in range(ROUNDS):

            def open_map() -> tuple:
                points, clusters = fetch_map_points(store, map_id), fetch_clusters(store, map_id)
                return points, clusters, draw(points, "cluster", None)

            points, _clusters, text = timed("open", open_map)
            figures.setdefault("figure_bytes", []).append(len(text))
            left, right, low, high = find_extent(points)
            near = (
                left + (right - left) / 4,
                right - (right - left) / 4,
                low + (high - low) / 4,
                high - (high - low) / 4,
            )
            timed("zoom", lambda points=points, near=near: draw(points, "cluster", near))
            timed("recolour", lambda points=points: draw(points, "task", None))
            ids = timed("lasso", lambda points=points: select(points, make_outline(points)))
            event = timed("label", lambda ids=ids: label_questions(store, skill, ids, "ana", "lasso"))
            undo(store, event, "ana")
        del points, text, ids
        gc.collect()
        figures["memory_mb"] = [(process.memory_info().rss - before) / 1e6]
    return figures


def draw(points, by: str, camera: tuple | None) -> str:
    """The figure as text, as it goes to the browser."""
    group = points[by].astype(str)
    return make_map_figure(
        points, colour_by_group(group, assign_colours(sorted(group.unique()))), camera=camera
    ).to_json()


def make_outline(points) -> list[tuple[float, float]]:
    """200 corners round the middle of the map, about SHARE of the points inside."""
    middle = points[["x", "y"]].median().to_numpy()
    radius = float(np.quantile(np.hypot(*(points[["x", "y"]].to_numpy() - middle).T), SHARE))
    angles = np.arange(200) * 2 * np.pi / 200
    return list(zip(middle[0] + radius * np.cos(angles), middle[1] + radius * np.sin(angles), strict=True))


def select(points, outline: list[tuple[float, float]]) -> list[str]:
    """Ids of the questions inside, after they were counted."""
    rows = points.take(find_points_in_polygon(points["x"], points["y"], outline))
    for kind in ("task", "cluster", "skill"):
        rows[kind].value_counts()
    return rows["question_id"].tolist()


def main() -> None:
    """Each size in a process of its own, so that memory is that size's."""
    options = parse_options(__doc__ or "")
    figures = {}
    for n in QUICK_SIZES if options.quick else SIZES:
        with tempfile.TemporaryDirectory() as folder:
            build_map_workspace(Path(folder) / "many", n)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                measured = pool.apply(measure, [str(Path(folder) / "many")])
        for name, values in measured.items():
            summary = {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}
            figures[f"{n:_}_points_{name}"] = summary
    report(figures, options)


if __name__ == "__main__":
    main()
