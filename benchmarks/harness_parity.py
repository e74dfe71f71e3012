"""The same answers as lm-evaluation-harness 0.4.13, item by item, in float32.

The harness runs in an environment of its own (`--harness PYTHON`) on the same questions, model and prompts, without a
network, its log-softmax in float64 (its setting `softmax_dtype`). Per set: share of items with the same answer by
log-likelihood (acc) and by log-likelihood over the option's length (acc_norm), and the largest difference of a
log-likelihood (`_micronats`: in millionths of a nat).
`SET_harness_error`, `SET_our_error`: on the ten items with the largest differences, how far each is from the same model
and tokens in float64, which tells whose rounding a difference is. `gsm8k_*`: share of 1,000 made-up outputs from which
both extract the same number.
"""

import json
import os
import random
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from timing import make_parser, report

from metamoe_backend.evaluate.scorers import extract_number, score_choices_by_length
from metamoe_backend.launch import run_now
from metamoe_backend.models.base import load_base
from metamoe_backend.store.connection import Store
from metamoe_backend.workspace import Workspace

TEXTS = {
    "arc_easy": "Question: {{question}}\\nAnswer:",
    "piqa": "Question: {{question}}\\nAnswer:",
    "boolq": "{{passage}}\\nQuestion: {{question}}?\\nAnswer:",
    "openbook_qa": "{{question}}",
}
"""The harness's own `doc_to_text` of each set, with `question` for the field that each calls by another name."""
TASK = """task: parity_{name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
output_type: multiple_choice
test_split: test
doc_to_text: "{text}"
doc_to_target: gold
doc_to_choice: choices
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
"""
NONE = "[invalid]"
"""What the harness writes where it finds no number."""
EXTRACT = """
import json, sys
from lm_eval.filters.extraction import RegexFilter
texts = json.load(open(sys.argv[1]))
strict = RegexFilter(regex_pattern=r"#### (\\-?[0-9\\.\\,]+)")
flexible = RegexFilter(group_select=-1, regex_pattern=r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
found = {n: [r[0] for r in f.apply([[t] for t in texts], [{} for _ in texts])] for n, f in
         (("strict", strict), ("flexible", flexible))}
print(json.dumps(found))
"""


def read_items(path: Path, count: int) -> list[dict[str, Any]]:
    """A seeded draw of a file's rows."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return random.Random(0).sample(rows, min(count, len(rows)))


def split_query(query: str) -> dict[str, str]:
    """The fields that the harness's prompts are made of, out of a row's `query`."""
    text = query.removeprefix("Passage:").removeprefix("Question:").strip()
    if not query.startswith("Passage:"):
        return {"question": text, "passage": ""}
    passage, _, question = text.rpartition("\nQuestion: ")
    return {"passage": passage, "question": question.removesuffix("?")}


def make_own_prompt(query: str) -> str:
    """The prompt that our import makes of a row's `query`."""
    fields = split_query(query)
    return f"{fields['passage']}\nQuestion: {fields['question']}?" if fields["passage"] else fields["question"]


def call_harness(python: str, folder: Path, names: list[str], model: str, *more: str) -> None:
    """One command of the harness without a network; its last words are shown when it fails."""
    command = [
        python, "-m", "lm_eval", "run", "--model", "hf", "--model_args", model, "--include_path", str(folder),
        "--tasks", *[f"parity_{name}" for name in names], "--device", "cpu", "--batch_size", "8", *more,
    ]  # fmt: skip
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    ended = subprocess.run(command, env={**os.environ, **offline}, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(f"The harness failed: {ended.stderr[-1500:]}")


def run_harness(python: str, folder: Path, model: Path, names: list[str]) -> dict[str, list[dict[str, Any]]]:
    """The harness's samples per set, in the order of the items."""
    out = folder / "out"
    # In float32 a log-softmax rounds as coarsely as the largest logit, which adds up over the tokens of a long option.
    settings = f"pretrained={model},dtype=float32,softmax_dtype=float64"
    call_harness(python, folder, names, settings, "--output_path", str(out), "--log_samples")
    return {name: read_samples(out, name) for name in names}


def read_samples(out: Path, name: str) -> list[dict[str, Any]]:
    """The samples of one set that a command of the harness logged, in the order of the items."""
    (path,) = out.rglob(f"samples_parity_{name}_*.jsonl")
    samples = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return sorted(samples, key=lambda sample: sample["doc_id"])


def answer_ourselves(folder: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """Our log-likelihoods per set, by prompt and options."""
    with Store.open(Workspace(folder / "workspace"), "parity with the harness") as store:
        for name in names:
            run_now(store, "ingest", {"source": str(folder / f"{name}.ours.jsonl"), "task": name}, "benchmark")
        settings = {"systems": ["base"], "tasks": names, "device": "cpu", "activations": False}
        run_now(store, "evaluate", settings, "benchmark")
        frame = store.frame(
            "SELECT task, prompt, choices, logliks FROM current_prediction JOIN question USING (question_id, task)"
        )
    return {
        name: {(row.prompt, *row.choices): np.asarray(row.logliks) for row in rows.itertuples()}
        for name, rows in frame.groupby("task")
    }


def compare_set(items: list[dict[str, Any]], samples: list[dict[str, Any]], ours: dict[str, Any]) -> dict[str, float]:
    """Shares of equal answers and the largest difference."""
    same, same_norm, largest = 0, 0, 0.0
    for item, sample in zip(items, samples, strict=True):
        theirs = np.array([float(answer[0]) for answer in sample["filtered_resps"]])
        own = ours[(make_own_prompt(item["query"]), *item["choices"])]
        same += int(theirs.argmax() == own.argmax() and bool(sample["acc"]) == (own.argmax() == item["gold"]))
        norm, other = (score_choices_by_length(each, item["choices"], item["gold"])[0] for each in (own, theirs))
        same_norm += int(norm == other and bool(sample["acc_norm"]) == (norm == item["gold"]))
        largest = max(largest, float(np.abs(theirs - own).max()))
    return {"acc": same / len(items), "acc_norm": same_norm / len(items), "loglik_difference_micronats": 1e6 * largest}


def measure_errors(
    folder: Path, items: list[dict[str, Any]], samples: list[dict[str, Any]], ours: dict[str, Any]
) -> dict[str, float]:
    """The largest distance of either side from float64, in millionths of a nat, where the two differ most."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")

    def read_exactly(context: str, option: str) -> float:
        start = len(tokenizer(context)["input_ids"])
        tokens = torch.tensor(tokenizer(context + option)["input_ids"])
        with torch.inference_mode():
            logliks = model(tokens[None, :-1]).logits[0].log_softmax(-1)
        return float(logliks[start - 1 :].gather(1, tokens[start:, None]).sum())

    answers = []
    for item, sample in zip(items, samples, strict=True):
        theirs = np.array([float(answer[0]) for answer in sample["filtered_resps"]])
        own = ours[(make_own_prompt(item["query"]), *item["choices"])]
        answers.append((theirs, own, [(each["arg_0"], each["arg_1"]) for each in sample["arguments"].values()]))
    worst = sorted(answers, key=lambda answer: -np.abs(answer[0] - answer[1]).max())[:10]
    exact = [np.array([read_exactly(*asked) for asked in arguments]) for _, _, arguments in worst]

    def find_largest(side: int) -> float:
        return 1e6 * max(float(np.abs(one[side] - truth).max()) for one, truth in zip(worst, exact, strict=True))

    return {"harness_error_micronats": find_largest(0), "our_error_micronats": find_largest(1)}


def make_outputs(count: int) -> list[str]:
    """Outputs as models write them: sums, money, thousands, several numbers, none, the marked answer or not."""
    draw = random.Random(0)
    texts = []
    for _ in range(count):
        number = draw.choice(
            [str(draw.randint(-999, 9999)), f"{draw.randint(1000, 9_999_999):,}", f"{draw.random() * 99:.2f}"]
        )
        shown = draw.choice(
            [number, f"${number}", f"{number}.", f"{number} apples", f"-{number}", f"{number}%", f"{number},", ""]
        )
        start = draw.choice(
            ["", "She has 3 + 4 = 7. ", "The answer is ", "So 12 * 3 = 36 and ", "多少？", "No number here. "]
        )
        texts.append(
            start
            + draw.choice(["#### ", "####", "", "**", "### "])
            + shown
            + draw.choice(["", "\n", ".", " left", "\n#### 5"])
        )
    return texts


def compare_extraction(python: str, folder: Path) -> dict[str, float]:
    """Share of outputs from which both read the same number, ignoring what the harness's metric ignores."""
    texts = make_outputs(1000)
    (folder / "texts.json").write_text(json.dumps(texts))
    command = [python, "-c", EXTRACT, str(folder / "texts.json")]
    theirs = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])

    def clean(text: str) -> str:
        return re.sub(r"\.$", "", re.sub(r"[,$]", "", text))

    shares = {}
    for kind, found in theirs.items():
        pairs = [(extract_number(text, kind), clean(other)) for text, other in zip(texts, found, strict=True)]
        differing = [
            (text, pair) for text, pair in zip(texts, pairs, strict=True) if (pair[0] or NONE) != (pair[1] or NONE)
        ]
        for text, pair in differing[:3]:
            print(f"{kind}: {text!r} gives us {pair[0]!r}, the harness {pair[1]!r}")
        shares[kind] = 1 - len(differing) / len(texts)
    return shares


def main() -> None:
    """Measure and report."""
    parser = make_parser(__doc__ or "")
    parser.add_argument(
        "--data", required=True, metavar="DIR", help="folder with eval/arc_easy.jsonl, eval/piqa.jsonl …"
    )
    parser.add_argument("--harness", required=True, metavar="PYTHON", help="interpreter that has lm_eval==0.4.13")
    options = parser.parse_args()
    count = 20 if options.quick else 300
    data = Path(options.data) / "eval"
    names = [name for name in TEXTS if (data / f"{name}.jsonl").is_file()]
    if not names:
        parser.error(f"{data} has none of {', '.join(f'{name}.jsonl' for name in TEXTS)}; give the folder above eval/.")
    figures: dict[str, dict[str, float]] = {}

    def add(name: str, value: float, n: int) -> None:
        figures[name] = {"median": value, "min": value, "max": value, "n": n}

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        base = load_base("smollm2-135m", "cpu")
        base.model.save_pretrained(folder / "model")
        base.tokenizer.save_pretrained(folder / "model")
        items = {name: read_items(data / f"{name}.jsonl", count) for name in names}
        for name, rows in items.items():
            theirs = [{**split_query(row["query"]), "choices": row["choices"], "gold": row["gold"]} for row in rows]
            for suffix, kept in (("theirs", theirs), ("ours", rows)):
                (folder / f"{name}.{suffix}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
            task = TASK.format(name=name, file=folder / f"{name}.theirs.jsonl", text=TEXTS[name])
            (folder / f"{name}.yaml").write_text(task)
        samples = run_harness(options.harness, folder, folder / "model", names)
        ours = answer_ourselves(folder, names)
        for name in names:
            answered = items[name], samples[name], ours[name]
            for measure, value in compare_set(*answered).items():
                add(f"{name}_{measure}", value, len(items[name]))
            for measure, value in measure_errors(folder, *answered).items():
                add(f"{name}_{measure}", value, min(10, len(items[name])))
        for kind, share in compare_extraction(options.harness, folder).items():
            add(f"gsm8k_{kind}", share, 1000)
    shares = [figure["median"] for name, figure in figures.items() if name.endswith(("_acc", "_acc_norm"))]
    add("identical_predictions", min(shares), sum(len(rows) for rows in items.values()))
    report(figures, options)


if __name__ == "__main__":
    main()
