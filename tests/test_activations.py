"""The rows of the gates, against a plain loop over questions, sites, tokens and experts."""

import numpy as np
import pytest
import torch

from metamoe_backend.evaluate.activations import compute_activations, compute_token_activations
from metamoe_backend.models.lora_moe import GateRecord

LAYERS, SITES, EXPERTS = [0, 0, 1, 1], ["self_attn", "mlp"] * 2, ["a", "b", "c"]
WIDTH = 6
SPANS = [slice(2, 6), slice(0, 5), slice(5, 6)]


def make_record() -> GateRecord:
    """Two of three experts chosen a token, at random; the last question went to the bare base model."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for _ in SITES:
        scores = torch.rand(len(SPANS), WIDTH, len(EXPERTS), generator=generator)
        scores = scores.masked_fill(scores == scores.amin(-1, keepdim=True), 0.0)
        gates = scores / scores.sum(-1, keepdim=True)
        gates[-1] = 0.0
        parts.append([gates[:, :4], gates[:, 4:]])  # two passes follow each other
    return GateRecord(LAYERS, SITES, EXPERTS, parts)


def test_weights_and_shares_equal_a_plain_loop() -> None:
    record = make_record()
    found = compute_activations(record, record.weights, ["q0", "q1", "q2"], SPANS)
    found = found.set_index(["question_id", "layer", "site", "expert"])
    assert len(found) == 3 * 4 * 3 and found.index.is_unique
    for row, span in enumerate(SPANS):
        for layer, site, gates in zip(LAYERS, SITES, record.weights, strict=True):
            own = gates[row, span].numpy()
            for place, expert in enumerate(EXPERTS):
                times = sum(value > 0 for value in own[:, place])
                every = sum(value > 0 for value in own.ravel())
                line = found.loc[(f"q{row}", layer, site, expert)]
                assert line["weight"] == pytest.approx(own[:, place].mean(), abs=1e-5)
                assert line["chosen"] == pytest.approx(times / len(own), abs=1e-5)
                assert line["share"] == pytest.approx(times / every if every else 0.0, abs=1e-5)
                assert line["tokens"] == len(own)
    chosen = found["chosen"].groupby(["question_id", "layer", "site"]).sum()
    assert chosen.loc[["q0", "q1"]].to_numpy() == pytest.approx(2.0, abs=1e-4), "two experts a token"
    assert chosen.loc["q2"].to_numpy() == pytest.approx(0.0)


def test_a_layers_sites_are_averaged_token_by_token() -> None:
    record = make_record()
    tokens = ["w", "x", "y", "z"]
    found = compute_token_activations(record, record.weights, 0, "q0", SPANS[0], tokens)
    found = found.set_index(["layer", "position", "expert"])
    assert len(found) == 2 * 4 * 3
    for layer in (0, 1):
        both = np.mean([g[0, SPANS[0]].numpy() for g, at in zip(record.weights, LAYERS, strict=True) if at == layer], 0)
        for position, token in enumerate(tokens):
            for place, expert in enumerate(EXPERTS):
                line = found.loc[(layer, position, expert)]
                assert line["token"] == token and line["weight"] == pytest.approx(both[position, place], abs=1e-5)
