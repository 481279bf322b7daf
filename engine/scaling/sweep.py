"""The cells of a sweep, one after the other, in blocks; each a fresh process with an output directory of its own.

    cells/b0-c3/        output of cell 3 in block 0; what is large there goes as soon as the cell has ended
    cells/b0-c3.log     what it printed
    cells.jsonl         a line for each cell that has ended (engine/scaling/records.py)

The same command goes on after whatever ended the sweep: cells that have a line are not run again, and processes that a killed sweep left
behind are ended first. A cell that was too large or too slow once is not tried in later blocks. Any other failure is.

With turns, the cells of a line run together (engine/scaling/cell_process.py): those of this engine on one rank that differ in one number
alone. All are in memory at once. Rivals, and cells of several ranks, run alone.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.disk.files import checkpoint_files
from engine.disk.sweep import remove_run
from engine.results.output import Output
from engine.results.output_names import CELLS
from engine.results.progress import duration_text
from engine.scaling import records
from engine.scaling.cell_process import STOPPED, Ended, Task, run_cells
from engine.scaling.cells import Cell, block_order
from engine.scaling.figures import figures_of
from engine.scaling.growth import lines_of_cells
from engine.scaling.memory_limit import memory_limit
from engine.scaling.tree import end_marked

# Left to itself glibc raises the size from which on it gives memory back at once, by luck, and peaks of two runs of one cell differ. Giving
# back at once costs time; so rivals, which allocate far more in a step, run without.
_GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}
_LARGE = ("backbone.safetensors", "report.html")


@dataclass(frozen=True)
class Wanted:
    """
    repeats, seed   blocks, and what draws their orders
    peer_repeats    blocks in which rivals run, the first ones
    skip_steps      first steps of a cell that no figure counts; at most half of them
    cell_seconds, cell_bytes   what a cell may take
    keep            leave the checkpoints of the cells
    turn_seconds    for how long each cell of a line runs while the others of it are stopped; None: one after the other
    """

    repeats: int
    peer_repeats: int
    seed: int
    skip_steps: int
    cell_seconds: float
    cell_bytes: int
    keep: bool
    turn_seconds: float | None = None


@dataclass(frozen=True)
class Waiting:
    """A cell to run: its block, its place in that, and the cell."""

    repeat: int
    place: int
    cell: Cell

    def directory(self, output: Output) -> Path:
        """Of its output."""
        return output.path / CELLS / f"b{self.repeat}-c{self.cell.number}"


class Sweep:
    """
    output       of the sweep; its name `cells` is entered
    command_of   (cell, its output directory) -> the words that run it
    say          takes a line for people
    """

    def __init__(
        self,
        output: Output,
        cells: Sequence[Cell],
        wanted: Wanted,
        command_of: Callable[[Cell, Path], Sequence[str]],
        say: Callable[[str], None],
    ) -> None:
        self.output, self.cells, self.wanted = output, cells, wanted
        self.command_of, self.say = command_of, say
        self.records = records.read(output)
        self._mark = str(output.path.absolute())

    def run(self, asked_to_stop: Callable[[], bool]) -> bool:
        """Run what has not ended yet; returns whether all has ended. False: it was asked to stop."""
        self.output.enter(CELLS).mkdir(exist_ok=True)
        if left := end_marked(self._mark):
            self.say(f"{left} processes that an earlier start of this sweep left behind were ended")
        if self.records:
            self.say(f"going on: {len(self.records)} cells have ended before")
        while together := self._next():
            if asked_to_stop() or not self._run_together(together, asked_to_stop):
                return False
        return True

    def _waiting(self) -> Iterator[Waiting]:
        """Those to run, as it stands when each is asked for."""
        for repeat in range(self.wanted.repeats):
            for place, number in enumerate(block_order(self.wanted.seed, repeat, len(self.cells))):
                if self._is_waiting(repeat, number):
                    yield Waiting(repeat, place, self.cells[number])

    def _is_waiting(self, repeat: int, number: int) -> bool:
        if self.cells[number].peer is not None and repeat >= self.wanted.peer_repeats:
            return False
        return not any(
            record.cell == number and (record.repeat == repeat or record.is_hopeless) for record in self.records
        )

    def _next(self) -> list[Waiting]:
        """The next that waits, with those that take turns with it."""
        waiting = list(self._waiting())
        if not waiting or self.wanted.turn_seconds is None:
            return waiting[:1]
        line = {waiting[0].cell.number, *self._line_of(waiting[0].cell)}
        return [one for one in waiting if one.repeat == waiting[0].repeat and one.cell.number in line]

    def _line_of(self, cell: Cell) -> set[int]:
        """The numbers of the cells that take turns with this one."""
        may_share = [one for one in self.cells if one.peer is None and one.ranks == 1]
        for _, _, line in lines_of_cells(may_share):
            if cell in line:
                return {one.number for one in line}
        return set()

    def _run_together(self, together: Sequence[Waiting], asked_to_stop: Callable[[], bool]) -> bool:
        """Returns whether all have ended, and not because the sweep was asked to stop."""
        wanted = self.wanted
        tasks = []
        for one in together:
            if one.directory(self.output).is_dir():  # of a cell that had not ended
                Output(one.directory(self.output)).remove_run()
            limit, _ = memory_limit(wanted.cell_bytes)
            tasks.append((self._task(one), limit))
            with_others = f", in turns with {len(together) - 1} others"
            self.say(
                f"block {one.repeat + 1} of {wanted.repeats}, cell {one.place + 1} of {len(self.cells)}: {one.cell.name}"
                + with_others * (len(together) > 1)
            )
        all_ended = run_cells(tasks, wanted.turn_seconds, asked_to_stop)
        turn_seconds = wanted.turn_seconds if len(together) > 1 else None
        for one, ended in zip(together, all_ended, strict=False):
            self._keep(one, ended, turn_seconds)
        return all(ended.status != STOPPED for ended in all_ended)

    def _task(self, one: Waiting) -> Task:
        directory = one.directory(self.output)
        return Task(
            command=self.command_of(one.cell, directory),
            mark=f"{self._mark}#{directory.name}",
            log=directory.with_name(f"{directory.name}.log"),
            metrics=directory / "metrics.jsonl",
            seconds=self.wanted.cell_seconds,
            environment={} if one.cell.peer else _GIVES_BACK,
        )

    def _keep(self, one: Waiting, ended: Ended, turn_seconds: float | None) -> None:
        """Record what became of it, and remove what takes room. turn_seconds: None where it took no turns with others."""
        wanted, directory = self.wanted, one.directory(self.output)
        if ended.status != STOPPED:
            figures = figures_of(directory, ended, wanted.skip_steps, turn_seconds)
            record = records.record_of(one.cell, one.repeat, one.place, ended, figures)
            records.add(self.output, record)
            self.records.append(record)
            self.say(f"    {_in_words(ended, figures)}; {self.left_text()}")
        if not wanted.keep and directory.is_dir():
            _remove_large(directory)

    def left_text(self) -> str:
        """How long the cells to come may take: as long as the same cell took before or, where it has not run yet, as the mean cell."""
        seconds = [record.figures["seconds"] for record in self.records]
        left = 0.0
        for one in self._waiting():
            own = [record.figures["seconds"] for record in self.records if record.cell == one.cell.number]
            left += statistics.fmean(own or seconds)
        return f"left {duration_text(left)}"


def _in_words(ended: Ended, figures: dict[str, float]) -> str:
    took = f"{ended.status} in {duration_text(ended.seconds)}"
    if "step_seconds" not in figures:
        return f"{took} ({ended.why})"
    why = "" if ended.status == "ended" else f" ({ended.why})"
    return f"{took}{why}: {1000 * figures['step_seconds']:.1f} ms a step, {figures['tree_peak_bytes'] / 2**20:,.0f} MiB"


def _remove_large(directory: Path) -> None:
    """What a cell leaves that takes room; its metrics and summary stay."""
    own = Output(directory)
    remove_run(checkpoint_files(directory))
    for name in _LARGE:
        own.remove(name)
