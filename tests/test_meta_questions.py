"""Meta-questions: questions of one skill read alike, nothing is built twice, a model's failures are told."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metamoe_backend import meta_questions
from metamoe_backend.config import MetaQuestionConfig
from metamoe_backend.errors import ConfigError, NotFoundError, UnavailableError
from metamoe_backend.masking import mask_question
from metamoe_backend.meta_questions import compute, hash_source, prepare
from tests.conftest import insert_questions, insert_rows
from tests.recording import RecordingContext
from tests.tiny_models import make_tiny_base

# ---- masking ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "masked"),
    [
        (
            "State the final answer to the following arithmetic problem: 4 - 1 - 7 =",
            "State the final answer to the following arithmetic problem: 12 + 305 - 6 + 91 =",
            "State the final answer to the following arithmetic problem: [expression]",
        ),
        (
            "Find the Greatest Common Divisor (GCD) of these numbers: 780, 461. Give only the GCD.",
            "Find the Greatest Common Divisor (GCD) of these numbers: 12, 8, 20. Give only the GCD.",
            "Find the Greatest Common Divisor (GCD) of these numbers: [list]. Give only the GCD.",
        ),
        (
            "Reverse this list of words: hundred, go, acute, Foundation",
            "Reverse this list of words: pear, Apple, fig",
            "Reverse this list of words: [list]",
        ),
        (
            'How many times does the letter "h" appear in the text: "hundred names"?',
            'How many times does the letter "e" appear in the text: "a watering place"?',
            "How many times does the letter [text] appear in the text: [text]?",
        ),
        ("What day of the week was October 28, 2022?", "What day of the week was 2021-03-05?", None),
        ("Patricia has 4 sisters and she reads.", "Mary Ann has twenty-one sisters and she reads.", None),
        ("Rotate the matrix:\n1 2\n3 4", "Rotate the matrix:\n9 1 4\n7 7 6\n3 1 7", "Rotate the matrix:\n[grid]"),
        ("Sort ['b', 'a', 'c'] and stop.", "Sort [3, 1] and stop.", "Sort [list] and stop."),
        ("What does `print(1)` do?", "What does ```\nx = 2\n``` do?", "What does [code] do?"),
        (
            "How many legs do 13 sheep, 8 tigers, 7 sea slugs have?",
            "How many legs do 1 hen, 2 ants have?",
            None,
        ),
        (
            "小明有12个苹果，吃了3个，还剩几个？",
            "小红有二十五个苹果，吃了八个，还剩几个？",
            "[name]有[number]个苹果，吃了[number]个，还剩几个？",
        ),
        ("「春眠不觉晓」的下一句是什么？", "“床前明月光”的下一句是什么？", "[text]的下一句是什么？"),
        ("《红楼梦》的作者是谁？", "《西游记》的作者是谁？", "[text]的作者是谁？"),
        ("把下列词语排序：苹果、香蕉、橙子", "把下列词语排序：猫、狗、马、羊", "把下列词语排序：[list]"),
        ("2024年3月5日是星期几？", "一九四九年十月一日是星期几？", "[date]是星期几？"),
    ],
)  # fmt: skip
def test_questions_that_need_the_same_skill_read_alike(one, other, masked):
    assert mask_question(one) == mask_question(other)
    if masked is not None:
        assert mask_question(one) == masked


@pytest.mark.parametrize(
    "question",
    [
        "Plants use sunlight to make",
        "Which of the following sentences is nonsensical?",
        "How does one clean the lid of a jar?",
        "Is the first word longer than the second?",
        "十分重要的是什么？",
        "一个三角形有几条边？",
        "老师对小朋友们说：一起去吧",
    ],
)
def test_words_that_ask_are_kept(question):
    assert mask_question(question) == question


@pytest.mark.parametrize(
    ("question", "masked"),
    [
        ("Tom has 5 apples. How is Tom?", "[name] has [number] apples. How is [name]?"),
        ("Jayden is married to Elizabeth.", "[name] is married to [name]."),
        ("Water is heated. What happens?", "Water is heated. What happens?"),
    ],
)
def test_names_at_the_start_of_a_sentence_are_masked_where_the_text_gives_them_away(question, masked):
    assert mask_question(question) == masked


def test_a_long_passage_gives_way_to_its_question():
    passage = "Biomass goes through many steps. " * 12
    masked = mask_question(f"Passage: {passage}\nQuestion: does it burn?\n")
    assert masked == "Passage: [passage]\nQuestion: does it burn?"
    assert mask_question(f"{passage}\nQuestion: does it burn?") == "[passage]\nQuestion: does it burn?"
    assert mask_question(passage).startswith("Biomass goes")  # nothing asks behind it


PIECES = st.lists(
    st.sampled_from(
        ["Tom", "Anna's", "12", "-3.5", "x", "=", "+", "(", ")", "[", "]", "[number]", "[list]", ",", ", ", ". ", "\n", " ", '"',
         "'", "`", "```", "$", "a", "list of words: ", "pear", "Passage: ", "Question: ", "三", "个", "小明", "、", "「", "」", "两",
         "1.", "- ", "&&", "October", "5", "http://a.b", "ABC", "DEF", "_", "∫", "dx", "sin", "and", "two"]
    ),
    max_size=40,
).map("".join)  # fmt: skip


@given(st.one_of(st.text(max_size=200), PIECES))
def test_masking_never_raises_and_masking_twice_changes_nothing(text):
    once = mask_question(text)
    assert mask_question(once) == once
    assert mask_question(text) == once


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=8), st.sampled_from(["+", "-", "*"]))
def test_any_sum_is_one_expression(numbers, operator):
    assert mask_question(f"Calculate {f' {operator} '.join(map(str, numbers))}.") == "Calculate [expression]."


@pytest.mark.parametrize(
    "piece",
    ["(", '"', "'", "- ", "a-", "(1 + ", "([", "1 + ", "[", "x=", "Ab ", "following sentence: a ", "[number] x, "],
)
def test_a_long_hostile_text_is_cut_and_masked(piece):
    masked = mask_question(piece * 20_000)
    assert len(masked) <= 8000
    assert mask_question(masked) == masked


# ---- the stage --------------------------------------------------------------------------------------------------


def _inputs(*prompts: str, reused: int = 0, config: MetaQuestionConfig | None = None) -> dict[str, pd.DataFrame]:
    config = config or MetaQuestionConfig()
    ids = [f"q{number}" for number in range(len(prompts))]
    hashes = [hash_source(prompt, config) for prompt in prompts]
    questions = pd.DataFrame({"question_id": ids, "prompt": list(prompts), "source_hash": hashes})
    return {"questions": questions, "reused": pd.DataFrame({"reused": [reused]})}


def test_the_template_method_emits_a_row_for_each_question(tmp_path):
    context = RecordingContext(tmp_path)
    compute(_inputs("What is 1 + 2?", "Who is Ann?", reused=4), MetaQuestionConfig(), context)
    rows = context.rows("meta_question")
    assert rows["text"].tolist() == ["What is [expression]?", "Who is [name]?"]
    assert rows["method"].unique().tolist() == ["template"]
    assert context.reports[-1] == (2, 2, {"reused": 4.0})


def test_what_is_built_is_not_built_again_until_its_text_or_method_changes(store):
    insert_questions(store, 3)
    first = prepare(store, MetaQuestionConfig())
    assert len(first["questions"]) == 3
    assert first["reused"]["reused"].tolist() == [0]
    rows = first["questions"][["question_id", "source_hash"]].assign(method="template", text="x")
    insert_rows(store, "meta-questions", meta_question=rows)
    insert_questions(store, 2, task="other")
    second = prepare(store, MetaQuestionConfig())
    assert second["reused"]["reused"].tolist() == [3]
    assert set(second["questions"]["question_id"]) == {"other-train-0000", "other-train-0001"}
    assert len(prepare(store, MetaQuestionConfig(method="llm"))["questions"]) == 5
    only_one_task = prepare(store, MetaQuestionConfig(tasks=["other"]))
    assert only_one_task["reused"]["reused"].tolist() == [0]


def test_everything_that_decides_the_text_is_in_the_hash():
    base = MetaQuestionConfig(method="llm")
    changed = [
        {"model": "m"},
        {"base_url": "http://a"},
        {"prompt": "{question}!"},
        {"max_tokens": 9},
        {"method": "template"},
    ]
    hashes = {hash_source("q", base), hash_source("r", base)}
    hashes |= {hash_source("q", base.model_copy(update=change)) for change in changed}
    assert len(hashes) == 7


def test_an_empty_workspace_and_a_useless_setting_are_told_in_a_sentence(store):
    with pytest.raises(NotFoundError, match="no questions yet"):
        prepare(store, MetaQuestionConfig())
    insert_questions(store, 1)
    with pytest.raises(NotFoundError, match="nowhere"):
        prepare(store, MetaQuestionConfig(tasks=["nowhere"]))
    with pytest.raises(ConfigError, match=r"must contain \{question\}"):
        prepare(store, MetaQuestionConfig(method="llm", prompt="Say it."))
    with pytest.raises(ConfigError, match="base_url"):
        prepare(store, MetaQuestionConfig(method="llm", base_url="file:///etc/passwd"))
    with pytest.raises(ConfigError, match="name the model"):
        prepare(store, MetaQuestionConfig(method="llm", base_url="http://127.0.0.1:1/v1", model=" "))


def test_a_local_model_answers_for_every_question(tmp_path):
    base = make_tiny_base(tmp_path / "tiny")
    config = MetaQuestionConfig(method="llm", model=str(base), max_tokens=8, prompt="{question}")
    context = RecordingContext(tmp_path)
    compute(_inputs(*[f"Question {'x' * number}?" for number in range(11)], config=config), config, context)
    emitted = len(context.rows("meta_question")) if "meta_question" in context.emitted else 0
    silent = int(context.messages[0].split()[0]) if context.messages else 0
    assert emitted + silent == 11
    assert [report[0] for report in context.reports] == [0, 8, 11]


# ---- a server ---------------------------------------------------------------------------------------------------


class _Server(BaseHTTPRequestHandler):
    answers: list[tuple[int, str]] = []
    requests: list[tuple[str, str | None, dict]] = []
    lock = threading.Lock()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.lock:
            self.requests.append((self.path, self.headers.get("Authorization"), body))
            status, text = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch) -> Iterator[str]:
    _Server.requests = []
    monkeypatch.setattr(meta_questions, "_PAUSE_S", 0.0)
    listening = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{listening.server_port}/v1"
    listening.shutdown()
    listening.server_close()


def _reply(text: str) -> tuple[int, str]:
    return 200, json.dumps({"choices": [{"message": {"content": text}}]})


def _ask_server(address: str, root: Path, *prompts: str) -> RecordingContext:
    config = MetaQuestionConfig(method="llm", base_url=address, model="some-model")
    context = RecordingContext(root)
    compute(_inputs(*prompts, config=config), config, context)
    return context


def test_a_server_is_asked_with_the_key_and_its_first_line_is_taken(server, tmp_path, monkeypatch):
    monkeypatch.setenv("METAMOE_LLM_API_KEY", "secret")
    _Server.answers = [_reply('\nIn general: "Add two things."\nBecause it says so.')]
    context = _ask_server(server, tmp_path, "What is {1} + 2?")
    assert context.rows("meta_question")["text"].tolist() == ["Add two things."]
    path, key, body = _Server.requests[0]
    assert (path, key) == ("/v1/chat/completions", "Bearer secret")
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("some-model", 0, 60)
    assert "Question: What is {1} + 2?\nIn general:" in body["messages"][0]["content"]


def test_a_busy_server_is_asked_again(server, tmp_path):
    _Server.answers = [(503, "busy"), (429, "slow down"), _reply("It works.")]
    assert _ask_server(server, tmp_path, "q").rows("meta_question")["text"].tolist() == ["It works."]
    assert len(_Server.requests) == 3


def test_a_question_without_an_answer_gets_no_row(server, tmp_path):
    _Server.answers = [_reply("  \n")]
    context = _ask_server(server, tmp_path, "q", "r")
    assert "meta_question" not in context.emitted
    assert context.messages == ["2 of 2 questions got no answer from some-model; the next run asks again."]


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ((401, "no"), "METAMOE_LLM_API_KEY"),
        ((404, "model not found"), "model name 'some-model'"),
        ((500, "broken"), "overloaded"),
        ((200, "<html>"), "OpenAI form"),
        ((200, '{"choices": []}'), "OpenAI form"),
    ],
)
def test_a_server_that_fails_is_told_in_a_sentence(server, tmp_path, answer, sentence):
    _Server.answers = [answer]
    with pytest.raises(UnavailableError, match=sentence) as caught:
        _ask_server(server, tmp_path, "q")
    assert "\n" not in str(caught.value)


def test_a_server_that_is_not_there_is_told_in_a_sentence(tmp_path):
    with pytest.raises(UnavailableError, match="cannot be reached"):
        _ask_server("http://127.0.0.1:9/v1", tmp_path, "q")


def test_a_server_that_is_silent_is_told_in_a_sentence(server, tmp_path, monkeypatch):
    monkeypatch.setattr(meta_questions, "_TIMEOUT_S", 0.2)
    released = threading.Event()
    monkeypatch.setattr(_Server, "do_POST", lambda self: released.wait(20))
    try:
        with pytest.raises(UnavailableError, match="did not answer in time"):
            _ask_server(server, tmp_path, "q")
    finally:
        released.set()
