"""The display of a running training: the facts it shows, and that it leaves a terminal as it found it."""

import io
import math
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from engine.results.progress import LiveProgress, Progress, bytes_text, duration_text, progress

MIB = 2**20
LINE = {
    "step": 120,
    "loss": 4.2123,
    "lr": 0.3,
    "images_per_second": 1430.4,
    "seconds": {"data": 0.6, "softmax": 2.0},
    "interval_seconds": 20.0,
    "bytes": {"device": 12 * MIB, "host": 40 * MIB, "disk": 0, "process_peak": 700 * MIB},
    "skipped_steps": 0,
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def started(stream: io.StringIO) -> Progress:
    planned = {"device": 14 * MIB, "host": 48 * MIB, "disk": 64 * MIB}
    return progress(total_steps=1800, first_step=0, chance_loss=math.log(2048), planned_bytes=planned, stream=stream)


def test_plain_line_says_all_facts_in_one_line() -> None:
    stream = io.StringIO()
    with started(stream) as shown:
        shown.update(LINE)
    assert stream.getvalue() == (
        "step 120/1,800  loss 4.21 (chance 7.62)  1,430 images/s  data wait 3 %  "
        "memory device 12 MiB host 40 MiB disk 0 MiB  left 4 min 40 s\n"
    )


def test_while_rows_are_added_chance_is_that_of_the_rows_that_are_there() -> None:
    stream = io.StringIO()
    with started(stream) as shown:
        shown.update({**LINE, "chance_loss": 5.03})
        shown.update({**LINE, "step": 240, "chance_loss": None})
    assert ["chance 5.03" in line for line in stream.getvalue().splitlines()] == [True, False]
    assert "(chance 7.62)" in stream.getvalue().splitlines()[1]


def test_notes_stand_on_lines_of_their_own_between_updates() -> None:
    stream = io.StringIO()
    with started(stream) as shown:
        shown.update(LINE)
        shown.note("checkpoint at step 120 [kept 2]")
        shown.update({**LINE, "step": 240})
    lines = stream.getvalue().splitlines()
    assert [line[:10] for line in lines] == ["step 120/1", "checkpoint", "step 240/1"]
    assert lines[1] == "checkpoint at step 120 [kept 2]"


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()], ids=["plain", "live"])
def test_a_line_with_nothing_but_its_step_is_shown(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    with started(stream) as shown:
        for line in (
            {"step": 1},
            {"step": 2, "loss": None, "seconds": None, "bytes": None},
            {"step": 3, "loss": math.nan},
        ):
            shown.update(line)
    assert "step 3/1,800" in stream.getvalue()
    assert "loss none (chance 7.62)" in stream.getvalue()
    assert "nan" not in stream.getvalue()


def test_time_left_of_a_resumed_run_counts_this_process_alone() -> None:
    stream = io.StringIO()
    shown = Progress(total_steps=1000, first_step=800, chance_loss=1.0, planned_bytes={}, stream=stream)
    shown.update({"step": 850, "interval_seconds": 50.0, "elapsed_seconds": 99999.0})
    assert "left 2 min 30 s" in stream.getvalue()


def test_skipped_steps_are_told() -> None:
    stream = io.StringIO()
    with started(stream) as shown:
        shown.update({**LINE, "skipped_steps": 2})
    assert "skipped steps 2" in stream.getvalue()


@pytest.mark.parametrize(("term", "is_live"), [("xterm-256color", True), ("dumb", False), ("", False), (None, False)])
def test_live_only_where_the_cursor_can_move(monkeypatch: pytest.MonkeyPatch, term: str | None, is_live: bool) -> None:
    if term is None:
        monkeypatch.delenv("TERM", raising=False)
    else:
        monkeypatch.setenv("TERM", term)
    assert isinstance(started(Terminal()), LiveProgress) == is_live
    assert not isinstance(started(io.StringIO()), LiveProgress)


def test_live_display_shows_measured_beside_planned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "160")
    stream = Terminal()
    with started(stream) as shown:
        assert "device 14 MiB planned" in stream.getvalue()
        shown.note("an evaluation [bold]")
        shown.update(LINE)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    assert "device 12 MiB of 14 MiB host 40 MiB of 48 MiB disk 0 MiB of 64 MiB" in text
    assert "an evaluation [bold]" in text
    assert "left 4 min 40 s" in text


def test_ctrl_c_gives_the_cursor_back() -> None:
    program = (
        "import signal, sys, time\n"
        "from engine.results.progress import progress\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "with progress(total_steps=9, first_step=0, chance_loss=1.0, planned_bytes={}) as shown:\n"
        "    shown.update({'step': 1})\n"
        # Short sleeps: a signal that comes just before a long one begins would not be seen until its end.
        "    while True:\n"
        "        time.sleep(0.05)\n"
    )
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "PYTHONPATH": str(Path(__file__).parents[3])}
    child = subprocess.Popen([sys.executable, "-c", program], stdout=theirs, stderr=subprocess.DEVNULL, env=environment)
    os.close(theirs)
    said = b""
    while b"step 1/9" not in said:
        said += os.read(ours, 4096)
    child.send_signal(signal.SIGINT)
    assert child.wait(timeout=30) != 0
    while True:
        try:
            said += os.read(ours, 4096)
        except OSError:  # Linux says so when the other end is closed and all is read
            break
    os.close(ours)
    assert b"\x1b[?25l" in said
    assert said.rindex(b"\x1b[?25h") > said.rindex(b"\x1b[?25l")


def test_durations_read_as_people_say_them() -> None:
    said = [duration_text(seconds) for seconds in (0, 42.4, 59.6, 130, 3900, 86399.7, 183600)]
    assert said == ["0 s", "42 s", "1 min 00 s", "2 min 10 s", "1 h 05 min", "1 d 00 h", "2 d 03 h"]


def test_bytes_are_mebibytes_until_they_are_many() -> None:
    said = [bytes_text(size) for size in (0, 1, 400_000, 12 * MIB, 9216 * MIB, 40 * 1024 * MIB)]
    assert said == ["0 MiB", "0.1 MiB", "0.4 MiB", "12 MiB", "9,216 MiB", "40.0 GiB"]
