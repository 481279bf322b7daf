"""cells.jsonl: one line for each cell that has ended, in the order in which they ended; all that a sweep needs to go on.

A line is on the disk before the next cell starts. A cell whose sweep was killed has no line and is run again. A half line, which a
power cut leaves, counts for nothing.
"""

import os
from dataclasses import asdict, dataclass
from typing import Any

from engine.results.json_files import json_text
from engine.results.output import Output
from engine.results.output_names import RECORDS
from engine.scaling.cell_process import OVER_MEMORY, OVER_TIME, Ended
from engine.scaling.cells import Cell
from engine.scaling.figures import lines_of


@dataclass(frozen=True)
class Record:
    """
    cell, values   number and values of the cell (engine/scaling/cells.py)
    repeat, place  of the block, and of the cell in it, from 0
    status, why, last_words   how it ended (engine/scaling/cell_process.py)
    figures        what it cost (engine/scaling/figures.py)
    """

    cell: int
    values: dict[str, Any]
    repeat: int
    place: int
    status: str
    why: str
    last_words: str
    figures: dict[str, float]

    @property
    def is_hopeless(self) -> bool:
        """Whether the same cell would only end in the same way, after the same time."""
        return self.status in (OVER_MEMORY, OVER_TIME)


def record_of(cell: Cell, repeat: int, place: int, ended: Ended, figures: dict[str, float]) -> Record:
    return Record(cell.number, dict(cell.values), repeat, place, ended.status, ended.why, ended.last_words, figures)


def add(output: Output, record: Record) -> None:
    """Returns when the line is on the disk."""
    with output.lines(RECORDS) as file:
        file.write(json_text(asdict(record)) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read(output: Output) -> list[Record]:
    """What has ended so far."""
    names = Record.__dataclass_fields__.keys()
    lines = lines_of(output.path / RECORDS)
    return [Record(**{name: line[name] for name in names}) for line in lines if names <= line.keys()]
