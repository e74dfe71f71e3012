"""Packing a question with its options, or batching questions, changes no log-likelihood."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metamoe_backend.errors import InputError
from metamoe_backend.evaluate import loglikelihood, packed_attention
from metamoe_backend.evaluate.batches import fill_batches, pad_left, plan_batches
from metamoe_backend.evaluate.loglikelihood import iterate_logliks, pack_question
from metamoe_backend.evaluate.packed_attention import make_tiles
from metamoe_backend.evaluate.prompts import encode_pair, encode_prompt, make_continuation
from metamoe_backend.models.base import load_base
from metamoe_backend.models.systems import OpenSystem
from tests.tiny_models import make_tiny_base

QUESTIONS = [
    ("Question: What barks?\nAnswer:", ["a dog", "a cat", "a doggy", "no"]),
    ("Is 2 + 2 = 4? ", ["yes", "no"]),
    ("Question: Which is the longest of these?\nAnswer:", ["the very longest of them all", "x", "the very long"]),
    ("你好", ["世界", "a"]),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return load_base(str(make_tiny_base(tmp_path_factory.mktemp("models") / "base")), "cpu")


def score_alone(model, tokens: list[int], start: int) -> float:
    """The reference: one row, no padding, no packing, the whole head."""
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([tokens])).logits[0].double().log_softmax(-1)
    return sum(logits[place - 1, tokens[place]].item() for place in range(start, len(tokens)))


def score_packed(system, pairs, batch_tokens=4096, max_positions=1024) -> list[np.ndarray]:
    questions = [pack_question(options, max_positions) for options in pairs]
    found = {}
    for rows, values in iterate_logliks(system, questions, batch_tokens):
        found |= dict(zip(rows, values, strict=True))
    return [found[row] for row in range(len(pairs))]


def encode(tokenizer, questions=QUESTIONS):
    return [
        [encode_pair(tokenizer, text, make_continuation(option)) for option in options] for text, options in questions
    ]


@pytest.fixture(params=["in one row", "in rows"])
def layout(request, monkeypatch) -> str:
    """Questions one behind the other, as on a processor, and one a row with padding, as on a GPU."""
    if request.param == "in rows":
        monkeypatch.setattr(loglikelihood, "can_pack", lambda _: False)
    return str(request.param)


def spy_shapes(model, monkeypatch) -> list[tuple[int, int]]:
    """(rows, width) of every forward pass."""
    shapes, forward = [], model.forward

    def spy(*args, **kwargs):
        shapes.append(tuple(kwargs["input_ids"].shape))
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", spy)
    return shapes


@pytest.mark.parametrize("batch_tokens", [1, 128, 4096])
def test_packed_equals_each_option_alone(base, batch_tokens, layout):
    pairs = encode(base.tokenizer)
    packed = score_packed(OpenSystem(base.model, []), pairs, batch_tokens)
    for options, values in zip(pairs, packed, strict=True):
        assert values == pytest.approx([score_alone(base.model, *pair) for pair in options], abs=1e-4)


def test_in_one_row_nothing_is_padded(base, monkeypatch):
    pairs = encode(base.tokenizer)
    questions = [pack_question(options, 1024) for options in pairs]
    shapes = spy_shapes(base.model, monkeypatch)
    before = base.model.config._attn_implementation
    score_packed(OpenSystem(base.model, []), pairs)
    assert shapes == [(1, sum(len(question.tokens) for question in questions))]
    assert base.model.config._attn_implementation == before, "generation and training attend as before"


def test_a_model_whose_attention_cannot_be_replaced_gets_rows(base, monkeypatch):
    monkeypatch.setattr(type(base.model), "_supports_attention_backend", False)
    shapes = spy_shapes(base.model, monkeypatch)
    score_packed(OpenSystem(base.model, []), encode(base.tokenizer))
    assert sum(rows for rows, _ in shapes) == len(QUESTIONS)


def test_questions_of_all_lengths_share_tiles(base, monkeypatch):
    # Longer than a tile, shorter, and a prompt with options of one token, which needs no mask.
    monkeypatch.setattr(packed_attention, "LEAST_TOKENS", 12)
    pairs = [
        [([7] * size + [number, *own], size) for number in range(2)]
        for size, own in ((30, []), (14, [3, 4]), (5, [1]), (4, []), (3, [2, 2, 2]), (1, []))
    ]
    tiles = make_tiles([loglikelihood._find_seen(pack_question(options, 99)) for options in pairs], 0, base.model.dtype)
    assert [tile.end - tile.start for tile in tiles] == [30, 18, 20, 1]
    assert [tile.mask is None for tile in tiles] == [True, False, False, True]
    for options, values in zip(pairs, score_packed(OpenSystem(base.model, []), pairs), strict=True):
        assert values == pytest.approx([score_alone(base.model, *pair) for pair in options], abs=1e-4)


tokens = st.integers(0, 255)
rows = st.lists(st.lists(tokens, min_size=1, max_size=6), min_size=2, max_size=5)


@settings(max_examples=12)
@given(st.lists(st.tuples(st.lists(tokens, min_size=1, max_size=12), rows), min_size=1, max_size=4), st.integers(0, 3))
def test_any_tokens_packed_equal_each_option_alone(base, drawn, joined):
    # Options may begin alike, be each other's beginning, or be the same.
    # `joined` prompt tokens differ between options, as where a tokenizer joins the prompt's end with the option.
    pairs = []
    for prompt, options in drawn:
        kept = max(1, len(prompt) - joined)
        changed = [[(token + number) % 256 for token in prompt[kept:]] for number in range(len(options))]
        pairs.append([(prompt[:kept] + end + own, len(prompt)) for end, own in zip(changed, options, strict=True)])
    for options, values in zip(pairs, score_packed(OpenSystem(base.model, []), pairs), strict=True):
        assert values == pytest.approx([score_alone(base.model, *pair) for pair in options], abs=1e-4)


def test_an_option_of_one_token_costs_nothing_beyond_the_prompt():
    packed = pack_question([([5, 6, 7], 2), ([5, 6, 8], 2)], 100)
    assert packed.tokens.tolist() == [5, 6]
    assert packed.targets.tolist() == [7, 8]
    assert packed.predictors.tolist() == [1, 1]


def test_what_options_begin_with_alike_is_read_once():
    packed = pack_question([([5, 1, 2, 3], 1), ([5, 1, 2, 4, 9], 1), ([5, 8, 2, 9], 1), ([5, 1], 1)], 100)
    assert packed.tokens.tolist() == [5, 1, 2, 4, 8, 2]
    assert packed.parents.tolist() == [-1, 0, 1, 2, 0, 4]
    assert packed.positions.tolist() == [0, 1, 2, 3, 1, 2]
    assert packed.predictors.tolist() == [0, 1, 2, 0, 1, 2, 3, 0, 4, 5, 0]
    assert packed.targets.tolist() == [1, 2, 3, 1, 2, 4, 9, 8, 2, 9, 1]
    assert packed.options.tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3]


def test_a_prompt_too_long_is_cut_on_the_left(base):
    long = list(range(200))
    pairs = [[([*long, 7, 8], 200), ([*long, 9], 200)]]
    found = score_packed(OpenSystem(base.model, []), pairs, max_positions=50)
    assert found[0][0] == pytest.approx(score_alone(base.model, [*long[-49:], 7, 8], 49), abs=1e-4)
    with pytest.raises(InputError, match="longer than the model's 50 positions"):
        pack_question([([1, *long], 1), ([1, 2], 1)], 50)


def test_options_are_scored_as_a_space_and_their_text(base):
    whole, start = encode_pair(base.tokenizer, "Q:", make_continuation("ab"))
    assert base.tokenizer.decode(whole[:start]) == "Q:"
    assert base.tokenizer.decode(whole[start:]) == " ab"
    # Spaces that end the prompt count to the option, as in lm-evaluation-harness.
    whole, start = encode_pair(base.tokenizer, "Q: ", make_continuation("ab"))
    assert base.tokenizer.decode(whole[start:]) == "  ab"


def test_an_empty_prompt_still_has_a_token(base):
    assert encode_prompt(base.tokenizer, "") == [base.tokenizer.eos_token_id]
    whole, start = encode_pair(base.tokenizer, "", make_continuation("ab"))
    assert start == 1
    assert base.tokenizer.decode(whole[start:]) == " ab"


@given(st.lists(st.integers(1, 300), min_size=1, max_size=60), st.integers(1, 1000))
def test_batches_keep_to_the_budget_and_hold_every_row_once(lengths, budget):
    batches = plan_batches(lengths, budget)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= budget
    assert lengths[batches[0][0]] == max(lengths)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=60), st.integers(1, 1000))
def test_batches_of_one_row_keep_to_the_budget_and_hold_every_row_once(lengths, budget):
    batches = fill_batches(lengths, budget)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or sum(lengths[row] for row in batch) <= budget
    assert lengths[batches[0][0]] == max(lengths)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=9), st.integers(60, 200), st.sampled_from([0.0, 0.1, 0.5]))
def test_no_other_cut_into_batches_costs_less(lengths, budget, share):
    def cost(batches):
        return sum(len(batch) * max(batch) + share * budget for batch in batches)

    def cut_everyhow(rows):
        yield [rows]
        for place in range(1, len(rows)):
            yield from ([rows[:place], *rest] for rest in cut_everyhow(rows[place:]))

    ordered = sorted(lengths, reverse=True)
    allowed = [cuts for cuts in cut_everyhow(ordered) if all(len(cut) * cut[0] <= budget for cut in cuts)]
    planned = [[lengths[row] for row in batch] for batch in plan_batches(lengths, budget, share)]
    assert cost(planned) == pytest.approx(min(map(cost, allowed)))


def test_padding_stands_on_the_left():
    assert pad_left([[1], [2, 3, 4]], 0).tolist() == [[0, 0, 1], [2, 3, 4]]


@pytest.mark.model
def test_packed_equals_each_option_alone_on_the_packaged_model():
    real = load_base("smollm2-135m", "cpu")
    pairs = encode(real.tokenizer, [QUESTIONS[0], QUESTIONS[2], ("Question: 1 + 1?\nAnswer:", ["2", "window"])])
    packed = score_packed(OpenSystem(real.model, []), pairs)
    for options, values in zip(pairs, packed, strict=True):
        assert values == pytest.approx([score_alone(real.model, *pair) for pair in options], abs=1e-3)
    assert packed[2].argmax() == 0
