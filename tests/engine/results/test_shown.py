"""Whatever a name holds, it is shown, in one line, and neither a terminal nor a stream's encoding is at its mercy."""

import io
import os
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.shown import cut_text, shown_lines
from datasets.shown import shown as shown_text
from engine.results.progress import progress
from engine.results.streams import Escaping
from tests.conftest import REPOSITORY

EVIL = "caf\u00e9 \x1b[31m[red]\x07\udce9\u202e\u2713.jpg"
ANY_TEXT = st.text(st.characters(exclude_categories=[]))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain name.jpg", "plain name.jpg"),
        ("é 日本\u3000語 \U0001f469\u200d\U0001f52c", "é 日本\u3000語 \U0001f469\u200d\U0001f52c"),
        ("a\nb\tc\rd", r"a\nb\tc\rd"),
        ("\x1b]0;title\x07\x9b2J\x7f\0", r"\x1b]0;title\x07\x9b2J\x7f\x00"),
        ("\udce9t\udcff", r"\xe9t\xff"),
        ("\ud800", r"\ud800"),
        ("gpj.\u202egnp", r"gpj.\u202egnp"),
        ("\u2028\u2066", r"\u2028\u2066"),
    ],
)
def test_what_a_terminal_would_obey_is_written_out_and_the_rest_stays(text, shown):
    assert shown_text(text) == shown


@given(ANY_TEXT)
def test_any_text_becomes_one_line_that_can_be_encoded(text):
    for shown in (shown_text(text), cut_text(text)):
        shown.encode("utf-8")
        assert len(shown.splitlines()) <= 1
        assert not re.search("[\x00-\x1f\x7f-\x9f]", shown)
    assert len(cut_text(text)) < 400
    assert shown_text(shown_text(text)) == shown_text(text)
    assert shown_lines(text).count("\n") == text.count("\n")


@given(ANY_TEXT, st.sampled_from(["ascii", "latin-1", "utf-8", "cp1252", "utf-16"]))
def test_any_shown_text_goes_through_a_stream_of_any_encoding(text, encoding):
    beneath = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    Escaping(beneath).write(shown_text(text))
    beneath.flush()
    assert beneath.buffer.getvalue().decode(encoding) is not None


class Terminal(io.TextIOWrapper):
    """What a terminal is given, in an encoding; some streams have none."""

    def __init__(self, encoding: str | None) -> None:
        super().__init__(io.BytesIO(), encoding=encoding or "utf-8", newline="")
        self._told = encoding

    @property
    def encoding(self) -> str | None:
        return self._told

    def isatty(self) -> bool:
        return True

    def text(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode(self._told or "utf-8")


@pytest.mark.parametrize("term", ["xterm-256color", "dumb"], ids=["live", "plain"])
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", None])
def test_a_name_that_the_terminal_cannot_show_is_shown_escaped_in_the_display(monkeypatch, term, encoding):
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("COLUMNS", "200")
    stream = Terminal(encoding)
    with progress(total_steps=9, first_step=0, chance_loss=1.0, planned_bytes={}, stream=stream) as shown:
        shown.note(f"cannot read {EVIL}\nand a second line")
        shown.update({"step": 1, "loss": 2.0})
        if term != "dumb":
            print(f"printed {EVIL}"[: len("printed caf\u00e9")])  # rich takes what is printed meanwhile
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.text())
    accent = "é" if encoding != "ascii" else r"\xe9"
    tick = "✓" if encoding in ("utf-8", None) else r"\u2713"
    assert f"cannot read caf{accent} \\x1b[31m[red]\\x07\\xe9\\u202e{tick}.jpg" in text
    assert "and a second line" in [line.strip() for line in text.splitlines()]
    assert "\x1b[31m" not in stream.text()
    assert term == "dumb" or f"printed caf{accent}" in text


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "cp1252"])
def test_whatever_is_printed_is_shown_once_the_standard_streams_escape(encoding):
    code = (
        "import sys\nfrom engine.results.streams import let_standard_streams_escape\nlet_standard_streams_escape()\n"
        "for stream in (sys.stdout, sys.stderr): print('caf\\u00e9 \\u65e5 \\udce9', file=stream)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        capture_output=True,
        env={"PYTHONIOENCODING": encoding, "PATH": ""},
        check=True,
    )
    for said in (done.stdout, done.stderr):
        assert said.decode(encoding).startswith("caf") and "\\udce9" in said.decode(encoding)


def test_a_stream_that_cannot_be_set_is_left_alone(monkeypatch):
    from engine.results.streams import let_standard_streams_escape

    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys, "stderr", None)
    let_standard_streams_escape()
    with sys.stderr:  # closed here, so that no collector finds it open
        assert sys.stderr.name == os.devnull
