"""What cannot be read: told once, counted once, and too much of it ends a run; a step of nothing changes nothing."""

import json
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.batch import Unreadable
from engine.disk.body import RunState
from engine.training.reading import EMPTY, FILLED, UNREADABLE, Reading, listed
from tests.engine.harness import (
    ALONE,
    Case,
    GivenFeatures,
    engine_step,
    errors,
    make_batch,
    make_engine,
    make_oracle,
    oracle_step,
    rows_of_engine,
)
from tests.on_ranks import on_ranks


def reading(**changed):
    return Reading(
        **{
            "places": 8,
            "max_share": 0.1,
            "steps_per_window": 4,
            "end": 100,
            "file_bytes": lambda instance: 10 * instance,
            **changed,
        }
    )


def places(*counts):
    """One rank's: so many filled, unreadable and empty places."""
    return np.repeat(np.array([FILLED, UNREADABLE, EMPTY], np.uint8), counts)[None]


def image(instance, place=0):
    return Unreadable(place, instance, f"{instance}.jpg", "not an image")


def test_as_many_as_the_limit_allows_are_skipped_and_one_more_ends_the_run():
    run = reading()
    assert [run.add(step, places(9, 1, 0), [image(step)]) for step in range(4)] == [None] * 4
    reason = None
    for step in range(4, 8):
        assert reason is None
        reason = run.add(step, places(8, 2, 0) if step == 5 else places(9, 1, 0), [image(step)])
    assert reason == "5 of 40 images of this window could not be read, more than data.max_unreadable (0.1) allows"


def test_a_folder_that_breaks_down_is_noticed_after_a_tenth_of_a_window():
    run = reading(steps_per_window=1000, end=10_000)
    found = [run.add(step, places(5, 5, 0), []) for step in range(300)]
    assert found.index(next(filter(None, found))) == 200  # 1,005 of the window's 10,000


def test_empty_places_of_a_ragged_end_are_no_images():
    run = reading(steps_per_window=1)
    assert run.add(0, places(0, 0, 10), []) is None
    assert run.add(1, places(20, 2, 78), []) is None
    assert "2 of 19 images" in run.add(2, places(17, 2, 81), [])


def test_one_image_is_always_allowed_unless_none_is():
    assert reading(steps_per_window=1).add(0, places(3, 1, 0), []) is None
    assert "2 of 4" in reading(steps_per_window=1).add(0, places(2, 2, 0), [])
    assert "1 of 4" in reading(steps_per_window=1, max_share=0.0).add(0, places(3, 1, 0), [])


def test_a_window_begins_with_a_clean_sheet():
    run = reading(max_share=0.5)
    assert run.add(3, places(4, 4, 0), []) is None
    assert run.add(4, places(3, 5, 0), []) is None
    assert run.add(5, places(4, 4, 0), []) is None
    assert run.add(6, places(4, 4, 0), []) is None
    assert "17 of 32" in run.add(7, places(4, 4, 0), [])


def test_a_run_that_is_cut_into_pieces_is_judged_as_a_whole_one():
    steps = [places(7, 1, 0), places(7, 1, 0), places(7, 1, 0), places(8, 0, 0)] * 2
    for end in range(1, 9):
        for cut in range(end):
            first = reading(max_share=0.1, end=cut)
            assert all(first.add(step, steps[step], []) is None for step in range(cut))
            second = reading(max_share=0.1, end=end)
            second.take_up(RunState.of(json.loads(json.dumps(first.state()))), images=8 * cut)
            assert all(second.add(step, steps[step], []) is None for step in range(cut, end)), (cut, end)


def test_a_run_in_which_nothing_was_read_is_not_finished():
    run = reading(max_share=1.0, end=2)
    assert run.add(0, places(0, 8, 0), []) is None
    assert run.add(1, places(0, 8, 0), []) == "none of the images of this run could be read"
    run = reading(max_share=1.0, end=2)
    assert run.add(0, places(1, 7, 0), []) is None
    assert run.add(1, places(0, 8, 0), []) is None


def test_three_steps_of_nothing_end_a_run_whatever_the_limit_is():
    run = reading(max_share=1.0, steps_per_window=1000)
    found = [run.add(step, places(1, 7, 0) if step == 2 else places(0, 8, 0), []) for step in range(6)]
    assert found == [None] * 5 + ["none of the images of 3 steps in a row could be read"]


def test_an_image_is_told_counted_and_listed_once_with_its_reason(tmp_path):
    @contextmanager
    def lines():
        with open(tmp_path / "list", "a", encoding="utf-8") as file:
            yield file

    run = reading(lines=lines, known={5: 50})
    run.add(0, places(6, 2, 0), [image(3), image(5)])
    run.add(1, places(6, 2, 0), [image(3), image(4)])
    assert run.report(ALONE) == [f"cannot read {i}.jpg: not an image; its place stays empty" for i in (3, 4)]
    assert run.report(ALONE) == []
    assert run.count == 3 and run.first_names() == ", ".join(f"{i}.jpg (not an image)" for i in (3, 5, 4))
    assert [json.loads(line)["name"] for line in (tmp_path / "list").read_text().splitlines()] == ["3.jpg", "4.jpg"]
    assert listed(tmp_path / "list") == {3: 30, 4: 40}


def test_a_list_that_is_broken_gives_what_can_be_read(tmp_path):
    path = tmp_path / "list"
    assert listed(path) == {}
    good = b'{"instance": 3, "bytes": 30}'
    bad = [
        b"[]",
        b"null",
        b'{"instance": "3", "bytes": 1}',
        b'{"instance": -1, "bytes": 1}',
        b"\xff",
        b'{"instance": 4',
        b"",
    ]
    path.write_bytes(b"\n".join([*bad, good, b'{"instance": true, "bytes": 1}', b"[" * 100_000]))
    assert listed(path) == {3: 30}


def told_by_ranks(ranks):
    run = reading(max_share=0.3)
    places_RP = np.array([[FILLED, FILLED, UNREADABLE], [UNREADABLE, FILLED, EMPTY]], np.uint8)
    own = [image(7)] if ranks.rank == 0 else [image(8)]
    return run.add(3, places_RP, own), run.report(ranks), run.count, run.first_names()


def test_ranks_decide_and_tell_alike():
    first, second = on_ranks(2, told_by_ranks)
    assert first == second
    assert "2 of 5 images" in first[0] and first[2:] == (2, "7.jpg (not an image), 8.jpg (not an image)")


@settings(max_examples=15, deadline=None)
@given(
    unread=st.dictionaries(st.integers(0, 30), st.sets(st.integers(0, 7), min_size=1), max_size=12),
    blind=st.sets(st.integers(0, 30), max_size=4),
)
def test_unreadable_places_are_empty_ones_and_a_step_of_nothing_changes_no_row(unread, blind):
    case = Case(views=2, rows_grad=(True, False), passes=1.0)
    unread = {**unread, **{step: set(range(case.batch)) for step in blind}}
    rows, oracle = make_engine(case), make_oracle(case)
    trunk = GivenFeatures(torch.float64, case.views, case.dim, case.seed)

    def batch_with_holes(case, step, lanes=None):
        batch = make_batch(case, step, lanes)
        for place in sorted(unread.get(step, ())):
            if batch.filled_G[place]:
                batch.unreadable.append(Unreadable(place, int(batch.ids_G[place]), "", ""))
                batch.positions_G[place] = batch.ids_G[place] = -1
        batch.filled_G = batch.ids_G >= 0
        return batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.engine.harness.make_batch", batch_with_holes)
        for step in range(min(case.steps, 40)):
            trunk.dz.clear()
            result = engine_step(case, rows, trunk, step)
            if batch_with_holes(case, step).filled_G.any():
                assert result.applied
                oracle_step(case, oracle, trunk, step)
            else:
                assert not trunk.dz and np.isnan(result.loss)
                assert (result.applied, result.finite, result.filled) == (False, True, 0)
    truth = oracle.rows.detach().numpy(), oracle.momentum.numpy()
    error_w, error_u = errors(case, *rows_of_engine(case, rows), *truth)
    assert error_w.max() <= 1e-12 and error_u.max() <= 1e-12
