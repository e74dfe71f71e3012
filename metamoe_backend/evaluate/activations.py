"""What the gates of a mixture did while it read prompts, as rows of activation and token_activation."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

    from metamoe_backend.models.lora_moe import GateRecord

WEIGHT_DECIMALS = 5
"""More digits are noise, and rounded weights take a third of the room."""


def compute_activations(
    gates: "GateRecord", weights: Sequence["Tensor"], question_ids: Sequence[str], spans: Sequence[slice]
) -> pd.DataFrame:
    """Per question, layer, site and expert: weight, share, chosen, tokens (see rows.Activation), for one recorded pass.

    weights: what `gates` recorded, per site [rows, width, experts]. spans: where each row's prompt tokens lie. A
    question answered by the bare base model has weights and shares of 0.
    The gates are reduced where they lie: what leaves the device is one number a question, site and expert.
    """
    import torch

    rows, width, experts = weights[0].shape
    counted = torch.zeros(rows, 1, width, device=weights[0].device)
    for row, span in enumerate(spans):
        counted[row, 0, span] = 1.0
    sums = torch.stack([(counted @ site)[:, 0] for site in weights])
    times = torch.stack([(counted @ (site > 0).float())[:, 0] for site in weights])
    tokens = np.array([span.stop - span.start for span in spans])
    means, chosen = (total.cpu().numpy().astype(float) / tokens[None, :, None] for total in (sums, times))
    shares = chosen / np.maximum(chosen.sum(axis=2, keepdims=True), np.finfo(float).tiny)
    sites = len(weights)

    def spread(values: Any, axis: int) -> NDArray[Any]:
        """One value a site, row or expert, as a column of the table."""
        shape = [1, 1, 1]
        shape[axis] = -1
        return np.broadcast_to(np.asarray(values).reshape(shape), (sites, rows, experts)).reshape(-1)

    return pd.DataFrame(
        {
            "question_id": spread(np.array(question_ids, dtype=object), 1),
            "layer": spread(gates.layers, 0),
            "site": spread(np.array(gates.sites, dtype=object), 0),
            "expert": spread(np.array(gates.experts, dtype=object), 2),
            "weight": means.reshape(-1).round(WEIGHT_DECIMALS),
            "share": shares.reshape(-1).round(WEIGHT_DECIMALS),
            "tokens": spread(tokens, 1),
            "chosen": chosen.reshape(-1).round(WEIGHT_DECIMALS),
        }
    )


def compute_token_activations(
    gates: "GateRecord",
    weights: Sequence["Tensor"],
    row: int,
    question_id: str,
    span: slice,
    tokens: Sequence[str],
) -> pd.DataFrame:
    """Per token of one row's prompt, layer and expert: the gate weight, averaged over the layer's sites."""
    import torch

    values = torch.stack([site[row, span] for site in weights]).cpu().numpy()
    layers, where = np.unique(np.asarray(gates.layers), return_inverse=True)
    means = np.zeros((len(layers), *values.shape[1:]))
    np.add.at(means, where, values)
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
        weights = gates.weights
        names = [self.question_ids[row] for row in rows]
        self.activations.append(compute_activations(gates, weights, names, spans))
        for place, (row, name, span) in enumerate(zip(rows, names, spans, strict=True)):
            if name in self.sampled:
                texts = [self.tokenizer.decode([int(token)]) for token in self.prompts[row]]
                self.token_activations.append(compute_token_activations(gates, weights, place, name, span, texts))
