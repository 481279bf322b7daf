"""Every store under one contract, and the store on disk beyond it: plain zarr, write-once generations, what a commit keeps."""

import os
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from engine.disk import files as engine_files
from engine.disk.block_map import BlockMap
from engine.disk.files import DiskFiles, remove_any
from engine.disk.patrol import look
from engine.disk.write_behind import WriteBehind
from engine.disk.zarr_store import ZarrStore
from engine.rows.damaged import Damaged
from engine.rows.store import MemoryStore
from engine.training.checkpoint import Checkpoints
from tests.engine.store_contract import (
    DIM,
    ROWS,
    StoreContract,
    StoreMachine,
    assert_same,
    machine_settings,
    made_block,
    read,
)

POSITIONS = 10**15


def make_disk(root, **options):
    return ZarrStore(DiskFiles(Path(root)), block=ROWS, dim=DIM, positions=POSITIONS, dtype=np.float32, **options)


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self):
        return MemoryStore()


class TestZarrStore(StoreContract):
    @pytest.fixture
    def store(self, tmp_path):
        disk = make_disk(tmp_path)
        disk.write_for_checkpoint = lambda block, rows: disk.write_block(block, rows, exact=True)
        return disk


class TestWriteBehind(StoreContract):
    @pytest.fixture(params=["roomy", "one block at a time", "no thread"])
    def store(self, tmp_path, request):
        limit = {"roomy": 10**6, "one block at a time": 1, "no thread": 0}[request.param]
        store = WriteBehind(make_disk(tmp_path), limit, threaded=request.param != "no thread")
        yield store
        store.drain()
        store.close()

    @staticmethod
    def settle(store):
        store.drain()


class TestBfloat16(StoreContract):
    """Rows that leave are rounded: the contract holds for blocks of bfloat16 numbers, and for exact writes of any."""

    @pytest.fixture
    def store(self, tmp_path):
        disk = make_disk(tmp_path, bfloat16=True)
        disk.write_for_checkpoint = lambda block, rows: disk.write_block(block, rows, exact=True)
        real = disk.write_block
        # Every test of the contract but the one of inexact writes below asks for the exact bits.
        disk.write_block = lambda block, rows, exact=False: real(block, rows, exact=True)
        return disk


@pytest.mark.parametrize("bfloat16", [False, True])
def test_checks_from_the_map_are_those_of_the_bytes(tmp_path, bfloat16):
    disk = make_disk(tmp_path, bfloat16=bfloat16)
    for block in range(12):
        disk.write_block(block, made_block(block, folded=block % 3 == 0), exact=block % 2 == 0)
        if block % 5 == 0:
            disk.sync()  # the next one goes into another generation
    checks = disk.checks()
    assert checks["block"].tolist() == list(range(12))
    assert [tuple(one) for one in checks["checks"].tolist()] == [
        tuple(disk.read_checks(block, disk._map[block])) for block in range(12)
    ]
    path = next(tmp_path.rglob("weight/c.7.0"))
    path.write_bytes(bytes(path.stat().st_size))
    disk.checks()  # reads nothing
    with pytest.raises(Damaged, match="block 7"):
        disk.read_checks(7, disk._map[7])


class MemoryMachine(StoreMachine):
    can_restart = False

    def make(self):
        return MemoryStore()

    def commit(self):
        kept = dict(self.store.unsaved())
        assert kept.keys() <= self.model.keys()


class DiskMachine(StoreMachine):
    """The store on disk as checkpoints use it: sync, map, committed, drop; a restart restores the map."""

    keep = 2

    def make(self):
        self.directory = tempfile.TemporaryDirectory()
        self.number = 0
        self.versions = []
        return WriteBehind(make_disk(self.directory.name), 10**6, threaded=False)

    def commit(self):
        disk = self.store.disk
        disk.sync()
        self.number += 1
        self.versions.append((self.number, disk.entries(), disk.generations.copy(), dict(self.model)))
        disk.committed(self.number)
        if len(self.versions) > self.keep:
            self.versions.pop(0)
            disk.drop_before(self.versions[0][0])
        self.check_older_versions_and_bytes(disk)

    def restart(self):
        disk = make_disk(self.directory.name)
        generations = disk.generations
        for _, _, of_version, _ in self.versions:
            generations = generations.joined(of_version)
        versions = [(number, BlockMap(arrays)) for number, arrays, _, _ in self.versions]
        on_disk = disk.restore(versions, generations, self.store.disk.next_generation)
        for found in look(disk, on_disk, disk.generations.has_name):
            assert not found.missing
            for path in found.garbage:
                remove_any(disk.files, path)
        self.store = WriteBehind(disk, 10**6, threaded=False)
        self.check_older_versions_and_bytes(disk)

    def check_older_versions_and_bytes(self, disk):
        for _, arrays, _, model in self.versions:
            entries = BlockMap(arrays)
            assert sorted(entries) == sorted(model)
            for block, entry in entries.items():
                out = read(MemoryStoreOf(disk, entry), block)
                assert_same(out, model[block])
        root = Path(self.directory.name) / "rows"
        files = list(root.rglob("c.*")) if root.exists() else []
        # What the last commits name, and nothing else, once everything since is committed.
        named = {(b, e) for _, arrays, _, _ in self.versions for b, e in BlockMap(arrays).items()}
        columns = sum(len(disk.generations[entry.generation].columns) for _, entry in named)
        assert len(files) == columns
        assert disk.bytes == sum(path.stat().st_size for path in files)

    def teardown(self):
        super().teardown()
        if hasattr(self, "directory"):
            self.directory.cleanup()


class MemoryStoreOf:
    """Reads one version of a block."""

    def __init__(self, disk, entry):
        self.disk, self.entry = disk, entry

    def read_block(self, block, out):
        self.disk.read_entry(block, self.entry, out)


TestMemoryMachine = MemoryMachine.TestCase
TestMemoryMachine.settings = machine_settings
TestDiskMachine = DiskMachine.TestCase
TestDiskMachine.settings = machine_settings


def test_a_generation_is_a_plain_zarr_group(tmp_path):
    disk = ZarrStore(DiskFiles(tmp_path), block=ROWS, dim=DIM, positions=18, dtype=np.float32)
    for block in range(5):
        disk.write_block(block, made_block(block))
    disk.sync()
    (generation,) = disk.generations.values()
    group = zarr.open_group(str(tmp_path / "rows" / generation.name), mode="r")
    assert group["weight"].shape == group["momentum"].shape == (18, DIM)
    weight = np.concatenate([made_block(block).weight for block in range(5)])[:18]
    last_step = np.concatenate([made_block(block).last_step for block in range(5)])[:18]
    assert group["weight"][:].tobytes() == weight.tobytes()
    assert (group["last_step"][:] == last_step).all()
    assert np.isnan(group["weight"].fill_value)
    # zarr's own checksum is in the file, so any reader notices damage.
    victim = tmp_path / "rows" / generation.name / "weight" / "c.1.0"
    content = bytearray(victim.read_bytes())
    content[3] ^= 1
    victim.write_bytes(content)
    with pytest.raises(ValueError, match="checksum"):
        group["weight"][:]


def test_a_block_of_zeros_is_on_the_disk(tmp_path):
    disk = make_disk(tmp_path)
    zeros = made_block(0)
    zeros.weight[:] = zeros.momentum[:] = 0
    zeros.last_step[:] = 0
    disk.write_block(1, zeros)
    assert_same(read(disk, 1), zeros)
    (momentum,) = (tmp_path / "rows").rglob("momentum/c.1.0")
    assert momentum.stat().st_size == ROWS * DIM * 4 + 4


def test_no_file_is_ever_written_twice(tmp_path):
    disk = make_disk(tmp_path)
    created = []
    real = disk.files._create
    disk.files._create = lambda path, parts: (created.append(path), real(path, parts))[1]
    for number in range(1, 6):
        for block in (0, 1, number % 2, 0):
            disk.write_block(block, made_block(number))
        disk.sync()
        disk.committed(number)
        disk.drop_before(number)
    assert len(created) == len(set(created))


def test_bfloat16_rounds_to_nearest_even_and_halves_the_bytes(tmp_path):
    block = made_block(3)
    half, full = make_disk(tmp_path / "half", bfloat16=True), make_disk(tmp_path / "full")
    half.write_block(0, block)
    full.write_block(0, block)
    got = read(half, 0)
    for name in ("weight", "momentum"):
        expected = torch.from_numpy(getattr(block, name)).to(torch.bfloat16).float().numpy()
        assert getattr(got, name).tobytes() == expected.tobytes()
        assert np.abs(getattr(got, name) / getattr(block, name) - 1).max() <= 2**-8
    assert (got.last_step == block.last_step).all()
    rows_bytes, fixed = ROWS * DIM * 4, ROWS * 8 + 3 * 4
    assert full.bytes == 2 * rows_bytes + fixed
    assert half.bytes == rows_bytes + fixed
    half.write_block(0, got)  # rounding twice is rounding once
    assert_same(read(half, 0), got)
    half.write_block(0, block, exact=True)
    assert_same(read(half, 0), block)


def test_writing_is_handed_over_and_bounded(tmp_path):
    disk = make_disk(tmp_path)
    gate, real = threading.Event(), disk.write_block
    disk.write_block = lambda *arguments: (gate.wait(), real(*arguments))[1]
    size = made_block(0).bytes
    store = WriteBehind(disk, limit_bytes=3 * size)
    waits, wait_for = [], store._condition.wait_for

    def wait_and_let_the_disk_move(*arguments):
        waits.append(arguments)
        time.sleep(0.1)
        gate.set()
        return wait_for(*arguments)

    store._condition.wait_for = wait_and_let_the_disk_move
    try:
        for block in range(3):
            store.write_block(block, made_block(block))  # returns at once: there is room
        assert store.host_bytes == 3 * size
        assert not disk.blocks()
        assert_same(read(store, 1), made_block(1))  # from memory
        store.write_for_checkpoint(8, made_block(8))  # a checkpoint's copy neither waits for room nor takes it
        assert store.waited_seconds == 0 and not waits
        assert store.host_bytes == 4 * size
        start = time.perf_counter()
        store.write_block(3, made_block(3))
        took = time.perf_counter() - start
        assert len(waits) == 1 and 0.1 <= store.waited_seconds <= took
    finally:
        gate.set()
    store.drain()
    assert store.host_bytes == 0
    for block in (0, 1, 2, 3, 8):
        assert_same(read(store, block), made_block(block))
    store.close()


@pytest.mark.parametrize("folded", [False, True])
def test_a_rounded_block_reads_the_same_before_and_after_it_is_on_the_disk(tmp_path, folded):
    disk = make_disk(tmp_path, bfloat16=True)
    gate, real = threading.Event(), disk.write_block
    disk.write_block = lambda *arguments: (gate.wait(10), real(*arguments))[1]
    store = WriteBehind(disk, limit_bytes=10**6)
    store.write_block(0, made_block(3, folded))
    store.write_block(1, made_block(3), exact=True)
    before = read(store, 0), read(store, 1)
    gate.set()
    store.drain()
    assert_same(read(store, 0), before[0])
    assert_same(read(store, 1), before[1])
    assert before[0].weight.tobytes() != before[1].weight.tobytes() == made_block(3).weight.tobytes()
    store.close()


def test_after_an_error_nothing_is_written_and_everyone_hears_of_it(tmp_path):
    disk = make_disk(tmp_path)
    real = disk.write_block

    def write_block(block, rows, exact=False):
        if block == 1:
            raise OSError(28, "No space left on device")
        real(block, rows, exact)

    disk.write_block = write_block
    store = WriteBehind(disk, limit_bytes=1)
    committed = []
    store.write_block(0, made_block(0))
    store.write_for_checkpoint(1, made_block(1))

    def write_on():
        for block in range(2, 6):
            store.write_block(block, made_block(block))
        store.submit(lambda: committed.append(1))
        store.drain()

    with pytest.raises(OSError, match="No space left"):
        write_on()
    for call in (lambda: store.submit(lambda: committed.append(1)), store.drain, store.check):
        with pytest.raises(OSError, match="No space left"):
            call()
    store.close()
    assert disk.blocks() == [0]
    assert not committed


def test_a_missing_block_is_an_error_and_never_a_fill_value(tmp_path):
    disk = make_disk(tmp_path)
    disk.write_block(4, made_block(4))
    (path,) = (tmp_path / "rows").rglob("momentum/c.4.0")
    path.unlink()
    with pytest.raises(Damaged, match=r"block 4 \(momentum\) of generation 000001-\w+ is missing"):
        read(disk, 4)


def test_checkpoints_need_room_for_one(tmp_path):
    with pytest.raises(AssertionError):
        Checkpoints(DiskFiles(tmp_path), WriteBehind(make_disk(tmp_path), 1, threaded=False), keep=0)


def test_no_block_costs_a_look_of_its_own(tmp_path, monkeypatch):
    looks = []
    real = os.lstat
    monkeypatch.setattr(engine_files.os, "lstat", lambda *a, **k: (looks.append(a), real(*a, **k))[1])
    disk = make_disk(tmp_path)
    disk.write_block(0, made_block(0))
    first = len(looks)
    for block in range(1, 20):
        disk.write_block(block, made_block(block))
    assert len(looks) == first
    again = make_disk(tmp_path)
    again.generations, again._map = disk.generations, disk._map
    read(again, 0)
    first = len(looks)
    for block in range(20):
        read(again, block)
    assert len(looks) == first
