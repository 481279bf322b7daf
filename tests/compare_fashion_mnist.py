"""kNN of PIC with K/N = 1/16 and 1/4 against full PIC, same steps, three seeds each, as a Markdown table.

    python -m tests.compare_fashion_mnist [section.key=value ...]

Runs configs/fashion_mnist.json nine times, two at a time with one thread each; words are passed on to every run. What is there is not
trained again (tests/comparison.py), so remove runs/compare_fashion_mnist before other words.
"""

import sys
from pathlib import Path

from tests.comparison import Cell, Figures, run_all, table

ACTIVE = {"K/N = 1/16": 372, "K/N = 1/4": 1500, "full PIC": 6000}
SEEDS = (0, 1, 2)
OUTPUT = Path("runs/compare_fashion_mnist")


def main(words: list[str]) -> None:
    cells = {
        share: [
            Cell(
                f"active-{active}-seed-{seed}",
                "configs/fashion_mnist.json",
                (f"seed={seed}", f"method.active={active}", *words),
            )
            for seed in SEEDS
        ]
        for share, active in ACTIVE.items()
    }
    found = run_all([cell for runs in cells.values() for cell in runs], OUTPUT.resolve())
    rows = {share: [found[cell.name] for cell in runs] for share, runs in cells.items()}
    raw = rows["full PIC"][0].raw
    print(table({**rows, "raw pixels": [Figures(raw, *(None,) * 7)]}, columns=("knn",)))


if __name__ == "__main__":
    main(sys.argv[1:])
