"""What are the parts of the row engine worth? Each is taken away in turn, as Markdown tables.

    python -m tests.compare_rows [--output runs/compare_rows] [--seeds 0 1 2] [--figures FILE] [--at-once 2]

    learning   tests/compared.json on 6,000 images, K = N/16, the same steps for every line: kNN of the features. What changes
               is the correction of rows that come back (tests/engine/rows/other_corrections.py), the window, how a row starts, and
               whether images that lie together are visited together (tests/datasets/sorted_runs.py). Last, with all rows active,
               how long ago an image was visited: SimCLR, with as many views, compares with a view of the same step, which moves as well
               (tests/engine/methods/one_sided_simclr.py: which stands still)
    rows       given features, which no row can change: how far the rows of each correction end from those of dense SGD, which the exact
               ones equal. Angle, since the softmax sees no length; and the length beside it

Two trainings at a time (--at-once), one thread each. What is there is not trained again, and a training that was killed goes on. With
--figures a cell of `learning` that has its line in FILE is not trained either: tests/compare_rows.jsonl has those of the tables in
configs/README.md.
"""

import argparse
from pathlib import Path

import numpy as np

from configs import schema
from engine.disk.chosen import chosen_checkpoint
from engine.jobs.data import open_data
from tests.compare_methods import SETS
from tests.comparison import Cell, caught_up_rows, run_all, table

CORRECTION = "tests.engine.rows.other_corrections"
SORTED = "tests.datasets.sorted_runs"
ONE_SIDED = "tests.engine.methods.one_sided_simclr"
_IMAGES = ("data.limit=6000", "method.active=376", "epochs=20", "evaluate.views=0")
_WINDOW = ("schedule.block=8", "schedule.window=2304", "schedule.stride=288")
_DECAY = ("optimizer.rows_weight_decay=1e-4",)
_ALL = "method.active=null"
_SIMCLR = SETS["fashion_mnist"]._replace(views=20).method("SimCLR", 0.1, 0.07)

# Of each table: name of a line -> (words over the config, what trains it).
LINES: dict[str, dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "Correction of rows that come back, with a weight decay of 1e-4": {
        name: (_DECAY, ("-m", CORRECTION, name)) for name in ("exact", "power", "momentum", "none")
    },
    "Window": {
        "W/S = 8": ((), ("launch.py",)),
        "W/S = 2": (("schedule.stride=1152",), ("launch.py",)),
        "W/S = 1": (("schedule.stride=2304",), ("launch.py",)),
        "no window: plain passes": (("schedule.window=6016", "schedule.stride=6016"), ("launch.py",)),
    },
    "Start of a row": {
        "at the feature of its first view": ((), ("launch.py",)),
        "at random": (("method.init=random",), ("launch.py",)),
    },
    "Images that lie class by class": {
        "keyed order": ((), ("-m", SORTED, "keyed")),
        "runs of C neighbours": ((), ("-m", SORTED, "runs")),
    },
    "All rows active: steps between two visits of an image, W/B": {
        "47: plain passes": ((_ALL, "schedule.window=6016", "schedule.stride=6016"), ("launch.py",)),
        "18": ((_ALL,), ("launch.py",)),
        "6": ((_ALL, "schedule.window=768", "schedule.stride=96"), ("launch.py",)),
        "2": ((_ALL, "schedule.window=256", "schedule.stride=32"), ("launch.py",)),
        "SimCLR, for comparison": (_SIMCLR, ("launch.py",)),
        "SimCLR, one end of a pair moves": (_SIMCLR, ("-m", ONE_SIDED)),
    },
}

# Given features: K = N/16, 3 passes and a bit, rates that fall.
GIVEN = (
    *("data.limit=16000", "schedule.batch=128", "schedule.window=4096", "schedule.stride=1024", "schedule.block=128"),
    *("schedule.lanes=8", "schedule.reshuffle=true", "method.active=1024", "method.init=random", "epochs=13"),
    *("steps=null", "log_every=100", "store.kind=memory", "optimizer.min_lr=1e-6", *_DECAY),
)


def cells(seeds: list[int]) -> dict[str, dict[str, list[Cell]]]:
    """Of each table, each line's cells, one a seed. Lines of two tables that mean the same training have the same cells."""
    numbers: dict[tuple[tuple[str, ...], tuple[str, ...]], int] = {}

    def cell(words: tuple[str, ...], program: tuple[str, ...], seed: int) -> Cell:
        number = numbers.setdefault((words, program), len(numbers))
        every = (*_IMAGES, *_WINDOW, *words, f"seed={seed}")
        return Cell(f"{number}-seed-{seed}", "tests/compared.json", every, program)

    return {
        title: {name: [cell(*line, seed) for seed in seeds] for name, line in lines.items()}
        for title, lines in LINES.items()
    }


def rows_at_end(config_file: str, words: list[str]) -> np.ndarray:
    """float32 [N, D], in the order of positions: the rows of the last checkpoint."""
    config = schema.load(config_file, words)
    checkpoint, _ = chosen_checkpoint(Path(config.output), None)
    _, _, schedule, config = open_data(config, checkpoint, grows=False)
    return caught_up_rows(config, checkpoint, schedule)


def distances(rows_ND: np.ndarray, dense_ND: np.ndarray) -> tuple[float, float, float]:
    """(median and 99th percentile of the angle in degrees, median of the length over that of the dense row)."""
    lengths_N, dense_lengths_N = (np.linalg.norm(rows.astype(np.float64), axis=1) for rows in (rows_ND, dense_ND))
    cosine_N = (rows_ND.astype(np.float64) * dense_ND).sum(axis=1) / (lengths_N * dense_lengths_N)
    degrees_N = np.degrees(np.arccos(np.clip(cosine_N, -1, 1)))
    return (
        float(np.median(degrees_N)),
        float(np.percentile(degrees_N, 99)),
        float(np.median(lengths_N / dense_lengths_N)),
    )


def rows_table(directory: Path, at_once: int) -> str:
    kinds = ("exact", "power", "momentum", "none")
    runs = [Cell(f"given-{kind}", "configs/given.json", GIVEN, ("-m", CORRECTION, kind)) for kind in kinds]
    found = run_all(runs, directory, at_once=at_once)
    rows = {
        kind: rows_at_end(run.config, [f"output={directory / run.name}", *run.words])
        for kind, run in zip(kinds, runs, strict=True)
    }
    lines = [
        "| correction | angle to the dense row, median | 99 of 100 within | length over the dense row's, median | loss |",
        "|---|---|---|---|---|",
    ]
    for kind, run in zip(kinds, runs, strict=True):
        median, most, length = distances(rows[kind], rows["exact"])
        lines.append(f"| {kind} | {median:.2f} degrees | {most:.2f} | {length:.3f} | {found[run.name].loss:.3f} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What the parts of the row engine are worth.")
    parser.add_argument("--output", type=Path, default=Path("runs/compare_rows"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--figures", type=Path, help="the file of figures; without it figures.jsonl in the output")
    arguments = parser.parse_args(argv)
    directory = arguments.output.resolve()
    print(rows_table(directory, arguments.at_once), flush=True)
    tables = cells(arguments.seeds)
    every = {cell.name: cell for lines in tables.values() for runs in lines.values() for cell in runs}
    found = run_all(every.values(), directory, arguments.figures, arguments.at_once)
    for title, lines in tables.items():
        rows = {name: [found[cell.name] for cell in runs] for name, runs in lines.items()}
        print(f"\n**{title}**\n\n{table(rows, columns=('knn',))}")


if __name__ == "__main__":
    main()
