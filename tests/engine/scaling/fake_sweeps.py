"""Sweeps over cells that are no engine (fake_cell.py)."""

import sys
from pathlib import Path

from engine.results.output import Output
from engine.results.output_names import SCALE
from engine.scaling.cells import Cell
from engine.scaling.sweep import Sweep, Wanted

FAKE = Path(__file__).with_name("fake_cell.py")
MIB = 2**20


def fake(*words: object) -> list[str]:
    return [sys.executable, "-S", str(FAKE), *map(str, words)]


def sweep_of(
    output: Path,
    todos: list[str],
    repeats: int = 1,
    peer_repeats: int = 9,
    *,
    mib: int = 4000,
    seconds: float = 300.0,
    turn: float | None = None,
) -> Sweep:
    """A sweep whose cell i makes five steps of i + 1 seconds, and then does todos[i]."""
    own = Output(output, SCALE)
    own.make()
    cells = [Cell(number, {"data.limit": 10**number}) for number in range(len(todos))]
    wanted = Wanted(
        repeats, peer_repeats, 0, skip_steps=1, cell_seconds=seconds, cell_bytes=mib * MIB, keep=True, turn_seconds=turn
    )

    def command_of(cell: Cell, directory: Path) -> list[str]:
        return fake(directory, 5, cell.number + 1, *todos[cell.number].split())

    return Sweep(own, cells, wanted, command_of, print)


def never() -> bool:
    return False
