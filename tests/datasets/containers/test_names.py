"""Names in one block of bytes behave as a list of bytes, and looking them up as a dict does."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.containers.names import Finder, Names, equal_groups

SOME = st.lists(st.binary(max_size=3), max_size=30)


@given(SOME)
def test_names_are_a_list_of_bytes(listed: list[bytes]) -> None:
    names = Names.of(listed)
    assert list(names) == [names[number] for number in range(len(names))] == listed
    assert list(names.take(np.arange(len(listed))[::2])) == listed[::2]


@given(SOME, SOME)
def test_a_name_is_found_where_a_list_has_it_first(listed: list[bytes], others: list[bytes]) -> None:
    found = Finder(Names.of(listed)).find(Names.of(others))
    assert found.tolist() == [listed.index(other) if other in listed else -1 for other in others]


@given(SOME)
def test_equal_names_are_in_groups(listed: list[bytes]) -> None:
    twin = [[n for n, other in enumerate(listed) if other == name] for name in dict.fromkeys(listed)]
    assert equal_groups(Names.of(listed)) == [numbers for numbers in twin if len(numbers) > 1]


def test_names_that_share_a_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Names, "hashes", lambda self: np.zeros(len(self), np.int64))
    names = Names.of([b"a", b"b", b"a", b"c"])
    assert Finder(names).find(Names.of([b"c", b"a", b"x"])).tolist() == [3, 0, -1]
    assert equal_groups(names) == [[0, 2]]
