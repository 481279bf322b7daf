"""Which rows should be the negatives of a step? What each choice misses of the softmax over all N rows, what it costs, what it learns.

    python -m tests.bench_negatives [--set glyphs] [--output runs/bench_negatives] [--draws 64] [--rounds 10] [section.key=value ...]

Four trainings of configs/pic_sampled.json, shortened, or of configs/fashion_mnist.json: with a window of about N/4 or N/2, and K = N/16
active rows or all. Words are passed on to each. What is there already is not trained again, and a training that was killed goes on. Then
three tables:

    errors    the rows of two of the runs as their last checkpoints have them, all N caught up, and the features of the next batch:
              loss and gradient at z over K rows beside those over all rows, in float64 (tests/engine/methods/some_negatives.py).
              recent        the K rows that were visited last, other orders of visits in the same windows being the draws
              recent, logQ  the same, each row standing for N/K others
              window, logQ  K rows drawn uniformly from the window, which host memory holds
              all, logQ     K rows drawn uniformly from all N: the best that uniform draws can do
    cost      new negatives in every step are K rows a step that come from host memory, are caught up, and go back: engine/rows on
              random rows, beside the rows of a batch, which are all that recent negatives move
    kNN       of the runs with K = N/16 and K = N; and with K = N/16 trained with the term (tests/engine/methods/weighted_negatives.py)
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from configs import schema
from datasets.loader import StepDataset
from datasets.schedule import Schedule
from engine.disk.chosen import chosen_checkpoint
from engine.jobs import parts
from engine.jobs.data import open_data
from engine.ranks.lanes import Lanes
from engine.rows.active_rows import ActiveRows, Start
from engine.rows.host_tier import HostTier
from engine.rows.implementations import implementations, names
from engine.rows.store import MemoryStore
from engine.rows.transitions import TransitionLog
from engine.training.checkpoint import read_trunk
from tests.bench_support import machine
from tests.comparison import caught_up_rows
from tests.engine.methods.some_negatives import Errors, Samples, errors, recent

ROOT = Path(__file__).parents[1]
SHARES = (64, 16, 4)  # N/K of the table


class Set(NamedTuple):
    """words: of every training. windows: words of a window of about N/4 and N/2. active: words of K = N/16 and K = N."""

    config: str
    words: list[str]
    windows: tuple[list[str], list[str]]
    active: tuple[str, str]

    def runs(self) -> dict[str, list[str]]:
        (quarter, half), (some, every) = self.windows, self.active
        by_name = {"quarter": [*quarter, some], "half": [*half, some], "full": [*quarter, every]}
        return {name: [*self.words, *words] for name, words in {**by_name, WEIGHTED: by_name["quarter"]}.items()}


WEIGHTED = "weighted"
# Windows are whole stripes: of 512 and of 60 positions.
SETS = {
    "glyphs": Set(
        "configs/pic_sampled.json",
        ["epochs=5", "evaluate.every_steps=null"],
        (["schedule.window=10240", "schedule.stride=2560"], ["schedule.window=20480", "schedule.stride=5120"]),
        ("method.active=2720", "method.active=43523"),
    ),
    "fashion_mnist": Set(
        "configs/fashion_mnist.json",
        [],
        (["schedule.window=1500", "schedule.stride=300"], ["schedule.window=3000", "schedule.stride=600"]),
        ("method.active=372", "method.active=6000"),
    ),
}


class State(NamedTuple):
    """samples: the next batch of a run, and all rows, by position."""

    samples: Samples
    schedule: Schedule
    step: int


def train(config: str, words: list[str], is_weighted: bool) -> None:
    """A run to its end."""
    program = ["-m", "tests.engine.methods.weighted_negatives"] if is_weighted else ["launch.py"]
    command = [sys.executable, *program, "--config", config, "threads=1", *words]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def state_of(path: str, words: list[str]) -> State:
    """The run's last checkpoint, caught up to its step. Its features are those of the next step's batch, with its own statistics."""
    config = schema.load(str(ROOT / path), words)
    checkpoint, _ = chosen_checkpoint(Path(config.output), None)
    source, augmentation, schedule, config = open_data(config, checkpoint, grows=False)
    network = parts.network_of(config)
    network.load_state_dict(read_trunk(checkpoint))
    w_ND = caught_up_rows(config, checkpoint, schedule)
    if np.isnan(w_ND).any():
        raise ValueError("some rows were never visited, and do not exist; train for more epochs than W/S")
    batch = StepDataset(source, schedule, augmentation, config.seed)[checkpoint.step]
    filled = torch.from_numpy(batch.filled_G)
    with torch.no_grad():
        z_BD = network([view[filled] for view in batch.views])
    own_B = np.tile(batch.positions_G[batch.filled_G], len(batch.views))
    samples = Samples(z_BD, torch.from_numpy(w_ND), own_B, config.method.temperature)
    return State(samples, schedule, checkpoint.step)


def choices(state: State, active: int, seed: int) -> dict[str, tuple[Callable[[], np.ndarray], bool]]:
    """Name -> (how K rows are drawn, whether each stands for N/K)."""
    generator = np.random.default_rng(seed)
    schedule, step = state.schedule, state.step
    blocks = schedule.window_blocks(schedule.window_of(step))
    places = (blocks[:, None] * schedule.block + np.arange(schedule.block)).reshape(-1)
    window = places[places < schedule.size]

    def visited() -> np.ndarray:
        return recent(schedule, step, active, generator)

    return {
        "recent": (visited, False),
        "recent, logQ": (visited, True),
        "window, logQ": (lambda: generator.choice(window, min(active, len(window)), replace=False), True),
        "all, logQ": (lambda: generator.choice(schedule.size, active, replace=False), True),
    }


def errors_table(states: dict[str, State], draws: int) -> str:
    """A Markdown table. The last two columns are of the one set that the run itself would have in this step."""
    lines = [
        "| W/N | K/N | negatives | loss: bias | noise | gradient: bias | noise | length | loss, as visited | gradient, as visited |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, state in states.items():
        schedule = state.schedule
        for share in SHARES:
            active = schedule.size // share // schedule.lanes * schedule.lanes
            if active <= schedule.batch:  # the batch's own rows are active
                continue
            real = recent(schedule, state.step, active)
            for kind, (draw, weighted) in choices(state, active, share).items():
                found = errors(state.samples, draw, weighted, draws)
                line = f"| {name} | 1/{share} | {kind} | {_cells(found)}"
                if kind.startswith("recent"):
                    loss, gradient = _of_one(state.samples, real, weighted)
                    line += f" | {loss:+.2f} | {gradient:.2f} |"
                lines.append(line if line.endswith("|") else f"{line} | | |")
    return "\n".join(lines)


def _cells(found: Errors) -> str:
    return (
        f"{found.loss_bias:+.2f} | {found.loss_noise:.2f} | {found.gradient_bias:.2f} | {found.gradient_noise:.2f} "
        f"| {found.gradient_length:.2f}"
    )


def _of_one(samples: Samples, drawn: np.ndarray, weighted: bool) -> tuple[float, float]:
    """(error of the mean loss, length of the gradient's error over the gradient's own) of one set of rows."""
    loss_B, gradient_BD = samples.some(drawn, weighted)
    true_loss_B, true_BD = samples.all()
    return float((loss_B - true_loss_B).mean()), float((gradient_BD - true_BD).norm() / true_BD.norm())


def swap_seconds(active: int, newcomers: int, dim: int, rounds: int) -> list[float]:
    """Seconds of a core in which so many rows come from host memory to their slots, caught up, and as many go back. K = active."""
    kernels = names(implementations(torch.device("cpu"), torch.float32, dim, "auto"))
    log = TransitionLog(0.9, 1e-4, False)
    block, size = 512, 4 * max(active, newcomers)
    host = HostTier(MemoryStore(), block=block, size=size, dim=dim, places=-(-size // block))
    rows = ActiveRows(
        host,
        log,
        lanes=Lanes(1),
        capacities=[active],
        start=Start(0, 1.0, False),
        full=False,
        norm_floor=0.0,
        device=torch.device("cpu"),
        kernels=kernels,
    )
    host.slide(range(-(-size // block)), step=0)
    order = np.random.default_rng(0).permutation(size)
    seconds = []
    # In the first turn through the order rows are made, which is another work.
    turns = size // newcomers
    for step in range(turns + rounds):
        chosen = order[step % turns * newcomers : (step % turns + 1) * newcomers]
        start = time.process_time()
        rows.admit(step, chosen, chosen, None)
        seconds.append(time.process_time() - start)
        log.append(0.1)
    return seconds[turns:]


def cost_table(actives: list[int], batch: int, dim: int, rounds: int) -> str:
    """A Markdown table: what the two choices move in a step, and what that takes on this machine's CPU."""
    lines = ["| K | negatives | rows a step, in and out | MB | ms of a core |", "|---|---|---|---|---|"]
    for active in actives:
        for name, newcomers in (("recent, at most", batch), ("window", active)):
            milliseconds = 1e3 * statistics.median(swap_seconds(active, newcomers, dim, rounds))
            megabytes = newcomers * 2 * 2 * 4 * dim / 1e6  # weight and momentum, in and out
            lines.append(f"| {active:,} | {name} | {newcomers:,} | {megabytes:.1f} | {milliseconds:.1f} |")
    return "\n".join(lines)


def quality_table(outputs: dict[str, Path]) -> str:
    lines = ["| run | K | kNN | last loss | ln K |", "|---|---|---|---|---|"]
    for name, output in outputs.items():
        summary = json.loads((output / "summary.json").read_text())
        lines.append(
            f"| {name} | {summary['active']:,} | {summary['knn_top1']:.1%} | {summary['loss']:.2f} | {summary['chance_loss']:.2f} |"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Recent negatives, and negatives drawn from the window.")
    parser.add_argument("--output", type=Path, default=Path("runs/bench_negatives"))
    parser.add_argument("--set", choices=SETS, default="glyphs")
    parser.add_argument("--draws", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=10, help="steps whose time is taken")
    parser.add_argument("--rows", type=int, nargs="*", default=[2_720, 65_536], help="K of the table of costs")
    parser.add_argument("words", nargs="*")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    chosen, directory = SETS[arguments.set], arguments.output.resolve() / arguments.set
    outputs = {name: directory / name for name in chosen.runs()}
    words = {name: [f"output={outputs[name]}", *its, *arguments.words] for name, its in chosen.runs().items()}
    for name in outputs:
        train(chosen.config, words[name], name == WEIGHTED)
    print(machine(), "\n", sep="")
    windows = {"1/4": state_of(chosen.config, words["quarter"]), "1/2": state_of(chosen.config, words["half"])}
    print(errors_table(windows, arguments.draws), "\n")
    print(cost_table(arguments.rows, 256, 128, arguments.rounds), "\n")
    print(quality_table(outputs))


if __name__ == "__main__":
    main()
