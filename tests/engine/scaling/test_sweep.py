"""A sweep over cells that are no engine: what ends a cell, what is recorded of it, and how the sweep goes on."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from engine.scaling import cell_process, results
from engine.scaling.cell_process import CellProcess, Ended, Task, run_cells
from engine.scaling.cells import Cell
from engine.scaling.figures import figures_of, lines_of
from engine.scaling.memory_limit import ControlGroup, Watcher, group_parent
from engine.scaling.tree import MARK, marked
from tests.conftest import REPOSITORY
from tests.engine.scaling.fake_cell import line
from tests.engine.scaling.fake_sweeps import MIB, fake, never, sweep_of


@pytest.fixture
def only_what_hangs_has_a_limit(monkeypatch):
    """The seconds that a cell may take hold once it has said that it hangs; until then, and for others, there is no limit."""

    class OnceItHangs(CellProcess):
        def __init__(self, task, limit):
            super().__init__(replace(task, seconds=math.inf), limit)
            self.given = task

        def _reason_to_end(self, asked_to_stop):
            if "hangs" in self.task.log.read_text():
                self.task = self.given
            return super()._reason_to_end(asked_to_stop)

    monkeypatch.setattr(cell_process, "CellProcess", OnceItHangs)


def test_every_cell_of_every_block_is_run_once_and_recorded(tmp_path):
    sweep = sweep_of(tmp_path / "sweep", ["", "", ""], repeats=2)
    assert sweep.run(never)
    ran = [(record.repeat, record.place, record.cell, record.status) for record in sweep.records]
    assert sorted((repeat, cell) for repeat, _, cell, _ in ran) == [(r, c) for r in range(2) for c in range(3)]
    assert {status for *_, status in ran} == {"ended"}
    assert [place for _, place, _, _ in ran] == [0, 1, 2, 0, 1, 2]


def test_rivals_run_in_the_first_blocks_alone(tmp_path):
    sweep = sweep_of(tmp_path / "sweep", ["", ""], repeats=3, peer_repeats=1)
    sweep.cells[1] = Cell(1, {"data.limit": 1, "peer": "pic_dense"})
    assert sweep.run(never)
    assert sorted((record.cell, record.repeat) for record in sweep.records) == [(0, 0), (0, 1), (0, 2), (1, 0)]


def test_figures_of_the_table_are_those_of_the_lines_of_the_cells(tmp_path):
    output = tmp_path / "sweep"
    sweep = sweep_of(output, ["", ""])
    assert sweep.run(never)
    table = [line.split(",") for line in results.csv_text(sweep.cells, sweep.records).splitlines()]
    for row in table[1:]:
        found = dict(zip(table[0], row, strict=True))
        lines = lines_of(output / "cells" / f"b{found['block']}-c{found['cell']}" / "metrics.jsonl")
        steps = [after["elapsed_seconds"] - before["elapsed_seconds"] for before, after in pairwise(lines[1:])]
        assert len(steps) == 3
        assert float(found["step_seconds"]) == sorted(steps)[1] == int(found["cell"]) + 1
        assert float(found["seconds_of_softmax"]) == pytest.approx(0.75 * steps[0])
        assert float(found["host_bytes"]) == 2005 and float(found["disk_bytes"]) == 50
        assert float(found["sent_bytes"]) == 320 and float(found["blocks_read"]) == 5
        assert float(found["waits"]) == pytest.approx(2 / 4) and float(found["waited_seconds"]) == pytest.approx(
            0.5 / 4
        )
        assert float(found["images_per_second"]) == pytest.approx(64 / steps[0])


def test_of_a_short_cell_the_first_half_is_left_out(tmp_path):
    ended = Ended("ended", "", 1.0, 0.5, 1, 1, "")
    lines = [{**line(step, 1.0), "elapsed_seconds": float(step**2)} for step in range(1, 9)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    # Step t takes 2 t - 1 seconds; the first line has no line before it.
    for skip, middle in ((0, 9.0), (2, 10.0), (4, 12.0), (6, 12.0), (100, 12.0)):
        assert figures_of(tmp_path, ended, skip)["step_seconds"] == middle


def test_a_cell_that_takes_too_much_memory_is_recorded_as_such_and_the_sweep_goes_on(tmp_path):
    sweep = sweep_of(tmp_path / "sweep", ["", "allocate 600", ""], repeats=2, mib=200)
    assert sweep.run(never)
    died = [record for record in sweep.records if record.cell == 1]
    assert [record.status for record in died] == ["killed for memory"]  # it is not tried in the second block
    assert "0.20 GiB" in died[0].why and died[0].figures["tree_peak_bytes"] > 200 * MIB
    assert "said by the cell" in died[0].last_words
    assert len([record for record in sweep.records if record.status == "ended"]) == 4


@pytest.mark.usefixtures("only_what_hangs_has_a_limit")
def test_a_cell_over_its_time_is_ended_with_its_whole_tree(tmp_path):
    output = tmp_path / "sweep"
    sweep = sweep_of(output, ["hang", ""], seconds=1.0)
    assert sweep.run(never)
    by_cell = {record.cell: record for record in sweep.records}
    assert by_cell[0].status == "over its time" and by_cell[0].why == "it ran for more than 1 s"
    assert by_cell[0].figures["seconds"] > 1.0 and "hangs" in by_cell[0].last_words
    assert by_cell[1].status == "ended"
    assert marked(str(output.absolute())) == []


def test_a_cell_that_fails_is_recorded_with_its_last_words_and_tried_in_the_next_block(tmp_path):
    sweep = sweep_of(tmp_path / "sweep", ["crash", ""], repeats=2)
    assert sweep.run(never)
    died = [record for record in sweep.records if record.cell == 0]
    assert [(record.status, record.why) for record in died] == [("failed", "exit code 1")] * 2
    assert "RuntimeError: the last words" in died[0].last_words


def test_a_sweep_that_is_asked_to_stop_ends_its_cell_and_goes_on_later(tmp_path):
    output = tmp_path / "sweep"
    asked = output / "cells" / "b0-c0.log"
    sweep = sweep_of(output, ["hang"])
    assert not sweep.run(lambda: asked.exists() and "hangs" in asked.read_text())
    assert sweep.records == [] and marked(str(output.absolute())) == []
    again = sweep_of(output, [""])
    assert again.run(never) and [record.status for record in again.records] == ["ended"]


DRIVER = """
import sys
from pathlib import Path
from tests.engine.scaling.fake_sweeps import never, sweep_of
sweep_of(Path(sys.argv[1]), ["", "", ""] if sys.argv[2] == "whole" else ["hang"] * 3, 1).run(never)
"""


def test_a_sweep_that_is_killed_leaves_no_process_and_goes_on_with_the_next_cell(tmp_path):
    output = tmp_path / "sweep"
    first = sweep_of(output, ["", "", ""])
    count = []
    assert not first.run(lambda: len(count) == 1 or bool(first.records and not count.append(1)))
    (ended,) = first.records
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(output), "hang"], cwd=REPOSITORY, stdout=subprocess.DEVNULL
    )
    mark = str(output.absolute())
    while not any("hangs" in log.read_text() for log in (output / "cells").glob("*.log")):
        assert driver.poll() is None
        time.sleep(0.02)
    running = {process.pid for process in marked(mark)}
    assert len(running) == 2  # the cell, and its child in another session
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    while len(left := {process.pid for process in marked(mark)}) > 1:  # the kernel kills the cell, and not its child
        time.sleep(0.02)
    assert left < running
    again = sweep_of(output, ["", "", ""])
    assert again.run(never)
    assert again.records[0] == ended and sorted(record.cell for record in again.records) == [0, 1, 2]
    assert marked(mark) == []


def test_a_half_line_of_a_power_cut_counts_for_nothing(tmp_path):
    output = tmp_path / "sweep"
    sweep = sweep_of(output, ["", ""])
    assert sweep.run(never)
    path = output / "cells.jsonl"
    lines = path.read_text().splitlines()
    path.write_text(lines[0] + "\n" + lines[1][:40])
    again = sweep_of(output, ["", ""])
    assert len(again.records) == 1 and again.run(never)
    assert [line["cell"] for line in lines_of(path)] == [json.loads(line)["cell"] for line in lines]


def test_the_control_group_is_the_nearest_that_hands_memory_down(tmp_path):
    inner = tmp_path / "user" / "session"
    inner.mkdir(parents=True)
    own = tmp_path / "own"
    own.write_text("1:name=systemd:/x\n0::/user/session\n")
    for group, controllers in ((tmp_path, "cpu memory"), (inner.parent, "cpu"), (inner, "")):
        (group / "cgroup.subtree_control").write_text(controllers + "\n")
    assert group_parent(tmp_path, own) == tmp_path
    (inner.parent / "cgroup.subtree_control").write_text("memory pids\n")
    assert group_parent(tmp_path, own) == inner.parent
    (inner.parent / "cgroup.subtree_control").write_text("pids\n")
    (tmp_path / "cgroup.subtree_control").write_text("cpu\n")
    assert group_parent(tmp_path, own) is None


def test_a_control_group_gets_its_limit_and_tells_of_a_kill_by_the_kernel(tmp_path):
    group = ControlGroup(300 * MIB, tmp_path)
    inside = Path(group.cgroup)
    assert (inside / "memory.max").read_text() == str(300 * MIB)
    (inside / "memory.events").write_text("oom 0\noom_kill 0\n")
    assert not group.is_over(os.getpid())
    (inside / "memory.events").write_text("oom 1\noom_kill 1\n")
    assert group.is_over(os.getpid())


def test_a_cell_joins_its_control_group_before_it_runs(tmp_path):
    (tmp_path / "cgroup.procs").touch()
    limit = Watcher(4000 * MIB)
    limit.cgroup = str(tmp_path)
    task = Task(fake(tmp_path / "cell", 1, 1), "mark", tmp_path / "log", tmp_path / "none", 60.0, {"A": "set"})
    [ended] = run_cells([(task, limit)], None, never)
    assert ended.status == "ended" and (tmp_path / "cgroup.procs").read_text() == "0"


def test_the_environment_of_a_cell_has_the_mark(tmp_path):
    command = [sys.executable, "-S", "-c", f"import os; print(os.environ[{MARK!r}], os.environ['A'])"]
    task = Task(command, "of this test", tmp_path / "log", tmp_path / "none", 60.0, {"A": "set"})
    [ended] = run_cells([(task, Watcher(4000 * MIB))], None, never)
    assert ended.last_words == "of this test set" and ended.first_step_seconds is None


# Shows the time whenever it runs, until it has been continued twice after it showed one. A signal that is blocked waits to be taken; that
# the process goes on does not depend on it.
CLOCK = """
import signal, time
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCONT})
for _ in range(2):
    print(time.monotonic(), flush=True)
    signal.sigtimedwait({signal.SIGCONT}, 0)  # one that came earlier
    while not signal.sigtimedwait({signal.SIGCONT}, 0.01):
        print(time.monotonic(), flush=True)
print(time.monotonic(), flush=True)
"""


def test_cells_of_a_line_take_turns_and_never_run_at_the_same_time(tmp_path, monkeypatch):
    """The times that the two show come in stretches, at most one for each turn."""
    stopped, real = [], cell_process.send_marked

    def send_marked(mark, number):
        stopped.extend([mark] * (number == signal.SIGSTOP))
        real(mark, number)

    monkeypatch.setattr(cell_process, "send_marked", send_marked)
    paths = [tmp_path / "first", tmp_path / "second"]
    tasks = []
    for path in paths:  # what it shows is its first step, so each shows a time in its first turn
        task = Task([sys.executable, "-S", "-c", CLOCK], f"turns of {tmp_path}#{path.name}", path, path, 60.0, {})
        tasks.append((task, Watcher(4000 * MIB)))
    first, second = run_cells(tasks, 0.25, never)
    assert first.status == second.status == "ended"
    times = [(float(when), name) for name in paths for when in name.read_text().split()]
    names = [name for _, name in sorted(times)]
    changes = sum(before != after for before, after in pairwise(names))
    assert min(stopped.count(task.mark) for task, _ in tasks) >= 2
    turns = len(stopped) + 2  # the last of each has no stop at its end
    assert 2 <= changes < turns, (changes, turns)  # one after the other it would be 1, and side by side many


@pytest.mark.usefixtures("only_what_hangs_has_a_limit")
def test_a_cell_that_hangs_in_its_turn_is_over_its_time_and_the_others_end(tmp_path):
    sweep = sweep_of(tmp_path / "sweep", ["", "hang", ""], seconds=1.0, turn=0.2)
    assert sweep.run(never)
    assert {record.cell: record.status for record in sweep.records} == {0: "ended", 1: "over its time", 2: "ended"}
    assert not marked(str((tmp_path / "sweep").absolute()))


def test_rivals_and_cells_of_several_ranks_take_no_turns(tmp_path):
    sweep = sweep_of(tmp_path / "sweep", [""], turn=0.2)
    values = [
        {"data.limit": 1},
        {"data.limit": 2},
        {"data.limit": 1, "peer": "pic_dense"},
        {"data.limit": 2, "ranks": 2},
    ]
    sweep.cells = [Cell(number, own) for number, own in enumerate(values)]
    assert [sweep._line_of(cell) for cell in sweep.cells] == [{0, 1}, {0, 1}, set(), set()]


def test_a_sweep_that_is_asked_to_stop_within_turns_stops_all_of_them(tmp_path):
    sweep = sweep_of(tmp_path / "sweep", ["hang", "hang"], turn=0.2)
    end = time.monotonic() + 1.5
    assert not sweep.run(lambda: time.monotonic() > end)
    assert not sweep.records and not marked(str((tmp_path / "sweep").absolute()))


def test_steps_in_which_others_had_their_turns_have_no_figure(tmp_path):
    lines = [line(step, 1.0) for step in range(1, 9)]
    for late in lines[5:]:  # three others had a turn of three seconds each within step 6
        late["elapsed_seconds"] += 9.0
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    ended = Ended("ended", "exit code 0", 8.0, 1.0, 1, 1, "")
    alone, in_turns = (figures_of(tmp_path, ended, 2, turn) for turn in (None, 3.0))
    assert in_turns["step_seconds_mean"] == 1.0 and alone["step_seconds_mean"] > 2


def test_a_cell_that_ran_alone_has_figures_of_steps_that_are_longer_than_a_turn(tmp_path):
    alone, line = (sweep_of(tmp_path / str(len(todos)), todos, turn=0.2) for todos in ([""], ["", ""]))
    assert alone.run(never) and line.run(never)  # steps of one second, and more
    assert [record.figures.get("step_seconds") for record in alone.records] == [1.0]
    assert [record.figures.get("step_seconds") for record in line.records] == [None, None]


def test_the_limits_of_cells_that_were_not_started_are_closed_too(tmp_path):
    closed = []

    class Counted(Watcher):
        def close(self) -> None:
            closed.append(self)

    tasks = []
    for name in ("first", "second"):
        command = fake(tmp_path / name, 1, 1, "hang")
        task = Task(command, f"stopped of {tmp_path}#{name}", tmp_path / f"{name}.log", tmp_path / "none", 60.0, {})
        tasks.append((task, Counted(4000 * MIB)))
    ended = run_cells(tasks, 0.2, lambda: True)
    assert [one.status for one in ended] == ["stopped"] and closed == [limit for _, limit in tasks]
