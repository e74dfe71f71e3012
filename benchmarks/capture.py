"""What recording the gates costs an evaluation: the same questions with and without it, in turns.

SmolLM2-135M with experts of rank 8 on the MLP and token top-2 gates scores the project's own general-knowledge
questions, 16 at a time, once with the recorder and once without, float32. Recording covers all that it adds: copies of
the gates, their rows, one of 16 questions token by token, the Parquet parts. `capture_cost` (4 experts) and
`capture_cost32` (32 experts) are ratios of seconds, 1.05 is 5 % more: of processor time on the CPU, of time on a GPU.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from timing import make_parser, report

from metamoe_backend.evaluate.answering import Answerer, answer_choices
from metamoe_backend.jobs.parts import make_arrow_table
from metamoe_backend.models.adapters import AdapterWeights
from metamoe_backend.models.base import LoadedBase, load_base
from metamoe_backend.models.lora_moe import GateSettings, attach_experts
from metamoe_backend.models.systems import OpenSystem

PROBE = Path(__file__).resolve().parent.parent / "data" / "probe" / "general_knowledge_test.jsonl"
RANK, BATCH, SAMPLED, BATCH_TOKENS = 8, 16, 1, 4096
TARGETS = ("gate_proj", "up_proj", "down_proj")
CALLS = 4
"""Calls a side of which the least counts, in each pair: what else the machine does only ever adds."""


def make_experts(loaded: LoadedBase, experts: int) -> list[AdapterWeights]:
    """Random adapters of the MLP."""
    made = []
    for seed in range(experts):
        generator = torch.Generator().manual_seed(seed)
        a, b = {}, {}
        for name, module in loaded.model.named_modules():
            if name.endswith(TARGETS):
                a[name] = torch.randn(RANK, module.in_features, generator=generator) * 0.02
                b[name] = torch.randn(module.out_features, RANK, generator=generator) * 0.02
        made.append(AdapterWeights(f"expert{seed}", RANK, 2.0 * RANK, 2.0, list(TARGETS), "", a, b))
    return made


def read_questions() -> pd.DataFrame:
    """What `answer_choices` reads."""
    rows = [json.loads(line) for line in PROBE.read_text(encoding="utf-8").splitlines()]
    return pd.DataFrame(
        {
            "question_id": [f"q{number}" for number in range(len(rows))],
            "task": "general knowledge",
            "shown_text": [f"Question: {row['query']}\nAnswer:" for row in rows],
            "choices": [row["choices"] for row in rows],
            "gold": [row["gold"] for row in rows],
            "answer": [row["choices"][row["gold"]] for row in rows],
            "metadata": None,
        }
    )


def answer(answerer: Answerer, questions: pd.DataFrame, record: bool, folder: Path) -> pd.DataFrame:
    """Answer the questions and keep what an evaluation keeps of the gates."""
    import pyarrow.parquet

    sampled = set(questions["question_id"].head(SAMPLED)) if record else None
    answers, gates = answer_choices(answerer, questions, None, sampled, lambda _: None)
    if gates is not None:
        for table, frames in (("activation", gates.activations), ("token_activation", gates.token_activations)):
            rows = pd.concat(frames, ignore_index=True).assign(system="moe")
            pyarrow.parquet.write_table(make_arrow_table(table, rows, "run"), folder / f"{table}.parquet")
    return answers


def measure_capture_cost(
    loaded: LoadedBase, experts: int = 4, rounds: int = 10, clock: Callable[[], float] = time.process_time
) -> dict[str, float]:
    """Seconds with the recorder by seconds without it: median, least and greatest over `rounds` pairs.

    Each side of a pair is the least of several calls. Raises `AssertionError` where recording changes an answer.
    """
    mixture = attach_experts(loaded.model, make_experts(loaded, experts), GateSettings("token", 2))
    try:
        mixture.draw_gate_weights(0)
        system = OpenSystem(loaded.model, mixture.experts, mixture)
        answerer = Answerer(system, loaded.tokenizer, BATCH_TOKENS, 24)
        questions, ratios = read_questions(), []
        with tempfile.TemporaryDirectory() as name:
            for number in range(rounds + 1):
                start = number * BATCH % (len(questions) - BATCH)
                part, seconds, answers = questions.iloc[start : start + BATCH], {True: [], False: []}, {}
                for call in range(2 * CALLS):
                    record = (call + number) % 2 == 0
                    before = clock()
                    answers[record] = answer(answerer, part, record, Path(name))
                    seconds[record].append(clock() - before)
                assert answers[True]["choice"].equals(answers[False]["choice"]), "recording changed an answer"
                ratios.append(min(seconds[True]) / min(seconds[False]))
    finally:
        mixture.detach()
    counted = ratios[1:]  # the first warms up
    return {"median": statistics.median(counted), "min": min(counted), "max": max(counted), "n": len(counted)}


def main() -> None:
    """Measure and report."""
    parser = make_parser(__doc__ or "")
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N")
    options = parser.parse_args()
    torch.set_num_threads(1)  # processor time is then that of one thread, and nobody spins
    loaded = load_base("smollm2-135m", options.device)

    def finished() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    clock = time.process_time if options.device == "cpu" else finished
    rounds = 2 if options.quick else 10
    report(
        {
            "capture_cost": measure_capture_cost(loaded, 4, rounds, clock),
            "capture_cost32": measure_capture_cost(loaded, 32, rounds, clock),
        },
        options,
    )


if __name__ == "__main__":
    main()
