"""The Explore page: every example runs, results become tables and charts, and the schema explains itself."""

import math
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import pytest

from metamoe_backend.figures.explore import CHART_KINDS, MAX_CHART_ROWS, make_query_figure, suggest_chart
from metamoe_backend.rows import TABLES, columns
from metamoe_backend.store.connection import Store
from metamoe_backend.store.console import QueryResult, as_frame, run_query
from metamoe_backend.store.publishing import publish
from metamoe_backend.store.schema import VIEWS, describe_table, fetch_schema
from metamoe_backend.workspace import Workspace
from pages.shared.explore_examples import list_examples


@pytest.fixture(scope="module")
def published(recorded_synthetic: Path) -> Path:
    with Store.open(Workspace(recorded_synthetic)) as store:
        return publish(store)


@pytest.mark.parametrize("title", list_examples())
def test_every_example_runs_and_answers(published: Path, title: str) -> None:
    result = run_query(published, list_examples()[title])
    assert result.rows
    frame = as_frame(result)
    figure = make_query_figure(frame, *suggest_chart(frame))
    assert figure.data


def test_the_schema_lists_every_table_and_view_with_its_meaning(store: Store) -> None:
    schema = fetch_schema(store)
    assert list(schema["table"].unique()) == [*TABLES, *VIEWS]
    for table in TABLES:
        found = schema[schema["table"] == table]
        assert list(found["column"]) == [column.name for column in columns(table)]
        assert list(found["description"]) == [column.description for column in columns(table)]
        assert describe_table(table)
    assert set(schema[schema["kind"] == "view"]["table"]) == set(VIEWS)
    assert describe_table("no_such_table") == ""


def test_a_result_becomes_a_table_of_proper_types(published: Path) -> None:
    sql = """
        SELECT * FROM (VALUES
            (1, 0.5::DOUBLE, 1.25::DECIMAL(9,2), TIMESTAMP '2026-11-01 10:00:00', [1, 2], {'a': 1}, 'x',
             1267650600228229401496703205376::HUGEINT),
            (NULL, 'nan'::DOUBLE, NULL, NULL, NULL, NULL, NULL, NULL),
            (3, '-inf'::DOUBLE, 2.5, TIMESTAMP '2026-11-02 10:00:00.5', [], {'a': NULL}, 'y', 1)
        ) AS t(i, f, d, made_at, list, struct, text, huge)
    """
    frame = as_frame(run_query(published, sql))
    assert str(frame["i"].dtype) == "Int64" and frame["i"].isna().tolist() == [False, True, False]
    assert frame["f"][0] == 0.5 and math.isnan(frame["f"][1]) and frame["f"][2] == -math.inf
    assert frame["d"].tolist()[::2] == [1.25, 2.5]
    assert frame["made_at"][2] == pd.Timestamp("2026-11-02 10:00:00.5") and pd.isna(frame["made_at"][1])
    assert frame["list"][0] == [1, 2] and frame["struct"][0] == '{"a": 1}'
    assert frame["huge"].tolist() == [str(2**100), None, "1"]


def test_columns_of_the_same_name_are_told_apart() -> None:
    frame = as_frame(QueryResult(["a", "a"], ["BIGINT", "VARCHAR"], [[1, "x"]], False, 0.0))
    assert list(frame.columns) == ["a", "a_1"]


def test_an_empty_result_is_an_empty_table() -> None:
    frame = as_frame(QueryResult(["a", "b"], ["BIGINT", "TIMESTAMP"], [], False, 0.0))
    assert list(frame.columns) == ["a", "b"] and frame.empty


@pytest.mark.parametrize("kind", CHART_KINDS)
def test_each_kind_of_chart_shows_the_rows_and_no_markup(kind: str) -> None:
    frame = pd.DataFrame({"name": ["<b>a</b>", "b"], "n": [1, 2], "more": [0.5, 0.25], "list": [[1], [2]]})
    colour = "more" if kind == "heatmap" else "name"
    figure = make_query_figure(frame, kind, "name", None if kind == "histogram" else "n", colour)
    assert isinstance(figure, go.Figure)
    assert "<b>" not in figure.to_json() and "\\u003cb\\u003e" not in figure.to_json()


def test_a_chart_draws_at_most_so_many_rows() -> None:
    frame = pd.DataFrame({"x": range(MAX_CHART_ROWS + 5), "y": 1.0})
    assert len(make_query_figure(frame, "scatter", "x", "y").data[0].x) == MAX_CHART_ROWS


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (pd.DataFrame({"task": ["a"], "n": [1]}), ("bar", "task", "n", None)),
        (pd.DataFrame({"at": pd.to_datetime(["2026-11-01"]), "n": [1]}), ("line", "at", "n", None)),
        (pd.DataFrame({"a": [1], "b": [1]}), ("scatter", "a", "b", None)),
        (pd.DataFrame({"a": [1]}), ("histogram", "a", None, None)),
        (pd.DataFrame({"a": [[1]], "ok": [True]}), ("histogram", "ok", None, None)),
        (pd.DataFrame({"task": ["a"], "who": ["b"], "n": [1]}), ("bar", "task", "n", "who")),
    ],
)
def test_a_first_chart_is_suggested(frame: pd.DataFrame, expected: tuple) -> None:
    assert suggest_chart(frame) == expected
