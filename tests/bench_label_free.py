"""Do figures without labels rank the checkpoints of a run as kNN does? Spearman's rank correlation over the evaluations of each run.

    python -m tests.bench_label_free runs/one runs/two ... [--figure knn_top1] [--least 8]

A run is an output directory with evaluations.jsonl, a line an evaluation; `evaluate.every_steps` makes many of them. A correlation has
the sign of the figure as it is measured: where lower is better (alignment, uniformity) -1 is perfect. A figure whose sign is not the
same in all runs cannot choose a checkpoint.

Beside them stands the step itself: while a run only gets better, everything that only grows has a correlation of 1. A figure is worth
something where it tells more than "take the last".
"""

import argparse
import statistics
import warnings
from pathlib import Path
from typing import Any

from scipy.stats import ConstantInputWarning, spearmanr

from engine.results.records import finite, finite_items, read_records

FIGURES = (
    *("rankme", "alignment", "uniformity", "second_view_found"),
    *("head_rankme", "head_alignment", "head_uniformity", "head_second_view_found"),
    *("own_row_found", "own_key_found", "step"),
)


def correlations(evaluations: list[dict[str, Any]], wanted: str) -> dict[str, float | None]:
    """Of each figure with kNN's figure `wanted`, over the evaluations that have both; None where one of them never changes."""
    found: dict[str, float | None] = {}
    for name in FIGURES:
        pairs = [
            (value, share)
            for line in evaluations
            if (value := finite(line.get(name))) is not None
            and (share := finite_items(line.get("figures")).get(wanted)) is not None
        ]
        if len(pairs) > 2:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConstantInputWarning)
                found[name] = finite(float(spearmanr(*zip(*pairs, strict=True)).statistic))
    return found


def table(by_run: dict[str, dict[str, float | None]]) -> str:
    """Markdown: a line a figure, a column a run, and their mean."""
    lines = [f"| figure | {' | '.join(by_run)} | mean |", f"|---|{'---|' * (len(by_run) + 1)}"]
    for name in FIGURES:
        if not any(name in one for one in by_run.values()):
            continue
        values = [one.get(name) for one in by_run.values()]
        there = [value for value in values if value is not None]
        cells = ["" if value is None else f"{value:+.2f}" for value in values]
        mean = f"{statistics.mean(there):+.2f}" if there else ""
        lines.append(f"| {name} | {' | '.join(cells)} | {mean} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Rank correlation of figures without labels with kNN, over a run's evaluations."
    )
    parser.add_argument("runs", type=Path, nargs="+", help="output directories")
    parser.add_argument("--figure", default="knn_top1", help="of kNN: knn_top1, or the name of a set of queries")
    parser.add_argument("--least", type=int, default=8, help="evaluations that a run has to have")
    arguments = parser.parse_args(argv)
    by_run, spans = {}, []
    for path in arguments.runs:
        evaluations = read_records(path).evaluations
        if len(evaluations) < arguments.least:
            raise SystemExit(
                f"{path} has {len(evaluations)} evaluations, fewer than {arguments.least}; train it with evaluate.every_steps"
            )
        by_run[path.name] = correlations(evaluations, arguments.figure)
        shares = [finite_items(line.get("figures")).get(arguments.figure, float("nan")) for line in evaluations]
        spans.append(
            f"{path.name}: {len(shares)} evaluations, {arguments.figure} {min(shares):.1%} to {max(shares):.1%}"
        )
    print(table(by_run))
    print("\n" + "\n".join(spans))


if __name__ == "__main__":
    main()
