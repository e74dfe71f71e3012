"""The ways to ask: by letters, with explanations, in a chat; examples read once; memory that runs out; bad input."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from metamoe_backend.errors import ConfigError, NotFoundError, UnavailableError
from metamoe_backend.evaluate import answering, generation, loglikelihood, stage
from metamoe_backend.evaluate.answers import choose_commonest_way, choose_way, compute_answer_table, find_cut, list_ways
from metamoe_backend.evaluate.batches import BatchBudget, find_batch_tokens, run_batches
from metamoe_backend.evaluate.generation import Stop
from metamoe_backend.evaluate.outcomes import compute_majority_vote
from metamoe_backend.models.adapters import read_adapter
from metamoe_backend.models.base import load_base
from metamoe_backend.models.lora_moe import GateSettings, attach_experts
from metamoe_backend.models.systems import OpenSystem
from metamoe_backend.store.results import fetch_predictions
from tests.conftest import insert_rows
from tests.test_evaluate_stage import PER_TASK, Prepared, base, prepared  # noqa: F401
from tests.test_generation import generate
from tests.test_loglikelihood import encode, score_packed, spy_shapes
from tests.tiny_models import make_tiny_adapter

pytestmark = pytest.mark.usefixtures("one_thread")

CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>\n{% endfor %}<assistant>"
EXAMPLES = "Question: Which of these is an animal that barks?\nAnswer: a dog\n\n"


def shown(prepared: Prepared, **settings) -> pd.DataFrame:  # noqa: F811
    return stage.prepare(prepared.store, prepared.config(**settings))["questions"]


def answer_with(monkeypatch, write) -> None:
    """Generated texts come from `write(prompt)` instead of the model."""

    def iterate(system, tokenizer, prompts, stop, *args):
        yield list(range(len(prompts))), [write(tokenizer.decode(prompt)) for prompt in prompts]

    monkeypatch.setattr(answering, "iterate_outputs", iterate)


# ---- ways -------------------------------------------------------------------------------------------------------


def test_letters_show_the_options_and_the_first_letter_counts(prepared: Prepared, monkeypatch):  # noqa: F811
    questions = shown(prepared, tasks=["colour"], scoring="letters", n_shot=1)
    example, question = questions["shown_text"].iloc[0].split("\n\n")
    assert question == "Question: Which colour is test thing 0?\nA. red\nB. green\nC. dark blue\nAnswer:"
    assert example[-1] in "ABC" and example[:-1].endswith("dark blue\nAnswer: ")
    answer_with(monkeypatch, lambda prompt: "(b) I think" if "thing 1?" in prompt else "dunno")
    found = prepared.evaluate(systems=["base"], tasks=["colour", "sum"], scoring="letters").rows("prediction")
    by_letter = found[found["regime"] == "letters"].set_index("question_id")
    assert set(found["regime"]) == {"letters", "number"}, "a task without options is scored as ever"
    assert by_letter["correct"].sum() == 1 and by_letter.loc["colour-test-1", "choice"] == 1
    assert by_letter["choice"].isna().sum() == PER_TASK - 1


def test_letters_and_log_likelihoods_never_meet_in_a_table(prepared: Prepared):  # noqa: F811
    for number, scoring in enumerate(["task", "letters"]):
        rows = prepared.evaluate(systems=["base", "sums"], tasks=["colour"], scoring=scoring, run_id=f"run-{number}")
        insert_rows(prepared.store, "evaluate", prediction=rows.rows("prediction").drop(columns="run_id"))
    predictions = fetch_predictions(prepared.store)
    assert set(predictions["regime"]) == {"choices", "letters"}, "neither takes the other's place"
    with pytest.raises(ConfigError, match="'colour' was scored as choices 0-shot and letters 0-shot; choose one"):
        compute_answer_table(predictions)
    again = prepared.evaluate(systems=["base", "sums"], tasks=["colour"], scoring="letters", run_id="run-3")
    assert "prediction" not in again.emitted


def test_explained_examples_are_gsm8ks(prepared: Prepared, monkeypatch):  # noqa: F811
    prepared.store.cursor().execute("UPDATE question SET explanation = 'Count up.' WHERE task = 'sum'")
    questions = shown(prepared, tasks=["sum"], explained=True, n_shot=1)
    assert questions["shown_text"].str.contains(r"^\d \+ 0 = Count up\.\n#### \d\n\n\d \+ 1 =$").all()
    stops = []
    original = generation.iterate_outputs

    def spy(system, tokenizer, prompts, stop, *args):
        stops.append(stop)
        return original(system, tokenizer, prompts, Stop(stop.tokens, stop.texts, 2), *args)

    monkeypatch.setattr(answering, "iterate_outputs", spy)
    found = prepared.evaluate(systems=["base"], tasks=["sum"], explained=True, limit=1).rows("prediction")
    assert set(found["regime"]) == {"number, explained"}
    assert (stops[0].texts, stops[0].max_new_tokens) == (("\n\n",), 256)
    asked = pd.DataFrame({"way": ["number, explained"], "shown_text": ["Question: 1?\nAnswer:"], "regime": ["number"]})
    assert answering.find_stop_texts(asked) == ("Question:",)


def test_a_chat_holds_the_prompt_and_ends_where_the_answer_begins(prepared: Prepared, monkeypatch):  # noqa: F811
    with pytest.raises(ConfigError, match="has no chat template; evaluate without chat"):
        prepared.evaluate(systems=["base"], tasks=["colour"], chat=True)
    loaded = load_base(prepared.base, "cpu")
    monkeypatch.setattr(loaded.tokenizer, "chat_template", CHAT)
    monkeypatch.setattr("metamoe_backend.models.base.load_base", lambda *_: loaded)
    packed = []
    original = answering.pack_texts

    def spy(answerer, row, texts):
        packed.append((row.shown_text, original(answerer, row, texts)))
        return packed[-1][1]

    monkeypatch.setattr(answering, "pack_texts", spy)
    plain = prepared.evaluate(systems=["base"], tasks=["colour"], run_id="run-0").rows("prediction")
    packed.clear()
    chat = prepared.evaluate(systems=["base"], tasks=["colour"], chat=True).rows("prediction")
    text, question = packed[0]
    assert text == "<user>Question: Which colour is test thing 0?\nAnswer:</user>\n<assistant>"
    assert loaded.tokenizer.decode(question.targets[question.options == 0]) == "red", "no space after the template"
    assert set(chat["regime"]) == {"choices, chat"}
    assert not set(chat["prompt_hash"]) & set(plain["prompt_hash"])


# ---- speed and memory -------------------------------------------------------------------------------------------


@pytest.fixture
def loaded(prepared: Prepared):  # noqa: F811
    return load_base(prepared.base, "cpu")


QUESTIONS = [(f"{EXAMPLES}Question: Is {n} even?\nAnswer:", ["yes", "no", "who knows"]) for n in (1, 22, 333, 4)]


@pytest.mark.parametrize("kind", ["base", "adapter"])
def test_examples_are_read_once_and_change_no_log_likelihood(loaded, kind: str, monkeypatch, tmp_path: Path):
    system = OpenSystem(loaded.model, [])
    if kind == "adapter":
        weights = read_adapter(make_tiny_adapter(tmp_path / "a", Path(loaded.name)), loaded.model)
        mixture = attach_experts(loaded.model, [weights], GateSettings("uniform"))
        system = OpenSystem(loaded.model, [], mixture)
    pairs = encode(loaded.tokenizer, QUESTIONS)
    with monkeypatch.context() as without:
        without.setattr(loglikelihood, "read_shared_prefix", lambda *_: None)
        whole = score_packed(system, pairs)
        widths_without = spy_shapes(loaded.model, without)
        score_packed(system, pairs)
    widths = spy_shapes(loaded.model, monkeypatch)
    shared = score_packed(system, pairs)
    if kind == "adapter":
        mixture.detach()
    for a, b in zip(whole, shared, strict=True):
        assert a == pytest.approx(b, abs=1e-4)
    read, read_without = (sum(rows * width for rows, width in found) for found in (widths, widths_without))
    assert widths[0][0] == 1 and widths[0][1] > len(EXAMPLES)
    assert read == read_without - (len(QUESTIONS) - 1) * widths[0][1]


def test_examples_are_read_once_and_change_no_generated_text(loaded, monkeypatch):
    stop = Stop(frozenset(range(0, 256, 5)), ("\n",), 12)
    prompts = [text for text, _ in QUESTIONS]
    with monkeypatch.context() as without:
        without.setattr(generation, "read_shared_prefix", lambda *_: None)
        whole = generate(loaded, prompts, stop)
    widths = spy_shapes(loaded.model, monkeypatch)
    assert generate(loaded, prompts, stop) == whole
    assert widths[0][0] == 1 and all(width < len(EXAMPLES) for _, width in widths[1:])


def test_memory_that_runs_out_once_halves_the_batch(prepared: Prepared, monkeypatch):  # noqa: F811
    expected = prepared.evaluate(systems=["base", "moe"]).rows("prediction").drop(columns="run_id")
    for module, name, place in (
        (loglikelihood, "_score_in_one_row", 1),
        (loglikelihood, "_score_in_rows", 1),
        (generation, "_generate_batch", 2),
    ):
        original, sizes = getattr(module, name), []

        def run(*args, original=original, sizes=sizes, place=place, **kwargs):
            sizes.append(len(args[place]))
            found = original(*args, **kwargs)
            if sizes[-1] > 1 and not any(size > 1 for size in sizes[:-1]):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return found

        monkeypatch.setattr(module, name, run)
    context = prepared.evaluate(systems=["base", "moe"], run_id="run-2")
    pd.testing.assert_frame_equal(
        context.rows("prediction").drop(columns="run_id").sort_values(["system", "question_id"], ignore_index=True),
        expected.sort_values(["system", "question_id"], ignore_index=True), rtol=1e-3,
    )  # fmt: skip
    assert any("did not fit in memory; passes hold" in line for line in context.messages)
    assert not context.rows("activation").duplicated(["system", "question_id", "layer", "site", "expert"]).any()


def test_batches_back_off_and_stay_small():
    sizes = []

    def run(rows: list[int]) -> int:
        sizes.append(len(rows))
        if len(rows) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
        return len(rows)

    messages = []
    budget = BatchBudget(100, messages.append)
    found = [row for rows, _ in run_batches([10] * 9, budget, run) for row in rows]
    assert sorted(found) == list(range(9))
    assert sizes[:3] == [9, 4, 2] and set(sizes[3:]) <= {1, 2}
    assert (budget.tokens, len(messages)) == (20, 2)
    sizes.clear()
    list(run_batches([10] * 4, budget, run))
    assert sizes == [2, 2], "what was learnt holds for the next part"

    def never(rows: list[int]) -> None:
        raise MemoryError

    with pytest.raises(UnavailableError, match="does not hold a pass over one question of 10 tokens; free memory"):
        list(run_batches([10] * 4, 100, never))
    with pytest.raises(RuntimeError, match="another"):
        list(run_batches([1], 1, lambda rows: (_ for _ in ()).throw(RuntimeError("another"))))


def test_a_cpu_has_a_fixed_budget(loaded):
    assert find_batch_tokens(loaded.model) == 4096


# ---- bad input --------------------------------------------------------------------------------------------------


def notes(context) -> list[str]:
    return [line for line in context.messages if line.startswith("Note: ")]


@pytest.mark.parametrize("task", ["colour", "sum"])
def test_a_question_longer_than_the_model_reads_is_counted_and_shown(prepared: Prepared, task: str):  # noqa: F811
    prepared.store.cursor().execute(
        f"UPDATE question SET prompt = repeat('ab ', 500) WHERE question_id = '{task}-test-3'"
    )
    context = prepared.evaluate(systems=["base"], tasks=[task])
    predictions = context.rows("prediction")
    assert len(predictions) == PER_TASK
    (note,) = [line for line in notes(context) if "longer" in line]
    assert f"1 of 7 questions of {task} under base are longer than the model reads; their beginning is cut, by" in note
    long = predictions["question_id"] == f"{task}-test-3"
    assert (predictions.loc[long, "cut_tokens"] > 0).all() and (predictions.loc[~long, "cut_tokens"] == 0).all()
    (row,) = find_cut(predictions.assign(task=task)).itertuples()
    assert (row.task, row.cut, row.n, row.systems) == (task, 1, PER_TASK, ["base"])
    assert f"by {row.most_tokens} tokens at most" in note


def test_an_option_longer_than_the_model_reads_stops_nothing(prepared: Prepared):  # noqa: F811
    prepared.store.cursor().execute(
        "UPDATE question SET choices = ['x', repeat('ab ', 500)] WHERE question_id = 'colour-test-0'"
    )
    context = prepared.evaluate(systems=["base"], tasks=["colour"])
    assert len(context.rows("prediction")) == PER_TASK - 1
    assert any("1 of 7" in line and "An option is longer than the model's" in line for line in notes(context))


@pytest.mark.parametrize("scoring", ["task", "letters"])
@pytest.mark.parametrize("choices", ["['red']", "NULL"])
def test_a_question_with_one_option_stops_nothing(prepared: Prepared, scoring: str, choices: str):  # noqa: F811
    prepared.store.cursor().execute(f"UPDATE question SET choices = {choices} WHERE question_id = 'colour-test-0'")
    context = prepared.evaluate(systems=["base", "moe"], tasks=["colour", "sum"], scoring=scoring)
    assert len(context.rows("prediction")) == 2 * (2 * PER_TASK - 1)
    assert any("have no answer and count nowhere" in line and "fewer than two" in line for line in notes(context))


def break_output(monkeypatch, model, text: str, tokenizer) -> None:
    """NaN logits in each row that reads `text`."""
    forward, wanted = model.forward, tokenizer(text)["input_ids"]

    def broken(*args, **kwargs):
        output = forward(*args, **kwargs)
        rows = [row for row, tokens in enumerate(kwargs["input_ids"].tolist()) if _contains(tokens, wanted)]
        if output.logits.dim() == 3 and output.logits.shape[0] == kwargs["input_ids"].shape[0]:
            output.logits[rows] = float("nan")
        elif rows:
            output.logits[:] = float("nan")
        return output

    monkeypatch.setattr(model, "forward", broken)


def _contains(tokens: list[int], wanted: list[int]) -> bool:
    return any(tokens[at : at + len(wanted)] == wanted for at in range(len(tokens)))


@pytest.mark.parametrize("task", ["colour", "sum"])
def test_nan_logits_are_no_answer_and_the_rest_is_answered(prepared: Prepared, task: str, monkeypatch):  # noqa: F811
    loaded = load_base(prepared.base, "cpu")
    monkeypatch.setattr("metamoe_backend.models.base.load_base", lambda *_: loaded)
    break_output(monkeypatch, loaded.model, "3?" if task == "colour" else "3 + 1", loaded.tokenizer)
    monkeypatch.setattr(loglikelihood, "read_shared_prefix", lambda *_: None)
    context = prepared.evaluate(systems=["base"], tasks=[task], batch_tokens=64)  # one question a batch
    found = context.rows("prediction")
    assert sorted(found["question_id"]) == [f"{task}-test-{n}" for n in range(PER_TASK) if n != 3]
    assert any("1 of 7" in line and "gave no number (NaN)" in line for line in notes(context))


def test_a_model_of_nothing_but_nan_has_no_predictions_and_ends(prepared: Prepared, monkeypatch):  # noqa: F811
    loaded = load_base(prepared.base, "cpu")
    monkeypatch.setattr("metamoe_backend.models.base.load_base", lambda *_: loaded)
    break_output(monkeypatch, loaded.model, "=", loaded.tokenizer)
    context = prepared.evaluate(systems=["base"], tasks=["sum"])
    assert "prediction" not in context.emitted
    assert context.reports[-1][:2] == (PER_TASK, PER_TASK)


def test_empty_answers_are_counted(prepared: Prepared, monkeypatch):  # noqa: F811
    answer_with(monkeypatch, lambda prompt: "" if prompt.startswith(("3", "4")) else "1")
    context = prepared.evaluate(systems=["base"], tasks=["sum"])
    assert len(context.rows("prediction")) == PER_TASK
    assert context.rows("prediction")["correct"].sum() == 1
    assert any("2 of 7 questions of sum under base got an empty answer" in line for line in notes(context))


def test_a_task_without_examples_is_left_out_and_the_others_are_evaluated(prepared: Prepared):  # noqa: F811
    prepared.store.cursor().execute("DELETE FROM question WHERE task = 'colour' AND split = 'train'")
    context = prepared.evaluate(systems=["base"], n_shot=5)
    assert set(context.rows("prediction")["question_id"].str.partition("-")[0]) == {"sum"}
    (note,) = [line for line in notes(context) if "Left out" in line]
    assert "n_shot is 5, but task 'colour' has only 0 train questions to show; lower n_shot or ingest more" in note
    with pytest.raises(ConfigError, match="has only 0 train questions"):
        shown(prepared, tasks=["colour"], n_shot=5)


def test_a_blank_has_no_place_in_a_chat(prepared: Prepared):  # noqa: F811
    prepared.store.cursor().execute("""UPDATE question SET metadata = '{"blank": "_"}' WHERE task = 'colour'""")
    inputs = stage.prepare(prepared.store, prepared.config(chat=True))
    assert inputs["left_out"]["reason"].str.contains("for which a chat has no place").tolist() == [True]
    assert set(inputs["questions"]["task"]) == {"sum"}


# ---- choosing a way ---------------------------------------------------------------------------------------------


def test_of_a_task_scored_in_two_ways_one_is_chosen():
    rows = [("a", "choices", 0), ("a", "letters", 0), ("a", "choices", 0), ("b", "number", 5)]
    columns = ["task", "regime", "n_shot"]
    predictions = pd.DataFrame(rows, columns=columns)
    assert list_ways(predictions) == ["choices 0-shot", "letters 0-shot"]
    assert choose_way(predictions, "letters 0-shot").index.tolist() == [1, 3]
    assert choose_commonest_way(predictions).index.tolist() == [0, 2, 3]
    elsewhere = pd.DataFrame([("c", "letters", 0), ("c", "letters", 5), ("c", "letters", 5)], columns=columns)
    both = pd.concat([predictions, elsewhere], ignore_index=True)
    assert choose_commonest_way(both).index.tolist() == [0, 2, 3, 5, 6], "each task has its own"
    assert list_ways(predictions[predictions["regime"] != "letters"]) == []
    with pytest.raises(NotFoundError, match="'exact 0-shot' here; there are choices 0-shot, letters 0-shot"):
        choose_way(predictions, "exact 0-shot")


def test_letters_vote_by_their_option_however_they_name_it():
    said = [("x", "B", 1), ("y", "(b) fire", 1), ("z", "A", 0)]
    votes = pd.DataFrame(said, columns=["system", "output", "choice"]).astype({"choice": "Int64"})
    votes = votes.assign(question_id="q", task="t", regime="letters", n_shot=0, correct=votes["choice"] == 1)
    assert compute_majority_vote(votes, ["z", "x", "y"]).tolist() == [True]


def test_a_page_asks_which_way_counts():
    from streamlit.testing.v1 import AppTest

    def page():
        import pandas as pd
        import streamlit as st

        from pages.shared.regimes import render_way

        rows = [("a", "choices", 0), ("a", "letters", 0), ("a", "choices", 0), ("b", "number", 5)]
        shown = render_way(pd.DataFrame(rows, columns=["task", "regime", "n_shot"]), "way")
        st.write(f"{len(shown)} answers")

    app = AppTest.from_function(page, default_timeout=60).run()
    assert app.selectbox("way").options == ["choices 0-shot", "letters 0-shot"]
    assert app.markdown[-1].value == "3 answers"
    app.selectbox("way").select("letters 0-shot").run()
    assert app.markdown[-1].value == "2 answers"
