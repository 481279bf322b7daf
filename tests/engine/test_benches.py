"""The benches of the store and the engine measure what they say: whole tables, on tiny sizes."""

import importlib.util
import json
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.signal import lfilter

from engine.disk.files import DiskFiles
from engine.rows.host_tier import HostTier
from engine.rows.store import empty_block
from tests import bench_disk, bench_scale, bench_soak, bench_step, bench_store, bench_support, store_ways

SHAPE = ["--window", "256", "--stride", "64", "--batch", "16", "--block", "16", "--lanes", "4", "--dim", "8"]


@pytest.fixture(autouse=True)
def _no_wait_for_the_disk() -> None:
    """In place of the fixture of tests/conftest.py: benches wait for the disk, and only synced pages can be dropped from memory."""


def cells_by_line(printed: str) -> dict[str, list[str]]:
    """The lines of all tables: first cell -> the others."""
    lines = [line.strip("|").split("|") for line in printed.splitlines() if line.startswith("|")]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}


def test_the_store_bench_has_a_line_for_every_way_and_says_which_are_not_installed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(store_ways.NEEDS, "LMDB", "no_such_package")
    monkeypatch.setitem(store_ways.NEEDS, "TensorStore", "no_such_package")
    bench_store.main(["--blocks", "3", "--block", "16", "--dim", "8", "--rounds", "1", "--directory", str(tmp_path)])
    lines = cells_by_line(capsys.readouterr().out)
    assert lines["LMDB"][:3] == lines["TensorStore"][:3] == ["not installed"] * 3
    for name in ("this store", "raw files", "np.memmap", "zarr-python"):
        assert len(lines[name]) == 4 and "not installed" not in lines[name]
    assert {lines[name][1] for name in ("write", "read, cold", "read, warm")} == {"0.8", "0.7"}
    assert not list(tmp_path.iterdir())


def test_the_step_bench_has_a_line_for_compiled_kernels_and_one_for_aten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--rows", "256", "--batch", "16", "--block", "8", "--steps", "10", "--threads", "1"]
    bench_step.main([*words, "--directory", str(tmp_path)])
    lines = cells_by_line(capsys.readouterr().out)
    assert lines["aten"][-1] == "1.00"
    assert float(lines["compiled"][0]) > 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", list(store_ways.WAYS))
def test_every_way_of_the_store_bench_gives_back_what_it_was_given_after_it_was_closed(
    name: str, tmp_path: Path
) -> None:
    needed = store_ways.NEEDS.get(name)
    if needed and not importlib.util.find_spec(needed):
        pytest.skip(f"{needed} is not installed")
    blocks = store_ways.random_blocks(3, 16, 8)
    way = store_ways.WAYS[name](tmp_path, 3, 16, 8)
    bench_store.write_all(way, blocks)
    way.close()
    way.open()
    outs = [empty_block(16, 8, blocks[0].weight.dtype) for _ in blocks]
    bench_store.read_all(way, outs, [2, 0, 1])
    way.close()
    bench_store.check_equal(blocks, outs)


def test_the_raw_writer_makes_as_many_files_of_the_same_sizes_as_the_store(tmp_path: Path) -> None:
    sizes = []
    for kind in (store_ways.ThisStore, store_ways.RawFiles):
        way = kind(tmp_path / kind.__name__, 3, 16, 8)
        bench_store.write_all(way, store_ways.random_blocks(3, 16, 8))
        found = bench_support.files_below(tmp_path / kind.__name__)
        sizes.append(sorted((path.parent.name[:9], path.name, path.stat().st_size) for path in found))
    # The generation's name has a random part.
    assert [(name, size) for _, name, size in sizes[0]] == [(name, size) for _, name, size in sizes[1]]


def test_dropping_files_takes_them_out_of_the_page_cache(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 2**20)
    file_system = subprocess.run(["stat", "-f", "-c", "%T", path], check=True, capture_output=True, text=True).stdout
    if file_system.strip() in ("tmpfs", "ramfs"):
        pytest.skip("this file system is nothing but page cache")
    if bench_support.share_in_cache([path]) < 1:
        pytest.skip("this file system does not tell what is in the page cache")
    bench_support.drop_from_cache([path])
    assert bench_support.share_in_cache([path]) == 0


class InThisProcess(bench_scale.Worker):
    """A worker without a process."""

    def __init__(
        self, sizes: bench_scale.Sizes, directory: Path, threads: int, environment: dict | None = None
    ) -> None:
        self.engine, self.started = bench_scale.Engine(sizes, directory), time.monotonic()

    def ask(self, word: str | int) -> dict:
        if word == "snapshot":
            return self.engine.snapshot()
        return bench_scale.take_steps(self.engine, int(word), self.started)

    def close(self) -> None:
        self.engine.close()


def test_the_scale_bench_compares_start_memory_and_step_of_two_sizes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--steps", "8", "--memory-steps", "60", "--memory-active", "32", "--turn", "2", "--starts", "1"]
    sizes = ["--sizes", "2000", "1000000000", "--active", "64", "--threads", "1", *SHAPE]
    bench_scale.main([*sizes, *few, "--directory", str(tmp_path)], InThisProcess)
    lines = cells_by_line(capsys.readouterr().out)
    memory = lines["peak memory, MiB: 32 active, 60 steps, 3 slides"]
    assert memory[4] == "holds" and not memory[0].endswith("(0 blocks written)")
    assert lines["start, seconds"][4] == "holds"
    assert float(lines["step, ms (quartiles)"][2].split()[0]) > 0
    assert not list(tmp_path.iterdir())


def test_a_worker_of_the_scale_bench_counts_from_before_its_process_was_made(tmp_path: Path) -> None:
    sizes = bench_scale.Sizes(size=10**9, active=64, window=256, stride=64, batch=16, block=16, lanes=4, dim=8)
    worker = bench_scale.Worker(sizes, tmp_path / "rows", 1)
    told = worker.ask(2)
    worker.close()
    assert worker.process.returncode == 0
    assert len(told["seconds"]) == 2
    assert told["since_start"] > sum(told["seconds"]) + 0.1  # the imports


def test_in_the_disk_bench_every_block_that_enters_was_visited_and_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = {}

    def keep(*arguments: object) -> dict:
        told.update(bench_disk.in_fresh_process(*arguments))
        return told

    small = ["--rows", "2000", "--active", "64", "--milliseconds", "1", "--windows", "3", *SHAPE]
    bench_disk.main([*small, "--directory", str(tmp_path)], run=keep)
    assert told["slides"] == 3
    assert told["entered"] == 3 * 64 // 16
    assert told["readmitted"] > 0
    lines = cells_by_line(capsys.readouterr().out)
    assert lines["1"][7] == str(told["entered"])
    assert not list(tmp_path.iterdir())


def test_the_disk_bench_notices_a_disk_that_is_too_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = bench_disk.Sizes(size=2000, active=64, window=256, stride=64, batch=16, block=16, lanes=4, dim=8)
    bench_disk.build(sizes, tmp_path)
    read, take, load = DiskFiles.read_into, HostTier._take, bench_disk.load_rows
    is_waited_for = threading.Event()

    def slow_read(files: DiskFiles, path: str, parts: list[memoryview]) -> int:  # not there before it is needed
        is_waited_for.wait()
        return read(files, path, parts)

    def take_slowly(tier: HostTier, read_block: Callable[[], float], is_wait: bool) -> None:
        def read_slowly() -> float:
            time.sleep(0.0 if is_waited_for.is_set() else 0.2)
            is_waited_for.set()
            return read_block()

        take(tier, read_slowly, is_wait)

    def load_and_slow_down(*arguments: Any) -> None:
        load(*arguments)
        monkeypatch.setattr(DiskFiles, "read_into", slow_read)
        monkeypatch.setattr(HostTier, "_take", take_slowly)

    monkeypatch.setattr(bench_disk, "load_rows", load_and_slow_down)
    try:
        told = bench_disk.go_on(sizes, tmp_path, windows=1, step_seconds=0.0)
    finally:
        is_waited_for.set()  # a thread that still reads would keep this process
    assert told["waiting_slides"] == told["slides"] == 1
    assert sum(told["waits"]) >= 0.2


def test_the_disk_bench_limits_memory_by_a_cgroup_of_its_own_or_says_that_it_cannot() -> None:
    with bench_disk.memory_limit(2**30) as confine:
        kind, _, value = confine.partition(":")
        assert kind in ("cgroup", "rlimit")
        if kind == "cgroup":
            assert any(
                (Path(value) / name).read_text().strip() == str(2**30)
                for name in ("memory.limit_in_bytes", "memory.max")
                if (Path(value) / name).exists()
            )
        else:
            assert json.loads(value) == 2**30
    assert kind == "rlimit" or not Path(value).exists()


def test_the_soak_finds_a_slope_that_is_there_whatever_the_legs_begin_at() -> None:
    chance = np.random.default_rng(0)
    leg = np.repeat([0, 1, 2, 3], 20)
    step = np.tile(np.arange(20) * 250, 4) + 5000 * leg
    level = np.array([500.0, 20.0, 900.0, 100.0])[leg]
    noise = chance.normal(size=80)
    slope, error = bench_soak.slope_of(leg, step, level + noise)
    assert abs(slope) < error < 0.5
    slope, error = bench_soak.slope_of(leg, step, level + noise + 2.0 * step / 1000)
    assert abs(slope - 2.0) < error < 0.5


def test_the_soaks_interval_holds_the_slope_where_neighbours_are_alike() -> None:
    chance, step = np.random.default_rng(0), np.arange(80) * 250
    held = 0
    for _ in range(300):
        noise = lfilter([1], [1, -0.6], chance.normal(size=80))  # each 0.6 of the one before, and something new
        slope, error = bench_soak.slope_of(np.zeros(80), step, noise + step / 1000)
        held += abs(slope - 1.0) < error
    assert held > 0.9 * 300  # 0.68 with intervals as if they were independent
