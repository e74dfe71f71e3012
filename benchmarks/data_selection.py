"""Choosing rows from a pool: in blocks, against the obvious way that holds every pair's cosine at once.

Synthetic unit vectors of 384 numbers around 300 topics, 50 shots, 2,000 held-out questions, a budget of 5,000 rows,
tau = 0.9. `peak_mb` and `seconds` are of 150,000 rows, in a process of their own, the vectors (220 MB) included;
`matrix_mb` is what the full matrix of these rows alone would take. The comparison is on a smaller pool that the full
matrix still fits, `identical_rows` is the share of chosen rows on which both agree there.
"""

import json
import resource
import subprocess
import sys
import time

import numpy as np
from timing import compare, make_parser, report, time_alternating

from metamoe_backend.experts.data_selection import choose_diverse, find_nearest, rank_rows

DIM, SHOTS, HELD_OUT, TOPICS, BUDGET, TAU, LEAK = 384, 50, 2_000, 300, 5_000, 0.9, 0.95
ROWS, COMPARED_ROWS = 150_000, 6_000


def make_vectors(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit vectors of pool, shots and held-out questions; one row in ten is nearly another, one in 500 a leak."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(TOPICS, DIM)).astype(np.float32)

    def draw(n: int) -> np.ndarray:
        vectors = rng.standard_normal((n, DIM), dtype=np.float32)
        vectors += centres[rng.integers(0, TOPICS, n)]
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    pool, shots, held_out = draw(rows), draw(SHOTS), draw(HELD_OUT)
    for source, every, shift in ((pool, 10, 5), (held_out, 500, 7)):
        places = np.arange(shift, rows, every)
        noise = rng.standard_normal((len(places), DIM), dtype=np.float32) * 0.005
        pool[places] = source[rng.integers(0, len(source), len(places))] + noise
        pool[places] /= np.linalg.norm(pool[places], axis=1, keepdims=True)
    return pool, shots, held_out


def choose_in_blocks(pool: np.ndarray, shots: np.ndarray, held_out: np.ndarray, budget: int) -> np.ndarray:
    """Chosen row numbers, as the stage chooses them once vectors are there."""
    scores, _ = find_nearest(pool, shots)
    leaks, _ = find_nearest(pool, held_out)
    return choose_diverse(pool, rank_rows(scores, leaks < LEAK), budget, TAU).selected


def choose_with_all_pairs(pool: np.ndarray, shots: np.ndarray, held_out: np.ndarray, budget: int) -> np.ndarray:
    """The same rows from the full matrix of the pool with itself."""
    scores = (pool @ shots.T).max(axis=1)
    leaks = (pool @ held_out.T).max(axis=1)
    near = pool @ pool.T > TAU
    ranked = [row for row in np.argsort(-scores, kind="stable") if leaks[row] < LEAK]
    free = np.ones(len(pool), dtype=bool)
    chosen: list[int] = []
    for row in ranked:
        if free[row] and len(chosen) < budget:
            chosen.append(row)
            free &= ~near[row]
    return np.asarray(chosen)


def measure_alone(rows: int) -> dict[str, float]:
    """Peak memory in MB and seconds of choosing from so many rows, by a fresh process."""
    done = subprocess.run([sys.executable, __file__, "--alone", str(rows)], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def run_alone(rows: int) -> None:
    """What `measure_alone` starts."""
    vectors = make_vectors(rows)
    before = time.perf_counter()
    chosen = choose_in_blocks(*vectors, BUDGET)
    seconds = time.perf_counter() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"peak_mb": peak, "seconds": seconds, "chosen": len(chosen)}))


def main() -> None:
    """Measure and report."""
    parser = make_parser(__doc__ or "")
    parser.add_argument("--alone", type=int, metavar="ROWS", help="only choose from so many rows, and say at what cost")
    options = parser.parse_args()
    if options.alone:
        run_alone(options.alone)
        return
    alone = [measure_alone(ROWS) for _ in range(1 if options.quick else 3)]
    vectors = make_vectors(COMPARED_ROWS)
    budget = COMPARED_ROWS // 4
    sides = {
        "blocks": lambda: choose_in_blocks(*vectors, budget),
        "all_pairs": lambda: choose_with_all_pairs(*vectors, budget),
    }
    figures = compare(time_alternating(sides, rounds=3 if options.quick else 9), "all_pairs")
    for name in ("peak_mb", "seconds"):
        values = sorted(each[name] for each in alone)
        figures[name] = {"median": values[len(values) // 2], "min": values[0], "max": values[-1], "n": len(values)}
    matrix = ROWS**2 * 4 / 2**20
    same = float(np.mean(np.isin(sides["blocks"](), sides["all_pairs"]())))
    figures["matrix_mb"] = {"median": matrix, "min": matrix, "max": matrix, "n": 1}
    figures["identical_rows"] = {"median": same, "min": same, "max": same, "n": budget}
    report(figures, options)


if __name__ == "__main__":
    main()
