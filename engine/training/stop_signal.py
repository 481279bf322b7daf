"""Signals that ask a run to end, and the output that nobody reads any more, which asks the same."""

import os
import signal
from collections.abc import Callable
from typing import Any, TextIO

import torch

from engine.ranks.ranks import Ranks


class StopSignal:
    """SIGINT, SIGTERM and SIGHUP ask the loop to end after the step it is in; a second SIGINT interrupts at once.

    A second SIGTERM does nothing: launchers send it to each process in turn and may send it twice. SIGHUP, which comes when a terminal
    closes, stays ignored where it was (nohup).
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: object) -> None:
        self.name = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(number, self._before[number])

    def ask(self, name: str) -> None:
        """As if that signal had come."""
        self.name = name

    @property
    def is_asked(self) -> bool:
        """Whether this rank got a signal; for waits that end by themselves, since the others may not know of it yet."""
        return self.name is not None

    def agreed_in_words(self, ranks: Ranks) -> str | None:
        """As `agreed`, outside of steps, where the others may be busy for longer than an exchange of tensors waits."""
        names = [name for name in ranks.share(self.name) if name]
        self.name = names[0] if names else self.name
        return names[0] if names else None

    def agreed(self, ranks: Ranks) -> str | None:
        """The name of a signal that some rank got, or None; every rank calls it after every step, and hears the same.

        What all do next has to follow from this answer, and not from `name`, which a signal may change at any moment.
        """
        if ranks.size == 1:
            return self.name
        number = signal.Signals[self.name].value if self.name else 0
        number = int(ranks.max(torch.tensor([number], device=ranks.device), "stop"))
        if not number:
            return None  # and a signal that came meanwhile is told at the next call
        self.name = signal.Signals(number).name
        return self.name


class WatchedOutput:
    """A text stream that asks the run to stop when nobody reads it any more, and swallows what is written from then on.

    Whoever ends a run from a distance, as DeepSpeed's launcher does on Ctrl-C, may cut its output before its signal arrives.
    """

    def __init__(self, stream: TextIO, stop: StopSignal) -> None:
        self._stream, self._stop = stream, stop

    def write(self, text: str) -> int:
        return self._try(lambda: self._stream.write(text), len(text))

    def flush(self) -> None:
        self._try(self._stream.flush, None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, do: Callable[[], Any], otherwise: Any) -> Any:
        try:
            return do()
        except OSError:  # nobody reads (EPIPE), the terminal has closed (EIO), the log's disk is full
            self._stop.ask("SIGPIPE")
            # What is buffered would be tried again when the process ends, and fail again.
            with open(os.devnull, "w", encoding="utf-8") as nothing:
                os.dup2(nothing.fileno(), self._stream.fileno())
            return otherwise
