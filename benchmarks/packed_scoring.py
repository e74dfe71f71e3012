"""Scoring multiple-choice questions: each question packed once with its options, against each option by itself.

SmolLM2-135M on the project's own general-knowledge questions, CPU, float32, the same padded tokens per batch on both
sides. The predictions of the two sides are compared too: `identical_predictions` is their share.
"""

import json
from pathlib import Path

import numpy as np
import torch
from timing import compare, parse_options, report, time_alternating

from metamoe_backend.evaluate.loglikelihood import iterate_logliks, pack_question
from metamoe_backend.evaluate.prompts import encode_pair, make_continuation
from metamoe_backend.models.base import load_base
from metamoe_backend.models.systems import OpenSystem, open_system

PROBE = Path(__file__).resolve().parent.parent / "data" / "probe" / "general_knowledge_test.jsonl"
BATCH_TOKENS = 2048


def score(system: OpenSystem, packed: list) -> list[np.ndarray]:
    """Log-likelihoods per packed question, in order."""
    found: dict[int, np.ndarray] = {}
    for rows, logliks in iterate_logliks(system, packed, BATCH_TOKENS):
        found |= dict(zip(rows, logliks, strict=True))
    return [found[index] for index in range(len(packed))]


def main() -> None:
    """Measure and report."""
    options = parse_options(__doc__ or "")
    torch.set_num_threads(2)
    loaded = load_base("smollm2-135m", "cpu")
    rows = [json.loads(line) for line in PROBE.read_text(encoding="utf-8").splitlines()]
    rows = rows[: 40 if options.quick else len(rows)]
    limit = loaded.model.config.max_position_embeddings
    pairs = [
        [
            encode_pair(loaded.tokenizer, f"Question: {row['query']}\nAnswer:", make_continuation(choice))
            for choice in row["choices"]
        ]
        for row in rows
    ]
    together = [pack_question(each, limit) for each in pairs]
    apart = [pack_question([pair], limit) for each in pairs for pair in each]
    base = {"system": "base", "kind": "base", "base": loaded.name, "path": "", "experts": [], "sha256": loaded.sha256}
    with open_system(loaded, base, Path()) as system:
        sides = {"packed": lambda: score(system, together), "separate": lambda: score(system, apart)}
        seconds = time_alternating(sides, rounds=3 if options.quick else 10)
        packed = [int(np.argmax(logliks)) for logliks in score(system, together)]
        alone = iter(score(system, apart))
        separate = [int(np.argmax([next(alone)[0] for _ in row["choices"]])) for row in rows]
    same = float(np.mean([a == b for a, b in zip(packed, separate, strict=True)]))
    figures = compare(seconds, "separate")
    figures["identical_predictions"] = {"median": same, "min": same, "max": same, "n": len(rows)}
    report(figures, options)


if __name__ == "__main__":
    main()
