"""Alternated timing: A B C A B C …, so that a machine that slows down slows all sides alike."""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path


def time_alternating(
    sides: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds per call of each side, one list a side; every side is called once before counting.

    `clock` may be `time.process_time`: CPU seconds of all threads, which other programs disturb less.
    """
    for call in sides.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, call in sides.items():
            start = clock()
            call()
            seconds[name].append(clock() - start)
    return seconds


def compare(seconds: dict[str, list[float]], reference: str) -> dict[str, dict[str, float]]:
    """Ratio of each side to `reference`, round by round: median, least and greatest."""
    figures = {}
    for name, values in seconds.items():
        if name != reference:
            ratios = [a / b for a, b in zip(values, seconds[reference], strict=True)]
            figures[f"{name}_vs_{reference}"] = {
                "median": statistics.median(ratios),
                "min": min(ratios),
                "max": max(ratios),
                "n": len(ratios),
            }
    return figures


def make_parser(description: str) -> argparse.ArgumentParser:
    """--quick and --json FILE, the same for every script."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="under two minutes on two cores")
    parser.add_argument("--json", metavar="FILE", help="write the figures by name")
    return parser


def parse_options(description: str) -> argparse.Namespace:
    """The options of a script that has no others."""
    return make_parser(description).parse_args()


def report(figures: dict[str, dict[str, float]], options: argparse.Namespace) -> None:
    """Print the figures, and write them where asked."""
    for name, figure in figures.items():
        print(f"{name}: {figure['median']:.2f} ({figure['min']:.2f} to {figure['max']:.2f}, n={figure['n']})")
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1) + "\n")
