"""While rank 0 works alone the others wait, longer than the patience that they have with one another."""

import threading
from types import SimpleNamespace

import pytest

from engine.ranks import alone as module
from engine.ranks.alone import first_alone
from engine.ranks.ranks import Channel, Ranks
from tests.on_ranks import on_ranks

PATIENCE_SECONDS = 0.2
ENOUGH = 5  # words that are said a quarter of the patience apart


def listen(ranks, on_word):
    """first_alone's channel tells on_word each word. It says that its patience is short; a rank that is late has the usual one."""

    def new_channel():
        channel = Channel(ranks.rank, ranks.size)
        channel.patience_seconds = PATIENCE_SECONDS
        real = channel.from_first

        def from_first(word):
            word = real(word)
            on_word(word)
            return word

        channel.from_first = from_first
        return channel

    ranks.new_channel = new_channel


def work(ranks):
    """Who worked, what was said in which order, and how long the speaker waited before each word."""
    told, waited, is_enough = [], [], threading.Event()

    def on_word(word):
        told.append(word)
        if told.count(True) == ENOUGH:
            is_enough.set()

    class Event(threading.Event):
        def wait(self, timeout=None):
            waited.append(timeout)
            return super().wait(timeout)

    listen(ranks, on_word)
    module.threading = SimpleNamespace(Event=Event, Thread=threading.Thread)
    with first_alone(ranks) as is_alone:
        if is_alone:
            assert is_enough.wait(60)
            told.append("worked")
    told.append("went on")
    return is_alone, told, waited, ranks.share(ranks.rank)


@pytest.mark.parametrize("count", [2, 3])
def test_the_others_wait_for_longer_than_their_patience(count):
    (is_alone, told, waited, together), *others = on_ranks(count, work)
    assert is_alone and told.count("worked") == 1 and told[-2:] == [False, "went on"]
    words = [word for word in told if word not in ("worked", "went on")]
    assert words == [True] * (len(words) - 1) + [False] and len(words) > ENOUGH
    # Each word in time, all of them longer than one may take.
    assert max(waited) < PATIENCE_SECONDS < sum(waited[:ENOUGH])
    for was_alone, heard, _, gathered in others:
        assert not was_alone and heard == [*words, "went on"]
        assert gathered == together == list(range(count))  # and go on together


def fails(ranks):
    with pytest.raises(RuntimeError, match="no room") if ranks.is_first else first_alone(ranks):
        if ranks.is_first:
            with first_alone(ranks):
                raise RuntimeError("no room")
    return ranks.share(ranks.rank)


def test_work_that_fails_lets_the_others_go():
    assert on_ranks(2, fails) == [[0, 1], [0, 1]]


def test_one_rank_says_nothing():
    alone = Channel()
    assert isinstance(alone, Channel) and not isinstance(alone, Ranks)
    with first_alone(alone) as is_alone:
        assert is_alone and alone.calls == 0
