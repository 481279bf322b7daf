"""Who learns more? PIC at three numbers of active rows, InstDisc, MoCo v2 and SimCLR, on three sets of images, as Markdown tables.

    python -m tests.compare_methods [--sets fashion_mnist glyphs emoji] [--emoji DIRECTORY] [--output runs/compare_methods] [--figures FILE]

Every method has the same network, the same random views, the same batch and schedule, and sees the same number of views: those of two
views an image make half as many passes. On Fashion-MNIST each has the same small search before: four trainings of 180,000 views, a
learning rate and a temperature each, chosen by kNN of 10,000 training images among the others. Then three seeds of 480,000 views,
asked by the 10,000 images of the test. Glyphs (the demo's) and emoji (tests/render_emoji.py) are trained once, with the values that
Fashion-MNIST chose.

For the frame: raw pixels; the network with the weights it starts with, its batch statistics settled; the network trained with labels on the
same views (tests/supervised.py).

Two trainings at a time, one thread each. What has its line in the file of figures is not trained again, and a training that was killed goes
on. So a comparison may be made in parts, with --figures and the file that an earlier part left; tests/compare_methods.jsonl has the
cells of the tables in configs/README.md.
"""

import argparse
import json
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from tests.comparison import Cell, Figures, run_all, table

NO_ROWS = ("optimizer.rows_lr_scale=1", "optimizer.rows_weight_decay=null")
STILL = ("optimizer.lr=1e-9", "optimizer.min_lr=1e-9", "optimizer.warmup_epochs=0", "steps=200")
KINDS = {"PIC, K = N/16": "pic", "PIC, K = N/4": "pic", "PIC, K = N": "pic", "InstDisc": "instdisc"}
KINDS |= {"MoCo v2": "moco", "SimCLR": "simclr"}
Values = dict[str, tuple[float, float]]  # of each kind of method: learning rate of the trunk, temperature


class Set(NamedTuple):
    """
    config    the file; words: of every cell
    views     that a run sees of each image: passes of a method that takes one view of it
    pair      the word that makes two views
    pic       words of PIC with K = N/16 active rows, N/4 and N, as near as whole lanes allow
    queue     keys of MoCo, and vectors that InstDisc compares with
    seeds     of every method; of one seed the table has PIC at N/16, MoCo and SimCLR
    probe     words of job=linear; None: there are too few images of a label
    """

    config: str
    words: tuple[str, ...]
    views: float
    pair: str
    pic: tuple[tuple[str, ...], ...]
    queue: int
    seeds: tuple[int, ...] = (0,)
    probe: tuple[str, ...] | None = None

    @property
    def lines(self) -> tuple[str, ...]:
        return tuple(KINDS) if len(self.seeds) > 1 else ("PIC, K = N/16", "MoCo v2", "SimCLR")

    def method(self, line: str, rate: float, temperature: float) -> tuple[str, ...]:
        """The words of a line of the table."""
        kind = KINDS[line]
        own: dict[str, dict[str, Any]] = {
            "pic": {"init": "feature", "init_norm": 1.0},
            "instdisc": {"active": self.queue, "init": "feature"},
            "moco": {"queue": self.queue, "key_momentum": 0.99},
            "simclr": {},
        }
        settings = {"kind": kind, "dim": 128, "temperature": temperature, **own[kind]}
        pairs = kind in ("moco", "simclr")
        epochs = f"epochs={self.views / 2 if pairs else self.views:g}"
        words = (f"method={json.dumps(settings)}", f"optimizer.lr={rate}", epochs)
        of_kind = dict(zip(KINDS, self.pic, strict=False))[line] if kind == "pic" else NO_ROWS
        return (*words, *((self.pair,) if pairs else ()), *of_kind)


_FASHION_MNIST = "tests/compared.json"
_ASKED = ("evaluate.jittered=true", "evaluate.views=0")
_PROBE = ("linear.epochs=10", "linear.C=[]", "linear.few_C=[1e-3]", "linear.few=[10]")
SETS = {
    "fashion_mnist": Set(
        _FASHION_MNIST,
        _ASKED,
        views=8,
        pair="data.augment.views=2",
        pic=(
            ("method.active=3744",),
            ("method.active=15000", "schedule.window=15360", "schedule.stride=1536"),
            ("method.active=60000",),
        ),
        queue=3840,
        seeds=(0, 1, 2),
        probe=_PROBE,
    ),
    "glyphs": Set(
        "tests/compared_glyphs.json",
        ("evaluate.every_steps=null", "evaluate.views=0"),
        views=9,
        pair="data.augment.views=2",
        pic=(("method.active=2720",),),
        queue=2048,
        probe=("linear.least_images=15", "linear.epochs=30", "linear.C=[1e-4,1e-3]", "linear.few=[10]"),
    ),
    "emoji": Set(
        _FASHION_MNIST,
        (
            *("data.source=folder", "data.labels=folders", "data.image_size=32", "data.limit=null"),
            'data.augment={"kind":"photos","crops":[{"size":32,"scale":[0.3,1]}],"jitter":[0.4,0.4,0.4,0.1]}',
            *(
                "schedule.batch=64",
                "schedule.block=8",
                "schedule.lanes=8",
                "schedule.window=512",
                "schedule.stride=128",
            ),
            *("evaluate.jittered=true", "evaluate.views=0", "evaluate.k=1"),
        ),
        views=60,
        pair='data.augment.crops=[{"size":32,"scale":[0.3,1],"count":2}]',
        pic=(("method.active=304",),),
        queue=512,
    ),
}
# The search: three eighths of the views, of all images: what is best for 6,000 of them need not be best for ten times as many rows.
TRIAL = SETS["fashion_mnist"]._replace(words=("evaluate.limit=100", "evaluate.query_limit=100"), views=3, probe=None)
# Learning rate of the trunk and temperature of the four trials that every kind of method has.
TRIALS = ((0.05, 0.07), (0.05, 0.2), (0.1, 0.07), (0.1, 0.2))


def trials(trial: Set) -> dict[str, list[Cell]]:
    """Of each kind of method the cells of the search; of PIC with K = N/16."""
    lines = {kind: line for line, kind in reversed(KINDS.items())}
    return {
        kind: [
            Cell(f"search-{kind}-{number}", trial.config, (*trial.words, *trial.method(line, *values)), asks_own=True)
            for number, values in enumerate(TRIALS)
        ]
        for kind, line in lines.items()
    }


def search(trial: Set, directory: Path, file: Path | None) -> Values:
    """Of each kind of method the trial that is best by its training images; of equal ones the first."""
    tried = trials(trial)
    found = run_all([cell for cells in tried.values() for cell in cells], directory, file)
    best = {kind: max(cells, key=lambda cell: found[cell.name].own or 0) for kind, cells in tried.items()}
    return {kind: TRIALS[tried[kind].index(cell)] for kind, cell in best.items()}


def cells_of(name: str, images: Set, values: Values) -> dict[str, list[Cell]]:
    """Each line's cells, one a seed; and the two of the frame, with PIC's words."""
    every = {}
    for place, line in enumerate(images.lines):
        words = (*images.words, *images.method(line, *values[KINDS[line]]))
        every[line] = [
            Cell(f"{name}-{place}-{seed}", images.config, (*words, f"seed={seed}"), probe=images.probe)
            for seed in images.seeds
        ]
    words = (*images.words, *images.method("PIC, K = N/16", *values["pic"]))
    untrained = Cell(f"{name}-untrained", images.config, (*words, *STILL), probe=images.probe)
    supervised = Cell(f"{name}-labels", images.config, words, ("-m", "tests.supervised"), images.probe)
    return every | {"the network untrained": [untrained], "the network trained with labels": [supervised]}


def compare(name: str, images: Set, values: Values, directory: Path, file: Path | None) -> str:
    """A Markdown table."""
    cells = cells_of(name, images, values)
    turns = zip_longest(*cells.values())  # a seed of every line, then the next seed
    found = run_all([cell for turn in turns for cell in turn if cell is not None], directory, file)
    rows = {line: [found[cell.name] for cell in runs] for line, runs in cells.items()}
    one = next(iter(rows.values()))[0]
    rows["raw pixels"] = [Figures(one.raw, one.raw_jittered, *(None,) * 6)]
    return table(rows, columns=("knn", "jittered", "linear", "few") if images.probe else ("knn", "jittered"))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Methods beside each other: the same network, views and number of views."
    )
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--emoji", type=Path, help="what tests/render_emoji.py made")
    parser.add_argument("--output", type=Path, default=Path("runs/compare_methods"))
    parser.add_argument("--figures", type=Path, help="the file of figures; without it figures.jsonl in the output")
    arguments = parser.parse_args(argv)
    if "emoji" in arguments.sets and arguments.emoji is None:
        parser.error("emoji need --emoji, a directory that tests/render_emoji.py made; or leave them out of --sets")
    directory = arguments.output.resolve()
    values = search(TRIAL, directory, arguments.figures)
    print("learning rate, temperature: " + ", ".join(f"{kind} {rate:g}, {t:g}" for kind, (rate, t) in values.items()))
    for name in arguments.sets:
        images = SETS[name]
        if name == "emoji":
            images = images._replace(words=(*images.words, f"data.root={arguments.emoji.resolve()}"))
        print(f"\n**{name}**\n\n{compare(name, images, values, directory, arguments.figures)}", flush=True)


if __name__ == "__main__":
    main()
