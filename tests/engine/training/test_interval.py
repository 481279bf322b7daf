"""What a line of metrics says of loader and chance, from what each rank counted."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.training.interval import chance_of, loader_figures

COUNTS = st.integers(1, 4).flatmap(
    lambda steps: st.lists(st.lists(st.integers(0, 10**6), min_size=steps, max_size=steps), min_size=1, max_size=4)
)


@given(COUNTS)
def test_chance_is_the_mean_over_the_steps_of_ln_of_the_rows_that_all_ranks_had(active_by_rank):
    totals = [sum(of_step) for of_step in zip(*active_by_rank, strict=True)]
    logs = [math.log(total) for total in totals if total]
    expected = sum(logs) / len(logs) if logs else 7.5
    assert chance_of(active_by_rank, 7.5) == pytest.approx(expected)


def test_a_method_whose_classes_never_change_keeps_its_chance():
    assert chance_of([[], []], 4.25) == 4.25


def test_what_loaders_did_is_added_up_and_the_longest_wait_is_told():
    one = {"images": 60, "cpu_seconds": 0.5, "read_bytes": 1000, "waited_seconds": 1.0}
    other = {"images": 40, "cpu_seconds": 1.5, "read_bytes": 500, "waited_seconds": 3.0}
    assert loader_figures([one, other], 4.0) == {
        "images": 100,
        "cpu_seconds": 2.0,
        "images_per_core_second": 50.0,
        "read_bytes": 1500,
        "waiting_share": 0.75,
    }
    assert loader_figures([{**one, "cpu_seconds": 0.0}], 4.0)["images_per_core_second"] is None
