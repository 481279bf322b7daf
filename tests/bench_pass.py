"""Rows really visited, through launch.py: one whole pass over N = 10^7, a fifth of a second one, and 10,000 rows replayed in float64.

    python -m tests.bench_pass [--images 10000000] [--rows 10000] [--directory .]          10 GB on the disk, half an hour

The run has "given" features and W = S: every image is visited once a pass, its row leaves the device after some steps and the host
after two windows, and comes back in the second pass. At 1.2 passes the run gets SIGTERM. Told, with bars:

    step      the median of the steps of the last tenth of the run beside that of its second tenth
    memory    resident set: the largest of the last half of the run beside the largest of the first half (after its first tenth)
    waits     steps that waited for the disk
    stop      from SIGTERM to the end of the process
    replay    rows of random blocks, from their birth on: dense SGD in float64, from the keyed features, the learning rates of the
              checkpoint and the log-sum-exps that the run's own softmax found (recorded at engine/methods/lane_softmax.py). Whatever the
              engine does between two visits, it must be where this is. The bar is twice what the same replay in float32 errs by
"""

import argparse
import signal
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from configs import schema
from datasets.given import GivenFeatures
from datasets.schedule import Schedule
from engine.disk.chosen import chosen_checkpoint
from engine.jobs.data import open_data
from engine.jobs.row_table import rows_of
from engine.rows.initial_rows import initial_rows
from engine.rows.snapshots import RowReader
from tests.bench_support import given_line, machine, metrics, running, scratch, status_kib

OVERRIDES = [
    "schedule.batch=1024", "schedule.block=1024", "schedule.lanes=8", "schedule.window=65536", "schedule.stride=65536", "epochs=2",
    "method.active=4096", "checkpoint.every_steps=1000", "log_every=20", "optimizer.rows_weight_decay=1e-5",
]  # fmt: skip
PASSES = 1.2
STEP_BAR, MEMORY_BAR, STOP_BAR_SECONDS = 1.05, 1.02, 10.0
ROWS_OF_A_BLOCK = 50


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what is told above; 1 where a bar does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10**7)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--directory", type=Path, default=Path())
    parser.add_argument("--record", type=Path, help="of the process that trains: write log-sum-exps there")
    parser.add_argument("line", nargs="*", help="of the process that trains: what launch.py gets")
    options = parser.parse_args(arguments)
    if options.record:
        return trained(options.record, options.line)
    print(f"{machine()}\n{options.images:,} images; {' '.join(OVERRIDES)}")
    with scratch(options.directory) as directory:
        held = told(*run(directory, options.images))
        held &= replayed(directory, options.rows)
    return 0 if held else 1


def trained(record: Path, line: list[str]) -> int:
    """launch.py, with every log-sum-exp written down: for each step how many there are, int64, and these, float64."""
    import launch
    from engine.methods.lane_softmax import LaneSoftmax

    over_all_rows = LaneSoftmax._over_all_rows
    with open(record, "wb") as file:

        def recording(self, max_X, sumexp_X):
            lse_X = over_all_rows(self, max_X, sumexp_X)
            file.write(np.int64(len(lse_X)).tobytes() + lse_X.numpy().tobytes())
            return lse_X

        LaneSoftmax._over_all_rows = recording
        return launch.main(line)


def run(directory: Path, images: int) -> tuple[list[dict], list[tuple[int, float]], float]:
    """(metrics, (step, resident MiB) now and then, seconds from SIGTERM to the end)."""
    output = directory / "run"
    words = given_line(output, f"data.limit={images}", *OVERRIDES)
    line = [words[0], "-m", "tests.bench_pass", "--record", str(directory / "lse"), "--", *words[2:]]
    end, looks = PASSES * images / 1024, []
    with running(line) as process:
        while not looks or looks[-1][0] < end:
            time.sleep(1)
            assert process.poll() is None, "the run ended before it was asked to"
            if (output / "metrics.jsonl").exists() and (lines := metrics(output)):
                looks.append((lines[-1]["step"], status_kib(process.pid, "VmRSS") / 1024))
        start = time.perf_counter()
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
        return metrics(output), looks, time.perf_counter() - start


def told(lines: list[dict], looks: list[tuple[int, float]], stop_seconds: float) -> bool:
    """Print the first four; whether they hold."""
    last = lines[-1]["step"]
    seconds = [after["elapsed_seconds"] - before["elapsed_seconds"] for before, after in pairwise(lines)]
    steps_ms = [(line["step"] / last, 1000 * each / 20) for line, each in zip(lines[1:], seconds, strict=True)]
    second, tenth = ([ms for place, ms in steps_ms if first <= place < first + 0.1] for first in (0.1, 0.9))
    ratio = statistics.median(tenth) / statistics.median(second)
    halves = [max(mib for step, mib in looks if first <= step / last <= end) for first, end in ((0.1, 0.5), (0.5, 1.0))]
    waits = [sum(line["prefetch_waits"][what] for line in lines) for what in ("steps", "seconds")]
    quartiles = ["{:.1f} - {:.1f}".format(*np.quantile(part, [0.25, 0.75])) for part in (second, tenth)]
    print(
        f"{last:,} steps, {sum(seconds) / 60:.1f} min of steps, {lines[-1]['bytes']['disk'] / 1e9:.2f} GB on the disk, "
        f"{lines[-1]['visited']:,} rows visited, {lines[-1]['readmitted']:,} readmitted"
    )
    print(
        f"step: second tenth {statistics.median(second):.1f} ms (quartiles {quartiles[0]}), last tenth {statistics.median(tenth):.1f} ms "
        f"({quartiles[1]}): x {ratio:.3f}, bar x {STEP_BAR}"
    )
    print(f"memory: {halves[0]:.0f} MiB, then {halves[1]:.0f} MiB: x {halves[1] / halves[0]:.3f}, bar x {MEMORY_BAR}")
    print(
        f"waits: {waits[0]} steps, {waits[1]:.2f} s, bar 0\nstop: {stop_seconds:.1f} s, bar {STOP_BAR_SECONDS:.0f} s",
        flush=True,
    )
    return (
        ratio <= STEP_BAR and halves[1] <= MEMORY_BAR * halves[0] and not waits[0] and stop_seconds < STOP_BAR_SECONDS
    )


@dataclass
class Replay:
    """Some rows as dense SGD has them. w_ND, u_ND: float64 or float32."""

    w_ND: np.ndarray
    u_ND: np.ndarray
    momentum: float
    decay: float
    temperature: float

    def step(self, gradients: dict[int, np.ndarray], eta: float) -> None:
        """gradients: of the rows that are active."""
        grad_ND = self.decay * self.w_ND
        for row, gradient_D in gradients.items():
            grad_ND[row] += gradient_D
        self.u_ND *= self.momentum
        self.u_ND += grad_ND
        self.w_ND -= np.asarray(eta, self.w_ND.dtype) * self.u_ND

    def gradient(self, row: int, own_X: np.ndarray, z_XD: np.ndarray, lse_X: np.ndarray) -> np.ndarray:
        """Of the mean loss of X samples by a row; own_X: bool, which of them are its."""
        w_D, dtype = self.w_ND[row], self.w_ND.dtype
        length = np.sqrt((w_D * w_D).sum())
        cosine_X = z_XD @ (w_D / length)
        part_X = (np.exp(cosine_X / self.temperature - lse_X) - own_X) / len(z_XD)
        part_X = (part_X / (self.temperature * length)).astype(dtype)
        return part_X @ z_XD - (part_X @ cosine_X) * (w_D / length)


def replayed(directory: Path, rows: int) -> bool:
    """Replay some rows and compare; print; whether it holds."""
    checkpoint, _ = chosen_checkpoint(directory / "run", None)
    config = schema.load(str(directory / "run" / "config.json"), [f"output={directory / 'run'}"])
    _, features, schedule, config = open_data(config, checkpoint, grows=False)
    table = rows_of(config, checkpoint, schedule)
    visited = np.unique(np.concatenate([np.array(table.host.blocks()), checkpoint.tables()[1].blocks()]))
    chosen = np.random.default_rng(0)
    blocks = np.sort(chosen.choice(visited, rows // ROWS_OF_A_BLOCK, replace=False))
    positions = np.concatenate(
        [
            block * schedule.block + np.sort(chosen.choice(schedule.block, ROWS_OF_A_BLOCK, replace=False))
            for block in blocks
        ]
    )
    positions = positions[schedule.instances(positions) >= 0]
    start, reader = time.perf_counter(), RowReader(table)
    engine = {}
    for block in blocks.tolist():
        w_CD, u_CD = reader.caught_up(block, schedule.instances)
        engine |= {
            block * schedule.block + offset: (w, u) for offset, (w, u) in enumerate(zip(w_CD, u_CD, strict=True))
        }
    start_ND = initial_rows(config.seed, schedule.instances(positions), config.method.dim, config.rows.init_norm)
    optimizer = config.optimizer
    replays = [
        Replay(
            start_ND.astype(dtype),
            np.zeros_like(start_ND, dtype),
            optimizer.momentum,
            optimizer.decay_of_rows,
            config.method.temperature,
        )
        for dtype in (np.float64, np.float32)
    ]
    assert not optimizer.nesterov and optimizer.rows_clip == 0
    visits = replay(replays, positions, schedule, features, config, checkpoint.log()["eta"], directory / "lse")
    engine_w, engine_u = (
        np.array([engine[place][which] for place in positions.tolist()], np.float64) for which in (0, 1)
    )
    seconds = time.perf_counter() - start
    print(
        f"replay of {len(positions):,} rows in {len(blocks)} blocks, {visits.min()} to {visits.max()} visits each ({seconds:.0f} s)"
    )
    exact, rounded = replays
    compared("momentum", engine_u, exact.u_ND, rounded.u_ND)
    return compared("row", engine_w, exact.w_ND, rounded.w_ND)


def compared(name: str, engine_ND: np.ndarray, exact_ND: np.ndarray, rounded_ND: np.ndarray) -> bool:
    """Print how far both are from the exact ones; whether the engine's largest error is within twice dense float32's."""
    ours_N, dense_N = (np.linalg.norm(found.astype(np.float64) - exact_ND, axis=1) for found in (engine_ND, rounded_ND))
    print(
        f"{name}: the engine errs by {ours_N.max():.2e} at most (rms {np.sqrt((ours_N**2).mean()):.2e}), dense float32 by "
        f"{dense_N.max():.2e} (rms {np.sqrt((dense_N**2).mean()):.2e}); median length {np.median(np.linalg.norm(exact_ND, axis=1)):.2e}"
    )
    return bool(ours_N.max() <= 2 * dense_N.max())


def replay(
    replays: list[Replay],
    positions: np.ndarray,
    schedule: Schedule,
    features: GivenFeatures,
    config: schema.Config,
    eta_T: np.ndarray,
    record: Path,
) -> np.ndarray:
    """All steps of these rows; returns how often each was visited, int64 [N].

    A row is active until as many others of its lane were visited after it as the lane has places.
    """
    places = config.rows.active // schedule.lanes
    row_of = {place: row for row, place in enumerate(positions.tolist())}
    seen_L = np.zeros(schedule.lanes, np.int64)  # visits so far, by lane
    last: dict[int, tuple[int, int]] = {}  # active row -> (lane, how many visits its lane had before it)
    visits = np.zeros(len(positions), np.int64)
    for step, lse_X in enumerate(recorded(record, len(eta_T))):
        batch = schedule.positions(step)
        share = len(batch) // schedule.lanes
        own: dict[int, int] = {}
        filled = np.flatnonzero(batch >= 0)
        for place, position in zip(range(len(filled)), batch[filled].tolist(), strict=True):
            lane = filled[place] // share
            if position in row_of:
                own[row_of[position]] = place
                last[row_of[position]] = int(lane), int(seen_L[lane])
                visits[row_of[position]] += 1
            seen_L[lane] += 1
        last = {row: (lane, before) for row, (lane, before) in last.items() if seen_L[lane] - before <= places}
        found: list[dict[int, np.ndarray]] = [{} for _ in replays]
        if last:
            views = features.views([], config.seed, step, schedule.instances(batch[filled]))
            z_XD = np.concatenate([view.numpy() for view in views])
            assert len(lse_X) == len(z_XD), (len(lse_X), z_XD.shape)
            for row in last:
                own_X = np.zeros(len(z_XD), bool)
                if row in own:
                    own_X[own[row] :: len(filled)] = True
                for gradients, one in zip(found, replays, strict=True):
                    z = z_XD.astype(one.w_ND.dtype)
                    gradients[row] = one.gradient(row, own_X, z, lse_X.astype(one.w_ND.dtype))
        for gradients, one in zip(found, replays, strict=True):
            one.step(gradients, eta_T[step])
    return visits


def recorded(record: Path, steps: int) -> Iterator[np.ndarray]:
    """The log-sum-exps of each step, float64 [X]."""
    with open(record, "rb") as file:
        for _ in range(steps):
            count = int(np.frombuffer(file.read(8), np.int64)[0])
            yield np.frombuffer(file.read(8 * count), np.float64)


if __name__ == "__main__":
    sys.exit(main())
