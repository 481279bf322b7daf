"""Who is lost: a rank that was killed or frozen is noticed by the others, one of them says so, and all of them stop.

A collective cannot tell: it blocks for ever (NCCL), or says that some connection was closed (gloo). So every rank writes a line of its
own into a table of short texts about once a second (its beat), and reads the lines of the others:

    rank/2 -> {"who": "process 4711 on node-a", "beat": 812, "calls": 9744, "raised": null, "words": null, ...}

A dead rank's line stands still, a slow one's goes on. A line that did not change for `timeout_seconds` is that of a lost rank, and
`beats_missed_seconds` are enough once a collective has raised anywhere, or where a rank of the same machine sees that the process is gone.
Where lines go on and a rank has not come to an exchange of tensors in which others wait, for `timeout_seconds`, it is stuck. Times are
taken on the watcher's own clock, which does not count while the watcher itself stands still (Ctrl-Z, a paused machine). The lowest
rank that is there says what happened and puts the words into its line. A rank that reads words in another's line is silent,
notes that it has read them, and leaves too.

Rank 0 or its launcher keeps the table. When it raises or does not answer, its keeper is lost, and nobody can know who else is
there: rank 1 says it, and the first rank of every other machine. Calls of a frozen table never return, whatever their timeout,
so one thread talks to it and another judges, from memory alone; the main thread does neither. The keeper leaves last.

Left out: a call that keeps the interpreter to itself for longer than `timeout_seconds` looks like a lost rank. R ranks make
R^2 reads a beat, which one table answers up to some hundred ranks.
"""

import atexit
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any, NoReturn

from engine.ranks.beats import Line, Table, place
from engine.ranks.process_table import is_there

_GO_ON = "checkpoints that were written before are whole, and the same command goes on from the newest"


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


class Watch:
    """Beats for this rank and watches the others, from `start` until `ended` or `failed`. With one rank nothing is done at all.

    connect               opens a connection to the table; called once, on the thread that uses it
    node_rank             this rank among those of its machine
    timeout_seconds       without a beat, after which a rank is lost
    calls                 exchanges begun so far: (all, those of tensors). Called from threads, as `where`
    where                 what was done last, as "step 17"
    beats_missed_seconds  without a beat, after which a rank is lost when an exchange has raised, or its process is known to be gone
    """

    def __init__(
        self,
        connect: Callable[[], Table],
        rank: int,
        size: int,
        node_rank: int,
        *,
        timeout_seconds: float,
        calls: Callable[[], tuple[int, int]],
        where: Callable[[], str],
        beats_missed_seconds: float = 3.0,
        beat_seconds: float = 1.0,
        say: Callable[[str], None] = _say,
        leave: Callable[[int], None] = os._exit,
    ) -> None:
        self.rank, self.size, self.node_rank = rank, size, node_rank
        self.timeout_seconds, self.beats_missed_seconds = timeout_seconds, beats_missed_seconds
        self.beat_seconds = beat_seconds
        self._connect, self._calls, self._where, self._say, self._leave = connect, calls, where, say, leave
        self._others = [other for other in range(size) if other != rank]
        self._threads: list[threading.Thread] = []
        self._wake = threading.Event()
        self._news = threading.Condition()  # guards all that follows; `calls` and `where` are called under it
        self._lines = [Line() for _ in range(size)]
        self._lines[rank] = Line(f"process {os.getpid()} on {socket.gethostname()}", os.getpid(), place())
        self._published = Line()  # this rank's line as the table has it
        self._gone: str | None = None  # why the table does not answer
        self._broken: str | None = None  # the same, where the mistake is the watch's own
        self._now_seconds, self._clock_seconds = 0.0, time.monotonic()
        self._changed_seconds = [0.0] * size  # when a line last changed; at [rank], when the table last answered
        self._raised_seconds: float | None = None  # when it was first known that a collective raised,
        self._words_seconds: float | None = None  # and that there are words
        self._tensors: list[int] = []  # begun by each rank,
        self._moved_seconds = 0.0  # and when one of these changed, or all were equal
        self._stood_still_seconds = 0.0  # this process, since the last news of another
        self._stopping = self._leaving = self._left = False

    def start(self) -> None:
        """Begin to beat and to watch; every rank calls this at about the same time."""
        if self.size == 1:
            return
        self._clock_seconds = time.monotonic()
        self._threads = [threading.Thread(target=task, daemon=True) for task in (self._talk, self._judge)]
        for thread in self._threads:
            thread.start()
        atexit.register(self.stop)  # a thread that comes back from torch into an interpreter that is ending aborts it

    def ended(self) -> None:
        """This rank has done all its work, and is not lost when its beat ends. Rank 0 returns after the others, who need its table."""
        if not self._threads:
            return
        with self._news:
            if self._give_way():
                return
            self._change(ended=True)
            if self.rank == 0:
                self._wait(lambda: all(map(self._is_leaving, self._others)), self.timeout_seconds)
            self._wait(lambda: self._published.ended, 2 * self.beat_seconds)
        self.stop()

    def failed(self, text: str) -> bool:
        """This rank stops by an error of its own: the others will be silent. Returns whether this one should print it.

        It should not where a lower rank says the same within five beats, for they find the same mistake at different times; or where
        this one has already said that another is lost.
        """
        if not self._threads:
            return True

        def lower_rank_says_it() -> bool:
            return any(line.words == text for line in self._lines[: self.rank])

        with self._news:
            if self._give_way():
                return False
            self._change(words=text)
            # The others look for these words, though they may have written theirs before.
            self._wait(lambda: self._published.words is not None, 2 * self.beat_seconds)
            if self.rank == 0:
                self._wait(self._is_read, 3 * self.beat_seconds)
            else:
                self._wait(lower_rank_says_it, 5 * self.beat_seconds)
            says_it = not lower_rank_says_it()
        self.stop()
        return says_it

    def diagnose(self, error: BaseException) -> NoReturn:
        """A collective raised `error`: find out which rank is lost or behind, and leave. Takes timeout_seconds and some beats at most."""
        if self._threads:
            with self._news:
                self._change(raised=_first_line(error))
                begun = self._now()  # by the clock of the judging thread, which says more than this one
                while not self._left and self._now() - begun <= self.timeout_seconds + 10 * self.beat_seconds:
                    self._news.wait(self.beat_seconds)
            if not self._left:  # should the judging thread be stuck, in a pipe that nobody reads for instance
                self._leave(1)
        raise error  # with one rank, or a `leave` that comes back

    def stop(self) -> None:
        """No longer beat or watch, and say nothing."""
        with self._news:
            self._stopping = True
            self._news.notify_all()
        self._wake.set()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(2 * self.beat_seconds)  # it may hang in a table that is frozen
        self._threads = []
        atexit.unregister(self.stop)

    # The thread that talks to the table

    def _talk(self) -> None:
        try:
            table = self._connect()
            while not self._stopping:
                self._wake.clear()
                self._beat(table)
                self._wake.wait(self.beat_seconds)
        except Exception as error:
            is_ours = not isinstance(error, RuntimeError | OSError)  # which torch and the network raise
            if is_ours:
                traceback.print_exc()
            with self._news:
                self._broken = f"{type(error).__name__}: {_first_line(error)}" if is_ours else None
                self._gone = _first_line(error)
                self._news.notify_all()

    def _beat(self, table: Table) -> None:
        """Read all lines, then write this rank's, so that it tells at once what was heard."""
        for rank in self._others:
            # A line that is not there yet would be waited for; one that ended does not change.
            if self._lines[rank].ended or not (self._lines[rank].beat or table.check([f"rank/{rank}"])):
                continue
            line = Line(**json.loads(table.get(f"rank/{rank}")))
            with self._news:
                if line != self._lines[rank]:
                    self._lines[rank], self._changed_seconds[rank] = line, self._now()
                    self._stood_still_seconds = 0.0
        with self._news:
            has_read = any(self._lines[rank].words is not None for rank in self._others)
            line = self._lines[self.rank]
            calls, tensors = self._calls()
            line = replace(line, beat=line.beat + 1, calls=calls, tensors=tensors, has_read=has_read)
            self._lines[self.rank] = line
        table.set(f"rank/{self.rank}", json.dumps(asdict(line)))
        with self._news:
            self._published, self._changed_seconds[self.rank] = line, self._now()
            self._news.notify_all()

    # The thread that judges

    def _judge(self) -> None:
        """Everything that this process says or leaves for goes through here, once."""
        with self._news:
            verdict = None
            while verdict is None:
                self._news.wait(self.beat_seconds / 4)
                if self._stopping:
                    return
                verdict = self._verdict()
            self._leaving = True
        if verdict:
            with suppress(OSError, ValueError):  # nobody reads it any more
                self._say(verdict)
            with self._news:
                self._change(words=verdict)
                self._wait(self._is_read, 3 * self.beat_seconds)
        self._leave(1)
        with self._news:  # for a `leave` that comes back
            self._left = self._stopping = True
            self._news.notify_all()
        self._wake.set()

    def _verdict(self) -> str | None:
        """None: go on. Otherwise leave, saying this; an empty text where another rank says it."""
        now, own = self._now(), self._lines[self.rank]
        if own.ended or own.words is not None:  # the main thread is leaving
            return None

        if any(self._lines[rank].words is not None for rank in self._others):
            if self._words_seconds is None:
                self._words_seconds = now
            # The main thread may be about to find the same error, and to end with a code of its own.
            return "" if own.raised or now - self._words_seconds > self.beats_missed_seconds else None

        gone = next(filter(self._is_gone, self._others), None)
        if gone is not None and not own.raised:  # which NCCL would tell nobody
            self._change(raised=f"process {self._lines[gone].process} is gone")
        errors = [line.raised for line in self._lines if line.raised]
        if errors and self._raised_seconds is None:
            self._raised_seconds = now
        patience_seconds = self.beats_missed_seconds if errors else self.timeout_seconds

        if self._broken is not None:
            return f"error: {self._names([self.rank])} cannot watch the others after {self._where()}: {self._broken}; {_GO_ON}"
        if self._gone is not None or now - self._changed_seconds[self.rank] > patience_seconds:
            return self._without_table()

        there = [rank for rank, line in enumerate(self._lines) if not line.ended]
        lost = [rank for rank in there if self._silence_seconds(rank) > patience_seconds]
        there = [rank for rank in there if rank not in lost]
        # Processes that die together had their last beats up to one apart.
        if lost and max(map(self._silence_seconds, lost)) > patience_seconds + 1.5 * self.beat_seconds:
            # The others wait for the words of the one that speaks, or until that one is lost as well.
            return self._lost(lost) if self.rank == there[0] else None
        tensors = [line.tensors for line in self._lines]
        if tensors != self._tensors or min(tensors) == max(tensors):
            self._tensors, self._moved_seconds = tensors, now
        # Of one that was not heard since then nobody knows whether it is alive; if it is not, it will soon be lost.
        all_heard = all(self._changed_seconds[rank] > self._moved_seconds for rank in there if rank != self.rank)
        if now - self._moved_seconds > self.timeout_seconds and all_heard and not lost:
            return self._behind(there, f"no exchange for {self.timeout_seconds:g} s")
        if self._raised_seconds is not None and now - self._raised_seconds > self.timeout_seconds:
            return self._behind(there, errors[0])
        return None

    def _without_table(self) -> str | None:
        own, keeper = self._lines[self.rank], self._lines[0]
        if keeper.ended:  # and nothing is left that could be watched
            return f"error: {own.raised}" if own.raised else None
        if self._stood_still_seconds > self.timeout_seconds:
            still = f"stood still for {self._stood_still_seconds:.0f} s after {self._where()}"
            return f"error: {self._names([self.rank])} {still}, and the others went without it; {_GO_ON}"
        # With a launcher's table rank 0 may be here too; with its own it cannot be.
        speaks = self.rank == 1 or (self.node_rank == 0 and self.rank != 0)
        return self._lost([0], ", or its launcher,") if speaks else ""

    def _lost(self, lost: list[int], doubt: str = "") -> str:
        was, it, is_gone = ("was", "it", "it is gone") if len(lost) == 1 else ("were", "them", "they are gone")
        if self._gone is not None:
            why = f"{is_gone} ({self._gone})"
        elif any(line.raised for line in self._lines):
            why = is_gone
        else:
            why = f"nothing was heard of {it} for {self.timeout_seconds:g} s"
        return f"error: {self._names(lost)}{doubt} {was} lost after {self._where()}: {why}; {_GO_ON}"

    def _behind(self, there: list[int], error: str) -> str | None:
        """Nobody is lost: the ranks that have begun fewest exchanges, and wait for none in vain, keep the others waiting."""
        calls = [self._lines[rank].calls for rank in there]
        behind = [
            rank
            for rank, begun in zip(there, calls, strict=True)
            if begun == min(calls) < max(calls) and not self._lines[rank].raised
        ]
        if self.rank != min(set(there) - set(behind)):
            return None
        if not behind:
            return f"error: {error}"
        are, have = ("is", "has") if len(behind) == 1 else ("are", "have")
        return (
            f"error: {self._names(behind)} {are} alive but {have} not come to where the others wait "
            f"({min(calls)} exchanges begun of {max(calls)}): {error}"
        )

    # Under the lock

    def _names(self, ranks: list[int]) -> str:
        return ", ".join(f"rank {rank} ({self._lines[rank].who or 'process unknown'})" for rank in ranks)

    def _now(self) -> float:
        """Seconds since the start in which this process ran: a look that comes late counts as one beat."""
        clock_seconds = time.monotonic()
        passed_seconds, self._clock_seconds = clock_seconds - self._clock_seconds, clock_seconds
        self._stood_still_seconds = max(self._stood_still_seconds, passed_seconds)
        self._now_seconds += min(passed_seconds, self.beat_seconds)
        return self._now_seconds

    def _is_gone(self, rank: int) -> bool:
        """Whether the process of a rank is known not to be there, without having said a last word."""
        line, own = self._lines[rank], self._lines[self.rank]
        is_silent = self._silence_seconds(rank) > 1.5 * self.beat_seconds
        return is_silent and not line.ended and line.place == own.place and not is_there(line.process)

    def _silence_seconds(self, rank: int) -> float:
        """For how long a line had not changed when the table last answered."""
        return self._changed_seconds[self.rank] - self._changed_seconds[rank]

    def _is_leaving(self, rank: int) -> bool:
        """Whether a rank needs the table no more, as far as one can see."""
        line = self._lines[rank]
        return line.ended or line.words is not None or self._silence_seconds(rank) > self.beats_missed_seconds

    def _is_read(self) -> bool:
        return all(self._lines[rank].has_read or self._is_leaving(rank) for rank in self._others)

    def _change(self, **news: Any) -> None:
        self._lines[self.rank] = replace(self._lines[self.rank], **news)
        self._wake.set()

    def _wait(self, until: Callable[[], bool], at_most_seconds: float) -> None:
        self._news.wait_for(lambda: self._gone is not None or until(), at_most_seconds)

    def _give_way(self) -> bool:
        """Whether the judging thread came first; if so it has left when this returns."""
        return self._leaving and (self._news.wait_for(lambda: self._left, 5 * self.beat_seconds) or True)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
