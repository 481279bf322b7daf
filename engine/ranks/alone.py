"""Rank 0 works alone, for as long as it takes, and the others wait until it has done.

An exchange of words has `patience_seconds`, so that a rank that does not come is noticed. Here nobody is late: a thread of rank 0 says
several times within that time that the work goes on. A rank 0 that dies is noticed as ever (engine/ranks/watch.py); one whose work never
ends is waited for, for ever.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from engine.ranks.ranks import Channel, Ranks

_SAYS = 4  # times within the patience


@contextmanager
def first_alone(ranks: Ranks) -> Iterator[bool]:
    """Whether this rank is to work: True at rank 0, at once; False at the others, when rank 0 has left the block. All ranks call it."""
    if ranks.size == 1:
        yield True
        return
    channel = ranks.new_channel()
    if not ranks.is_first:
        while channel.from_first(None):
            pass
        yield False
        return
    done = threading.Event()
    speaker = threading.Thread(target=_say, args=(channel, done), name="still at work", daemon=True)
    speaker.start()
    try:
        yield True
    finally:
        done.set()
        speaker.join()


def _say(channel: Channel, done: threading.Event) -> None:
    """True until the work is done, then False, to the others."""
    is_done = False
    with suppress(RuntimeError):  # one of the others is gone; the watch tells it
        while not is_done:
            is_done = done.wait(channel.patience_seconds / _SAYS)
            channel.from_first(not is_done)
