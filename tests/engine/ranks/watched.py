"""Watches on one table in memory, and the clock that they share: it stands still until a test lets time pass.

    run = make_run(3)                               # conftest.py
    run.watches[1].stop()
    run.until(lambda: len(run.codes) == 2)          # a beat of the clock, and another, until it holds

A beat of the clock passes when every rank that still talks has written its line since the last one, every one that still judges has
judged, and none is between its verdict and its end. So a thread that loses its processor makes a test late, and changes nothing of what
the watches see.

Left out: waits of the main thread (`ended`, `failed`), which take real seconds.
"""

import os
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from engine.ranks.watch import Table as AnyTable
from engine.ranks.watch import Watch

BEAT_SECONDS, MISSED_SECONDS, TIMEOUT_SECONDS = 0.02, 0.15, 0.4
LIMIT_SECONDS = 60.0  # for what a busy machine may take
CLOSED = RuntimeError("Connection closed by peer [127.0.0.1]\nmore that nobody needs")


class Clock:
    """Stands for the module `time` in engine/ranks/watch.py."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds


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


class Watched(Watch):
    """A watch of which one sees how far its threads are."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.beating = threading.Lock()  # no time passes within a beat
        self.beats = self.judgements = 0
        self.hangs = False  # as it says something
        self.talking = self.judging = threading.Thread()

    def start(self) -> None:
        super().start()
        if self._threads:
            self.talking, self.judging = self._threads

    def _beat(self, table: AnyTable) -> None:
        with self.beating:
            super()._beat(table)
        self.beats += 1

    def _verdict(self) -> str | None:
        verdict = super()._verdict()
        self.judgements += 1
        return verdict

    @property
    def talks(self) -> bool:
        return self.talking.is_alive() and not self._stopping

    @property
    def judges(self) -> bool:
        return self.judging.is_alive() and not self._stopping and not self._leaving

    @property
    def is_about_to_leave(self) -> bool:
        return self._leaving and not self._left and not self.hangs


class Run:
    """R watches on one table, with what they said and the codes that they left with."""

    def __init__(self, clock: Clock, size: int = 3, node_ranks: list[int] | None = None, **options: Any) -> None:
        self.clock, self.table, self.said, self.codes = clock, Table(), [], {}
        self.calls, self.tensors = [17] * size, [9] * size
        self.watches = [self._watch(rank, size, (node_ranks or range(size))[rank], options) for rank in range(size)]

    def _watch(self, rank: int, size: int, node_rank: int, options: dict[str, Any]) -> Watched:
        def leave(code: int) -> None:
            assert rank not in self.codes, "left twice"
            self.codes[rank] = code

        seconds = {
            "beat_seconds": BEAT_SECONDS,
            "beats_missed_seconds": MISSED_SECONDS,
            "timeout_seconds": TIMEOUT_SECONDS,
        }
        return Watched(
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

    def beat(self) -> None:
        """A beat of the clock passes, when nobody is behind."""
        before = [(watch, watch.beats, watch.judgements) for watch in self.watches]
        for watch in self.watches:
            watch._wake.set()
        eventually(lambda: not any(self._is_behind(*each) for each in before), pause_seconds=0.0005)
        within = [watch for watch in self.watches if self._wait_for_its_beat(watch)]
        self.clock.seconds += self.watches[0].beat_seconds
        for watch in within:
            watch.beating.release()

    def pass_seconds(self, seconds: float) -> None:
        for _ in range(round(seconds / self.watches[0].beat_seconds)):
            self.beat()

    def until(self, holds: Callable[[], bool], seconds: float = 1.0) -> None:
        """Time passes until it holds, and at most as much as this."""
        end = self.clock.seconds + seconds
        while not holds():
            assert self.clock.seconds < end, "never came true"
            self.beat()

    def diagnose(self, *ranks: int, seconds: float = 1.0) -> None:
        """As the main threads of these ranks, whose collectives raised at the same time; until they have left, and their threads ended."""

        def main(rank: int) -> None:
            with pytest.raises(RuntimeError, match="closed by peer"):
                self.watches[rank].diagnose(CLOSED)

        threads = [in_thread(partial(main, rank)) for rank in ranks]
        for rank, thread in zip(ranks, threads, strict=True):
            eventually(lambda rank=rank, thread=thread: self.watches[rank]._lines[rank].raised or not thread.is_alive())
        self.until(lambda: all(rank in self.codes for rank in ranks), seconds)
        eventually(lambda: not any(thread.is_alive() for thread in threads))

    def message(self) -> str:
        """The only one."""
        ((_, text),) = self.said
        return text

    def _is_behind(self, watch: Watched, beats: int, judgements: int) -> bool:
        waits_for_talk = watch.talks and self.table.answers.is_set() and watch.beats == beats
        return waits_for_talk or (watch.judges and watch.judgements == judgements) or watch.is_about_to_leave

    def _wait_for_its_beat(self, watch: Watched) -> bool:
        """Have it begin no beat, and have ended the one that it was in, unless the table keeps it there; whether that is so."""
        while not watch.beating.acquire(timeout=0.01):
            if not self.table.answers.is_set():
                return False
        return True


def eventually(holds: Callable[[], bool], pause_seconds: float = 0.005) -> None:
    end = time.monotonic() + LIMIT_SECONDS
    while not holds():
        assert time.monotonic() < end, "never came true"
        time.sleep(pause_seconds)


def in_thread(task: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=task, daemon=True)
    thread.start()
    return thread


def name(rank: int) -> str:
    return f"rank {rank} (process {os.getpid()} on "
