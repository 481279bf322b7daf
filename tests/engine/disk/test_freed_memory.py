"""What was freed between things that are still there is resident no more."""

import os

from engine.disk.freed_memory import give_back_freed_memory
from engine.ranks.process_table import resident_bytes


def test_pieces_freed_below_one_that_is_kept_are_given_back():
    pieces = [os.urandom(60_000) for _ in range(1000)]
    kept = pieces[-1]
    give_back_freed_memory()
    before = resident_bytes(os.getpid())
    del pieces
    give_back_freed_memory()
    assert before - resident_bytes(os.getpid()) > 30e6 and len(kept) == 60_000
