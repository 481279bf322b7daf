"""What the store took in a cell: the arithmetic, what is left out and with which words, and a real run."""

import json
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.scaling.cell_process import Ended
from engine.scaling.cells import Cell
from engine.scaling.figures import figures_of
from engine.scaling.records import record_of
from engine.scaling.scale_page import scale_page
from engine.scaling.store_figures import store_figures
from tests.conftest import GIVEN
from tests.engine.scaling.fake_cell import line

ABOUT = {
    "hardware": {"processor": "p", "cores": 2, "memory_bytes": 2**34},
    "versions": {},
    "limits": {"cell_seconds": 5.0, "cell_bytes": 2**30, "memory_limit": "watched"},
    "config": {"output": "runs/x"},
}
ENDED = Ended("ended", "", 1.0, 0.5, 1, 1, "")


def config(block: int = 512, dim: int = 128, **store: object) -> dict:
    store = {"kind": "zarr", "dtype": "float32", "fold": False, **store}
    return {"store": store, "schedule": {"block": block}, "method": {"dim": dim}}


def work(read: int, read_seconds: float, written: int, write_seconds: float, stored: int = 0) -> dict:
    return {
        "blocks_read": read,
        "block_read_seconds": read_seconds,
        "blocks_written": written,
        "block_write_seconds": write_seconds,
        "blocks_stored": stored,
    }


def test_a_worked_example():
    # 1,000 blocks of 512 rows in a second: 1.95 microseconds a row; 512 x 1,032 bytes a block.
    found = store_figures(work(1000, 1.0, 2000, 8.0, 3), config())
    assert found == {
        "dim": 128,
        "read_row_microseconds": pytest.approx(1.953125),
        "read_gib_per_second": pytest.approx(0.492096, rel=1e-5),
        "write_row_microseconds": pytest.approx(7.8125),
        "write_gib_per_second": pytest.approx(0.123024, rel=1e-5),
        "rows_on_disk": 1536,
    }


def test_rows_of_a_bank_have_no_momentum_to_be_read_or_written():
    bank = config()
    bank["method"]["bank_momentum"] = 0.5
    whole, half = (store_figures(work(1000, 1.0, 2000, 8.0), one) for one in (config(), bank))
    for name in ("read_gib_per_second", "write_gib_per_second"):
        assert half[name] / whole[name] == pytest.approx(520 / 1032)


seconds = st.floats(1e-6, 1e5)


@given(
    *(st.integers(1, 10**7), seconds, st.integers(1, 10**7), seconds),
    *(st.integers(1, 4096), st.integers(1, 2048), st.integers(0, 10**9)),
)
def test_microseconds_and_bytes_a_second_are_of_the_same_rows_and_seconds(
    read, read_seconds, written, write_seconds, block, dim, stored
):
    found = store_figures(work(read, read_seconds, written, write_seconds, stored), config(block, dim))
    assert found["rows_on_disk"] == stored * block
    for word, blocks, spent in (("read", read, read_seconds), ("write", written, write_seconds)):
        microseconds, rate = found[f"{word}_row_microseconds"], found[f"{word}_gib_per_second"]
        assert microseconds * blocks * block == pytest.approx(1e6 * spent)
        assert microseconds * 1e-6 * rate * 2**30 == pytest.approx(8 * dim + 8)


def test_what_is_not_known_is_left_out():
    whole = work(10, 1.0, 10, 1.0, 5)
    known = {"dim", "rows_on_disk", "read_row_microseconds", "write_row_microseconds"}
    assert store_figures(whole, config(dtype="bfloat16")).keys() == known
    assert store_figures(whole, config(fold=True)).keys() == known
    assert "read_row_microseconds" not in store_figures(work(0, 0.0, 10, 1.0), config())
    assert store_figures(whole, config(kind="memory")) == {}
    assert store_figures({"blocks_read": 5}, config()) == {}  # of a run that did not measure it
    assert store_figures(whole, {}) == {}  # a cell that left no config


def test_the_page_has_a_line_for_each_cell_with_rows_on_the_disk_and_says_what_is_missing(tmp_path):
    told = [
        (work(1000, 1.0, 2000, 8.0, 3), config()),
        (work(0, 0.0, 2000, 8.0), config(fold=True)),
        (work(1000, 1.0, 2000, 8.0), config(kind="memory")),
        ({}, config()),
    ]
    cells = [Cell(number, {"seed": number}) for number in range(len(told))]
    records = []
    for cell, (figures, of_cell) in zip(cells, told, strict=True):
        directory = tmp_path / str(cell.number)
        directory.mkdir()
        (directory / "metrics.jsonl").write_text(json.dumps({**line(1, 1.0), **figures}) + "\n")
        (directory / "config.json").write_text(json.dumps(of_cell))
        records.append(record_of(cell, 0, 0, ENDED, figures_of(directory, ENDED, 0)))
    page = scale_page(ABOUT, cells, records, [], [])
    _, _, part = page.partition("What the store took")
    section, _, _ = part.partition("Cells that died")
    assert [f"seed={number}" in section for number in range(4)] == [True, True, False, False]
    for number in ("1,536", "128", "1.95", "0.492", "7.81", "0.123"):
        assert number in section, number
    assert "no block was read" in section and "rounded or folded" in section
    assert "What the store took" not in scale_page(ABOUT, cells[2:], records[2:], [], [])


@pytest.mark.parametrize("kind", ["zarr", "memory"])
def test_a_run_adds_up_what_its_store_did(run, kind):
    words = [f"store.kind={kind}", "log_every=1", "checkpoint.every_steps=20"]
    start = time.perf_counter()
    assert run(*words, config=GIVEN) == 0
    passed = time.perf_counter() - start
    lines = run.lines()
    for name in ("blocks_read", "block_read_seconds", "blocks_written", "block_write_seconds"):
        totals = [one[name] for one in lines]
        assert totals == sorted(totals) and totals[-1] > 0 and name in lines[-1]["figures"], name
    for before, after in pairwise(lines):  # no block without its seconds, and the other way round
        assert (after["blocks_read"] > before["blocks_read"]) == (
            after["block_read_seconds"] > before["block_read_seconds"]
        )
    assert lines[-1]["block_write_seconds"] < passed and lines[-1]["block_read_seconds"] < 2 * passed
    figures = store_figures(lines[-1], json.loads((run.output / "config.json").read_text()))
    blocks = -(-2000 // 16)  # all were visited twice, and some may still be in the window for the third time
    assert lines[-1]["blocks_stored"] <= blocks
    if kind == "zarr":
        assert figures["rows_on_disk"] == 16 * lines[-1]["blocks_stored"] > 0
    else:
        assert figures == {}
