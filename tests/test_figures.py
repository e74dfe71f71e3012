"""Figures are pure functions of tables: nothing is lost, and text from data cannot carry markup."""

import base64
import io

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from metamoe_backend.experts.similarity import grow_tree
from metamoe_backend.figures.experts import make_choice_figure, make_likeness_figure
from metamoe_backend.figures.maps import colour_by_group, colour_by_value, fits_beside, make_map_figure, mark_point
from metamoe_backend.figures.outcomes import make_intersections_figure, make_outcomes_figure, make_solvers_figure
from metamoe_backend.figures.raster import draw_points
from metamoe_backend.figures.results import make_difference_figure, make_sequence_figure
from metamoe_backend.figures.routing import (
    make_coactivation_figure,
    make_confusion_figure,
    make_layer_heatmap_figure,
    make_skill_heatmap_figure,
    make_token_figure,
)
from metamoe_backend.figures.style import GREY, name_ticks, plain, wrapped


def test_a_map_is_one_trace_of_points_whatever_the_number_of_groups():
    points = pd.DataFrame({"x": np.arange(500.0), "y": np.arange(500.0)})
    group = pd.Series([f"group {n % 25}" for n in range(500)])
    figure = make_map_figure(points, colour_by_group(group, {"group 0": "#ff0000"}), picked=np.arange(500) < 3)
    drawn = [trace for trace in figure.data if trace.type == "scattergl"]
    assert len(drawn) == 1 and len(drawn[0].x) == 500
    assert list(drawn[0].selectedpoints) == [0, 1, 2]
    scale, codes = drawn[0].marker.colorscale, np.array(drawn[0].marker.color)
    assert [scale[2 * code][1] for code in codes[:3]] == ["#ff0000", GREY, GREY]
    assert sum(trace.name is not None for trace in figure.data) <= 12 + 1
    assert len(mark_point(figure, 1.0, 2.0).data) == len(figure.data)


def test_a_map_of_values_is_the_same_trace_with_a_colour_bar():
    points = pd.DataFrame({"x": [0.0, 1.0, 2.0], "y": [0.0, 1.0, 2.0]})
    figure = make_map_figure(points, colour_by_value(pd.Series([0.0, 1.0, np.nan]), "Confidence"))
    colours = [figure.data[0].marker.colorscale[2 * code][1] for code in figure.data[0].marker.color]
    assert colours == ["#00224e", "#fee838", GREY]
    assert figure.data[1].marker.colorbar.title.text == "Confidence"


def test_the_largest_groups_are_in_the_legend_and_the_others_are_counted():
    group = pd.Series(["a"] * 3 + ["b"] * 5 + [f"rare {n}" for n in range(30)] + ["unlabelled"] * 9)
    legend = colour_by_group(group, {"a": "#ff0000", "b": "#00ff00"}).legend
    assert [text for text, _ in legend[:3]] == ["b (5)", "a (3)", "unlabelled (9)"]
    assert len(legend) == 12 and legend[-1][0] == "… +22"


def test_names_that_would_cover_a_more_important_one_are_left_out_until_one_zooms_in():
    names = pd.DataFrame(
        {"x": [5.0, 5.2, 5.0, 5.0], "y": [5.0, 5.0, 9.0, 5.1], "name": ["largest", "near", "far", "n"]}
    )
    assert fits_beside(names, (0.0, 10.0, 0.0, 10.0), 560).tolist() == [True, False, True, False]
    assert fits_beside(names, (4.9, 5.4, 4.9, 5.4), 560).all()
    points = pd.DataFrame({"x": [0.0, 10.0], "y": [0.0, 10.0]})
    figure = make_map_figure(points, colour_by_group(pd.Series(["a", "b"]), {}), names=names)
    assert [note.text for note in figure.layout.annotations] == ["largest", "far"]


def test_a_million_points_are_no_more_bytes_than_a_picture():
    rng = np.random.default_rng(0)
    points = pd.DataFrame(rng.normal(size=(1_000_000, 2)), columns=["x", "y"])
    colouring = colour_by_group(pd.Series(rng.integers(0, 3, len(points))), {"0": "#ff0000"})
    figure = make_map_figure(points, colouring)
    assert len(figure.to_json()) < 300_000
    (picture,) = figure.layout.images
    corners = figure.data[0]
    assert corners.x[0] <= points["x"].min() and corners.x[1] >= points["x"].max()
    assert (picture.x, picture.y) == (corners.x[0], corners.y[1])
    closer = make_map_figure(points, colouring, camera=(0.0, 1.0, 0.0, 1.0))
    assert closer.layout.images[0].sizex == 1.0 and tuple(closer.layout.xaxis.range) == (0.0, 1.0)


def read_picture(uri: str) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGBA"))


def test_each_point_stands_where_it_lies_in_its_own_colour():
    xs, ys, codes = np.array([1.0, 9.0, 20.0]), np.array([9.0, 1.0, 1.0]), np.array([0, 1, 1])
    drawn = read_picture(draw_points(xs, ys, codes, ["#ff0000", "#0000ff"], (0.0, 10.0, 0.0, 10.0), spread=0))
    rows, columns = np.nonzero(drawn[..., 3])
    height, width = drawn.shape[:2]
    assert (10 * (rows + 0.5) / height).round(1).tolist() == [1.0, 9.0]  # from the top; the third point is out of view
    assert (10 * (columns + 0.5) / width).round(1).tolist() == [1.0, 9.0]
    (red, blue) = drawn[rows, columns]
    assert red[0] > 240 > 15 > red[2] and blue[2] > 240 > 15 > blue[0]


def test_points_that_are_not_picked_are_faint():
    xs, ys, codes = np.array([1.0, 9.0]), np.array([5.0, 5.0]), np.array([0, 0])
    picked = np.array([True, False])
    drawn = read_picture(draw_points(xs, ys, codes, ["#ff0000"], (0.0, 10.0, 0.0, 10.0), spread=1, picked=picked))
    half = drawn.shape[1] // 2
    assert drawn[:, :half, 3].max() > 3 * drawn[:, half:, 3].max() > 0
    assert (drawn[:, :half, 3] > 0).sum() == 9  # a disc: the cell, and those beside it


def test_nothing_in_view_is_an_empty_picture():
    nowhere = np.array([np.nan, 99.0])
    drawn = read_picture(draw_points(nowhere, nowhere, np.array([0, 0]), ["#ff0000"], (0.0, 10.0, 0.0, 10.0)))
    assert not drawn[..., 3].any()


def test_the_layer_heatmap_keeps_every_cell():
    use = pd.DataFrame(
        [(layer, expert, 0.1 * layer, 0.5, 0.2 * layer, 3) for layer in range(4) for expert in ("a", "b")],
        columns=["layer", "expert", "share", "weight", "chosen", "n"],
    )
    assert np.allclose(make_layer_heatmap_figure(use, ["b", "a"], value="chosen").data[0].z, [[0, 0.2, 0.4, 0.6]] * 2)
    heatmap = make_layer_heatmap_figure(use, ["b", "a"]).data[0]
    assert np.allclose(heatmap.z, [[0, 0.1, 0.2, 0.3]] * 2)
    assert heatmap.customdata[1][2][:2] == [2, "a"]


def test_the_skill_heatmap_frames_what_the_plan_assigns():
    use = pd.DataFrame(
        [("logic", "a", 0.9, 2.0, True, 5), ("logic", "b", 0.1, 0.2, False, 5)],
        columns=["skill", "expert", "routed", "lift", "assigned", "n"],
    )
    figure = make_skill_heatmap_figure(use, ["a", "b"])
    assert len(figure.layout.shapes) == 1 and figure.layout.shapes[0].x0 < 0 < figure.layout.shapes[0].x1


def test_differences_share_one_scale_centred_at_zero():
    differences = pd.DataFrame(
        {
            "system": ["a", "b"], "task": ["t", "t"], "difference": [0.5, -0.1], "low": [0.3, -0.3],
            "high": [0.6, 0.1], "n": [50, 50], "shown": [True, False], "p": [0.03, 0.5], "p_holm": [0.06, 0.5],
            "significant": [False, False],
        }
    )  # fmt: skip
    heatmap = make_difference_figure(differences, ["a", "b", "never run"], ["t"]).data[0]
    assert heatmap.zmin == -heatmap.zmax == -50.0
    assert [row[0] for row in heatmap.text] == ["+50 •", "-10", ""]
    surer = differences.assign(significant=[True, False])
    assert make_difference_figure(surer, ["a", "b"], ["t"]).data[0].text[0][0] == "+50 *"


def test_systems_whose_long_names_begin_alike_keep_a_row_each():
    systems = [f"paper-ablated.boolq.selection-{way}" for way in ("accuracy-alone", "perplexity-alone", "diversity-of")]
    rows = [
        (system, "t", gain, gain - 0.1, gain + 0.1, 9, 0.5, 1.0, False, False)
        for system, gain in zip(systems, (0.1, 0.2, 0.3), strict=True)
    ]
    columns = ["system", "task", "difference", "low", "high", "n", "p", "p_holm", "significant", "shown"]
    heatmap = make_difference_figure(pd.DataFrame(rows, columns=columns), systems, ["t"]).data[0]
    assert len(set(heatmap.y)) == 3
    assert [line[0] for line in heatmap.text] == ["+10", "+20", "+30"]


def test_outcome_bars_add_up_to_the_whole():
    counts = pd.DataFrame(
        [("t", "all-correct", 2, 10, 0.2), ("t", "mixed", 5, 10, 0.5), ("t", "all-incorrect", 3, 10, 0.3)],
        columns=["task", "outcome", "questions", "n", "share"],
    )
    assert np.isclose(sum(trace.x[0] for trace in make_outcomes_figure(counts).data), 1.0)


def test_each_set_of_solvers_is_a_bar_with_its_dots():
    counts = pd.DataFrame(
        {"solvers": [["a", "c"], [], ["b"]], "questions": [6, 3, 1], "n": 10, "share": [0.6, 0.3, 0.1]}
    )
    figure = make_intersections_figure(counts, ["a", "b", "c"])
    bars, joined, dots = figure.data
    assert list(bars.y) == [6, 3, 1] and [custom[1] for custom in bars.customdata] == ["a, c", "nobody", "b"]
    assert list(joined.x) == [0, 0, None, 2, 2, None] and list(joined.y) == [0, 2, None, 1, 1, None]
    marked = [(x, y) for x, y, opacity in zip(dots.x, dots.y, dots.marker.opacity, strict=True) if opacity == 1]
    assert marked == [(0, 0), (0, 2), (2, 1)] and len(dots.x) == 9
    assert list(figure.layout.yaxis2.ticktext) == ["a (6)", "b (1)", "c (6)"]


def test_solver_bars_have_a_part_for_every_number_of_experts():
    counts = pd.DataFrame(
        {"skill": "s", "correct_experts": [0, 1, 2], "questions": [1, 0, 3], "n": 4, "share": [0.25, 0, 0.75]}
    )
    figure = make_solvers_figure(counts, "skill")
    assert [trace.name for trace in figure.data] == ["0", "1", "2"]
    assert figure.data[2].customdata[0] == ["s", 2, 3] and list(figure.data[1].text) == [""]


def test_a_sequence_has_a_line_for_each_step_with_its_own_step_marked():
    rows = [(f"s{i}" if i else "base", f"t{j}", 0.1 * i + 0.2 * j, 0.0, 1.0, 10) for i in range(4) for j in range(1, 4)]
    accuracies = pd.DataFrame(rows, columns=["system", "task", "accuracy", "low", "high", "n"])
    figure = make_sequence_figure(accuracies, ["s1", "s2", "s3"], ["t1", "t2", "t3"], before="base")
    assert [trace.name for trace in figure.data] == ["1. t1", "2. t2", "3. t3"]
    assert list(figure.data[1].y) == [pytest.approx(value) for value in (40, 50, 60, 70)]
    assert [list(trace.marker.size).index(13) for trace in figure.data] == [1, 2, 3]
    assert list(figure.layout.xaxis.ticktext) == ["0 (base)", "1", "2", "3"]
    later = make_sequence_figure(accuracies, ["s1", "s2", "s3"], ["t1", "t2", "t3"])
    assert [round(x) for x in later.data[1].x] == [1, 2, 3] and list(later.data[1].marker.size).index(13) == 1


def test_tokens_stand_in_order_even_when_one_repeats():
    tokens = pd.DataFrame(
        [(position, "the", layer, "a", 0.25 * position) for position in range(3) for layer in (0, 1)],
        columns=["position", "token", "layer", "expert", "weight"],
    )
    heatmap = make_token_figure(tokens, ["a"]).data[0]
    assert np.allclose(heatmap.z, [[0, 0.25, 0.5]])


def test_likeness_is_drawn_in_the_order_of_its_tree_and_every_cell_can_be_clicked():
    names = ["a", "b", "c", "d"]
    values = np.array([[1, 0, 0.9, 0], [0, 1, 0, 0.8], [0.9, 0, 1, np.nan], [0, 0.8, np.nan, 1]])
    frame = pd.DataFrame(values, index=names, columns=names)
    tree = grow_tree(frame)
    figure = make_likeness_figure(frame, tree, frame.notna() * 7)
    heatmap, cells, branches = figure.data
    assert list(figure.layout.xaxis.ticktext) == list(figure.layout.yaxis.ticktext) == tree.order
    assert np.array_equal(heatmap.z, frame.loc[tree.order, tree.order], equal_nan=True)
    assert len(cells.x) == 16 and list(cells.customdata[1][:3]) == [tree.order[0], tree.order[1], 7]
    assert max(x for x in branches.x if x is not None) <= 1.0 and branches.xaxis == "x2"


def test_how_often_each_expert_is_chosen():
    shares = pd.DataFrame({1: [1.0, 0.0], 5: [2 / 3, 1 / 3]}, index=["a", "<b>"])
    heatmap = make_choice_figure(shares, ["a"], draws=3).data[0]
    assert list(heatmap.x) == ["K = 1", "K = 5"] and list(heatmap.y) == ["★ a", "&lt;b&gt;"]
    assert heatmap.text[0][1] == "2/3"


@given(st.lists(st.text("ab-.", min_size=1, max_size=60), unique=True, max_size=30), st.integers(8, 40))
def test_ticks_of_different_names_differ_and_are_short(names: list[str], limit: int):
    ticks = name_ticks(names, limit)
    assert len(set(ticks)) == len(names)
    assert all(len(tick) <= limit + 6 for tick in ticks)
    assert all(tick == name for tick, name in zip(ticks, names, strict=True) if max(map(len, names)) <= limit)


def test_ticks_say_where_long_names_part():
    names = ["paper-ablated.arc_easy.accuracy-alone", "paper-ablated.boolq.accuracy-alone", "base"]
    assert name_ticks(names) == ["…arc_easy.accuracy-alone", "…boolq.accuracy-alone", "base"]


@given(st.text())
def test_text_from_data_cannot_carry_markup(text: str):
    assert "<" not in plain(text)
    assert "<" not in wrapped(text).replace("<br>", "")


def test_long_names_that_begin_and_end_alike_stay_apart():
    names = ["general-knowledge-expert-first-half-v1", "general-knowledge-expert-other-half-v1", "short"]
    pairs = pd.DataFrame(
        [(one, other, 0.5, 1.0, 0.7, 9) for one in names for other in names],
        columns=["expert", "other", "together", "lift", "even", "gates"],
    )
    heatmap = make_coactivation_figure(pairs, names).data[0]
    assert len(set(heatmap.x)) == len(set(heatmap.y)) == 3 and max(map(len, heatmap.x)) <= 24
    assert heatmap.customdata[0][1][:2] == names[:2]


def test_the_confusion_table_has_a_row_and_a_column_for_every_expert():
    confusion = pd.DataFrame({"label": ["a", "b"], "by_token": ["a", "a"], "questions": [3, 2]})
    heatmap = make_confusion_figure(confusion, ["a", "b", "base"], ("plan", "token")).data[0]
    assert np.array_equal(heatmap.z, [[3, 0, 0], [2, 0, 0], [0, 0, 0]])
    assert heatmap.customdata[1][0][:2] == ["b", "a"]
