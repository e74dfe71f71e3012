"""The Experts page: the plan board, the plan that is saved, what is trained of it, the bank."""

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from streamlit.testing.v1 import AppTest

from metamoe_backend.config import BASE_EXPERT, SelectConfig, parse_config
from metamoe_backend.config import ImportAdapterConfig as Named
from metamoe_backend.errors import ConfigError
from metamoe_backend.store.acts import fetch_undoable, undo
from metamoe_backend.store.data_selections import fetch_data_selections, fetch_selected_rows
from metamoe_backend.store.expert_selections import fetch_candidates, fetch_selections
from metamoe_backend.store.experts import fetch_adapters, fetch_plan_entries, fetch_plans
from metamoe_backend.workspace import Workspace
from pages.shared import experts_data, state
from pages.shared.experts_bank import describe_bank
from pages.shared.experts_board import name_for_skill, propose_assignments
from pages.shared.experts_selection import explain_choice
from pages.shared.experts_training import describe_experts

PAGE = str(Path(state.__file__).parents[1] / "p06_experts.py")


@given(st.lists(st.text(min_size=1, max_size=80), unique=True, max_size=8))
def test_a_new_plan_begins_with_a_usable_expert_for_each_skill(skills: list[str]) -> None:
    proposed = propose_assignments(skills)
    assert list(proposed) == skills and len(set(proposed.values())) == len(skills)
    for expert in proposed.values():
        assert expert != BASE_EXPERT
        assert parse_config(Named, {"source": "x", "name": expert}).name == expert


def test_names_of_skills_stay_readable() -> None:
    assert name_for_skill("general knowledge") == "general-knowledge"
    assert (
        name_for_skill("算术") == "算术" and name_for_skill("base") == "expert-base" and name_for_skill("?") == "expert"
    )


def test_an_expert_counts_as_trained_only_for_the_same_plan_and_skills() -> None:
    entries = pd.DataFrame(
        {"skill": ["a", "b", "c", "d"], "expert": ["x", "x", "y", "base"], "train": [3, 4, 5, 6], "questions": 9}
    )
    adapters = pd.DataFrame(
        {
            "adapter": ["x", "y", "z", "osf"], "plan": ["p", "p", "other", "p"], "skills": [["b", "a"], ["c", "d"], ["c"], ["c"]],
            "kind": ["expert", "expert", "expert", "baseline"],
        }
    )  # fmt: skip
    found = describe_experts(entries, adapters, "p").set_index("expert")
    assert found["train"].to_dict() == {"x": 7, "y": 5}
    assert found["trained"].to_dict() == {"x": True, "y": False} and found.loc["x", "adapters"] == ["x"]


def test_the_bank_says_unknown_where_nobody_said() -> None:
    adapters = pd.DataFrame(
        {
            "adapter": ["x", "y"], "kind": ["expert", "baseline"], "source": ["trained", "imported"], "plan": ["p", None], "skills": [["a"], []],
            "trained_on": [["t"], []], "rank": 8, "alpha": 16.0, "targets": [["up_proj"]] * 2, "parameters": 1_500_000,
            "base": ["smollm2-135m", "/home/someone/models/own"], "created_at": pd.Timestamp("2026-11-21"),
            "sha256": ["a" * 64, "b" * 64],
        }
    )  # fmt: skip
    changes = pd.DataFrame([{"name": "x", "run_id": "r", "gained": 1200, "lost": 3}])
    shown = describe_bank(adapters, changes)
    assert shown["trained_on"].tolist() == [["t"], ["unknown"]] and shown["kind"].tolist() == ["expert", "baseline"]
    assert shown["plan"].tolist() == ["p", "–"] and shown["since"].tolist() == ["+1,200 −3", "–"]
    assert shown["sha256"].tolist() == ["a" * 12, "b" * 12]
    assert shown["base"].tolist() == ["smollm2-135m", "own"] and shown["parameters"].tolist() == [1.5, 1.5]


def open_part(app: AppTest, part: str) -> AppTest:
    """Open one part of the page: plan, bank, likeness, choose or data."""
    app.query_params["experts_part"] = part
    return app.run()


@pytest.fixture
def opened(synthetic: Workspace, monkeypatch: pytest.MonkeyPatch):
    """The Experts page on a copy of the synthetic workspace."""
    monkeypatch.setenv("METAMOE_WORKSPACE", str(synthetic.root))
    yield AppTest.from_file(PAGE, default_timeout=120)
    state._open_store(str(synthetic.root.resolve())).close()
    state._open_store.clear()


def give(app: AppTest, skill: str) -> object:
    """The row of a skill on the board that is shown."""
    return next(group for group in app.button_group if (group.key or "").endswith(f"|{app_plan(app)}_{skill}"))


def app_plan(app: AppTest) -> str:
    return app.selectbox(key="experts_plan_v1").value


def test_skills_are_moved_and_the_plan_is_saved_under_a_new_name(opened: AppTest, synthetic: Workspace) -> None:
    app = opened.run()
    assert not app.exception and not app.error
    assert "4 adapters are in the bank. Plan first gives 4 skills to 3 experts" in app.subheader[0].value
    # Twice the same row: an edit must not undo the one before it.
    give(app, "logic").set_value("letters").run()
    give(app, "arithmetic").set_value("letters").run()
    give(app, "logic").set_value("arith").run()
    assert not app.exception and not app.error
    assert any("differs from the plan first" in caption.value for caption in app.caption)
    app.text_input(key="experts_plan_name_v1_first").set_value("second")
    app.button(key="experts_save").click().run()
    assert not app.exception and not app.error
    assert app_plan(app) == "second"
    store = state._open_store(str(synthetic.root.resolve()))
    entries = fetch_plan_entries(store, "second").set_index("skill")["expert"].to_dict()
    assert entries == {
        "arithmetic": "letters", "letters": "letters", "logic": "arith", "general knowledge": "base",
    }  # fmt: skip
    assert fetch_plans(store)["author"].iloc[0] == state._default_person()
    saved = fetch_undoable(store, state._default_person())
    assert saved is not None and saved.values["plan"] == "second"
    undo(store, saved.event_id, "ana")  # as the page does it, or anybody in the history
    app.run()
    assert not app.exception and not app.error and app_plan(app) == "first"


def test_one_part_is_open_at_a_time_and_stands_in_the_address(opened: AppTest) -> None:
    app = opened.run()
    next(group for group in app.button_group if group.key == "experts_part").set_value("bank").run()
    assert not app.exception and app.query_params["experts_part"] == "bank"
    assert any("rank" in frame.value for frame in app.dataframe)
    assert not [group for group in app.button_group if "experts_give" in (group.key or "")]
    next(group for group in app.button_group if group.key == "experts_part").set_value("plan").run()
    assert not app.exception and not app.warning and "experts_part" not in app.query_params
    assert give(app, "logic").value == "logic"


def test_moves_that_are_not_saved_outlive_a_look_at_the_bank_and_can_be_taken_back(opened: AppTest) -> None:
    app = opened.run()
    give(app, "logic").set_value("letters").run()
    open_part(app, "bank")
    next(group for group in app.button_group if group.key == "experts_part").set_value("plan").run()
    assert not app.exception and give(app, "logic").value == "letters"
    app.button(key="experts_take_back").click().run()
    assert not app.exception and give(app, "logic").value == "logic"
    assert not any("differs from the plan" in caption.value for caption in app.caption)


def test_a_plan_that_has_trained_is_kept_and_the_page_says_why(opened: AppTest) -> None:
    app = opened.run()
    give(app, "logic").set_value("letters").run()
    app.button(key="experts_save").click().run()
    assert not app.exception
    assert "has trained" in app.error[0].value


def test_the_way_to_training_takes_plan_expert_and_shape_along(
    opened: AppTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    went: list[str] = []
    monkeypatch.setattr("pages.shared.experts_training.open_page", went.append)
    app = opened.run()
    app.number_input(key="experts_lora_rank").set_value(4)
    app.selectbox(key="experts_train_first").select("logic").run()
    app.button(key="experts_go").click().run()
    panel = app.session_state["jobs_panel"]
    assert went == ["jobs"] and panel["kind"] == "expert"
    assert panel["values"]["name"] == "logic" and panel["values"]["plan"] == "first"
    assert panel["values"]["lora"]["rank"] == 4 and panel["values"]["lora"]["alpha"] == 16.0


def test_an_adapter_from_elsewhere_is_imported_or_refused_in_a_sentence(opened: AppTest, tmp_path: Path) -> None:
    from tests.tiny_models import make_tiny_adapter, make_tiny_base

    base = make_tiny_base(tmp_path / "base")
    adapter = make_tiny_adapter(tmp_path / "guest", base)
    app = open_part(opened, "bank")
    app.text_input(key="experts_import_0_source").set_value(str(adapter))
    app.text_input(key="experts_import_0_name").set_value("arith").run()
    app.button(key="experts_import_go").click().run()
    assert "taken" in app.error[0].value and not app.exception
    app.text_input(key="experts_import_0_name").set_value("guest")
    app.selectbox(key="experts_import_0_base").options.append(str(base))  # what a person types in
    app.selectbox(key="experts_import_0_base").set_value(str(base))
    app.button(key="experts_import_go").click().run()
    assert not app.exception and not app.error
    assert "5 adapters are in the bank" in app.subheader[0].value
    imported = fetch_adapters(state.get_store(), ["guest"]).iloc[0]
    assert imported["source"] == "imported" and imported["rank"] == 4 and not len(imported["trained_on"])
    facts = next(text.value for text in app.text if "SHA-256" in text.value)
    assert f"Imported from: {adapter}" in facts and imported["sha256"] in facts and "Trained on: unknown" in facts


def test_without_a_labelling_the_page_says_where_to_make_one(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METAMOE_WORKSPACE", str(workspace.root))
    try:
        app = AppTest.from_file(PAGE, default_timeout=120).run()
        assert not app.exception and not app.error
        assert app.button(key="empty_skills").label == "Go to Skills"
        assert fetch_adapters(state.get_store()).empty
    finally:
        state._open_store(str(workspace.root.resolve())).close()
        state._open_store.clear()


def test_a_choice_is_shown_with_every_rank_and_its_reason(opened: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    went: list[str] = []
    monkeypatch.setattr("pages.shared.experts_selection.open_page", went.append)
    app = open_part(opened, "choose")
    assert not app.exception and not app.error
    store = state.get_store()
    run_id = fetch_selections(store)["run_id"].iloc[0]
    ranking = fetch_candidates(store, run_id)
    chosen = ranking.loc[ranking["chosen"], "adapter"].tolist()
    assert any(f"For syllogism: **{', '.join(chosen)}**" in text.value for text in app.markdown)
    shown = next(frame.value for frame in app.dataframe if "accuracy_rank" in frame.value)
    assert shown["adapter"].tolist() == ranking["adapter"].tolist()
    assert (shown["rank_sum"] == shown["accuracy_rank"] + shown["perplexity_rank"]).all()
    assert shown.loc[shown["chosen"] == "★", "adapter"].tolist() == chosen
    sets = next(frame.value for frame in app.dataframe if "diversity_rank" in frame.value)
    assert len(sets) == 3 and list(sets["experts"].iloc[0]) == chosen
    assert (sets["total"] == sets["rank_sum"] + sets["diversity_rank"]).all() and sets["total"].is_monotonic_increasing
    app.button(key="experts_select_join").click().run()
    assert went == ["jobs"] and app.session_state["jobs_panel"]["values"]["experts"] == chosen


def test_the_reason_names_the_winner_the_next_set_and_a_tie() -> None:
    ranking = pd.DataFrame({"task": "t", "adapter": list("abc"), "shortlisted": True})
    subsets = pd.DataFrame(
        {"experts": [["a"], ["b"]], "rank_sum": [2.0, 3.5], "similarity": 0.0, "diversity_rank": [2.0, 2.0],
         "total": [4.0, 5.5]}
    )  # fmt: skip
    said = explain_choice(ranking, subsets)
    assert "For t: **a**. Of 3 candidates" in said and "Next comes b: 3.5 + 2 = 5.5." in said and "equal" not in said
    assert "the lower perplexity decided" in explain_choice(ranking, subsets.assign(total=4.0))


def test_a_selection_is_asked_for_as_the_command_shown(opened: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict]] = []

    def refuse(_store: object, stage: str, values: dict, _by: str) -> None:
        asked.append((stage, values))
        raise ConfigError("Not now; later.")

    monkeypatch.setattr("pages.shared.experts_selection.launch", refuse)
    app = open_part(opened, "choose")
    app.number_input(key="experts_select_k").set_value(5)
    app.number_input(key="experts_select_experts").set_value(9).run()
    assert any("experts is 9 but shortlist is 8" in warning.value for warning in app.warning)
    app.number_input(key="experts_select_experts").set_value(2).run()
    assert any("--k 5 --shortlist 8 --experts 2" in code.value for code in app.code)
    app.button(key="experts_select_go").click().run()
    assert not app.exception and "Not now" in app.error[0].value
    (stage, values) = asked[0]
    config = parse_config(SelectConfig, values)
    assert (stage, config.k, config.experts, config.base) == ("select", 5, 2, "smollm2-135m")


def test_mistakes_are_compared_where_weights_cannot_be(opened: AppTest) -> None:
    app = open_part(opened, "likeness")
    assert any("files in this workspace are needed" in caption.value for caption in app.caption)
    app.selectbox(key="experts_likeness").select("mistakes").run()
    assert not app.exception and not app.error
    assert any(text.value.startswith("Most alike: ") for text in app.markdown)
    assert any("Cohen's kappa of their mistakes: " in text.value and "n=210" in text.value for text in app.text)


def test_choosing_data_shows_what_was_decided_and_why(opened: AppTest, synthetic: Workspace) -> None:
    app = open_part(opened, "data")
    assert not app.exception and not app.error
    said = next(each.value for each in app.markdown if each.value.startswith("For syllogism, "))
    assert said == (
        "For syllogism, 12 of 26 rows are chosen, guided by 4 shots. "
        "3 are dropped as similar, 2 refused as leaks, 9 lie beyond the budget."
    )
    chosen = next(frame.value for frame in app.dataframe if "nearest" in frame.value)
    assert chosen["decision"].tolist() == ["chosen"] * 12 and chosen["score"].is_monotonic_decreasing
    assert chosen["nearest"].str.startswith("syllogism: what follows").all()
    next(each for each in app.button_group if each.key == "experts_data_shown").set_value("similar")
    app.run()
    similar = next(frame.value for frame in app.dataframe if "nearest" in frame.value)
    assert similar["reason"].str.contains("above tau").all() and len(similar) == 3
    pool = fetch_selected_rows(state.get_store(), fetch_data_selections(state.get_store())["run_id"].iloc[0])
    second = pool[(pool["decision"] != "shot") & (pool["position"] == 2)]["prompt"].iloc[0]
    assert set(similar["other"]) == {second}


def test_a_data_selection_is_started_with_the_command_that_does_the_same(
    opened: AppTest, synthetic: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple] = []
    monkeypatch.setattr(experts_data, "_launch", lambda *args: asked.append(args))
    app = open_part(opened, "data")
    next(each for each in app.button_group if each.key == "experts_data_pool").set_value("tasks")
    app.run()
    assert "experts_data_go" not in {button.key for button in app.button}
    app.multiselect(key="experts_data_tasks").set_value(["leg_counting", "spell_backward"]).run()
    shown = next(code.value for code in app.code if "select-data" in code.value)
    words = "select-data --task chain_sum --pool-task leg_counting --pool-task spell_backward --budget 1000 --k 30"
    assert shown.endswith(words)
    app.button(key="experts_data_go").click().run()
    assert not app.exception and asked[0][0] == "select-data"
    assert asked[0][1]["tasks"] == ["leg_counting", "spell_backward"] and asked[0][1]["k"] == 30


def test_the_way_to_train_on_a_data_selection_is_shown(opened: AppTest, synthetic: Workspace) -> None:
    app = open_part(opened, "data")
    run_id = fetch_data_selections(state.get_store())["run_id"].iloc[0]
    assert any(code.value.endswith(f"train expert syllogism-data --data {run_id}") for code in app.code)
