"""What every store of blocks must do: one class of tests, subclassed per store (tests/engine/disk/test_stores.py).

A subclass makes the store and says what the bytes under it are, so that a test can look beside the store.
"""

import time

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.rows.store import Block, empty_block

ROWS, DIM = 4, 3


def made_block(seed, folded=False):
    """A block of numbers that depend on the seed; special values among them."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((ROWS, DIM), dtype=np.float32)
    weight[0, 0] = [0.0, -0.0, np.float32(1e-42), np.float32(3e38)][seed % 4]
    momentum = None if folded else rng.standard_normal((ROWS, DIM), dtype=np.float32)
    last_step = rng.integers(0, 10**12, ROWS)
    return Block(weight, momentum, -2 - last_step if folded else last_step)


def read(store, block):
    out = empty_block(ROWS, DIM, np.float32)
    out.weight[:], out.momentum[:], out.last_step[:] = 7, 7, 7
    store.read_block(block, out)
    return out


def assert_same(got, wrote):
    """To the bit: the sign of a zero counts."""
    momentum = np.zeros_like(wrote.weight) if wrote.momentum is None else wrote.momentum
    assert got.weight.tobytes() == wrote.weight.tobytes()
    assert got.momentum.tobytes() == momentum.tobytes()
    assert got.last_step.tolist() == wrote.last_step.tolist()


class StoreContract:
    """Subclasses have a fixture `store`."""

    def test_a_block_comes_back_to_the_bit(self, store):
        for block in (0, 1, 17, 2**40):
            store.write_block(block, made_block(block))
        for block in (2**40, 0, 17, 1):
            assert store.holds(block)
            assert_same(read(store, block), made_block(block))

    def test_the_latest_version_counts(self, store):
        for version in range(5):
            store.write_block(3, made_block(version))
            assert_same(read(store, 3), made_block(version))

    def test_a_folded_block_comes_back_with_momentum_zero(self, store):
        store.write_block(3, made_block(1, folded=True))
        assert_same(read(store, 3), made_block(1, folded=True))
        store.write_block(3, made_block(2))
        assert_same(read(store, 3), made_block(2))

    def test_the_store_keeps_a_copy(self, store):
        block = made_block(1)
        store.write_block(7, block)
        block.weight[:] = block.momentum[:] = 5
        block.last_step[:] = 5
        assert_same(read(store, 7), made_block(1))
        read(store, 7).weight[:] = 9
        assert_same(read(store, 7), made_block(1))

    def test_blocks_are_listed_in_order_and_others_are_not_held(self, store):
        assert store.blocks() == []
        for block in (9, 2, 5, 2):
            store.write_block(block, made_block(block))
        assert store.blocks() == [2, 5, 9]
        assert not store.holds(3)

    def test_checks_are_those_of_the_blocks_as_they_are_kept(self, store):
        assert store.checks().tolist() == []
        wrote = {9: made_block(9), 2: made_block(2), 2**40: made_block(3, folded=True), 5: made_block(4)}
        for block, rows in wrote.items():
            store.write_block(block, made_block(1))
            store.write_block(block, rows)
        found = store.checks()
        assert found["block"].tolist() == sorted(wrote)
        assert found["checks"].tolist() == [list(wrote[block].checks()) for block in sorted(wrote)]
        zeros = Block(
            made_block(3, folded=True).weight, np.zeros((ROWS, DIM), np.float32), made_block(3, True).last_step
        )
        assert wrote[2**40].checks() == zeros.checks()  # a momentum that is missing counts as zeros

    def test_an_exact_write_is_exact(self, store):
        store.write_block(1, made_block(1), exact=True)
        assert_same(read(store, 1), made_block(1))
        store.write_for_checkpoint(1, made_block(2))
        assert_same(read(store, 1), made_block(2))

    def test_its_bytes_grow_with_its_blocks(self, store):
        sizes = []
        for block in range(3):
            store.write_block(block, made_block(block))
            self.settle(store)
            sizes.append(store.bytes)
        assert sizes[1] - sizes[0] == sizes[2] - sizes[1] >= made_block(0).bytes
        assert store.host_bytes in (0, store.bytes)

    def test_it_counts_what_it_writes_and_for_how_long(self, store):
        assert (store.blocks_written, store.write_seconds) == (0, 0.0)
        before = time.perf_counter()
        for block in (0, 1, 0):
            store.write_block(block, made_block(block))
        store.write_for_checkpoint(2, made_block(2))
        self.settle(store)
        assert (store.blocks_written, store.blocks_stored) == (4, 3)
        assert 0 < store.write_seconds < time.perf_counter() - before

    @staticmethod
    def settle(store):
        """Wait until nothing is on its way."""


class StoreMachine(RuleBasedStateMachine):
    """Random writes, reads, commits and restarts against a dict. Subclasses give `make`, `commit` and `restart`."""

    blocks = st.integers(0, 5)

    @initialize()
    def start(self):
        self.store = self.make()
        self.model: dict[int, Block] = {}
        self.committed: dict[int, Block] = {}
        self.seed = 0

    @rule(block=blocks, folded=st.booleans(), exact=st.booleans())
    def write(self, block, folded, exact):
        self.seed += 1
        rows = made_block(self.seed, folded)
        self.store.write_block(block, rows, exact=exact)
        self.model[block] = rows

    @rule(block=blocks)
    def write_for_checkpoint(self, block):
        self.seed += 1
        self.store.write_for_checkpoint(block, made_block(self.seed))
        self.model[block] = made_block(self.seed)

    @rule(block=blocks)
    def read(self, block):
        assert self.store.holds(block) == (block in self.model)
        if block in self.model:
            assert_same(read(self.store, block), self.model[block])

    @rule()
    def commit_all(self):
        self.commit()
        self.committed = dict(self.model)

    @precondition(lambda self: self.can_restart)
    @rule()
    def restart_from_the_last_commit(self):
        self.restart()
        self.model = dict(self.committed)

    @invariant()
    def the_same_blocks_are_held(self):
        if hasattr(self, "store"):
            assert self.store.blocks() == sorted(self.model)
            assert self.store.blocks_stored == len(self.model)

    can_restart = True

    def teardown(self):
        for block, rows in getattr(self, "model", {}).items():
            assert_same(read(self.store, block), rows)


machine_settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
slow = pytest.mark.timeout(120)
