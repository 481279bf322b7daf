"""What a sampler wrote about one rank (engine/profiling/sampler.py), as columns."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.profiling.now import END, START
from engine.profiling.slope import slope_of

_SETTLED = 1 / 3  # of the steps: memory is taken for the first time, and slides of the window begin


@dataclass(frozen=True)
class Samples:
    """
    limit_bytes, limit   of host memory, and whose it is
    lines                see sampler.py
    """

    rank: int
    limit_bytes: int
    limit: str
    lines: Sequence[Sequence[Any]]

    def column(self, number: int) -> list[Any]:
        return [line[number] for line in self.lines]

    @property
    def seconds(self) -> list[float]:
        return self.column(0)

    @property
    def own_bytes(self) -> list[int]:
        """Of the run's process, resident."""
        return self.column(3)

    @property
    def worker_bytes(self) -> list[int]:
        return self.column(4)

    @property
    def shared_bytes(self) -> list[int | None]:
        """Proportional, of both; looked at once a second."""
        return self.column(5)

    @property
    def group_bytes(self) -> list[int | None]:
        return self.column(6)

    @property
    def reserved_bytes(self) -> list[int]:
        return self.column(8)

    @property
    def allocated_bytes(self) -> list[int]:
        return self.column(7)

    @property
    def last_step(self) -> int:
        return max(self.column(1), default=0)

    @property
    def last_stage(self) -> str:
        return str(self.lines[-1][2]) if self.lines else START

    def by_stage(self, column: int) -> dict[str, int]:
        """The most of a column in each stage."""
        most: dict[str, int] = {}
        for line in self.lines:
            most[line[2]] = max(most.get(line[2], 0), line[column] or 0)
        return most

    def growth(self) -> tuple[float, float] | None:
        """Bytes a step by which the process grew after the first third of its steps, and half of the 95 % interval."""
        settled = [line for line in self.lines if line[1] > self.last_step * _SETTLED and line[2] not in (START, END)]
        return slope_of([line[1] for line in settled], [line[3] for line in settled])


def read_samples(directory: Path) -> list[Samples]:
    """Of every rank that has some; a line that was cut short by a kill is left out."""
    found = []
    for path in sorted(directory.glob("samples-*.jsonl"), key=lambda path: int(path.stem.partition("-")[2])):
        lines = []
        for text in path.read_text(encoding="ascii").splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                continue
        if lines:
            head = lines[0]
            found.append(Samples(int(path.stem.partition("-")[2]), head["limit_bytes"], head["limit"], lines[1:]))
    return found
