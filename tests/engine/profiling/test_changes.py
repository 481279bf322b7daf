"""What would fit: each change alone, the cheapest first, or several together."""

from hypothesis import given
from hypothesis import strategies as st

from engine.profiling.changes import Change, enough

MIB = 2**20


def change(words: str, mib: int) -> Change:
    return Change(words, f"cost of {words}", {"host": mib * MIB, "device": 0})


def test_the_three_cheapest_of_those_that_are_enough_alone_are_told():
    changes = [
        change("a=1", 1),
        change("b=1", 300),
        change("c=1", 2),
        change("d=1", 200),
        change("e=1", 500),
        change("f=1", 900),
    ]
    found = enough(changes, "host", needed_bytes=1000 * MIB, limit_bytes=900 * MIB)
    assert [one.words for one in found] == ["b=1", "d=1", "e=1"]
    assert enough(changes, "device", 1000 * MIB, 900 * MIB) == []


def test_where_none_is_enough_the_cheapest_are_put_together():
    changes = [change("a=1", 60), change("b=1", 0), change("c=1", 60), change("d=1", 60)]
    (found,) = enough(changes, "host", needed_bytes=1000 * MIB, limit_bytes=940 * MIB)
    assert found.words == "a=1 c=1" and found.saved["host"] == 120 * MIB
    assert enough(changes, "host", needed_bytes=2000 * MIB, limit_bytes=940 * MIB) == []


@given(st.lists(st.integers(0, 2000), max_size=8), st.integers(1, 4000), st.integers(1, 4000))
def test_whatever_is_told_fits(saved, needed, limit):
    changes = [change(f"k{number}=1", mib) for number, mib in enumerate(saved)]
    found = enough(changes, "host", needed * MIB, limit * MIB)
    assert len(found) <= 3
    assert all(needed * MIB - one.saved["host"] <= limit * MIB for one in found)
    assert found or sum(saved) < needed * 1.05 - limit + 1e-6 or not any(saved)
