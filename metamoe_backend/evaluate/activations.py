"""What the gates of a mixture did while it read prompts, as rows of activation and token_activation."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

if TYPE_CHECKING:
    from metamoe_backend.models.lora_moe import GateRecord

WEIGHT_DECIMALS = 5
"""More digits are noise, and rounded weights take a third of the room."""


def compute_activations(gates: "GateRecord", question_ids: Sequence[str], spans: Sequence[slice]) -> pd.DataFrame:
    """Per question, layer, site and expert: weight, share, tokens (see rows.Activation), for one recorded pass.

    spans: where each row's prompt tokens lie. A question answered by the bare base model has weights and shares of 0.
    """
    weights = _stack(gates)
    sites, rows, width, experts = weights.shape
    counted = np.zeros((rows, width), dtype=weights.dtype)
    for row, span in enumerate(spans):
        counted[row, span] = 1.0
    tokens = counted.sum(axis=1)
    means = np.einsum("lrwe,rw->lre", weights, counted) / tokens[None, :, None]
    chosen = np.einsum("lrwe,rw->lre", (weights > 0).astype(weights.dtype), counted)
    shares = chosen / np.maximum(chosen.sum(axis=2, keepdims=True), 1.0)
    each = np.indices((sites, rows, experts)).reshape(3, -1)
    return pd.DataFrame(
        {
            "question_id": np.asarray(question_ids, dtype=object)[each[1]],
            "layer": np.asarray(gates.layers)[each[0]],
            "site": np.asarray(gates.sites, dtype=object)[each[0]],
            "expert": np.asarray(gates.experts, dtype=object)[each[2]],
            "weight": means.reshape(-1).astype(float).round(WEIGHT_DECIMALS),
            "share": shares.reshape(-1).astype(float),
            "tokens": tokens.astype(int)[each[1]],
        }
    )


def compute_token_activations(
    gates: "GateRecord", row: int, question_id: str, span: slice, tokens: Sequence[str]
) -> pd.DataFrame:
    """Per token of one row's prompt, layer and expert: the gate weight, averaged over the layer's sites."""
    weights = _stack(gates, row)[:, 0, span]
    layers, where = np.unique(np.asarray(gates.layers), return_inverse=True)
    means = np.zeros((len(layers), *weights.shape[1:]))
    np.add.at(means, where, weights)
    means /= np.bincount(where)[:, None, None]
    each = np.indices(means.shape).reshape(3, -1)
    return pd.DataFrame(
        {
            "question_id": question_id,
            "position": each[1],
            "token": np.asarray(tokens, dtype=object)[each[1]],
            "layer": layers[each[0]],
            "expert": np.asarray(gates.experts, dtype=object)[each[2]],
            "weight": means.reshape(-1).round(WEIGHT_DECIMALS),
        }
    )


def _stack(gates: "GateRecord", row: int | None = None) -> NDArray[np.float32]:
    """Gate weights [sites, rows, width, experts], of all rows or of one."""
    chosen = slice(None) if row is None else slice(row, row + 1)
    return np.stack([site[chosen].float().cpu().numpy() for site in gates.weights])


class ActivationCollector:
    """A `PromptWatcher` that keeps the rows of every pass of one part; `sampled` questions token by token."""

    def __init__(
        self, tokenizer: Any, question_ids: Sequence[str], prompts: Sequence[Sequence[int]], sampled: set[str]
    ) -> None:
        self.tokenizer = tokenizer
        self.question_ids = list(question_ids)
        self.prompts = prompts
        """Token ids of what the model read, per question; the gates' spans count these."""
        self.sampled = sampled
        self.activations: list[pd.DataFrame] = []
        self.token_activations: list[pd.DataFrame] = []

    def __call__(self, gates: "GateRecord", rows: list[int], spans: list[slice]) -> None:
        if not gates.sites:
            return
        names = [self.question_ids[row] for row in rows]
        self.activations.append(compute_activations(gates, names, spans))
        for place, (row, name, span) in enumerate(zip(rows, names, spans, strict=True)):
            if name in self.sampled:
                texts = [self.tokenizer.decode([int(token)]) for token in self.prompts[row]]
                self.token_activations.append(compute_token_activations(gates, place, name, span, texts))
