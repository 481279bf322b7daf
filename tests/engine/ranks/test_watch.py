"""A lost rank is noticed within a bounded time, all others stop, and exactly one message names it."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from engine.ranks.watch import Watch, _is_there, _place
from tests.on_ranks import server_context

BEAT_SECONDS, MISSED_SECONDS, TIMEOUT_SECONDS = 0.02, 0.15, 0.4
NOBODY_IS_LOST = {"beats_missed_seconds": 2.0}  # though a loaded machine may keep a rank from beating for a while
CLOSED = RuntimeError("Connection closed by peer [127.0.0.1]\nmore that nobody needs")


class Table:
    """What TCPStore does, in memory; `frozen` makes its calls block, `gone` makes them raise."""

    def __init__(self) -> None:
        self.texts: dict[str, bytes] = {}
        self.gone = False
        self.answers = threading.Event()
        self.answers.set()
        self.threads: set[threading.Thread] = set()

    def _answer(self) -> None:
        self.threads.add(threading.current_thread())
        self.answers.wait()
        if self.gone:
            raise ConnectionError("Broken pipe\nand a stack")

    def set(self, key: str, text: str) -> None:
        self._answer()
        self.texts[key] = text.encode()

    def get(self, key: str) -> bytes:
        self._answer()
        return self.texts[key]

    def check(self, keys: list[str]) -> bool:
        self._answer()
        return all(key in self.texts for key in keys)


class Run:
    """R watches on one table, with what they said and the codes that they left with."""

    def __init__(self, size: int = 3, node_ranks: list[int] | None = None, **options: Any) -> None:
        self.table, self.said, self.codes = Table(), [], {}
        self.calls, self.tensors = [17] * size, [9] * size
        self.watches = [self._watch(rank, size, (node_ranks or range(size))[rank], options) for rank in range(size)]

    def _watch(self, rank: int, size: int, node_rank: int, options: dict[str, Any]) -> Watch:
        def leave(code: int) -> None:
            assert rank not in self.codes, "left twice"
            self.codes[rank] = code

        seconds = {
            "beat_seconds": BEAT_SECONDS,
            "beats_missed_seconds": MISSED_SECONDS,
            "timeout_seconds": TIMEOUT_SECONDS,
        }
        return Watch(
            lambda: self.table,
            rank,
            size,
            node_rank,
            calls=lambda: (self.calls[rank], self.tensors[rank]),
            where=lambda: "step 17",
            say=lambda text: self.said.append((rank, text)),
            leave=leave,
            **(seconds | options),
        )

    def start(self) -> None:
        for watch in self.watches:
            watch.start()
        eventually(lambda: all(line.beat for watch in self.watches for line in watch._lines))

    def diagnose(self, rank: int) -> threading.Thread:
        """As rank's main thread, whose collective raised."""

        def main() -> None:
            with pytest.raises(RuntimeError, match="closed by peer"):
                self.watches[rank].diagnose(CLOSED)

        return in_thread(main)

    def message(self) -> str:
        """The only one."""
        ((_, text),) = self.said
        return text


@pytest.fixture
def make_run() -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def make(*arguments: Any, **options: Any) -> Run:
        runs.append(Run(*arguments, **options))
        runs[-1].start()
        return runs[-1]

    yield make
    for run in runs:
        run.table.answers.set()
        for watch in run.watches:
            watch.stop()


def eventually(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "never came true"
        time.sleep(0.005)


def in_thread(task: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=task, daemon=True)
    thread.start()
    return thread


def name(rank: int) -> str:
    return f"rank {rank} (process {os.getpid()} on "


def test_ranks_that_beat_are_left_alone(make_run):
    run = make_run()
    time.sleep(2 * TIMEOUT_SECONDS)
    assert not run.said and not run.codes


def test_a_silent_rank_is_named_once_by_the_lowest_and_all_others_leave(make_run):
    run = make_run()
    run.watches[1].stop()
    eventually(lambda: len(run.codes) == 2)
    assert run.codes == {0: 1, 2: 1}
    assert [rank for rank, _ in run.said] == [0]
    assert run.message().startswith(f"error: {name(1)}")
    assert run.message().endswith(
        ") was lost after step 17: nothing was heard of it for 0.4 s; "
        "checkpoints that were written before are whole, and the same command goes on from the newest"
    )


def test_a_rank_that_never_beats_is_lost_too():
    run = Run()
    try:
        for watch in run.watches[:2]:
            watch.start()
        eventually(lambda: len(run.codes) == 2)
        assert run.message().startswith("error: rank 2 (process unknown) was lost")
    finally:
        for watch in run.watches:
            watch.stop()


def test_a_rank_that_never_beats_is_not_called_alive_though_the_table_answers_late():
    """The talking thread of a loaded machine is behind the judging one."""
    run = Run()
    watch = run.watches[0]
    watch._lines[0], watch._lines[1] = (replace(watch._lines[rank], tensors=9, calls=17, beat=3) for rank in (0, 1))
    verdicts = []
    for now_seconds in (0.02, 0.04, 0.46, 0.48):
        watch._now_seconds, watch._clock_seconds = now_seconds, time.monotonic()
        watch._changed_seconds = [now_seconds - 0.1, now_seconds - 0.1, 0.0]
        verdicts.append(watch._verdict())
    assert verdicts == [None] * 4
    watch._changed_seconds = [watch._now_seconds, watch._now_seconds, 0.0]
    assert "rank 2 (process unknown) was lost" in (watch._verdict() or "")


def test_the_next_rank_speaks_where_the_lowest_is_lost_as_well(make_run):
    run = make_run(4)
    for rank in (0, 2):
        run.watches[rank].stop()
    eventually(lambda: len(run.codes) == 2)
    assert [rank for rank, _ in run.said] == [1]
    assert name(0) in run.message() and name(2) in run.message() and " were lost after step 17" in run.message()


def test_ranks_that_ended_are_never_lost(make_run):
    run = make_run()
    run.watches[1].ended()
    time.sleep(1.5 * TIMEOUT_SECONDS)
    assert not run.said and not run.codes
    run.watches[2].ended()
    run.watches[0].ended()
    assert not run.said and not run.codes


def test_rank_0_ends_last(make_run):
    run = make_run(timeout_seconds=60.0)
    run.watches[1].ended()
    first = in_thread(run.watches[0].ended)
    time.sleep(TIMEOUT_SECONDS)
    assert first.is_alive()
    run.watches[2].ended()
    first.join(10)
    assert not first.is_alive()
    assert not run.said and not run.codes


def test_a_table_that_goes_after_its_keeper_ended_alarms_nobody(make_run):
    run = make_run(2)
    in_thread(run.watches[0].ended)
    eventually(lambda: run.watches[1]._lines[0].ended)
    run.table.gone = True
    time.sleep(1.5 * TIMEOUT_SECONDS)
    assert not run.said and not run.codes
    run.watches[1].ended()


def test_after_a_collective_raised_a_few_missed_beats_are_enough_for_every_rank(make_run):
    run = make_run(timeout_seconds=60.0, beats_missed_seconds=0.5)
    run.watches[1].stop()
    run.diagnose(2).join(20)
    eventually(lambda: len(run.codes) == 2)
    assert [rank for rank, _ in run.said] == [0]
    assert run.message().startswith(f"error: {name(1)}") and " was lost after step 17: it is gone; " in run.message()


def test_thread_and_main_thread_at_once_say_one_message(make_run):
    run = make_run(timeout_seconds=2.0, beats_missed_seconds=0.5)
    run.watches[2].stop()
    time.sleep(2.0 - 0.5)
    threads = [run.diagnose(0), run.diagnose(1)]
    for thread in threads:
        thread.join(10)
    assert len(run.said) == 1 and run.codes == {0: 1, 1: 1}


def test_a_rank_that_is_alive_but_behind_is_named_by_the_lowest_that_is_not(make_run):
    run = make_run(4, **NOBODY_IS_LOST)
    run.calls[:] = [41, 42, 42, 41]
    threads = [run.diagnose(rank) for rank in (1, 2)]
    for thread in threads:
        thread.join(10)
    eventually(lambda: len(run.codes) == 4)
    assert [rank for rank, _ in run.said] == [1]
    assert name(0) in run.message() and name(3) in run.message()
    assert "are alive but have not come to where the others wait (41 exchanges begun of 42)" in run.message()
    assert run.message().endswith(": Connection closed by peer [127.0.0.1]")


def test_a_rank_whose_wait_was_in_vain_is_not_called_behind(make_run):
    run = make_run(3, **NOBODY_IS_LOST)
    run.calls[:] = [41, 41, 42]
    run.diagnose(0).join(10)
    eventually(lambda: len(run.codes) == 3)
    assert name(1) in run.message() and name(0) not in run.message()
    assert "is alive but has not come to where the others wait (41 exchanges begun of 42)" in run.message()


def test_a_rank_that_keeps_the_others_waiting_within_a_step_is_named_though_nothing_raises(make_run):
    run = make_run(3, **NOBODY_IS_LOST)
    run.calls[:], run.tensors[:] = [42, 42, 41], [30, 30, 29]
    eventually(lambda: len(run.codes) == 3)
    assert [rank for rank, _ in run.said] == [0] and name(2) in run.message()
    assert run.message().endswith("(41 exchanges begun of 42): no exchange for 0.4 s")


def test_a_rank_that_the_others_wait_for_between_steps_has_all_the_time_it_needs(make_run):
    run = make_run(3, **NOBODY_IS_LOST)
    run.calls[:] = [41, 42, 42]  # words: rank 0 decodes, or writes
    time.sleep(3 * TIMEOUT_SECONDS)
    assert not run.said and not run.codes


def test_a_step_that_goes_on_slowly_is_nobodys_fault(make_run):
    run = make_run(2, **NOBODY_IS_LOST)
    for count in range(10, 20):
        run.calls[:], run.tensors[:] = [count, count - 1], [count, count - 1]
        time.sleep(TIMEOUT_SECONDS / 4)
    assert not run.said and not run.codes


def test_a_process_that_another_of_its_machine_misses_is_lost_after_some_beats(make_run, monkeypatch):
    run = make_run(3, timeout_seconds=60.0)
    monkeypatch.setattr("engine.ranks.watch._is_there", lambda process: False)
    time.sleep(2 * MISSED_SECONDS)
    assert not run.codes  # a process that beats is there, whatever the system says
    run.watches[2].stop()
    eventually(lambda: len(run.codes) == 2)
    assert [rank for rank, _ in run.said] == [0]
    assert name(2) in run.message() and " was lost after step 17: it is gone; " in run.message()


def test_a_process_that_is_not_looked_for_in_its_own_place_is_not_missed(make_run, monkeypatch):
    places = iter(["here", "there"])
    monkeypatch.setattr("engine.ranks.watch._place", lambda: next(places))
    run = make_run(2, timeout_seconds=60.0)
    monkeypatch.setattr("engine.ranks.watch._is_there", lambda process: False)
    run.watches[1].stop()
    time.sleep(4 * MISSED_SECONDS)
    assert not run.codes


def test_a_process_is_there_until_it_has_ended_and_while_nobody_can_look(monkeypatch):
    child = subprocess.Popen(["sleep", "60"])
    assert _is_there(child.pid) and _is_there(os.getpid())
    child.kill()
    eventually(lambda: not _is_there(child.pid))  # a zombie
    child.wait()
    assert not _is_there(child.pid)

    def too_many(path, *arguments, **options):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Path, "read_text", too_many)
    assert _is_there(child.pid)
    assert _place().startswith("nowhere else")


def test_a_verdict_that_nobody_reads_is_carried_out_all_the_same():
    def closed(text):
        raise BrokenPipeError

    run = Run(2)
    run.watches[1]._say = closed
    try:
        run.start()
        run.watches[0].stop()
        eventually(lambda: run.codes == {1: 1})
    finally:
        run.watches[1].stop()


def test_where_nobody_is_lost_or_behind_rank_0_says_what_was_raised(make_run):
    run = make_run(**NOBODY_IS_LOST)
    threads = [run.diagnose(rank) for rank in (1, 2)]
    for thread in threads:
        thread.join(10)
    eventually(lambda: len(run.codes) == 3)
    assert run.said == [(0, "error: Connection closed by peer [127.0.0.1]")]


def test_the_same_error_on_all_ranks_is_said_by_the_first(make_run):
    run = make_run(4, beat_seconds=0.2, **NOBODY_IS_LOST)
    says: dict[int, bool] = {}
    threads = [
        in_thread(lambda rank=rank: says.update({rank: run.watches[rank].failed("no space left")}))
        for rank in (3, 1, 0, 2)
    ]
    for thread in threads:
        thread.join(10)
    assert says == {0: True, 1: False, 2: False, 3: False}
    assert not run.said and not run.codes


def test_the_words_of_one_rank_are_its_own_and_the_others_leave_silently(make_run):
    run = make_run()
    assert run.watches[2].failed("cannot read /data/3.png")
    eventually(lambda: len(run.codes) == 2)
    assert not run.said and run.codes == {0: 1, 1: 1}


def test_words_end_a_diagnosis_at_once_and_silently(make_run):
    run = make_run(timeout_seconds=60.0, beats_missed_seconds=30.0)
    in_thread(lambda: run.watches[0].failed("no space left"))
    run.diagnose(1).join(10)
    assert not run.said and run.codes == {1: 1}


def test_the_keeper_that_fails_waits_until_the_others_have_heard_it(make_run):
    run = make_run(beats_missed_seconds=30.0, timeout_seconds=2.0, beat_seconds=0.2)
    assert run.watches[0].failed("no space left")
    assert all(watch._lines[0].words == "no space left" for watch in run.watches)
    run.table.gone = True
    time.sleep(1.5 * TIMEOUT_SECONDS)
    assert not run.said


def test_one_that_stops_by_itself_while_its_thread_has_spoken_says_nothing_more(make_run):
    run = make_run()
    run.watches[1].stop()
    eventually(lambda: bool(run.said))
    assert run.watches[0].failed("Connection closed by peer") is False
    assert len(run.said) == 1


@pytest.mark.parametrize("how", ["gone", "frozen"])
def test_without_the_table_rank_1_and_the_first_process_of_other_machines_name_rank_0(make_run, how):
    run = make_run(6, node_ranks=[0, 1, 2, 0, 1, 2])
    run.watches[0].stop()
    if how == "gone":
        run.table.gone = True
    else:
        run.table.answers.clear()
    eventually(lambda: len(run.codes) == 5)
    assert sorted(rank for rank, _ in run.said) == [1, 3]
    for _, text in run.said:
        assert text.startswith(f"error: {name(0)}") and ", or its launcher, was lost after step 17: " in text


def test_rank_0_whose_launcher_kept_the_table_leaves_the_word_to_rank_1(make_run):
    run = make_run()
    run.table.gone = True
    eventually(lambda: len(run.codes) == 3)
    assert [rank for rank, _ in run.said] == [1]


@pytest.mark.parametrize("how", ["gone", "frozen"])
def test_a_diagnosis_ends_though_the_table_does_not_answer(make_run, how):
    run = make_run(2, timeout_seconds=60.0)
    run.watches[0].stop()
    if how == "gone":
        run.table.gone = True
    else:
        run.table.answers.clear()
    run.diagnose(1).join(10)
    assert run.codes == {1: 1} and "it is gone" in run.message()


@pytest.mark.parametrize("way_out", ["ended", "failed"])
def test_no_way_out_hangs_in_a_frozen_table(make_run, way_out):
    run = make_run(timeout_seconds=2.0)  # long after the last has left: before that, none is to find the table lost
    run.table.answers.clear()
    time.sleep(2 * BEAT_SECONDS)
    begin = time.monotonic()
    for watch in reversed(run.watches):
        watch.ended() if way_out == "ended" else watch.failed("no space left")
    assert time.monotonic() - begin < 5
    assert not run.codes


def test_a_message_that_cannot_be_said_does_not_keep_a_diagnosis():
    run, stuck = Run(2), threading.Event()
    run.watches[1]._say = lambda text: stuck.wait()
    try:
        run.start()
        run.watches[0].stop()
        with pytest.raises(RuntimeError):
            run.watches[1].diagnose(CLOSED)
        assert run.codes == {1: 1}
    finally:
        run.codes.clear()
        stuck.set()
        run.watches[1].stop()


def test_time_in_which_the_watcher_itself_stood_still_is_nobodys_loss(make_run, monkeypatch):
    run = make_run()
    jump = [0.0]
    really = time.monotonic
    monkeypatch.setattr("engine.ranks.watch.time.monotonic", lambda: really() + jump[0])
    jump[0] = 3600.0
    time.sleep(3 * MISSED_SECONDS)
    assert not run.said and not run.codes


def test_a_rank_that_stood_still_itself_blames_no_other(make_run, monkeypatch):
    run = make_run(2)
    run.watches[0].stop()
    time.sleep(2 * BEAT_SECONDS)
    run.table.gone = True
    really = time.monotonic
    with run.watches[1]._news:  # nothing of it runs meanwhile
        monkeypatch.setattr("engine.ranks.watch.time.monotonic", lambda: really() + 90.0)
        run.watches[1]._now()
    eventually(lambda: len(run.codes) == 1)
    assert run.message().startswith(f"error: {name(1)}")
    assert ") stood still for 90 s after step 17, and the others went without it; " in run.message()


def test_only_one_thread_of_a_process_uses_the_table():
    run = Run(2)
    run.start()
    last = in_thread(run.watches[0].ended)
    run.watches[1].failed("no space left")
    last.join(10)
    assert len(run.table.threads) == 2 and threading.current_thread() not in run.table.threads


def test_alone_there_is_no_thread_and_every_call_is_trivial():
    run, before = Run(1), threading.active_count()
    (watch,) = run.watches
    watch.start()
    assert threading.active_count() == before
    assert watch.failed("no space left")
    with pytest.raises(RuntimeError, match="closed by peer"):
        watch.diagnose(CLOSED)
    watch.ended()
    assert not run.table.texts and not run.codes


# Real processes


def _rank(rank: int, port: int, pipe: Connection, errors: Path, collectives: bool, timeout_seconds: float) -> None:
    """Rank 0 keeps the table and tells its port; all stand still, or exchange tensors, until they are killed or leave."""
    import torch
    import torch.distributed as dist

    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND), sys.stderr.fileno())
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    patience = timedelta(seconds=30)
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
        beats_missed_seconds=1.0,
        beat_seconds=0.2,
        calls=lambda: (0, 0),
        where=lambda: "step 17",
    )
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
    context = server_context()
    errors, port, processes, pipes = tmp_path / "errors.txt", 0, [], []
    try:
        for rank in range(3):
            ours, theirs = context.Pipe()
            pipes.append(ours)
            arguments = (rank, port, theirs, errors, collectives, timeout_seconds)
            processes.append(context.Process(target=_rank, args=arguments, daemon=True))
            processes[-1].start()
            if rank == 0:
                port = ours.recv()
        for pipe in pipes:
            while pipe.recv() != "watched":
                pass
        os.kill(processes[victim].pid, how)
        begin = time.monotonic()
        others = [process for rank, process in enumerate(processes) if rank != victim]
        for process in others:
            process.join(20)
        assert [process.exitcode for process in others] == [1, 1]
        assert time.monotonic() - begin < 10
        said = [line for line in errors.read_text().splitlines() if line.startswith("error: ")]
        assert len(said) == 1
        assert said[0].startswith(f"error: rank {victim} (process {processes[victim].pid} on ")
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join()
