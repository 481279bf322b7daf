"""What it costs to share the classifier's rows out over ranks, in both ways: bytes on the wire, time of a step, memory of a rank.

    python -m tests.bench_ranks [--ranks 2] [--rows 4096 16384 65536 262144] [--samples 256] [--dim 128] [--steps 18] ...

    lanes   features travel to the rows, and gradients back: engine/methods/lane_softmax.py
    zero3   DeepSpeed gathers the rows on every rank and reduces their gradient: engine/methods/zero3_softmax.py

    bytes   that a rank sends in a step, by what was called and the ring convention of engine/ranks/ranks.py: lanes by
            Ranks.sent_bytes, zero3
            by the log that DeepSpeed keeps of its collectives, and Ranks.sent_bytes for masks and scalars. Beside it the prediction,
            2 (R - 1)/R times the bytes of all features or all rows, and what the kernel has really sent over the process's TCP
            connections: that is gloo's doing, and NCCL's would be another
    time    of a step, all of it: which positions, slide, admission, softmax, update. Both ways live in the same processes and take turns of
            TURN steps, the first turn of each not counted; of each step the slowest rank is told. Both do the same steps on the
            same features: the bench fails where their losses differ, or where not as many rows came back
    memory  of rows and momentum on one rank, as tensors and as growth of the resident set; and the most that was resident in a step
            (VmHWM, set back before it), in fresh processes that give back at once what they free (M_MMAP_THRESHOLD)

The network is missing: features are random unit vectors, one view. Ranks are processes of one thread on one machine: they share the
memory's bandwidth, and the wire is the loopback. Times tell what the ways compute and copy, bytes what a network would add.

Windows are as in the shipped configs, W = 2K and S = W/8, and N = 2W. Before the time is taken, skipped steps, which admit rows and change
none, go through the first window. From there on all slots are taken, and most rows that are visited come back and make others go.
"""

import argparse
import contextlib
import ctypes
import functools
import gc
import math
import os
import re
import socket
import statistics
import struct
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from datasets.batch import Batch
from engine.methods.stages import Stages
from engine.planning.components import DEVICE
from engine.planning.rows import ActiveSizes, active_components
from engine.ranks.ranks import Ranks
from engine.training.step import Dealing, train_step
from tests.bench_scale import RandomFeatures
from tests.bench_support import machine
from tests.engine.harness import Case, make_batch, method_of
from tests.engine.rank_runs import make_rows
from tests.on_ranks import on_ranks

WAYS = ("lanes", "zero3")
STAGES = ("admit", "softmax", "update")
TURN = 3
RATE = 0.1


def case_of(rows: int, samples: int, dim: int, lanes: int) -> Case:
    """A harness case by K, G, D and L."""
    window, stride = 2 * rows, rows // 4
    return Case(
        size=2 * window,
        active=rows,
        window=window,
        stride=stride,
        batch=samples,
        block=math.gcd(512, stride // lanes),
        lanes=lanes,
        dim=dim,
        weight_decay=1e-4,
        dtype=np.float32,
    )


# On each rank


class Side:
    """One way on this rank: rows with host tier and a store in memory, the softmax, and a trunk without a network."""

    def __init__(self, way: str, case: Case, ranks: Ranks) -> None:
        self.way, self.case, self.ranks, self.schedule = way, case, ranks, case.schedule
        self.rows, softmax = make_rows(case, ranks, way)
        self.method = method_of(case, self.rows, ranks, softmax)
        self.trunk, self.stages = RandomFeatures(case.dim), Stages()
        self.method.stages = self.stages

    def fill(self) -> None:
        """Go to the end of the first window by skipped steps."""
        while self.rows.log.steps < self.schedule.steps_per_window:
            batch = self._next()
            self.rows.admit(batch.step, batch.positions_G, batch.ids_G, None)
            self.rows.log.append(None)
        assert self.rows.mask() is None

    def step(self) -> float:
        """One step of training; returns its loss."""
        batch = self._next()
        self.trunk.step = batch.step * self.ranks.size + self.ranks.rank
        told = train_step(
            batch,
            self.trunk,
            self.method,
            self.ranks,
            lr=RATE,
            dealing=Dealing(len(self.rows.lanes), 1, [0]),
            stages=self.stages,
        )
        assert told.applied and told.filled == self.case.batch
        return told.loss

    def _next(self) -> Batch:
        """This rank's part of the next batch, with its window in the host tier."""
        rows, step = self.rows, self.rows.log.steps
        if step % self.schedule.steps_per_window == 0:
            blocks = self.schedule.window_blocks(self.schedule.window_of(step))
            rows.host.slide(rows.lanes.chosen(blocks), step)
        return make_batch(self.case, step, rows.lanes)


def count_and_time(ranks: Ranks, cases: list[Case], steps: int) -> list[dict[str, Any]]:
    """For each case, on this rank: by way the bytes that a step sends, and of `steps` steps (0: none) what each was like, turn by turn."""
    return [_count_and_time(ranks, case, steps) for case in cases]


def _count_and_time(ranks: Ranks, case: Case, steps: int) -> dict[str, Any]:
    sides = {way: Side(way, case, ranks) for way in WAYS}
    sent = {way: bytes_of_a_step(side) for way, side in sides.items()}
    turns: dict[str, list[list[dict[str, float]]]] = {way: [] for way in WAYS}
    if steps:
        for side in sides.values():
            side.fill()
        for turn in range(1 + steps // TURN):
            for way in WAYS if turn % 2 else reversed(WAYS):
                ranks.wait()
                taken = [timed_step(sides[way]) for _ in range(TURN)]
                turns[way] += [taken] if turn else []
    sides["zero3"].method.softmax.partitioned.zero.close()
    gc.collect()
    return {"bytes": sent, "turns": turns}


def timed_step(side: Side) -> dict[str, float]:
    """Seconds of a step: all, on a processor (all threads), and by stage; its loss; rows that came back in it."""
    side.stages.take()
    back, start, cpu_start = side.rows.readmitted, time.perf_counter(), time.process_time()
    loss = side.step()
    told = {"all": time.perf_counter() - start, "cpu": time.process_time() - cpu_start}
    stages = side.stages.take()
    return {**told, **{name: stages[name] for name in STAGES}, "loss": loss, "back": side.rows.readmitted - back}


def bytes_of_a_step(side: Side, steps: int = 2) -> dict[str, float]:
    """What this rank sends in a step, by kind; "TCP": what its connections really sent, gloo's headers included."""
    for _ in range(2):
        side.step()  # in the first ones DeepSpeed records the order of its parameters, and compares it
    ranks, sent = side.ranks, Counter[str]()
    ranks.wait()
    before, tcp_before = Counter(ranks.sent_bytes), tcp_bytes()
    with deepspeed_logs(ranks.size, sent) if side.way == "zero3" else contextlib.nullcontext():
        for _ in range(steps):
            side.step()
    ranks.wait()  # nothing is on its way any more
    tcp = tcp_bytes() - tcp_before
    sent += ranks.sent_bytes - before
    return {**{kind: count / steps for kind, count in sent.items()}, "TCP": tcp / steps}


@contextlib.contextmanager
def deepspeed_logs(ranks: int, sent: Counter[str]) -> Iterator[None]:
    """Add to `sent` the bytes of the collectives that DeepSpeed calls in the meantime, by their names."""
    import deepspeed.comm

    logger = deepspeed.comm.comm.comms_logger
    logger.reset_data()
    deepspeed.comm.configure(enabled=True, prof_all=True, verbose=False, debug=False)
    try:
        yield
    finally:
        deepspeed.comm.configure(enabled=False)
    for op, by_size in logger.comms_dict.items():
        for size, (count, *_) in by_size.items():
            sent[op] += count * ring_bytes(op, size, ranks)


def ring_bytes(op: str, size: int, ranks: int) -> int:
    """What one rank sends. `size` is what DeepSpeed 0.19.8 logs: the bytes of the function's argument `tensor`, or of a list of them.

    That is the rank's own part for an all-gather, and the whole for all others. (The bandwidths that DeepSpeed makes of it take it for a
    part in a reduce-scatter too, and are R times too high there.)
    """
    if op.startswith("all_gather"):
        return (ranks - 1) * size
    # A broadcast is sent on by all but one.
    times = {"reduce_scatter": 1, "reduce_scatter_tensor": 1, "all_reduce": 2, "broadcast": 1, "barrier": 0}
    return times[op] * (ranks - 1) * size // ranks


def tcp_bytes() -> int:
    """What the kernel has sent so far over this process's TCP connections, but for what it sent again."""
    total = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as copy:
                if copy.family in (socket.AF_INET, socket.AF_INET6) and copy.type == socket.SOCK_STREAM:
                    info = copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                    sent, again = struct.unpack_from("QQ", info, 200)  # tcpi_bytes_sent, tcpi_bytes_retrans
                    total += sent - again
    return total


def memory(ranks: Ranks, way: str, case: Case, steps: int = 2) -> dict[str, int]:
    """Bytes of this rank: rows and momentum as tensors; the resident set as they are made, between steps, and the most in a step."""
    ctypes.CDLL(None).mallopt(-3, 128 * 1024)  # M_MMAP_THRESHOLD
    warm = Side(way, case_of(case.batch * case.lanes, case.batch, case.dim, case.lanes), ranks)
    warm.step()  # what libraries load and keep is no row
    del warm
    before = resident_bytes()
    side = Side(way, case, ranks)
    before += side.rows.host.bytes
    for held in (side.rows.w_KD, side.rows.u_KD):
        held.zero_()  # memory that was never written is not there
    told = {"tensors": side.rows.bytes, "made": resident_bytes() - before}
    for _ in range(steps):
        side.step()
    told["between"] = resident_bytes() - before
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM is what is resident now
    for _ in range(steps):
        side.step()
    told["most"] = _proc_bytes("/proc/self/status", "VmHWM") - before
    return told


def resident_bytes() -> int:
    gc.collect()
    return _proc_bytes("/proc/self/smaps_rollup", "Rss")


def _proc_bytes(path: str, name: str) -> int:
    match = re.search(rf"^{name}:\s+(\d+) kB", Path(path).read_text(), re.MULTILINE)
    assert match is not None, (path, name)
    return int(match[1]) * 1024


# Tables


def predicted_bytes(way: str, case: Case, ranks: int) -> float:
    """What a rank sends in a step but for masks and scalars: all features or all rows, there and back."""
    return 2 * (ranks - 1) / ranks * 4 * case.dim * (case.batch if way == "lanes" else case.active)


def bytes_table(cases: list[Case], told: list[dict[str, Any]], ranks: int) -> str:
    """told: for each case what one rank told; the others send as much."""
    lines: list[list[str]] = []
    totals: dict[str, list[float]] = {}
    for way in WAYS:
        sent = [one["bytes"][way] for one in told]
        kinds = sorted(sent[-1].keys() - {"TCP"}, key=lambda kind: (-sent[-1][kind], kind))
        totals[way] = [sum(one[kind] for kind in kinds) for one in sent]
        lines += [[f"{way}: {kind}", *(f"{one[kind]:,.0f}" for one in sent)] for kind in kinds]
        lines.append([f"**{way}**", *(f"**{total:,.0f}**" for total in totals[way])])
        lines.append([f"{way}, predicted", *(f"{predicted_bytes(way, case, ranks):,.0f}" for case in cases)])
        lines.append([f"{way}, by TCP (gloo)", *(f"{one['TCP']:,.0f}" for one in sent)])
    lines.append(["zero3 / lanes", *(f"{b / a:,.1f}" for a, b in zip(*totals.values(), strict=True))])
    return _table([f"bytes a step and rank, R = {ranks}", *(f"K = {case.active:,}" for case in cases)], lines)


def slowest(told: list[dict[str, Any]], way: str) -> list[list[dict[str, float]]]:
    """Of one case, told by each rank: turn by turn and step by step the largest of each figure."""
    return [
        [{name: max(one[name] for one in step) for name in step[0]} for step in zip(*turn, strict=True)]
        for turn in zip(*(one["turns"][way] for one in told), strict=True)
    ]


def time_table(cases: list[Case], told: list[list[dict[str, Any]]]) -> str:
    """told: by each rank, for each case. Medians with quartiles, for the ratio those of neighbouring turns."""
    lines = []
    for number, case in enumerate(cases):
        turns = {way: slowest([one[number] for one in told], way) for way in WAYS}
        steps = {way: [step for turn in turns[way] for step in turn] for way in WAYS}
        check_same(steps["lanes"], steps["zero3"])
        ratios = [_median(zero3, "all") / _median(lanes, "all") for lanes, zero3 in zip(*turns.values(), strict=True)]
        lines.append(
            [
                f"{case.active:,}",
                *(_quartiles([1e3 * step["all"] for step in steps[way]], 1) for way in WAYS),
                _quartiles(ratios, 2),
                *(f"{1e3 * _median(steps[way], 'cpu'):.1f}" for way in WAYS),
                *(" + ".join(f"{1e3 * _median(steps[way], name):.1f}" for name in STAGES) for way in WAYS),
            ]
        )
    heads = "{}, ms a step", "{}, CPU ms", f"{{}}: {' + '.join(STAGES)}"
    step, cpu, stages = ([head.format(way) for way in WAYS] for head in heads)
    return _table(["K", *step, "zero3 / lanes", *cpu, *stages], lines)


def check_same(lanes_steps: list[dict[str, float]], zero3_steps: list[dict[str, float]]) -> None:
    """Both ways train the same rows on the same features: their losses differ by rounding alone, and the same rows come back."""
    for lanes, zero3 in zip(lanes_steps, zero3_steps, strict=True):
        assert math.isclose(lanes["loss"], zero3["loss"], rel_tol=1e-4), (lanes, zero3)
        assert lanes["back"] == zero3["back"] > 0, (lanes, zero3)


def rows_memory_table(by_ranks: dict[int, dict[str, int]]) -> str:
    """What rank 0 of each number of ranks told; it is as all others."""
    lines = [[str(ranks), _mib(told["tensors"]), _mib(told["made"])] for ranks, told in sorted(by_ranks.items())]
    return _table(["ranks", "rows and momentum of a rank, MiB", "growth of its resident set, MiB"], lines)


def peak_table(case: Case, by_way: dict[str, dict[str, int]], ranks: int) -> str:
    """What one rank has beyond the process without rows, and what the memory plan says."""
    head = ["rows and momentum", "resident when made", "between steps", "most in a step", "planned"]
    lines = [[way, *map(_mib, (*told.values(), planned_bytes(way, case, ranks)))] for way, told in by_way.items()]
    return _table([f"MiB of a rank, R = {ranks}, K = {case.active:,}", *head], lines)


def planned_bytes(way: str, case: Case, ranks: int) -> int:
    """What engine/planning plans for rows and softmax on the device."""
    active = ActiveSizes(
        active=case.active // ranks,
        dim=case.dim,
        lanes=1,
        gathered=case.active if way == "zero3" else 0,
        has_momentum=True,
        gradient_written=False,
        micro_batches=1,
        samples=case.batch,
        kernels="cpu",
    )
    return sum(one.bytes for one in active_components(active) if one.tier == DEVICE)


def _mib(count: int) -> str:
    return f"{count / 2**20:.1f}"


def _median(steps: list[dict[str, float]], name: str) -> float:
    return statistics.median(step[name] for step in steps)


def _quartiles(values: Sequence[float], digits: int) -> str:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.{digits}f} ({low:.{digits}f} - {high:.{digits}f})"


def _table(head: list[str], lines: Iterable[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Bytes, time and memory of both ways to share rows out over ranks.")
    parser.add_argument("--ranks", type=int, default=2, help="R")
    parser.add_argument("--rows", type=int, nargs="+", default=[4096, 16384, 65536, 262144], help="K")
    parser.add_argument("--samples", type=int, default=256, help="G, of all ranks together")
    parser.add_argument("--dim", type=int, default=128, help="D")
    parser.add_argument("--lanes", type=int, default=8, help="L")
    parser.add_argument("--steps", type=int, default=18, help=f"timed of each way for each K, in turns of {TURN}")
    parser.add_argument("--bytes-ranks", type=int, nargs="*", default=[4], help="other R to count bytes at")
    parser.add_argument("--memory-ranks", type=int, nargs="*", default=[1, 4], help="other R for the rows' memory")
    arguments = parser.parse_args(argv)
    ranks, steps = arguments.ranks, arguments.steps
    if min([ranks, *arguments.bytes_ranks]) < 2:
        parser.error("--ranks and --bytes-ranks must be at least 2: one rank sends nothing")
    if steps < 2 * TURN:
        parser.error(f"--steps must be at least {2 * TURN}")
    cases = [case_of(rows, arguments.samples, arguments.dim, arguments.lanes) for rows in arguments.rows]
    run = functools.partial(on_ranks, timeout_seconds=900.0)

    timed = run(ranks, count_and_time, cases, steps)
    counted = {count: run(count, count_and_time, cases, 0)[0] for count in arguments.bytes_ranks}
    peaks = {way: run(ranks, memory, way, cases[-1])[0] for way in WAYS}
    others = set(arguments.memory_ranks) - {ranks}
    of_rows = {ranks: peaks["lanes"], **{count: run(count, memory, "lanes", cases[-1], 0)[0] for count in others}}

    print(f"{machine()}, deepspeed {version('deepspeed')}")
    print(f"G = {arguments.samples}, D = {arguments.dim}, float32, one view; ranks of one thread each, gloo\n")
    for count, told in {ranks: timed[0], **counted}.items():
        print(bytes_table(cases, told, count) + "\n")
    print(f"R = {ranks}; medians and quartiles of {steps // TURN * TURN} steps, stages in ms\n")
    print(time_table(cases, timed) + "\n")
    print(f"lanes, K = {cases[-1].active:,}\n\n{rows_memory_table(of_rows)}\n")
    print(peak_table(cases[-1], peaks, ranks))


if __name__ == "__main__":
    main()
