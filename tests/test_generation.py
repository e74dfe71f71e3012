"""Generating in batches gives each prompt the text it gets alone."""

import numpy as np
import pytest
import torch

from metamoe_backend.evaluate.generation import Stop, find_stop_tokens, iterate_outputs
from metamoe_backend.evaluate.prompts import encode_prompt
from metamoe_backend.models.adapters import read_adapter
from metamoe_backend.models.base import load_base
from metamoe_backend.models.lora_moe import GateSettings, attach_experts
from metamoe_backend.models.systems import OpenSystem
from tests.tiny_models import make_tiny_adapter, make_tiny_base

PROMPTS = ["What barks?", "Say a word.", "2 + 2 =", "A much longer question, with many words in it?", "x", "你好"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return load_base(str(make_tiny_base(tmp_path_factory.mktemp("models") / "base", seed=3)), "cpu")


def generate(base, prompts, stop, batch_tokens=4096, system=None, routes=None) -> list[str]:
    found = {}
    encoded = [encode_prompt(base.tokenizer, prompt) for prompt in prompts]
    opened = system or OpenSystem(base.model, [])
    for rows, texts in iterate_outputs(opened, base.tokenizer, encoded, stop, batch_tokens, routes):
        found |= dict(zip(rows, texts, strict=True))
    return [found[row] for row in range(len(prompts))]


def generate_alone(base, prompt: str, stop: Stop) -> tuple[str, int]:
    """The reference: no cache, no batch. The text, and how many tokens it took."""
    tokens = encode_prompt(base.tokenizer, prompt)
    start = len(tokens)
    while len(tokens) - start < stop.max_new_tokens:
        with torch.inference_mode():
            token = int(base.model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax())
        if token in stop.tokens:
            break
        tokens.append(token)
        if any(end in base.tokenizer.decode(tokens[start:]) for end in stop.texts):
            break
    text = base.tokenizer.decode(tokens[start:], skip_special_tokens=True)
    return stop.cut(text), len(tokens) - start


@pytest.mark.parametrize("batch_tokens", [1, 120])
def test_a_batch_gives_what_each_prompt_gets_alone(base, batch_tokens):
    stop = Stop(frozenset({257}), ("\n",), 12)
    assert generate(base, PROMPTS, stop, batch_tokens) == [generate_alone(base, prompt, stop)[0] for prompt in PROMPTS]


def test_rows_leave_the_batch_when_they_are_finished(base):
    # Every token that ends in 0 or 5 ends a row, so that rows finish at different steps.
    stop = Stop(frozenset(range(0, 256, 5)), ("\n",), 20)
    alone = [generate_alone(base, prompt, stop) for prompt in PROMPTS]
    assert len({steps for _, steps in alone}) > 1
    sizes = []
    forward = base.model.forward

    def spy(*args, **kwargs):
        sizes.append(kwargs["input_ids"].shape[0])
        return forward(*args, **kwargs)

    base.model.forward = spy
    try:
        assert generate(base, PROMPTS, stop) == [text for text, _ in alone]
    finally:
        base.model.forward = forward
    assert sizes[0] == len(PROMPTS)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0]
    assert len(sizes) <= 1 + max(steps for _, steps in alone)


def test_an_answer_ends_at_the_first_of_several_texts_and_a_program_keeps_its_indentation():
    stop = Stop(frozenset(), ("\ndef", "\n#"), 20, strip=False)
    assert stop.cut("    return 1\n# next\ndef f(): ...") == "    return 1"
    assert stop.cut("    return 1\n") == "    return 1\n"
    assert Stop(frozenset(), ("\n",), 20).cut("  7 \n8") == "7"


def test_the_stop_text_ends_an_answer(base):
    free = generate(base, PROMPTS, Stop(frozenset(), ("<never>",), 20))
    longest = max(free, key=len)
    mark = longest[len(longest) // 2]
    cut = generate(base, PROMPTS, Stop(frozenset(), (mark,), 20))
    assert cut == [text.split(mark)[0].strip() for text in free]


def test_routes_follow_their_rows(base):
    class Routed(OpenSystem):
        def __init__(self, model):
            super().__init__(model, [])
            self.seen = []

        def set_routes(self, routes):
            self.seen.append(routes)

    system = Routed(base.model)
    stop = Stop(frozenset(range(0, 256, 5)), ("\n",), 20)
    routes = np.arange(len(PROMPTS), dtype=float)[:, None]
    generate(base, PROMPTS, stop, system=system, routes=routes)
    longest_first = sorted(range(len(PROMPTS)), key=lambda row: -len(encode_prompt(base.tokenizer, PROMPTS[row])))
    assert system.seen[0][:, 0].tolist() == longest_first
    for earlier, later in zip(system.seen, system.seen[1:], strict=False):
        assert len(later) < len(earlier)
        assert set(later[:, 0]) < set(earlier[:, 0])


def test_a_system_that_reads_twice_generates_without_a_cache(base, tmp_path):
    """X-LoRA in a batch with left padding gives what each prompt gets alone, in whole passes."""
    shape = make_tiny_base(tmp_path / "shape")
    folders = [make_tiny_adapter(tmp_path / str(seed), shape, seed=seed) for seed in range(2)]
    mixture = attach_experts(base.model, [read_adapter(folder) for folder in folders], GateSettings("xlora", 2))
    mixture.draw_gate_weights(0, 1.0)
    try:
        system = OpenSystem(base.model, mixture.experts, mixture)
        stop = Stop(find_stop_tokens(base.model, base.tokenizer), ("\n",), 6)
        prompts = ["a b", "one longer prompt", "x"]
        found = generate(base, prompts, stop, system=system)
        assert found == [generate_alone(base, prompt, stop)[0] for prompt in prompts]
    finally:
        mixture.detach()


def test_stop_tokens_come_from_tokenizer_and_model(base):
    assert find_stop_tokens(base.model, base.tokenizer) == {257}
