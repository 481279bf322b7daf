"""Real processes, of which one is killed or stopped: the others say it once and stop."""

import os
import signal
import sys
import time
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import pytest

from engine.ranks.watch import Watch
from tests.on_ranks import server_context

PATIENCE_SECONDS = 120.0  # of collectives and of the table's calls


class Outcome(NamedTuple):
    """codes and seconds until they left: of those that were not lost. lost: the number of the process that was."""

    lost: int
    codes: list[int | None]
    seconds: float
    said: list[str]


def _rank(
    rank: int,
    port: int,
    pipe: Connection,
    errors: Path,
    collectives: bool,
    timeout_seconds: float,
    missed_seconds: float,
) -> None:
    """Rank 0 keeps the table and tells its port; all stand still, or exchange tensors, until they are killed or leave."""
    import torch
    import torch.distributed as dist

    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND), sys.stderr.fileno())
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    patience = timedelta(seconds=PATIENCE_SECONDS)
    store = dist.TCPStore("127.0.0.1", port, is_master=rank == 0, wait_for_workers=False, timeout=patience)
    pipe.send(store.port)
    if collectives:
        dist.init_process_group("gloo", store=store, rank=rank, world_size=3, timeout=patience)
    watch = Watch(
        lambda: dist.TCPStore("127.0.0.1", store.port, is_master=False, wait_for_workers=False, timeout=patience),
        rank,
        3,
        rank,
        timeout_seconds=timeout_seconds,
        beats_missed_seconds=missed_seconds,
        beat_seconds=0.2,
        calls=lambda: (0, 0),
        where=lambda: "step 17",
    )
    pipe.send("made")
    pipe.recv()  # all are, however late they were
    watch.start()
    while not all(line.beat for line in watch._lines):
        time.sleep(0.01)
    pipe.send("watched")
    try:
        while True:
            time.sleep(0.01)
            if collectives:
                dist.all_reduce(torch.ones(3))
    except RuntimeError as error:
        watch.diagnose(error)


def lose_one(
    errors: Path, victim: int, how: signal.Signals, collectives: bool, timeout_seconds: float, missed_seconds: float
) -> Outcome:
    """Three processes that watch each other, of which one gets a signal; the ways in which the others end."""
    context = server_context()
    port, processes, pipes = 0, [], []
    try:
        for rank in range(3):
            ours, theirs = context.Pipe()
            pipes.append(ours)
            arguments = (rank, port, theirs, errors, collectives, timeout_seconds, missed_seconds)
            processes.append(context.Process(target=_rank, args=arguments, daemon=True))
            processes[-1].start()
            if rank == 0:
                port = ours.recv()
        for pipe in pipes:
            while pipe.recv() != "made":
                pass
        for pipe in pipes:
            pipe.send("start")
        for pipe in pipes:
            assert pipe.recv() == "watched"
        os.kill(processes[victim].pid, how)
        begin = time.monotonic()
        others = [process for rank, process in enumerate(processes) if rank != victim]
        for process in others:
            process.join(PATIENCE_SECONDS)
        seconds = time.monotonic() - begin
        said = [line for line in errors.read_text().splitlines() if line.startswith("error: ")]
        return Outcome(processes[victim].pid, [process.exitcode for process in others], seconds, said)
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join()


@pytest.mark.parametrize(
    ("victim", "how", "collectives", "timeout_seconds"),
    [
        (0, signal.SIGKILL, False, 60.0),
        (0, signal.SIGSTOP, False, 1.5),
        (2, signal.SIGKILL, False, 60.0),  # no exchange raises, as with NCCL
        (2, signal.SIGKILL, True, 60.0),
        (0, signal.SIGKILL, True, 60.0),
        (2, signal.SIGSTOP, True, 1.5),
    ],
)
def test_of_three_processes_one_is_lost_and_two_stop_with_one_message(
    tmp_path, victim, how, collectives, timeout_seconds
):
    def is_as_claimed(outcome: Outcome) -> bool:
        name = f"error: rank {victim} (process {outcome.lost} on "
        is_one = (
            len(outcome.said) == 1 and outcome.said[0].startswith(name) and " was lost after step 17" in outcome.said[0]
        )
        # Before the 60 s without a beat of those that are killed, and before a collective's time is over.
        return outcome.codes == [1, 1] and is_one and outcome.seconds < 50

    case = (victim, how, collectives)
    outcome = lose_one(tmp_path / "errors.txt", *case, timeout_seconds, 1.0)
    if not is_as_claimed(outcome):  # a machine that keeps one from beating for a second: with more time it has to hold
        outcome = lose_one(tmp_path / "more_time.txt", *case, max(timeout_seconds, 20.0), 20.0)
    assert is_as_claimed(outcome), outcome
