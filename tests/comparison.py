"""Trainings that are compared: each is a run of launch.py in a directory of its own, two at a time with one thread each.

A cell is trained, then probed (job=linear), and its figures become a line of a file of figures. The same command goes on after any end: a
cell that has its line is not touched, one that is finished is read, one that was killed goes on from its last checkpoint. So the file alone
is enough to print the tables again, and a comparison may be made in parts, on several machines: minutes are then those of each machine.

    knn        share of queries right by the nearest neighbours in the gallery, as the config asks
    jittered   the same, each query being a random view of itself
    linear     top-1 of the linear classifier that was best on held-out training images
    few        top-1 of logistic regression on ten labels a class
    own        share of (10,000) training images right by their nearest neighbours among all others; no image of the test is looked at
"""

import hashlib
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from configs import schema
from datasets.catalog import every_image
from datasets.schedule import Schedule
from engine.disk.saved_checkpoint import SavedCheckpoint
from engine.evaluation.evaluate import embed_loaded
from engine.evaluation.knn import neighbours, vote
from engine.jobs import parts
from engine.jobs.data import open_data
from engine.jobs.row_table import rows_of
from engine.rows.snapshots import RowReader
from engine.trunk.network import embed

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Cell:
    """
    name      of its directory
    config    a config file
    words     section.key=value, over the file
    program   what trains it
    probe     words of job=linear; None: no probe
    asks_own  also ask its training images
    """

    name: str
    config: str
    words: tuple[str, ...]
    program: tuple[str, ...] = ("launch.py",)
    probe: tuple[str, ...] | None = None
    asks_own: bool = False

    def asked(self) -> str:
        """A hash of what is trained and probed, but for the code and the place of the images."""
        words = [word for word in self.words if not word.startswith("data.root=")]
        everything = [(ROOT / self.config).read_text(), words, self.program, self.probe, self.asks_own]
        return hashlib.sha256(json.dumps(everything).encode()).hexdigest()[:16]

    def command(self, output: Path, *more: str, program: Sequence[str] | None = None) -> list[str]:
        words = (f"output={output}", "threads=1", *self.words, *more)
        return [sys.executable, *(program or self.program), "--config", self.config, *words]


class Figures(NamedTuple):
    """Shares in [0, 1]; None: not asked. minutes: of the training, evaluations included."""

    knn: float | None
    jittered: float | None
    linear: float | None
    few: float | None
    loss: float | None
    minutes: float | None
    raw: float | None
    raw_jittered: float | None
    own: float | None = None


def run_all(cells: Iterable[Cell], directory: Path, file: Path | None = None, at_once: int = 2) -> dict[str, Figures]:
    """Train and probe every cell whose figures are not in `file` (None: figures.jsonl in the directory), write them there, and tell.

    Raises RuntimeError with the last words of a cell that fails, and where its directory holds another training.
    """
    waiting, file = list(cells), file or directory / "figures.jsonl"
    known, lock = written(file), threading.Lock()
    file.parent.mkdir(parents=True, exist_ok=True)

    def figures_of(cell: Cell) -> Figures:
        asked = cell.asked()
        if (cell.name, asked) not in known:
            _claim(directory / cell.name, asked)
            found = _run(cell, directory / cell.name)
            line = {"cell": cell.name, "asked": asked} | found._asdict()
            with lock, file.open("a") as out:
                out.write(json.dumps(line) + "\n")
            return found
        return known[cell.name, asked]

    with ThreadPoolExecutor(at_once) as pool:
        try:
            found = list(pool.map(figures_of, waiting))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return {cell.name: figures for cell, figures in zip(waiting, found, strict=True)}


def written(file: Path) -> dict[tuple[str, str], Figures]:
    """(name of a cell, what was asked) -> its figures, of a file of figures; the last line of several counts."""
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return {(line.pop("cell"), line.pop("asked")): Figures(**line) for line in lines}


def _claim(output: Path, asked: str) -> None:
    """Figures of another training, left by other words or another config, must not be taken for those that are asked."""
    mark = output.parent / f"{output.name}.asked"
    if mark.exists() and mark.read_text() != asked:
        raise RuntimeError(
            f"{output} holds another training of this name; remove it and {mark.name}, or set another --output"
        )
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.write_text(asked)


def _run(cell: Cell, output: Path) -> Figures:
    begun = time.monotonic()
    if not _is_finished(output):
        _call(cell.command(output), output)
    if cell.probe is not None and not (output / "linear.json").exists():
        _call(cell.command(output, "job=linear", *cell.probe, program=["launch.py"]), output)
    figures = read(output)._replace(own=leave_one_out(output) if cell.asks_own else None)
    print(f"{cell.name}: {_shown(figures)}; {(time.monotonic() - begun) / 60:.1f} minutes now", flush=True)
    return figures


def _is_finished(output: Path) -> bool:
    summary = output / "summary.json"
    return summary.exists() and json.loads(summary.read_text())["status"] == "finished"


def _call(command: list[str], output: Path) -> None:
    log = output.parent / f"{output.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    # One thread also in what torch's setting does not reach: OpenMP of faiss, BLAS of scipy.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with log.open("a") as file:
        code = subprocess.run(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT).returncode
    if code:
        last = "\n".join(log.read_text(errors="replace").splitlines()[-8:])
        raise RuntimeError(f"{' '.join(command)} ended with code {code}:\n{last}")


def read(output: Path) -> Figures:
    """What a cell left; shares are None where nothing was evaluated."""
    summary = json.loads((output / "summary.json").read_text())
    evaluations, probe = output / "evaluations.jsonl", output / "linear.json"
    line = json.loads(evaluations.read_text().splitlines()[-1]) if evaluations.exists() else {}
    linear = json.loads(probe.read_text())["features"] if probe.exists() else {}
    shares, raw = line.get("figures", {}), line.get("raw_pixels", {})
    heads, few = linear.get("heads", []), linear.get("few_labels", [])
    best = max(heads, key=lambda head: head["held_out_top1"], default={})
    return Figures(
        knn=shares.get("knn_top1"),
        jittered=_jittered(shares),
        linear=best.get("top1"),
        few=few[0]["top1"] if few else None,
        loss=summary.get("loss"),
        minutes=summary["session_seconds"] / 60,
        raw=raw.get("knn_top1"),
        raw_jittered=_jittered(raw),
    )


def _jittered(figures: Mapping[str, float]) -> float | None:
    shares = [share for name, share in figures.items() if name.endswith(", jittered")]
    return statistics.mean(shares) if shares else None


def _shown(figures: Figures) -> str:
    names = {"knn": "kNN", "jittered": "jittered", "linear": "linear", "few": "few", "own": "own images"}
    shares = {shown: getattr(figures, name) for name, shown in names.items()}
    return ", ".join(f"{shown} {share:.1%}" for shown, share in shares.items() if share is not None)


# Training images, each by the others


def leave_one_out(output: Path, most: int = 10_000) -> float:
    """kNN of training images, each among all others, by the backbone in `output`: k and temperature of its config.

    most: images that are asked; of more, one in so many by their numbers
    """
    config = schema.load(str(output / "config.json"), [])
    source, _, _, config = open_data(config, None)
    labels_N = source.labels()
    assert labels_N is not None
    network, _ = parts.network_of_file(config, output / "backbone.safetensors")
    batches = every_image(source, config.data.image_size, len(source))
    h_ND = np.concatenate([embed_loaded(lambda x: embed(network, x, "backbone"), loaded) for _, loaded in batches])
    asked = np.arange(0, len(source), -(-len(source) // most))
    similarity, nearest = neighbours(h_ND, h_ND[asked], config.evaluate.k + 1)
    is_own = nearest == asked[:, None]
    others = np.argsort(is_own, axis=1, kind="stable")[:, :-1]  # in their order, without the image itself
    similarity, nearest = (np.take_along_axis(found, others, axis=1) for found in (similarity, nearest))
    return float((vote(similarity, labels_N[nearest], config.evaluate.temperature) == labels_N[asked]).mean())


# Rows


def caught_up_rows(config: schema.Config, checkpoint: SavedCheckpoint, schedule: Schedule) -> np.ndarray:
    """float32 [N, D], in the order of positions: the rows of a checkpoint, caught up to its step. NaN where one does not exist yet."""
    reader = RowReader(rows_of(config, checkpoint, schedule))
    blocks = range(-(-schedule.size // schedule.block))
    return np.concatenate([reader.caught_up(block, schedule.instances)[0] for block in blocks])


# Tables


def table(rows: Mapping[str, Sequence[Figures]], columns: Sequence[str] = ("knn", "jittered", "linear", "few")) -> str:
    """Markdown: of each row's runs (seeds) the mean, and how far apart they are."""
    names = {"knn": "kNN", "jittered": "kNN, jittered", "linear": "linear", "few": "10 labels a class"}
    lines = [
        f"| | {' | '.join(names.get(column, column) for column in columns)} | loss | minutes |",
        f"|---|{'---|' * (len(columns) + 2)}",
    ]
    for name, runs in rows.items():
        shares = [_spread([getattr(run, column) for run in runs]) for column in columns]
        rest = [_mean([run.loss for run in runs], ".2f"), _mean([run.minutes for run in runs], ".0f")]
        lines.append(f"| {name} | {' | '.join([*shares, *rest])} |")
    return "\n".join(lines)


def _spread(shares: Sequence[float | None]) -> str:
    there = [share for share in shares if share is not None]
    if not there:
        return ""
    mean = f"{statistics.mean(there):.1%}".replace("%", " %")
    return mean if len(there) == 1 else f"{mean} ({100 * min(there):.1f} to {100 * max(there):.1f})"


def _mean(values: Sequence[Any], format: str) -> str:
    there = [value for value in values if value is not None]
    return f"{statistics.mean(there):{format}}" if there else ""
