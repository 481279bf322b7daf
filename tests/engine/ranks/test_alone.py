"""While rank 0 works alone the others wait, longer than the patience that they have with one another."""

import time

import pytest

from engine.ranks.alone import first_alone
from engine.ranks.ranks import Channel, Ranks
from tests.on_ranks import on_ranks

PATIENCE_SECONDS = 1.0


def work(ranks, seconds):
    """Who worked, and how long it took."""
    ranks.patience_seconds = PATIENCE_SECONDS
    began = time.monotonic()
    with first_alone(ranks) as is_alone:
        if is_alone:
            time.sleep(seconds)
    return is_alone, time.monotonic() - began, ranks.share(ranks.rank)


@pytest.mark.parametrize("count", [2, 3])
def test_the_others_wait_for_longer_than_their_patience(count):
    found = on_ranks(count, work, 3 * PATIENCE_SECONDS)
    assert [one[0] for one in found] == [True] + [False] * (count - 1)
    assert min(one[1] for one in found) >= 3 * PATIENCE_SECONDS
    assert all(one[2] == list(range(count)) for one in found)  # and go on together


def fails(ranks):
    ranks.patience_seconds = PATIENCE_SECONDS
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
