"""Words have a limit of their own, and whoever is waited for in vain is known by what it has begun."""

import time

from engine.ranks.ranks import Channel, of_the_wire
from tests.on_ranks import on_ranks

PATIENCE_SECONDS = 4.0  # in which all have to make the channel, too


def hear_from_one_that_is_busy(ranks):
    """(calls of this rank, seconds until it gave up, whether that is an error of the wire); rank 0 is busy until the others gave up."""
    ranks.wait()
    channel = Channel(ranks.rank, ranks.size, patience_seconds=PATIENCE_SECONDS)
    found = channel.calls, None, None
    if not ranks.is_first:
        began = time.monotonic()
        try:
            channel.from_first(None)
        except RuntimeError as error:
            found = channel.calls, time.monotonic() - began, of_the_wire(error)
        else:
            raise AssertionError("rank 0 said nothing")
    ranks.wait()
    return found


def test_a_rank_that_says_nothing_for_too_long_is_given_up_and_has_begun_fewer_exchanges():
    busy, *others = on_ranks(3, hear_from_one_that_is_busy)
    assert busy == (0, None, None)
    for calls, _, is_of_the_wire in others:
        assert calls == 1 and is_of_the_wire
    assert max(seconds for _, seconds, _ in others) >= PATIENCE_SECONDS  # the first to give up may take another along


def test_patience_is_that_of_the_channels_of_other_threads_too():
    assert on_ranks(2, patience_of_a_new_channel) == [7200.0, 7200.0]


def patience_of_a_new_channel(ranks):
    return ranks.new_channel().patience_seconds
