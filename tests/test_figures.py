"""Figures are pure functions of tables: nothing is lost, and text from data cannot carry markup."""

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from metamoe_backend.figures.maps import make_map_figure, mark_point
from metamoe_backend.figures.results import make_difference_figure, make_outcomes_figure, make_similarity_figure
from metamoe_backend.figures.routing import make_layer_heatmap_figure, make_skill_heatmap_figure, make_token_figure
from metamoe_backend.figures.style import plain, wrapped


def test_a_map_is_one_trace_of_points_whatever_the_number_of_groups():
    points = pd.DataFrame({"x": np.arange(500.0), "y": np.arange(500.0), "question_id": [str(n) for n in range(500)]})
    group = pd.Series([f"group {n % 25}" for n in range(500)])
    figure = make_map_figure(points, group, {"group 0": "#ff0000"})
    drawn = [trace for trace in figure.data if trace.type == "scattergl"]
    assert len(drawn) == 1 and len(drawn[0].x) == 500
    assert drawn[0].customdata.tolist() == list(range(500))
    first = drawn[0].marker.colorscale[0]
    assert first[1] == "#ff0000"
    assert len(mark_point(figure, 1.0, 2.0).data) == len(figure.data)


def test_the_layer_heatmap_keeps_every_cell():
    use = pd.DataFrame(
        [(layer, expert, 0.1 * layer, 0.5, 3) for layer in range(4) for expert in ("a", "b")],
        columns=["layer", "expert", "share", "weight", "n"],
    )
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
            "high": [0.6, 0.1], "n": [50, 50], "shown": [True, False],
        }
    )  # fmt: skip
    heatmap = make_difference_figure(differences, ["a", "b", "never run"], ["t"]).data[0]
    assert heatmap.zmin == -heatmap.zmax == -50.0
    assert [row[0] for row in heatmap.text] == ["+50 •", "-10", ""]


def test_outcome_bars_add_up_to_the_whole():
    counts = pd.DataFrame(
        [("t", "all-correct", 2, 10, 0.2), ("t", "mixed", 5, 10, 0.5), ("t", "all-incorrect", 3, 10, 0.3)],
        columns=["task", "outcome", "questions", "n", "share"],
    )
    assert np.isclose(sum(trace.x[0] for trace in make_outcomes_figure(counts).data), 1.0)


def test_tokens_stand_in_order_even_when_one_repeats():
    tokens = pd.DataFrame(
        [(position, "the", layer, "a", 0.25 * position) for position in range(3) for layer in (0, 1)],
        columns=["position", "token", "layer", "expert", "weight"],
    )
    heatmap = make_token_figure(tokens, ["a"]).data[0]
    assert np.allclose(heatmap.z, [[0, 0.25, 0.5]])


def test_similarity_names_both_axes():
    frame = pd.DataFrame([[1.0, 0.2], [0.2, 1.0]], index=["a", "b"], columns=["a", "b"])
    assert list(make_similarity_figure(frame).data[0].x) == ["a", "b"]


@given(st.text())
def test_text_from_data_cannot_carry_markup(text: str):
    assert "<" not in plain(text)
    assert "<" not in wrapped(text).replace("<br>", "")
