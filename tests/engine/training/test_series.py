"""Numbers of steps: what was read stays as it was, whatever comes."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.training.series import Series


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(allow_nan=False), max_size=40), st.integers(0, 3000))
def test_a_series_is_the_list_of_what_was_appended_and_its_views_stay(first, more):
    series, plain = Series(np.array(first)), list(first)
    views = []
    for number in range(more):
        if number % 500 == 0:
            views.append((series[:], list(plain)))
        series.append(float(number))
        plain.append(float(number))
    assert len(series) == len(plain) and series[:].tolist() == plain and series[-7:].tolist() == plain[-7:]
    assert all(view.tolist() == before for view, before in views)
    assert series.bytes >= 8 * len(plain)
