"""Log-likelihood of every option of a question, in one pass: the prompt once, all its options behind it.

The options are branches of a tree: each option's tokens see the prompt and the tokens before them in the same option,
never another option, and their positions count on from the prompt's end. Each branch is therefore computed exactly as
if it stood alone behind the prompt. An option's last token predicts nothing and is left out, so options of one token
cost nothing beyond the prompt.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from metamoe_backend.errors import InputError
from metamoe_backend.evaluate.batches import BatchBudget, pad_left, run_batches
from metamoe_backend.evaluate.shared_prefix import SharedPrefix, count_shared, read_shared_prefix

if TYPE_CHECKING:
    from metamoe_backend.models.systems import GateRecord, OpenSystem

PromptWatcher = Callable[["GateRecord", list[int], list[slice]], None]
"""Told after each pass over prompts: the gates, which prompts the rows are, and where each row's prompt tokens lie."""

_PADDING = -1
_PROMPT = 0
_BLOCK_ROWS = 256


@dataclass(frozen=True, slots=True)
class PackedQuestion:
    """A prompt and its options as one row of tokens.

    tokens, branches (0 for the prompt, else the option's number from 1), positions: one entry a token. predictors
    (index into tokens), targets (token id), options (from 0): one entry a scored token. prompt_tokens come first.
    """

    tokens: NDArray[np.int64]
    branches: NDArray[np.int64]
    positions: NDArray[np.int64]
    predictors: NDArray[np.int64]
    targets: NDArray[np.int64]
    options: NDArray[np.int64]
    option_count: int
    prompt_tokens: int
    cut_tokens: int = 0
    """Tokens at the beginning that the model has no room for."""


def pack_question(pairs: Sequence[tuple[Sequence[int], int]], max_positions: int) -> PackedQuestion:
    """Pack one question. pairs: per option, the tokens of prompt and option together and where the option starts.

    What all options share before the first of them starts is the prompt; it is cut on the left to `max_positions`.
    Raises `InputError` when an option alone is longer than that.
    """
    shared = count_shared([tokens[:start] for tokens, start in pairs])
    cut = max(0, max(len(tokens) for tokens, _ in pairs) - 1 - max_positions)
    if cut >= shared:
        raise InputError(
            f"An option is longer than the model's {max_positions} positions; shorten it or drop the question."
        )
    prompt = pairs[0][0][cut:shared]
    tokens, branches, positions = [*prompt], [_PROMPT] * len(prompt), list(range(len(prompt)))
    predictors, targets, options = [], [], []
    for option, (whole, start) in enumerate(pairs):
        own = whole[shared:]
        # Place of the token before own[i]: the prompt's last one for i = 0, else the branch's.
        places = [len(prompt) - 1, *range(len(tokens), len(tokens) + len(own) - 1)]
        scored = range(start - shared, len(own))
        predictors += [places[i] for i in scored]
        targets += [own[i] for i in scored]
        options += [option] * len(scored)
        tokens += own[:-1]
        branches += [option + 1] * (len(own) - 1)
        positions += range(len(prompt), len(prompt) + len(own) - 1)
    return PackedQuestion(
        tokens=np.asarray(tokens, dtype=np.int64),
        branches=np.asarray(branches, dtype=np.int64),
        positions=np.asarray(positions, dtype=np.int64),
        predictors=np.asarray(predictors, dtype=np.int64),
        targets=np.asarray(targets, dtype=np.int64),
        options=np.asarray(options, dtype=np.int64),
        option_count=len(pairs),
        prompt_tokens=len(prompt),
        cut_tokens=cut,
    )


def iterate_logliks(
    system: "OpenSystem",
    questions: Sequence[PackedQuestion],
    batch_tokens: int | BatchBudget,
    routes: NDArray[np.float64] | None = None,
    watch: PromptWatcher | None = None,
) -> Iterator[tuple[list[int], list[NDArray[np.float64]]]]:
    """Batch by batch: indices of questions, and the summed log-likelihood in nats of each one's options.

    routes: one row a question for mixtures that route by question. watch: sees the gates of every batch. What all
    prompts begin with is read once (`shared_prefix`). A batch that memory does not hold is halved.
    """
    prompts = [question.tokens[: question.prompt_tokens].tolist() for question in questions]
    prefix = None if watch else read_shared_prefix(system, prompts, routes)
    known = 0 if prefix is None else len(prefix.tokens)
    behind = [_drop_prefix(question, known) for question in questions]

    def score(rows: list[int]) -> list[NDArray[np.float64]]:
        system.set_routes(None if routes is None else routes[rows])
        return _score_batch(system, [behind[row] for row in rows], rows, watch, prefix)

    yield from run_batches([len(question.tokens) for question in behind], batch_tokens, score)


def _drop_prefix(question: PackedQuestion, known: int) -> PackedQuestion:
    """The question without its first `known` prompt tokens; positions still count from the prompt's beginning."""
    return replace(
        question,
        tokens=question.tokens[known:],
        branches=question.branches[known:],
        positions=question.positions[known:],
        predictors=question.predictors - known,
        prompt_tokens=question.prompt_tokens - known,
    )


def _score_batch(
    system: "OpenSystem",
    batch: Sequence[PackedQuestion],
    rows: list[int],
    watch: PromptWatcher | None,
    prefix: SharedPrefix | None,
) -> list[NDArray[np.float64]]:
    import torch

    model = system.model
    tokens = torch.from_numpy(pad_left([question.tokens for question in batch], 0)).to(model.device)
    starts = [tokens.shape[1] - len(question.tokens) for question in batch]
    needed = np.zeros(tuple(tokens.shape), dtype=bool)
    for row, (start, question) in enumerate(zip(starts, batch, strict=True)):
        needed[row, start + question.predictors] = True
    inputs = {
        "input_ids": tokens,
        "attention_mask": _make_tree_mask(batch, model, 0 if prefix is None else len(prefix.tokens)),
        "position_ids": torch.from_numpy(pad_left([question.positions for question in batch], 0)).to(model.device),
        "use_cache": False,
        "logits_to_keep": torch.from_numpy(needed).to(model.device),  # the head runs where an option is predicted
    }
    if prefix is not None:
        inputs["past_key_values"] = prefix.make_passing_cache(len(batch))
    with torch.inference_mode():
        if watch is None:
            logits = model(**inputs).logits
        else:
            with system.record() as gates:
                logits = model(**inputs).logits
            spans = [slice(at, at + question.prompt_tokens) for at, question in zip(starts, batch, strict=True)]
            watch(gates, rows, spans)
        places = needed.cumsum().reshape(needed.shape) - 1  # where a row's position stands among all needed ones
        logit_rows = [places[row, start + batch[row].predictors] for row, start in enumerate(starts)]
        values = _take_log_probabilities(
            logits, np.concatenate(logit_rows), np.concatenate([question.targets for question in batch])
        )
    each = np.split(values, np.cumsum([len(found) for found in logit_rows])[:-1])
    return [
        np.bincount(question.options, weights=own, minlength=question.option_count).astype(np.float64)
        for question, own in zip(batch, each, strict=True)
    ]


def _make_tree_mask(batch: Sequence[PackedQuestion], model: Any, known: int) -> Any:
    """Additive mask [batch, 1, width, known + width]: 0 where a token may look, the dtype's least number elsewhere.

    The `known` tokens of a shared prefix are seen by all.
    """
    import torch

    branches = torch.from_numpy(pad_left([question.branches for question in batch], _PADDING)).to(model.device)
    queries, keys = branches[:, :, None], branches[:, None, :]
    # Padding, at the left end, looks at padding: a token that may look nowhere would turn into NaN and spread.
    seen = (keys == _PROMPT) | (keys == queries)
    blocked = ~seen.tril()
    blocked = torch.cat([blocked.new_zeros(*blocked.shape[:2], known), blocked], dim=2)
    mask = torch.zeros(blocked.shape, dtype=model.dtype, device=model.device)
    return mask.masked_fill_(blocked, torch.finfo(model.dtype).min)[:, None]


def _take_log_probabilities(logits: Any, rows: NDArray[np.int64], targets: NDArray[np.int64]) -> NDArray[np.float64]:
    """Log-probability of each target token under its row of logits [positions, vocabulary], in nats."""
    import torch

    # In blocks: log-sum-exp makes a copy, and a whole one would double the largest tensor there is.
    totals = torch.cat([block.float().logsumexp(-1) for block in logits.split(_BLOCK_ROWS)])
    at = torch.from_numpy(rows).to(logits.device)
    chosen = logits[at, torch.from_numpy(targets).to(logits.device)].float()
    return (chosen - totals[at]).double().cpu().numpy()
