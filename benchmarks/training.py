"""Training steps on questions of very different lengths: batches by length, packed rows, gradient checkpointing.

SmolLM2-135M with a LoRA of rank 8 on the MLP, float32, questions of 16 to 256 tokens drawn evenly on a logarithmic
scale, 8 a batch (quick: one pool of 2 batches; else of 8). `grouped` is what the project trains with: within a pool,
questions of like length make a batch. `shuffled` takes them as they come. `packed` puts the same shuffled batches into
rows of their longest question's width, with a block-diagonal causal mask and positions that restart: the same gradients
(`packed_gradient`: largest difference over the largest entry) with little padding; `packed_grouped` does so with the
batches by length. All read the same questions; times are CPU seconds.
`checkpointed_vs_grouped`: time with gradient checkpointing; `checkpointed_memory`: the megabytes that a step of
8 x 256 tokens adds to a process's peak, over those without.
"""

import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from timing import compare, make_parser, report, time_alternating
from torch.nn.functional import cross_entropy

from metamoe_backend.models.base import load_base
from metamoe_backend.train.examples import POOL_BATCHES, Example, collate, compute_padding_share, plan_batches
from metamoe_backend.train.trainer import compute_answer_loss

BATCH, SHORTEST, LONGEST, ANSWER = 8, 16, 256, 6
PAD = 0
Loss = Callable[[Any, Sequence[Example]], torch.Tensor]


def draw_questions(count: int) -> list[Example]:
    """Questions of random tokens; the last six are the answer."""
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.uniform(np.log(SHORTEST), np.log(LONGEST), count)).astype(int)
    return [Example(rng.integers(10, 40_000, length), length - ANSWER) for length in lengths]


def make_model() -> Any:
    """The packaged model with a LoRA whose B is not 0, ready to train."""
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["gate_proj", "up_proj", "down_proj"], task_type="CAUSAL_LM")
    torch.manual_seed(0)
    model = get_peft_model(load_base("smollm2-135m", "cpu").model, config).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def lose_in_rows(model: Any, questions: Sequence[Example]) -> torch.Tensor:
    """The project's loss: one question a row."""
    return compute_answer_loss(model, collate(questions, PAD))


def lose_packed(model: Any, questions: Sequence[Example]) -> torch.Tensor:
    """The same loss with several questions in a row."""
    rows = fill_rows(questions)
    width = max(sum(len(each.tokens) for each in row) for row in rows)
    tokens = np.full((len(rows), width), PAD, dtype=np.int64)
    owner = np.full((len(rows), width), -1)
    places, predicts = np.zeros((len(rows), width), dtype=np.int64), np.zeros((len(rows), width), dtype=bool)
    targets = []
    for index, row in enumerate(rows):
        start = 0
        for number, each in enumerate(row):
            end = start + len(each.tokens)
            tokens[index, start:end], owner[index, start:end] = each.tokens, number
            places[index, start:end] = np.arange(end - start)
            predicts[index, start + each.answer_start - 1 : end - 1] = True
            targets.append(each.tokens[each.answer_start :])
            start = end
    owners = torch.from_numpy(owner)
    blocked = ~(owners[:, :, None] == owners[:, None, :]).tril()
    mask = torch.zeros(blocked.shape).masked_fill_(blocked, torch.finfo(torch.float32).min)[:, None]
    logits = model(
        input_ids=torch.from_numpy(tokens), attention_mask=mask, position_ids=torch.from_numpy(places),
        logits_to_keep=torch.from_numpy(predicts), use_cache=False,
    ).logits  # fmt: skip
    return cross_entropy(logits, torch.from_numpy(np.concatenate(targets)))


def fill_rows(questions: Sequence[Example]) -> list[list[Example]]:
    """First fit, longest first, into rows as wide as the longest question."""
    ordered = sorted(questions, key=lambda each: -len(each.tokens))
    width, rows = len(ordered[0].tokens), []
    for each in ordered:
        fits = (row for row in rows if sum(len(there.tokens) for there in row) + len(each.tokens) <= width)
        row = next(fits, None)
        if row is None:
            rows.append([each])
        else:
            row.append(each)
    return rows


def read(model: Any, questions: Sequence[Example], planned: np.ndarray, lose: Loss) -> Callable[[], None]:
    """A pass over planned batches: loss, gradients, an update each."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)

    def call() -> None:
        for batch in planned:
            lose(model, [questions[index] for index in batch]).backward()
            optimizer.step()
            optimizer.zero_grad()

    return call


def checkpointed(model: Any, call: Callable[[], None]) -> Callable[[], None]:
    """`call` with gradient checkpointing."""

    def run() -> None:
        model.activation_checkpointing_enable({"use_reentrant": False})
        call()
        model.activation_checkpointing_disable()

    return run


def compare_gradients(model: Any, questions: Sequence[Example]) -> float:
    """Largest difference of any gradient, over the largest gradient."""
    gradients = []
    for lose in (lose_in_rows, lose_packed):
        lose(model, questions).backward()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in trained]))
        model.zero_grad()
    return float((gradients[0] - gradients[1]).abs().max() / gradients[0].abs().max())


def measure_memory(side: str) -> None:
    """Print the megabytes by which a training step raises this process's peak."""
    model, rng = make_model(), np.random.default_rng(0)
    questions = [Example(rng.integers(10, 40_000, LONGEST), LONGEST - ANSWER) for _ in range(BATCH)]
    call = read(model, questions, np.arange(BATCH)[None], lose_in_rows)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (checkpointed(model, call) if side == "checkpointed" else call)()
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def run_memory(side: str) -> float:
    """`measure_memory` in a process of its own."""
    command = [sys.executable, __file__, "--memory", side]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def single(value: float, n: int = 1) -> dict[str, float]:
    """A figure without a spread."""
    return {"median": value, "min": value, "max": value, "n": n}


def main() -> None:
    """Measure and report."""
    parser = make_parser(__doc__ or "")
    parser.add_argument("--memory", choices=("grouped", "checkpointed"), help="one side's memory, in a fresh process")
    options = parser.parse_args()
    if options.memory:
        measure_memory(options.memory)
        return
    batches = 2 if options.quick else POOL_BATCHES
    questions, model = draw_questions(batches * BATCH), make_model()
    lengths = np.array([len(each.tokens) for each in questions])
    grouped = plan_batches(lengths, BATCH, batches, seed=0)
    shuffled = np.random.default_rng(0).permutation(len(questions)).reshape(-1, BATCH)
    by_length = read(model, questions, grouped, lose_in_rows)
    sides = {
        "grouped": by_length,
        "shuffled": read(model, questions, shuffled, lose_in_rows),
        "packed": read(model, questions, shuffled, lose_packed),
        "packed_grouped": read(model, questions, grouped, lose_packed),
        "checkpointed": checkpointed(model, by_length),
    }
    figures = {
        "packed_gradient": single(compare_gradients(model, [questions[index] for index in shuffled[0]])),
        "grouped_padding": single(compute_padding_share(lengths, grouped)),
        "shuffled_padding": single(compute_padding_share(lengths, shuffled)),
        **compare(time_alternating(sides, 3 if options.quick else 7, time.process_time), "grouped"),
    }
    plain, saving = (run_memory(side) for side in ("grouped", "checkpointed"))
    figures["checkpointed_memory"] = single(saving / plain)
    report(figures, options)


if __name__ == "__main__":
    main()
