"""A bank of 40 adapters: seconds to load and check it, to compare every two of its adapters, and to list it.

SmolLM2-135M's shape, rank 8 on the MLP, CPU. `compare` is all pairs at once, per layer and overall; `pairwise` is the
same through one product of r x r a pair and module, for one pair, times 780.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from timing import parse_options, report

from metamoe_backend.experts.similarity import compute_similarity, grow_tree
from metamoe_backend.models.adapters import AdapterWeights, read_adapter, write_adapter
from metamoe_backend.models.base import load_outline
from metamoe_backend.workspace import Workspace

ADAPTERS, RANK = 40, 8
HIDDEN, INNER, LAYERS = 576, 1536, 30


def make_adapter(seed: int) -> AdapterWeights:
    """Random matrices in the shape of SmolLM2-135M's MLP."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"gate_proj": (HIDDEN, INNER), "up_proj": (HIDDEN, INNER), "down_proj": (INNER, HIDDEN)}
    a, b = {}, {}
    for layer in range(LAYERS):
        for target, (inputs, outputs) in shapes.items():
            module = f"model.layers.{layer}.mlp.{target}"
            a[module] = torch.randn(RANK, inputs, generator=generator)
            b[module] = torch.randn(outputs, RANK, generator=generator)
    return AdapterWeights(f"e{seed}", RANK, 2.0 * RANK, 2.0, sorted(shapes), "", a, b)


def measure(call: Callable[[], object], rounds: int) -> dict[str, float]:
    """Seconds of a call, the first one not counted."""
    call()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return {"median": float(np.median(seconds)), "min": min(seconds), "max": max(seconds), "n": rounds}


def compare_one_pair(one: AdapterWeights, two: AdapterWeights) -> float:
    """Mean cosine of B A over modules, module by module, as one would write it first."""
    found = []
    for module in one.a:
        sides = [(x.a[module].double(), x.b[module].double()) for x in (one, two)]
        dots = [float(((b1.T @ b2) * (a1 @ a2.T)).sum()) for a1, b1 in sides for a2, b2 in sides]
        found.append(dots[1] / (dots[0] * dots[3]) ** 0.5)
    return float(np.mean(found))


def main() -> None:
    """Measure and report."""
    options = parse_options(__doc__ or "")
    rounds = 3 if options.quick else 9
    torch.set_num_threads(2)
    outline = load_outline("smollm2-135m")
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / f"e{seed}" for seed in range(ADAPTERS)]
        for seed, folder in enumerate(folders):
            write_adapter(folder, make_adapter(seed), "smollm2-135m")
        bank = [read_adapter(folder) for folder in folders]
        similarity = compute_similarity(bank)
        pair = measure(lambda: compare_one_pair(bank[0], bank[1]), rounds)
        pairs = ADAPTERS * (ADAPTERS - 1) // 2
        figures = {
            "bank40_load_and_check_s": measure(lambda: [read_adapter(folder, outline) for folder in folders], rounds),
            "bank40_compare_s": measure(lambda: compute_similarity(bank), rounds),
            "bank40_compare_pairwise_s": {key: value * (pairs if key != "n" else 1) for key, value in pair.items()},
            "bank40_tree_s": measure(lambda: grow_tree(pd.DataFrame(similarity.overall)), rounds),
            "bank40_list_s": measure(lambda: _list_bank(Path(name)), rounds),
        }
    report(figures, options)


def _list_bank(folder: Path) -> object:
    """The rows of 40 adapters, from a workspace's database that is opened for it."""
    from metamoe_backend.store.connection import Store
    from metamoe_backend.store.experts import fetch_adapters

    workspace = Workspace(folder / "workspace")
    if not workspace.root.is_dir():
        _fill(workspace.create())
    with Store.open(workspace, "a benchmark") as store:
        adapters = fetch_adapters(store)
    assert len(adapters) == ADAPTERS
    return adapters


def _fill(workspace: Workspace) -> None:
    from metamoe_backend.experts.bank import emit_adapter
    from metamoe_backend.jobs.context import RunContext
    from metamoe_backend.jobs.run_folder import create_run
    from metamoe_backend.store.connection import Store
    from metamoe_backend.store.ingestion import ingest_run

    with Store.open(workspace, "a benchmark") as store:
        run = create_run(workspace, "import", "bank", {}, "a benchmark", {})
        context = RunContext(run)
        context.start()
        for seed in range(ADAPTERS):
            weights = make_adapter(seed)
            write_adapter(workspace.adapters / weights.name, weights, "smollm2-135m")
            emit_adapter(
                context, weights.name, weights, "smollm2-135m", source="imported", kind="expert", settings="{}"
            )
        context.finish("finished")
        ingest_run(store, run)


if __name__ == "__main__":
    main()
