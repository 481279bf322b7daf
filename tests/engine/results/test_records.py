"""Files for people are read as far as they can be: the report is always written, says what it left out, and invents nothing."""

import errno
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from engine.results import records
from engine.results.pictures import EmbeddingSample
from engine.results.records import amount, amounts, finite, finite_items, read_records
from engine.results.report import report_of
from tests.engine.results.page_parser import Tags, charts_of
from tests.engine.results.written_runs import (
    CONFIG,
    PLAN,
    SUMMARY,
    embedding_sample,
    evaluation_line,
    metrics_line,
    neighbour_rows,
    write_run,
)

OBJECTS = ("config.json", "plan.json", "summary.json")
LINES = ("metrics.jsonl", "evaluations.jsonl")


@pytest.fixture
def whole_run(tmp_path: Path) -> Path:
    output = tmp_path / "run"
    output.mkdir()
    evaluations = [evaluation_line(20), evaluation_line(40)]
    write_run(output, [metrics_line(20), metrics_line(40)], evaluations, summary=SUMMARY, plan=PLAN, config=CONFIG)
    return output


def page_of(output: Path, *, pictures: bool = False) -> str:
    """The report's text, which was looked at: tags nest, nothing is no number, nothing has to be obeyed."""
    rows, sample = (neighbour_rows(), embedding_sample()) if pictures else ([], None)
    html = report_of(output, rows, sample)
    assert Tags(html).open == []
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", html)
    assert not re.search(r"\b(nan|inf|infinity)\b", html, re.IGNORECASE)
    return html


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"3", "not a JSON object"),
        (b'"text"', "not a JSON object"),
        (b"", "not JSON"),
        (b"some text", "not JSON"),
        (b'{"steps": ', "not JSON"),
        (b"\0" * 50, "not JSON"),
        (b'{"status": "\xff"}', "not UTF-8"),
        ("{}".encode("utf-16"), "not UTF-8"),
        (b'{"loss": ' + b"1" * 5000 + b"}", "not JSON"),
        (b"[" * 100_000, "not JSON"),
    ],
    ids=lambda value: ascii(value[:20]),
)
@pytest.mark.parametrize("name", OBJECTS)
def test_a_file_that_is_no_object_is_left_out_and_told(whole_run, name, content, reason):
    (whole_run / name).write_bytes(content)
    assert read_records(whole_run).left_out == [f"{name} ({reason})"]
    assert f"Left out: {name} ({reason})." in page_of(whole_run)


@pytest.mark.parametrize("name", [*OBJECTS, *LINES])
def test_what_is_no_readable_file_is_left_out_and_never_waited_for(whole_run, monkeypatch, name):
    path = whole_run / name
    path.unlink()
    assert read_records(whole_run).left_out == []
    path.mkdir()
    assert read_records(whole_run).left_out == [f"{name} (not a file)"]
    path.rmdir()
    os.mkfifo(path)
    assert f"Left out: {name} (not a file)." in page_of(whole_run)
    path.unlink()
    path.symlink_to(path)
    assert read_records(whole_run).left_out == [f"{name} (Too many levels of symbolic links)"]
    path.unlink()
    opened = os.open

    def denied(file: Any, *how: Any, **more: Any) -> int:
        if file == path:
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(file, *how, **more)

    monkeypatch.setattr(records.os, "open", denied)
    assert f"Left out: {name} (Permission denied)." in page_of(whole_run)


@pytest.mark.parametrize("name", LINES)
def test_lines_that_are_no_objects_with_a_step_are_left_out_and_counted(whole_run, name):
    make = metrics_line if name == "metrics.jsonl" else evaluation_line
    good = [json.dumps(make(step)).encode() for step in (20, 40, 60)]
    bad = [
        *(b"[]", b"3", b"null", b'"x"', b"{", b"\0\0\0", b'{"loss": 1}', b'{"step": null}', b'{"step": "20"}'),
        *(b'{"step": -1}', b'{"step": true}', b'{"step": 1.5}', b'{"step": 1' + b"0" * 30 + b"}", b"", b"[" * 50_000),
        *(b'{"step": 50, "note": "\xff"}', b'{"step": 1' + b"0" * 5000 + b"}"),
    ]
    for number, line in enumerate(bad):
        good.insert(1 + number % 3, line)
    (whole_run / name).write_bytes(b"\n".join(good))
    read = read_records(whole_run)
    assert [line["step"] for line in getattr(read, name.removesuffix(".jsonl"))] == [20, 40, 60]
    assert read.unreadable_lines == len(bad)
    assert f"could not be read and are left out: {len(bad)}." in page_of(whole_run)


def test_without_any_file_or_with_all_of_them_wrong_there_is_a_report_with_its_pictures(whole_run):
    for name in (*OBJECTS, *LINES):
        (whole_run / name).write_bytes(b"\xff[]\n")
    html = page_of(whole_run, pictures=True)
    assert html.count("(not UTF-8)") == 3 and "left out: 2." in html
    assert "No steps were logged." in html and "shown are right" in html
    for name in (*OBJECTS, *LINES):
        (whole_run / name).unlink()
    assert "Left out" not in page_of(whole_run, pictures=True)


def test_a_part_of_the_plan_that_is_no_count_of_bytes_is_left_out_and_told(whole_run):
    plan = {"device": {"rows": 2**20, "odd": "many"}, "host": 7, "disk": {}, "<b>\x1b[31m": None}
    (whole_run / "plan.json").write_text(json.dumps(plan))
    read = read_records(whole_run)
    assert read.plan == {"device": {"rows": 2**20}, "disk": {}}
    html = page_of(whole_run)
    for tier in ("device", "host", "&lt;b&gt;\\x1b[31m"):
        assert f"{tier} of plan.json (not all of it is counts of bytes)" in html


@pytest.mark.parametrize("value", [None, True, "3", [1], {}, math.nan, math.inf, -math.inf, 10**400, 1e200])
def test_what_is_no_figure_is_none_and_never_a_stand_in(value):
    assert finite(value) is None and amount(value) is None
    assert finite_items({"a": value, "b": 2}) == amounts({"a": value, "b": 2, "c": -1}) == {"b": 2.0}
    assert finite_items(value if isinstance(value, list | str) else None) == {}


def test_a_figure_of_a_wrong_type_is_unknown_in_the_report(whole_run):
    wrong = {
        "status": ["finished"],
        "job": 3,
        "instances": -1,
        "loss": "low",
        "active": -5,
        "chance_loss": {},
        "ranks": "2",
    }
    write_run(whole_run, [{"step": 20, "bytes": [], "seconds": 3, "active": "x"}], [], summary=wrong)
    html = page_of(whole_run)
    assert "no summary: still running, or killed" in html
    assert "chance: ln K = unknown" in html


def test_names_from_files_are_shown_and_not_obeyed(whole_run):
    evil = "\x1b[31m<b>\udce9\u202e"
    evaluation = {**evaluation_line(20), "figures": {"knn_top1": 0.5, evil: 0.25}, "protocol": evil}
    write_run(
        whole_run,
        [metrics_line(20)],
        [evaluation] * 2,
        summary={**SUMMARY, "status": evil, evil: evil},
        config={evil: 1},
    )
    html = page_of(whole_run)
    assert html.count("\\x1b[31m&lt;b&gt;\\xe9\\u202e") >= 3
    image = neighbour_rows(evil)
    sample = embedding_sample(depth=3)
    named = EmbeddingSample(sample.features_MD, sample.labels_M, sample.images, [evil] * len(sample.names))
    html = report_of(whole_run, image, named)
    assert "\x1b" not in html and "<b>" not in html and html.count("\\x1b[31m&lt;b&gt;\\xe9\\u202e") > 15
    (dots,) = charts_of(html)["Map of the features: every image a dot at its place by t-SNE"]["data"]
    assert dots["text"] == ["\\x1b[31m&lt;b&gt;\\xe9\\u202e"] * len(sample.names)


def test_an_output_directory_that_is_not_utf_8_has_a_report(tmp_path):
    output = tmp_path / os.fsdecode(b"caf\xe9")
    output.mkdir()
    assert "<title>caf\\xe9: report</title>" in page_of(output)


# Anything at all in the place of a file, a line, or a field.

letters = st.characters(exclude_categories=[])
texts = st.text(letters, max_size=6).filter(lambda text: not re.search("nan|inf", text, re.IGNORECASE))
numbers = st.integers(-(10**40), 10**40) | st.floats() | st.integers(0, 100)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(texts, parts, max_size=3),
    max_leaves=8,
)


def changed(objects: list[dict[str, Any]]) -> st.SearchStrategy[Any]:
    """One of the objects with some of its fields, or fields of its fields, replaced."""

    def replace(at: tuple[dict[str, Any], dict[int, Any]]) -> dict[str, Any]:
        base, replaced = json.loads(json.dumps(at[0])), at[1]
        fields = [(base, key) for key in list(base)]
        fields += [(part, key) for part in base.values() if isinstance(part, dict) for key in list(part)]
        for number, value in replaced.items():
            part, key = fields[number % len(fields)]
            part[key] = value
        return base

    return st.tuples(st.sampled_from(objects), st.dictionaries(st.integers(0, 60), values, max_size=4)).map(replace)


def file_of(objects: list[dict[str, Any]]) -> st.SearchStrategy[bytes]:
    """The bytes of one JSON value, or of something else."""
    return (changed(objects) | values).map(lambda value: json.dumps(value).encode()) | st.binary(max_size=20)


run_files = st.fixed_dictionaries(
    {
        "config.json": file_of([CONFIG]),
        "plan.json": file_of([PLAN]),
        "summary.json": file_of([SUMMARY]),
        "metrics.jsonl": st.lists(file_of([metrics_line(step) for step in (10, 20, 30)]), max_size=4).map(b"\n".join),
        "evaluations.jsonl": st.lists(file_of([evaluation_line(step) for step in (10, 20)]), max_size=3).map(
            b"\n".join
        ),
    }
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(files=run_files)
@example(files={"metrics.jsonl": b'{"step": 1, "loss": 1e99}\n{"step": 2, "loss": -1e99}'})
@example(files={"metrics.jsonl": b'{"step": 1, "loss": 5e-324}\n{"step": 9007199254740992, "loss": 0}'})
@example(files={"metrics.jsonl": b'{"step": 1, "bytes": {"device": 1e100, "disk": 0}, "seconds": {"data": 1e-300}}'})
@example(files={"summary.json": b'{"elapsed_seconds": 1e100, "instances": 1e-300, "visited": 1e100, "active": 5e-324}'})
@example(files={"evaluations.jsonl": b'{"step": 1, "figures": {"knn_top1": -1e100}, "chance": 1e100, "rankme": 1e100}'})
def test_with_anything_in_the_files_there_is_a_whole_report(tmp_path_factory, files):
    output = tmp_path_factory.mktemp("any")
    for name, content in files.items():
        (output / name).write_bytes(content)
    page_of(output)
