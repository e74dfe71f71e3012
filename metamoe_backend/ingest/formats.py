"""Benchmark formats recognised by their columns: each is one small function from a record to an `Item`.

A record that cannot be used raises `RowRejected` with the reason in one clause. A source in no known format is read
through a column mapping (`mapped_format`).
"""

import ast
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from metamoe_backend.errors import ConfigError, InputError
from metamoe_backend.evaluate.letters import LETTERS, add_letters
from metamoe_backend.evaluate.prompts import BBH, BENCHMARK, BLANK, OPENING
from metamoe_backend.ingest.openings import find_opening, make_mmlu_opening
from metamoe_backend.rows import Regime

FIELDS = ("prompt", "choices", "answer", "explanation", "split")
"""What a column mapping may name."""
QUESTION_TEMPLATE = "Question: {prompt}\nAnswer:"
PLAIN_TEMPLATE = "{prompt}\nAnswer:"
"""BoolQ's (the passage comes first) and reasoning-gym's, whose prompts say how to answer."""
STEM_TEMPLATE = "{prompt}"
"""The question's words alone, which the answer continues."""
BBH_TEMPLATE = "Q: {prompt}\nA:"
CMMLU_TEMPLATE = "{prompt}\n答案："
BENCHMARK_TEMPLATES = {"openbookqa": STEM_TEMPLATE}
"""What lm-evaluation-harness shows where the columns alone do not tell, by the task's name in small letters."""
CODE_TEMPLATE = "You are an expert Python programmer, and here is your task: {prompt}\n[BEGIN]\n"
"""MBPP's own opening; the question says which tests must pass."""
SHOWN_TESTS = 3
"""MBPP's prompt shows so many of a question's tests; all count."""
SPLITS = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation", "test": "test", "testing": "test",
}  # fmt: skip

Values = Mapping[str, Any]


class RowRejected(InputError):
    """A row that cannot be used; the message is the reason, one clause without a full stop."""


@dataclass(frozen=True, slots=True)
class Item:
    """One question as a format reads it."""

    prompt: str
    answer: str
    choices: list[str] | None = None
    gold: int | None = None
    explanation: str | None = None
    metadata: dict[str, Any] | None = None
    split: str | None = None
    free: "Item | None" = None
    """The same question with a free answer, where the options were read out of its text: a task has one regime, so
    if some of its rows show no options, none is scored by them."""


@dataclass(frozen=True, slots=True)
class Format:
    """How one kind of source is read."""

    name: str
    mapping: dict[str, str]
    """Field to the column it comes from; several columns are separated by commas. All must be there."""
    read: Callable[[Values], Item]
    template: str = QUESTION_TEMPLATE
    regime: Regime | None = None
    """Set where the format decides it; else it follows from the answers."""
    also_needs: tuple[str, ...] = ()
    may_have: frozenset[str] | None = None
    """Other columns allowed beside those needed; None: any."""
    looks: Callable[[Values], bool] | None = None
    """Tells formats with equal columns apart: true for at least one of the first records."""

    @property
    def needs(self) -> set[str]:
        """Columns without which this is not the format."""
        return {column for columns in self.mapping.values() for column in columns.split(",")} | set(self.also_needs)


# ------------------------------------------------------------------------------------------------------------- cells


def is_missing(value: Any) -> bool:
    """None, NaN or blank text."""
    return (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or (isinstance(value, str) and not value.strip())
    )


def _as_text(value: Any, what: str) -> str:
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple, dict, bytes)):
        raise RowRejected(f"{what} is a {type(value).__name__}, not text")
    return str(value)


def _text(values: Values, column: str, what: str) -> str:
    """Text of a cell that must not be missing; `what` names it for a person: 'question', 'answer' …"""
    if is_missing(values.get(column)):
        raise RowRejected(f"the row has no {what} (column {column!r} is missing or empty)")
    return _as_text(values[column], f"the {what} (column {column!r})")


def _optional_text(values: Values, column: str) -> str | None:
    return None if is_missing(values.get(column)) else _as_text(values[column], f"column {column!r}")


def _index(value: Any) -> int | None:
    """A whole number, also as text or as 2.0; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"\s*-?[0-9]{1,9}\s*", value) else None
    return value if isinstance(value, int) else None


def _shown(value: Any) -> str:
    text = str(value)
    return repr(text if len(text) <= 60 else text[:60] + "…")


def is_number(answer: str) -> bool:
    """True for a number as GSM8K writes them: sign, thousands commas, `$` and a final full stop are allowed."""
    plain = answer.strip().replace(",", "").replace("$", "").removesuffix(".")
    return re.fullmatch(r"[-+]?([0-9]+(\.[0-9]+)?|\.[0-9]+)", plain) is not None


# ----------------------------------------------------------------------------------------------------------- options


def _options(value: Any) -> tuple[list[str], list[str]]:
    """Texts and labels of options: a list, {text, label}, a list of such, or a CSV cell holding a list or a | b | c."""
    if isinstance(value, str):
        value = _options_cell(value)
    labels: Sequence[Any] = []
    if isinstance(value, Mapping):
        value, labels = value.get("text"), value.get("label") or []
    elif isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
        value, labels = [one.get("text") for one in value], [one.get("label") for one in value]
    if not isinstance(value, list) or not isinstance(labels, list):
        raise RowRejected("the choices are not a list")
    for number, text in enumerate(value, start=1):
        if is_missing(text):
            raise RowRejected(f"choice {number} is empty")
    texts = [_as_text(text, "a choice") for text in value]
    if len(texts) < 2:
        raise RowRejected(
            f"the row has {len(texts) or 'no'} choice{'' if len(texts) == 1 else 's'}; at least 2 are needed"
        )
    if labels and len(labels) != len(texts):
        raise RowRejected(f"the row has {len(texts)} choices but {len(labels)} labels")
    return texts, [str(label).strip() for label in labels]


def _options_cell(cell: str) -> Any:
    if cell.lstrip()[:1] in ("[", "{"):
        for parse in (json.loads, ast.literal_eval):
            try:
                return parse(cell)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
        raise RowRejected("the choices cannot be read; write a JSON list or a | b | c")
    return cell.split("|")


def _no_choice(answer: Any, choices: Sequence[str]) -> RowRejected:
    among = ", ".join(_shown(choice) for choice in choices[:4])
    return RowRejected(
        f"the answer {_shown(answer)} is none of the {len(choices)} choices ({among}{', …' * (len(choices) > 4)})"
    )


def _find_text(choices: Sequence[str], answer: str) -> int | None:
    """Index of the option that is the answer: exactly, else but for upper and lower case."""
    if answer in choices:
        return choices.index(answer)
    folded = [choice.casefold() for choice in choices]
    return folded.index(answer.casefold()) if folded.count(answer.casefold()) == 1 else None


def _find_label(labels: Sequence[str], answer: str) -> int | None:
    """Index of the option with this label; 1-4 and A-D stand for each other."""
    if answer in labels:
        return labels.index(answer)
    for alphabet, other in (("ABCDEFGHIJ", "123456789"), ("123456789", "ABCDEFGHIJ")):
        if answer in alphabet and len(answer) == 1 and list(labels) == list(other[: len(labels)]):
            position = alphabet.index(answer)
            return position if position < len(labels) else None
    return None


def _find_answer(choices: Sequence[str], labels: Sequence[str], answer: Any) -> int:
    """Index of an answer given as label, as the option's text, as index from 0 or as letter."""
    text = _as_text(answer, "the answer")
    index = _index(answer)
    if labels and (found := _find_label(labels, text)) is not None:
        return found
    if not isinstance(answer, (int, float)) and (found := _find_text(choices, text)) is not None:
        return found
    if index is not None and 0 <= index < len(choices):
        return index
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(choices)]
    letter = text.strip("().").upper()
    if len(letter) == 1 and letter in letters:
        return letters.index(letter)
    raise _no_choice(text, choices)


def choose_from(item: Item, choices: Sequence[str]) -> Item:
    """The item scored over a fixed set of options; raises `RowRejected` if its answer is none of them."""
    gold = _find_text(choices, item.answer)
    if gold is None:
        raise _no_choice(item.answer, choices)
    return Item(item.prompt, choices[gold], list(choices), gold, item.explanation, item.metadata, item.split)


# ----------------------------------------------------------------------------------------------------------- formats


def _choice_item(prompt: str, choices: list[str], gold: int, explanation: str | None = None) -> Item:
    return Item(prompt, choices[gold], choices, gold, explanation)


def _gold_at(values: Values, column: str, choices: list[str]) -> int:
    if is_missing(values.get(column)):
        raise RowRejected(f"the row has no answer (column {column!r} is missing or empty)")
    index = _index(values[column])
    if index is None:
        return _find_answer(choices, [], values[column])
    if not 0 <= index < len(choices):
        raise RowRejected(
            f"the answer {index} (column {column!r}) is no choice; there are {len(choices)}, numbered from 0"
        )
    return index


def _choices_at(values: Values, column: str) -> tuple[list[str], list[str]]:
    if is_missing(values.get(column)):
        raise RowRejected(f"the row has no choices (column {column!r} is missing or empty)")
    return _options(values[column])


def _read_query(values: Values) -> Item:
    prompt = _text(values, "query", "question").removeprefix("Question:").strip()
    if not prompt:
        raise RowRejected("the row has no question (column 'query' is empty but for 'Question:')")
    choices, _ = _choices_at(values, "choices")
    return _choice_item(prompt, choices, _gold_at(values, "gold", choices))


def _read_boolq_query(values: Values) -> Item:
    """BoolQ as {query, choices, gold}: without 'Passage: ', so that the prompt is lm-evaluation-harness's."""
    prompt = _text(values, "query", "question").removeprefix("Passage:").strip()
    choices, _ = _choices_at(values, "choices")
    return _choice_item(prompt, choices, _gold_at(values, "gold", choices))


def _read_boolq(values: Values) -> Item:
    passage = _text(values, "passage", "passage")
    question = _text(values, "question", "question").removesuffix("?")
    answer = _text(values, "answer", "answer").lower()
    gold = {"false": 0, "no": 0, "0": 0, "true": 1, "yes": 1, "1": 1}.get(answer)
    if gold is None:
        raise _no_choice(answer, ["no", "yes"])
    return _choice_item(f"{passage}\nQuestion: {question}?", ["no", "yes"], gold)


def _read_arc(values: Values) -> Item:
    prompt = _text(values, "question", "question")
    choices, labels = _choices_at(values, "choices")
    key = _text(values, "answerKey", "answer")
    return _choice_item(prompt, choices, _find_answer(choices, labels, key))


def _read_piqa(values: Values) -> Item:
    prompt = _text(values, "goal", "question")
    choices = [_text(values, column, "choice") for column in ("sol1", "sol2")]
    return _choice_item(prompt, choices, _gold_at(values, "label", choices))


def _read_open_book(values: Values) -> Item:
    choices, labels = _choices_at(values, "choices")
    key = _text(values, "answerKey", "answer")
    return _choice_item(_text(values, "question_stem", "question"), choices, _find_answer(choices, labels, key))


def _read_nested_stem(values: Values) -> Item:
    """ARC, OpenBookQA and CommonsenseQA as their authors publish them: the question holds stem and choices."""
    question = values.get("question")
    if not isinstance(question, Mapping):
        raise RowRejected("the question (column 'question') does not hold a stem and choices")
    choices, labels = _choices_at(question, "choices")
    gold = _find_answer(choices, labels, _text(values, "answerKey", "answer"))
    prompt = _text(question, "stem", "question")
    return _letter(prompt, choices, gold) if "question_concept" in question else _choice_item(prompt, choices, gold)


def _read_commonsense(values: Values) -> Item:
    choices, labels = _choices_at(values, "choices")
    gold = _find_answer(choices, labels, _text(values, "answerKey", "answer"))
    return _letter(_text(values, "question", "question"), choices, gold)


def _read_mmlu(values: Values) -> Item:
    choices, _ = _choices_at(values, "choices")
    item = _letter(_text(values, "question", "question"), choices, _gold_at(values, "answer", choices))
    subject = _optional_text(values, "subject")
    return replace(item, metadata={OPENING: make_mmlu_opening(subject)}) if subject else item


def _read_cmmlu(values: Values) -> Item:
    choices = [_text(values, column, "choice") for column in LETTERS[:4]]
    gold = _find_answer(choices, list(LETTERS[:4]), _text(values, "Answer", "answer"))
    return _letter(_text(values, "Question", "question"), choices, gold)


def _letter(prompt: str, choices: Sequence[str], gold: int) -> Item:
    """The options in the prompt, their letters the choices: MMLU, CMMLU and CommonsenseQA in lm-evaluation-harness."""
    if len(choices) > len(LETTERS):
        raise RowRejected(f"the row has {len(choices)} choices; at most {len(LETTERS)} can have letters")
    return _choice_item(add_letters(prompt, choices), list(LETTERS[: len(choices)]), gold)


def _read_hella_swag(values: Values) -> Item:
    """As lm-evaluation-harness prepares it: the activity before the context, marks such as [title] taken out."""
    if is_missing(values.get("ctx_a")) and is_missing(values.get("ctx_b")):
        raise RowRejected("the row has no question (columns 'ctx_a' and 'ctx_b' are missing or empty)")
    second = _optional_text(values, "ctx_b") or ""
    context = f"{_optional_text(values, 'ctx_a') or ''} {second.capitalize()}"
    endings, _ = _choices_at(values, "endings")
    choices = [_take_out_marks(ending) for ending in endings]
    if not all(choices):
        raise RowRejected("a choice is empty but for marks such as [title]")
    prompt = _take_out_marks(f"{_text(values, 'activity_label', 'activity')}: {context}")
    return _choice_item(prompt, choices, _gold_at(values, "label", choices))


def _take_out_marks(text: str) -> str:
    plain = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return plain.replace("  ", " ").strip()


def _read_wino_grande(values: Values) -> Item:
    """The blank stays in the prompt: what stands behind it is scored after each option (`prompts.encode_blank`)."""
    sentence = _text(values, "sentence", "question")
    if sentence.count(BLANK) != 1 or not sentence.partition(BLANK)[2].strip():
        raise RowRejected("the sentence must have exactly one blank '_' with words behind it")
    choices = [_text(values, column, "choice") for column in ("option1", "option2")]
    number = _index(values.get("answer"))
    if is_missing(values.get("answer")):
        raise RowRejected("the row has no answer (column 'answer' is missing or empty)")
    if number not in (1, 2):
        raise RowRejected(f"the answer {_shown(values['answer'])} is neither 1 nor 2")
    item = _choice_item(sentence, choices, number - 1)
    return replace(item, metadata={"blank": BLANK})


def _read_bbh(values: Values) -> Item:
    return Item(_text(values, "input", "question"), _text(values, "target", "answer"))


def _read_mbpp(values: Values) -> Item:
    prompt = _text(values, "text" if "text" in values else "prompt", "question")
    code = values.get("code")
    if is_missing(code) or not isinstance(code, str):
        raise RowRejected("the row has no answer (column 'code' must hold a program)")
    tests = values.get("test_list")
    if not isinstance(tests, list) or not tests or not all(isinstance(test, str) and test.strip() for test in tests):
        raise RowRejected("the row has no tests (column 'test_list' must be a list of assert statements)")
    kept = ("task_id", "test_list", "test_setup_code", "test_imports", "challenge_test_list")
    for number, test in enumerate(tests, start=1):
        _check_python(test, f"test {number}")
    asked = f"{prompt} Your code should pass these tests:\n\n" + "\n".join(tests[:SHOWN_TESTS])
    # The program stays as it is, to the last blank: white space means something, and two of MBPP's differ only there.
    return Item(asked, code, metadata={key: values[key] for key in kept if key in values})


def _read_human_eval(values: Values) -> Item:
    """HumanEval: the prompt is the head of a function, the answer goes on from it; both stay as they are."""
    kept = ("task_id", "prompt", "entry_point", "test")
    for column in (*kept[1:], "canonical_solution"):
        if is_missing(values.get(column)) or not isinstance(values[column], str):
            raise RowRejected(f"the row has no {column} (column {column!r} must hold Python)")
    _check_python(values["test"], "the test")
    return Item(values["prompt"], values["canonical_solution"], metadata={key: values[key] for key in kept})


def _check_python(source: str, what: str) -> None:
    try:
        ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise RowRejected(f"{what} is not valid Python") from None


def _read_context(values: Values) -> Item:
    return Item(
        _text(values, "context", "question"),
        _text(values, "answer", "answer"),
        explanation=_optional_text(values, "chain_of_thought"),
    )


def _read_gsm8k(values: Values) -> Item:
    prompt = _text(values, "question", "question")
    explanation, mark, answer = _text(values, "answer", "answer").rpartition("####")
    if not mark or not answer.strip():
        raise RowRejected("the row has no answer (column 'answer' does not end with '#### answer')")
    return Item(prompt, answer.strip(), explanation=explanation.strip() or None)


def _read_question_answer(values: Values) -> Item:
    free = Item(
        _text(values, "question", "question"),
        _text(values, "answer", "answer"),
        explanation=_optional_text(values, "explanation"),
        split=_split(values.get("split")),
    )
    choices, labels = _options_in(free.prompt)
    gold = _find_label(labels, free.answer.strip("()")) if labels else None
    if gold is None:
        gold = _find_text(choices, free.answer)
    if gold is None:
        return free
    return Item(free.prompt, choices[gold], choices, gold, free.explanation, split=free.split, free=free)


def _options_in(prompt: str) -> tuple[list[str], list[str]]:
    """Options and labels after 'Options:' at the end of a FLAN prompt; empty unless each is on a line of its own."""
    _, mark, block = prompt.rpartition("\nOptions:\n")
    parsed = [re.fullmatch(r"(- )?(?:\(([A-Z])\))?\s*(.*\S)\s*", line) for line in block.split("\n") if line.strip()]
    found = [match for match in parsed if match and (match[1] or match[2])]
    labels = [match[2] for match in found if match[2]]
    texts = [match[3] for match in found]
    whole = (
        mark and len(found) == len(parsed) >= 2 and len(labels) in (0, len(found)) and len(set(labels)) == len(labels)
    )
    return (texts, labels) if whole else ([], [])


_NUMBERED = "(?:Answer|Solution|Option|Ending)"


def _read_instruction(values: Values) -> Item:
    parts = [_text(values, "instruction", "question"), _optional_text(values, "input")]
    output = _text(values, "output", "answer")
    answer = _text(values, "answer", "answer") if "answer" in values else output
    said_again = output.lower() in (answer.lower(), f"the correct answer is {answer}".lower())
    free = Item("\n".join(part for part in parts if part), answer, explanation=None if said_again else output)
    return _numbered_options(free) or free


def _numbered_options(free: Item) -> Item | None:
    """The question behind 'Please choose the correct answer …: Q  Answer1: a Answer2: b … Answer format: …'.

    The form of the commonsense sets of LLM-Adapters (Hu et al. 2023); with its options taken out of the text, such a
    row has the same shape as the benchmark's own test rows. None unless the options are numbered 1, 2, 3 …
    """
    match = re.fullmatch(rf"(.+?)\s*\n\n({_NUMBERED}1:\s.+?)\n\nAnswer format: [^\n]+", free.prompt, re.DOTALL)
    chosen = re.fullmatch(rf"{_NUMBERED}([0-9]+)", free.answer, re.IGNORECASE)
    if not match or not chosen:
        return None
    _, *pieces = re.split(rf"(?:^|\s){_NUMBERED}([0-9]+):\s", match[2])
    numbers, choices = [int(number) for number in pieces[::2]], [text.strip() for text in pieces[1::2]]
    gold = int(chosen[1]) - 1
    if numbers != list(range(1, len(choices) + 1)) or not all(choices) or not 0 <= gold < len(choices) >= 2:
        return None
    prompt = re.sub(r"^Please choose the correct [^:\n]{1,80}:\s*", "", match[1])
    return Item(prompt, choices[gold], choices, gold, free.explanation, free=free)


def _split(value: Any) -> str | None:
    if is_missing(value):
        return None
    found = SPLITS.get(_as_text(value, "the split").lower())
    if found is None:
        raise RowRejected(f"the split {_shown(value)} is none of train, validation, test")
    return found


def _read_generated(values: Values) -> Item:
    return Item(_text(values, "question", "question"), _text(values, "answer", "answer"), metadata=values["metadata"])


GENERATED = Format(
    "reasoning_gym",
    {"prompt": "question", "answer": "answer"},
    _read_generated,
    template=PLAIN_TEMPLATE,
    regime="reasoning_gym",
    also_needs=("metadata",),
)
"""What `generators.read_generator` yields."""

_QUERY = {"prompt": "query", "choices": "choices", "answer": "gold"}
_QUESTION = {"prompt": "question", "answer": "answer"}
FORMATS = (
    Format("MBPP", {"prompt": "text", "answer": "code"}, _read_mbpp, CODE_TEMPLATE, "code", ("task_id", "test_list")),
    Format(
        "MBPP sanitized",
        {"prompt": "prompt", "answer": "code"},
        _read_mbpp,
        CODE_TEMPLATE,
        "code",
        ("task_id", "test_list"),
    ),
    Format(
        "HumanEval",
        {"prompt": "prompt", "answer": "canonical_solution"},
        _read_human_eval,
        "{prompt}",
        "code",
        ("task_id", "entry_point", "test"),
    ),
    Format(
        "BoolQ query",
        _QUERY,
        _read_boolq_query,
        PLAIN_TEMPLATE,
        looks=lambda values: str(values.get("query")).startswith("Passage:"),
    ),
    Format("query, choices, gold", _QUERY, _read_query),
    Format(
        "context, chain_of_thought, answer",
        {"prompt": "context", "answer": "answer", "explanation": "chain_of_thought"},
        _read_context,
    ),
    Format(
        "stem and choices",
        {"prompt": "question", "answer": "answerKey"},
        _read_nested_stem,
        looks=lambda values: isinstance(values.get("question"), Mapping),
    ),
    Format(
        "CommonsenseQA",
        {"prompt": "question", "choices": "choices", "answer": "answerKey"},
        _read_commonsense,
        also_needs=("question_concept",),
    ),
    Format("ARC", {"prompt": "question", "choices": "choices", "answer": "answerKey"}, _read_arc),
    Format(
        "OpenBookQA",
        {"prompt": "question_stem", "choices": "choices", "answer": "answerKey"},
        _read_open_book,
        STEM_TEMPLATE,
    ),
    Format(
        "HellaSwag",
        {"prompt": "activity_label,ctx_a,ctx_b", "choices": "endings", "answer": "label"},
        _read_hella_swag,
        STEM_TEMPLATE,
    ),
    Format(
        "WinoGrande",
        {"prompt": "sentence", "choices": "option1,option2", "answer": "answer"},
        _read_wino_grande,
        STEM_TEMPLATE,
    ),
    Format(
        "MMLU",
        {"prompt": "question", "choices": "choices", "answer": "answer"},
        _read_mmlu,
        PLAIN_TEMPLATE,
        also_needs=("subject",),
    ),
    Format("CMMLU", {"prompt": "Question", "choices": "A,B,C,D", "answer": "Answer"}, _read_cmmlu, CMMLU_TEMPLATE),
    Format(BBH, {"prompt": "input", "answer": "target"}, _read_bbh, BBH_TEMPLATE, may_have=frozenset({"id", "idx"})),
    Format("PiQA", {"prompt": "goal", "choices": "sol1,sol2", "answer": "label"}, _read_piqa),
    Format("BoolQ", {"prompt": "passage,question", "answer": "answer"}, _read_boolq, PLAIN_TEMPLATE),
    Format("instruction", {"prompt": "instruction", "answer": "output"}, _read_instruction),
    Format(
        "GSM8K",
        _QUESTION,
        _read_gsm8k,
        may_have=frozenset({"id", "idx"}),
        looks=lambda values: "####" in str(values.get("answer")),
    ),
    Format(
        "question, answer",
        _QUESTION,
        _read_question_answer,
        may_have=frozenset({"id", "idx", "explanation", "split"}),
    ),
)
"""Tried in this order. Those that only ask for question and answer allow few other columns: a passage or options that
they would leave out must not go unnoticed."""

HEADER_WORDS = {column for one in FORMATS for column in one.needs} | set(FIELDS)
"""Names that tell a TSV file's header from its first row."""


def find_format(columns: Sequence[str], mapping: Mapping[str, str], first: Sequence[Values], source: str) -> Format:
    """The format of a source with these columns, of which `first` are the first records.

    Raises `InputError` naming the columns and the remedy when none fits, `ConfigError` for a mapping of unknown fields.
    """
    if mapping:
        return mapped_format(mapping, columns, source)
    for one in FORMATS:
        others = set(columns) - one.needs
        if (
            one.needs <= set(columns)
            and (one.may_have is None or others <= one.may_have)
            and (one.looks is None or any(one.looks(values) for values in first))
        ):
            return one
    if {"prompt", "answer"} <= set(columns):
        return mapped_format({field: field for field in FIELDS if field in columns}, columns, source)
    raise InputError(
        f"{source} has the columns {_named(columns)}, which is no format known here; "
        "say which column is which with --map prompt=COL answer=COL (and choices=COL for options)."
    )


def choose_template(one: Format, task: str) -> str:
    """What the model is shown for a task of this format: the benchmark's own where the task bears its name."""
    name = re.sub(r"[^a-z0-9]", "", task.rpartition("/")[2].lower())
    return BENCHMARK_TEMPLATES.get(name, one.template)


def add_opening(one: Format, task: str) -> Format:
    """The format, whose questions begin (and end, of BBH) as the benchmark does where the task names its part."""
    opening = find_opening(one.name, task)
    if opening is None:
        return one
    metadata = {OPENING: opening} | ({BENCHMARK: BBH} if one.name == BBH else {})
    return replace(one, read=lambda values: replace(one.read(values), metadata=metadata))


def mapped_format(mapping: Mapping[str, str], columns: Sequence[str], source: str) -> Format:
    """A format read through a person's mapping of fields to columns; choices may name several: `choices=a,b,c`."""
    for field in mapping:
        if field not in FIELDS:
            raise ConfigError(f"mapping: there is no field {field!r}; map {', '.join(FIELDS)}.")
    used = {field: field for field in ("prompt", "answer") if field in columns} | dict(mapping)
    for field in ("prompt", "answer"):
        if field not in used:
            raise ConfigError(
                f"mapping: say which column holds the {field} ({field}=COL); {source} has {_named(columns)}."
            )
    for field, column in used.items():
        several = field == "choices" and column not in columns
        for one in column.split(",") if several else [column]:
            if one not in columns:
                raise InputError(f"{source} has no column {one!r} (for {field}); it has {_named(columns)}.")
    return Format("mapping", used, lambda values: _read_mapped(values, used, set(columns)))


def _named(columns: Sequence[str]) -> str:
    return ", ".join(columns[:20]) + (", …" if len(columns) > 20 else "") if columns else "no columns"


def _read_mapped(values: Values, mapping: Mapping[str, str], columns: set[str]) -> Item:
    prompt = _text(values, mapping["prompt"], "question")
    explanation = _optional_text(values, mapping["explanation"]) if "explanation" in mapping else None
    split = _split(values.get(mapping["split"])) if "split" in mapping else None
    answer = _text(values, mapping["answer"], "answer")
    if "choices" not in mapping:
        return Item(prompt, answer, explanation=explanation, split=split)
    if mapping["choices"] in columns:
        choices, labels = _choices_at(values, mapping["choices"])
    else:
        labels = mapping["choices"].split(",")
        choices = [_text(values, column, "choice") for column in labels]
    gold = _find_answer(choices, labels, values[mapping["answer"]])
    return Item(prompt, choices[gold], choices, gold, explanation, split=split)
