"""Log-likelihood of every option of a question, in one pass: the prompt once, all its options behind it.

The options are branches of a tree: each token sees the prompt and the tokens before it in the same option, never what
only another option has, and its position counts on from the prompt's end. Each branch is therefore computed exactly as
if it stood alone behind the prompt. What options begin with alike is read once, too. An option's last token predicts
nothing and is left out, so options of one token cost nothing beyond the prompt.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from metamoe_backend.errors import InputError
from metamoe_backend.evaluate.batches import BatchBudget, fill_batches, pad_left, plan_batches, run_batches
from metamoe_backend.evaluate.packed_attention import attend_by_tiles, can_pack, make_additive, make_tiles
from metamoe_backend.evaluate.shared_prefix import SharedPrefix, count_shared, read_shared_prefix

if TYPE_CHECKING:
    from metamoe_backend.models.systems import GateRecord, OpenSystem

PromptWatcher = Callable[["GateRecord", list[int], list[slice]], None]
"""Told after each pass over prompts: the gates, which prompts the rows are, and where each row's prompt tokens lie."""

_BLOCK_ROWS = 64
"""Rows of logits reduced at a time: of larger blocks, the copy would be fresh memory from the system each time."""


@dataclass(frozen=True, slots=True)
class PackedQuestion:
    """A prompt and its options as one row of tokens.

    tokens, parents (place of the token before it in its own text, -1 for the first), positions: one entry a token.
    predictors (index into tokens), targets (token id), options (from 0): one entry a scored token. prompt_tokens come
    first, and every parent before its children.
    """

    tokens: NDArray[np.int64]
    parents: NDArray[np.int64]
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
    tokens, parents = [*prompt], list(range(-1, len(prompt) - 1))
    positions = list(range(len(prompt)))
    places: dict[tuple[int, int], int] = {}  # of a token behind another
    predictors, targets, options = [], [], []
    for option, (whole, start) in enumerate(pairs):
        last = len(prompt) - 1
        for at, token in enumerate(whole[shared:], shared):
            if at >= start:
                predictors.append(last)
                targets.append(token)
                options.append(option)
            if at + 1 == len(whole):
                break
            place = places.setdefault((last, token), len(tokens))
            if place == len(tokens):
                tokens.append(token)
                parents.append(last)
                positions.append(positions[last] + 1)
            last = place
    return PackedQuestion(
        tokens=np.asarray(tokens, dtype=np.int64),
        parents=np.asarray(parents, dtype=np.int64),
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
    prompts begin with is read once (`shared_prefix`). On a processor a batch is a single row without padding
    (`packed_attention`), but where a system needs the questions apart. A batch that memory does not hold is halved.
    """
    prompts = [question.tokens[: question.prompt_tokens].tolist() for question in questions]
    prefix = None if watch else read_shared_prefix(system, prompts, routes)
    known = 0 if prefix is None else len(prefix.tokens)
    behind = [_drop_prefix(question, known) for question in questions]
    in_one_row = routes is None and watch is None and system.reads_once and can_pack(system.model)

    def score(rows: list[int]) -> list[NDArray[np.float64]]:
        batch = [behind[row] for row in rows]
        system.set_routes(None if routes is None else routes[rows])
        if in_one_row:
            return _score_in_one_row(system.model, batch, prefix)
        return _score_in_rows(system, batch, rows, watch, prefix)

    plan = fill_batches if in_one_row else plan_batches
    yield from run_batches([len(question.tokens) for question in behind], batch_tokens, score, plan)


def _drop_prefix(question: PackedQuestion, known: int) -> PackedQuestion:
    """The question without its first `known` prompt tokens; positions still count from the prompt's beginning."""
    return replace(
        question,
        tokens=question.tokens[known:],
        parents=np.maximum(question.parents[known:] - known, -1),
        positions=question.positions[known:],
        predictors=question.predictors - known,
        prompt_tokens=question.prompt_tokens - known,
    )


def _score_in_one_row(
    model: Any, batch: Sequence[PackedQuestion], prefix: SharedPrefix | None
) -> list[NDArray[np.float64]]:
    import torch

    known = 0 if prefix is None else len(prefix.tokens)
    starts = np.cumsum([0, *(len(question.tokens) for question in batch)])[:-1]
    needed = np.zeros((1, sum(len(question.tokens) for question in batch)), dtype=bool)
    for start, question in zip(starts, batch, strict=True):
        needed[0, start + question.predictors] = True
    with torch.inference_mode(), attend_by_tiles(model):
        logits = model(
            input_ids=torch.from_numpy(np.concatenate([question.tokens for question in batch]))[None],
            position_ids=torch.from_numpy(np.concatenate([question.positions for question in batch]))[None],
            tiles=make_tiles([_find_seen(question) for question in batch], known, model.dtype),
            past_key_values=None if prefix is None else prefix.make_passing_cache(1),
            use_cache=False,
            logits_to_keep=torch.from_numpy(needed),  # the head runs where an option is predicted
        ).logits
        return _sum_options(logits, needed, [(0, int(start)) for start in starts], batch)


def _score_in_rows(
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
        "logits_to_keep": torch.from_numpy(needed).to(model.device),
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
        return _sum_options(logits, needed, list(enumerate(starts)), batch)


def _find_seen(question: PackedQuestion) -> NDArray[np.bool_]:
    """[tokens, tokens]: each token sees itself and what its parent sees."""
    seen = np.eye(len(question.tokens), dtype=bool)
    prompt = question.prompt_tokens
    seen[:prompt, :prompt] = np.tri(prompt, dtype=bool)
    for place in range(prompt, len(seen)):
        seen[place] |= seen[question.parents[place]]
    return seen


def _make_tree_mask(batch: Sequence[PackedQuestion], model: Any, known: int) -> Any:
    """Additive mask [batch, 1, width, known + width]: what each token sees; the `known` of a shared prefix all see."""
    width = max(len(question.tokens) for question in batch)
    allowed = np.zeros((len(batch), 1, width, known + width), dtype=bool)
    # Padding, at the left end, looks at itself: a token that may look nowhere would turn into NaN and spread.
    allowed[:, :, :, known:] = np.eye(width, dtype=bool)
    for row, question in enumerate(batch):
        start = width - len(question.tokens)
        allowed[row, 0, start:, :known] = True
        allowed[row, 0, start:, known + start :] = _find_seen(question)
    return make_additive(allowed, model.dtype, model.device)


def _sum_options(
    logits: Any, needed: NDArray[np.bool_], places: Sequence[tuple[int, int]], batch: Sequence[PackedQuestion]
) -> list[NDArray[np.float64]]:
    """Log-likelihood of each question's options, in nats.

    logits: one row for each place that is `needed`, in order; places: row and column where each question begins.
    """
    numbers = needed.cumsum().reshape(needed.shape) - 1  # where a place stands among all needed ones
    rows = [numbers[row, start + question.predictors] for (row, start), question in zip(places, batch, strict=True)]
    values = _take_log_probabilities(
        logits, np.concatenate(rows), np.concatenate([question.targets for question in batch])
    )
    each = np.split(values, np.cumsum([len(found) for found in rows])[:-1])
    return [
        np.bincount(question.options, weights=own, minlength=question.option_count).astype(np.float64)
        for question, own in zip(batch, each, strict=True)
    ]


def _take_log_probabilities(logits: Any, rows: NDArray[np.int64], targets: NDArray[np.int64]) -> NDArray[np.float64]:
    """Log-probability of each target token under its row of logits [positions, vocabulary], in nats."""
    import torch

    # In blocks: log-sum-exp makes a copy, and a whole one would double the largest tensor there is.
    totals = torch.cat([block.float().logsumexp(-1) for block in logits.split(_BLOCK_ROWS)])
    at = torch.from_numpy(rows).to(logits.device)
    chosen = logits[at, torch.from_numpy(targets).to(logits.device)].float()
    return (chosen - totals[at]).double().cpu().numpy()
