"""What a run says while it trains: a live display where there is a terminal, plain lines where there is none.

Both show the same facts of the same metrics line: step, loss beside the chance level (a softmax over K rows that
knows nothing has the loss ln K, so "is it learning?" is answered by one glance; while rows are still added, it is that of the rows that
are there), images per second, the share of time spent
waiting for images, memory by tier, time left. The time left is

    (steps to do) x (seconds of the intervals seen so far) / (steps seen so far)

of this process alone, so a resumed run is not misled by the machine it ran on before. Left out: moving averages and
a display of every step; a figure is as fresh as the last metrics line, which costs nothing between the lines.
"""

import math
import os
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self, TextIO, cast

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from datasets.shown import shown_lines
from engine.results.streams import Escaping

TIERS = ("device", "host", "disk")


def duration_text(seconds: float) -> str:
    """`42 s`, `2 min 10 s`, `3 h 05 min`, `2 d 03 h`: the two largest units of a duration in seconds."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def bytes_text(count_bytes: float) -> str:
    """`12 MiB`, `0.4 MiB`, `9,216 MiB`, `40.0 GiB`: MiB below 10 GiB, GiB from there on; a count of 0 is `0 MiB`."""
    mebibytes = count_bytes / 2**20
    if mebibytes >= 10 * 1024:
        return f"{mebibytes / 1024:,.1f} GiB"
    if 0 < mebibytes < 1:
        return f"{max(mebibytes, 0.1):.1f} MiB"
    return f"{mebibytes:,.0f} MiB"


def _number(value: Any) -> float | None:
    """The finite number in a metrics field, or None where it is absent, null or not finite."""
    if value is None or not math.isfinite(value):
        return None
    return float(value)


class Progress:
    """Plain lines on `stream`, one for each update: for logs, pipes and terminals that cannot move the cursor.

    total_steps    the run ends there (in steps done since the run's very first step)
    first_step     steps already done when this process began
    chance_loss    ln K, in nats; for lines that do not say what it was in their steps
    planned_bytes  bytes planned on this rank by tier ("device", "host", "disk"; any may be missing)
    """

    def __init__(
        self,
        *,
        total_steps: int,
        first_step: int,
        chance_loss: float,
        planned_bytes: Mapping[str, int],
        stream: TextIO | None = None,
    ) -> None:
        self.total_steps = total_steps
        self.step = first_step
        self.chance_loss = chance_loss
        self.planned_bytes = planned_bytes
        # What is shown never ends a run: a character that the stream's encoding lacks is written out.
        self.stream = cast(TextIO, Escaping(sys.stdout if stream is None else stream))
        self._timed_steps = 0
        self._timed_seconds = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def evaluated(self, line: Mapping[str, Any]) -> None:
        """The words about it are a note."""

    def note(self, text: str) -> None:
        """Says something that happened once: an evaluation, a checkpoint, a skipped image. May have several lines."""
        print(shown_lines(text), file=self.stream, flush=True)

    def update(self, line: Mapping[str, Any]) -> None:
        """Shows one line of metrics.jsonl; only `step` must be there."""
        self._take(line)
        facts = [f"step {self.step:,}/{self.total_steps:,}", *self._facts(line), self._memory(line), self._left()]
        print("  ".join(facts), file=self.stream, flush=True)

    def _take(self, line: Mapping[str, Any]) -> None:
        interval_seconds = _number(line.get("interval_seconds"))
        if interval_seconds is not None:
            self._timed_steps += line["step"] - self.step
            self._timed_seconds += interval_seconds
        self.step = line["step"]

    def _left(self) -> str:
        if self._timed_steps <= 0:
            return "left unknown"
        steps_to_do = max(0, self.total_steps - self.step)
        return f"left {duration_text(steps_to_do * self._timed_seconds / self._timed_steps)}"

    def _facts(self, line: Mapping[str, Any]) -> list[str]:
        loss = _number(line.get("loss"))
        chance_loss = _number(line.get("chance_loss"))
        chance = f"chance {self.chance_loss if chance_loss is None else chance_loss:.2f}"
        facts = [f"loss {'none' if loss is None else f'{loss:.2f}'} ({chance})"]
        rate = _number(line.get("images_per_second"))
        if rate is not None:
            facts.append(f"{rate:,.0f} images/s")
        waited_seconds = _number((line.get("seconds") or {}).get("data"))
        interval_seconds = _number(line.get("interval_seconds"))
        if waited_seconds is not None and interval_seconds:
            facts.append(f"data wait {100 * waited_seconds / interval_seconds:.0f} %")
        if line.get("skipped_steps"):
            facts.append(f"skipped steps {line['skipped_steps']:,}")
        return facts

    def _memory(self, line: Mapping[str, Any]) -> str:
        tiers = [self._tier(tier, (line.get("bytes") or {}).get(tier)) for tier in TIERS]
        return " ".join(["memory", *(text for text in tiers if text)]) if any(tiers) else "memory unknown"

    def _tier(self, tier: str, measured_bytes: int | None) -> str:
        return "" if measured_bytes is None else f"{tier} {bytes_text(measured_bytes)}"


class LiveProgress(Progress):
    """The same facts as three lines that stay at the bottom of a terminal; notes scroll by above them.

    Leaving the context, on Ctrl-C too, puts the cursor back and leaves the last state on the screen.
    """

    def __enter__(self) -> Self:
        # The stream was chosen by `progress`; rich is told so, or it would look at the environment and decide again.
        self._console = Console(file=self.stream, force_terminal=True)
        self._line: Mapping[str, Any] = {}
        self._live = Live(self._render(), console=self._console, auto_refresh=False)
        self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def note(self, text: str) -> None:
        self._console.print(Text(shown_lines(text)))

    def update(self, line: Mapping[str, Any]) -> None:
        self._take(line)
        self._line = line
        self._live.update(self._render(), refresh=True)

    def _tier(self, tier: str, measured_bytes: int | None) -> str:
        planned_bytes = self.planned_bytes.get(tier)
        if measured_bytes is None:
            return "" if planned_bytes is None else f"{tier} {bytes_text(planned_bytes)} planned"
        return f"{tier} {bytes_text(measured_bytes)}" + (
            "" if planned_bytes is None else f" of {bytes_text(planned_bytes)}"
        )

    def _render(self) -> RenderableType:
        share = self.step / self.total_steps if self.total_steps else 1.0
        head = Table.grid(padding=(0, 2), expand=True)
        head.add_column(no_wrap=True)
        head.add_column(ratio=1)
        head.add_column(no_wrap=True, justify="right")
        head.add_row(
            Text(f"step {self.step:,}/{self.total_steps:,}", style="bold"),
            ProgressBar(total=max(1, self.total_steps), completed=self.step),
            Text(f"{100 * share:.0f} %  {self._left()}"),
        )
        return Group(head, Text("  ".join(self._facts(self._line))), Text(self._memory(self._line), style="dim"))


def progress(
    *,
    total_steps: int,
    first_step: int,
    chance_loss: float,
    planned_bytes: Mapping[str, int],
    stream: TextIO | None = None,
) -> Progress:
    """The live display where `stream` (by default standard output) is a terminal that can move its cursor."""
    chosen = sys.stdout if stream is None else stream
    is_live = chosen.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")
    kind = LiveProgress if is_live else Progress
    return kind(
        total_steps=total_steps,
        first_step=first_step,
        chance_loss=chance_loss,
        planned_bytes=planned_bytes,
        stream=chosen,
    )
