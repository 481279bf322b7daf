"""Of very many lines of metrics a report reads fewer, and its sums stay those of all of them."""

import itertools
import json
import tracemalloc

import pytest

from engine.results import thinned as module
from engine.results.records import read_records
from engine.results.thinned import Lines


def line(step, **changes):
    return {
        "step": step,
        "loss": float(step % 7),
        "interval_steps": 1 + step % 3,
        "interval_seconds": 0.5,
        "images_per_second": 100.0,
        "seconds": {"softmax": 0.25, **({"evaluation": 2.0} if step % 10 == 0 else {})},
        "loader": {"images": 64, "cpu_seconds": 0.1, "waiting_share": 0.1},
        "prefetch_waits": {"steps": step % 2, "seconds": 0.01},
        "bytes": {"host": 1000 + step % 5, "process_peak": step},
        "active": step,
        **changes,
    }


def sums(lines):
    """What a report adds up, and what it takes the largest of."""
    return {
        "steps": sum(one["interval_steps"] for one in lines),
        "seconds": sum(one["interval_seconds"] for one in lines),
        **{f"{name} seconds": sum(one["seconds"].get(name, 0) for one in lines) for name in ("softmax", "evaluation")},
        "images": sum(one["loader"]["images"] for one in lines),
        "waits": sum(one["prefetch_waits"]["steps"] for one in lines),
        "loss": sum(one["loss"] * one["interval_steps"] for one in lines),
        "host": max(one["bytes"]["host"] for one in lines),
    }


@pytest.mark.parametrize("count", [1, 39, 40, 41, 100, 1003, 5000])
def test_sums_are_those_of_all_lines_and_the_latest_stay(monkeypatch, tmp_path, count):
    monkeypatch.setattr(module, "MOST_LINES", 20)
    lines = [line(step) for step in range(1, count + 1)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    found = read_records(tmp_path).metrics
    assert sums(found) == pytest.approx(sums(lines))
    assert found[-20:] == lines[-20:] and len(found) <= 79
    spans = [later["step"] - one["step"] for one, later in itertools.pairwise([{"step": 0}, *found[:-40]])]
    assert len(set(spans[:-1])) <= 1  # curves are as fine at the beginning as later
    assert all(one["loader"]["waiting_share"] == 0.1 for one in found)
    steps = [one["step"] for one in found]
    assert steps == sorted(set(steps)) and steps[-1] == count


def test_lines_may_lack_anything_and_hold_anything():
    odd = [
        {"step": 1, "loss": None},
        {"step": 2, "loss": float("nan"), "seconds": 7, "bytes": {"host": "much", "device": 3}},
    ]
    odd += [
        {"step": 3, "loss": 2.0, "seconds": {"softmax": 1}, "bytes": {"host": 5}, "interval_steps": True},
        {"step": 4},
    ]
    for one in odd:
        for other in odd:
            both = module._together(one, other)
            assert both["step"] == other["step"]
    assert module._together(odd[0], odd[2])["loss"] == 2.0 == module._together(odd[2], odd[3])["loss"]


def test_a_resumed_run_of_many_lines_counts_its_later_ones(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "MOST_LINES", 20)
    lines = [line(step) for step in [*range(1, 91), *range(80, 120)]]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    assert sums(read_records(tmp_path).metrics) == pytest.approx(sums([line(step) for step in range(1, 120)]))


def test_few_lines_are_left_alone_and_evaluations_are(monkeypatch):
    monkeypatch.setattr(module, "MOST_LINES", 20)
    lines = [line(step) for step in range(300)]
    for count, is_thinned in ((39, True), (300, False)):
        kept = Lines(is_thinned=is_thinned)
        for one in lines[:count]:
            kept.append(one)
        assert kept.all() == lines[:count]


def test_memory_of_a_long_run_is_bounded(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "MOST_LINES", 50)
    text = json.dumps(line(0))
    with (tmp_path / "metrics.jsonl").open("w") as file:
        file.writelines(text.replace('"step": 0', f'"step": {step}') + "\n" for step in range(1, 3_001))
    tracemalloc.start()
    assert len(read_records(tmp_path).metrics) < 200
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # All lines as objects take ten times the file.
    assert peak_bytes < 3.5 * (tmp_path / "metrics.jsonl").stat().st_size
