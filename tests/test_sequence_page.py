"""The Forgetting page and the verb `forgetting`, where a training sequence was evaluated."""

import json
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from metamoe_backend.cli import main
from metamoe_backend.store.connection import Store
from metamoe_backend.workspace import Workspace
from pages.shared import state

ORDER = ["syllogism", "chain_sum", "letter_counting"]
STEPS = ["logic", "arith", "letters"]


def make_sequence(workspace: Workspace) -> None:
    """Say of three evaluated systems that they are the steps of one sequence."""
    with Store.open(workspace, "a test") as store:
        for number, (system, task) in enumerate(zip(STEPS, ORDER, strict=True), start=1):
            about = {"name": "seq", "replay": 0.1, "order": ORDER}
            settings = json.dumps(about | {"step": number, "step_label": task, "step_tasks": [task]})
            store.cursor().execute(
                "UPDATE system SET settings = ?, kind = 'baseline', run_id = 'one run' WHERE system = ?",
                [settings, system],
            )


def test_the_page_shows_the_matrix_and_the_measures(synthetic: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    make_sequence(synthetic)
    monkeypatch.setenv("METAMOE_WORKSPACE", str(synthetic.root))
    page = Path(state.__file__).parents[1] / "p10_forgetting.py"
    try:
        app = AppTest.from_file(str(page), default_timeout=120).run()
        assert not app.exception and not app.error
        assert "Training in sequence" in [subheader.value for subheader in app.subheader]
        captions = " ".join(caption.value for caption in app.caption)
        assert "10 % of earlier questions replayed" in captions
        measures = next(frame.value for frame in app.dataframe if "formula" in frame.value)
        assert measures["measure"].tolist() == ["ACC", "BWT", "FWT", "F", "I"]
    finally:
        state._open_store(str(synthetic.root.resolve())).close()
        state._open_store.clear()


def test_the_verb_prints_the_matrix_and_the_measures(synthetic: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    make_sequence(synthetic)
    assert main(["--workspace", str(synthetic.root), "forgetting", "--json"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    cells = said["sequence_accuracy"]
    assert {cell["sequence"] for cell in cells} == {"seq"}
    assert len([cell for cell in cells if cell["system"] in STEPS]) == 9 and all(cell["n"] > 0 for cell in cells)
    measures = {row["measure"]: row for row in said["sequence_measures"]}
    assert measures["BWT"]["formula"].startswith("mean over j<T of")
    by_cell = {(cell["system"], cell["task"]): cell["accuracy"] for cell in cells}
    last = [by_cell["letters", task] for task in ORDER]
    own = [by_cell[step, task] for step, task in zip(STEPS, ORDER, strict=True)]
    expected = sum(a - b for a, b in zip(last[:2], own[:2], strict=True)) / 2
    assert measures["BWT"]["value"] == pytest.approx(expected)
