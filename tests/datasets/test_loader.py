"""The loader gives the same batches with any number of workers; places that cannot be filled stay empty."""

import time
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.batch import ImagesUnavailable, Unreadable
from datasets.given import GivenFeatures
from datasets.loader import Augmentation, StepDataset, batches
from datasets.parts import joined
from datasets.schedule import Schedule
from tests.datasets.fake_images import (
    GREY,
    PHOTOS,
    PLACES,
    FakeSchedule,
    FakeSource,
    assert_same,
    digest_of,
    grey_dataset,
)


@pytest.mark.parametrize("ranks", [2, 3, 6])
@pytest.mark.parametrize(("augment", "shape"), [(GREY, (32, 32)), (PHOTOS, (40, 50, 3))], ids=["grey", "photos"])
def test_the_parts_of_all_ranks_are_the_batch_of_one(augment: Augmentation, shape: tuple[int, ...], ranks: int) -> None:
    source, schedule = FakeSource(shape, broken=frozenset({95})), FakeSchedule()
    whole = StepDataset(source, schedule, augment, 1)
    named = []
    for step in range(8):
        want = whole[step]
        for rank in range(ranks):
            part = StepDataset(source, schedule, augment, 1, rank, ranks)[step]
            named += part.unreadable
            places = np.arange(rank, schedule.lanes, ranks)  # one place a lane
            whole_places = [places[one.place] for one in part.unreadable]
            assert whole_places == [one.place for one in want.unreadable if one.place in places]
            for name in ("positions_G", "ids_G", "filled_G"):
                np.testing.assert_array_equal(getattr(part, name), getattr(want, name)[places])
            for view, wanted in zip(part.views, want.views, strict=True):
                assert torch.equal(view, wanted[torch.from_numpy(places)])
    assert {(one.instance, one.name, one.reason) for one in named} == {(95, "photos/95.jpg", "truncated")}
    assert len(named) == sum(len(whole[step].unreadable) for step in range(8))


@pytest.mark.parametrize(("augment", "shape"), [(GREY, (32, 32)), (PHOTOS, (40, 50, 3))], ids=["grey", "photos"])
def test_same_batches_for_any_number_of_workers(augment: Augmentation, shape: tuple[int, ...]) -> None:
    dataset = StepDataset(FakeSource(shape, broken=frozenset({95})), FakeSchedule(), augment, 1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        here = list(batches(dataset, 0, 7, workers=0, pin=False))
        for workers in (1, 2, 3, 7):
            there = list(batches(dataset, 0, 7, workers=workers, pin=False))
            assert len(there) == len(here) == 7
            for one, other in zip(here, there, strict=True):
                assert_same(one, other)
    finally:
        torch.set_num_threads(before)
    assert any(batch.unreadable for batch in here)


@pytest.mark.parametrize(
    ("augment", "shape"),
    [(GREY, (32, 32)), (PHOTOS, (40, 50, 3)), (GivenFeatures(8, (True, False)), (32, 32))],
    ids=["grey", "photos", "given"],
)
def test_a_window_has_the_same_batches_for_0_1_2_and_4_workers_resumed_and_on_two_ranks(
    augment: Augmentation, shape: tuple[int, ...]
) -> None:
    schedule = Schedule(seed=3, size=150, window=64, stride=32, batch=16, block=4, lanes=4)
    source = FakeSource(shape, broken=frozenset(range(0, 150, 11)))
    steps = schedule.steps_per_window + 2
    dataset = StepDataset(source, schedule, augment, 5)
    here = [digest_of(batch) for batch in batches(dataset, 0, steps, 0, pin=False)]
    assert len(set(here)) == steps == 6
    for workers in (1, 2, 4):
        assert [digest_of(batch) for batch in batches(dataset, 0, steps, workers, pin=False)] == here
    assert [digest_of(batch) for batch in batches(dataset, 2, steps, 2, pin=False)] == here[2:]
    ranks = [
        list(batches(StepDataset(source, schedule, augment, 5, rank, 2), 0, steps, 2, pin=False)) for rank in (0, 1)
    ]
    places = np.arange(16).reshape(4, 4)
    for step in range(steps):
        whole = dataset[step]
        for rank in (0, 1):
            mine = places[rank::2].reshape(-1)
            for view, of_all in zip(ranks[rank][step].views, whole.views, strict=True):
                assert torch.equal(view, of_all[torch.from_numpy(mine)])
            np.testing.assert_array_equal(ranks[rank][step].ids_G, whole.ids_G[mine])


@given(st.integers(0, 7), st.integers(1, 9), st.sampled_from([(GREY, (32, 32)), (PHOTOS, (40, 50, 3))]))
@settings(max_examples=25, deadline=None)
def test_the_parts_of_a_batch_put_together_are_the_batch(
    step: int, parts: int, views: tuple[Augmentation, tuple[int, ...]]
) -> None:
    augment, shape = views
    dataset = StepDataset(FakeSource(shape, broken=frozenset({95, 90, 88})), FakeSchedule(), augment, 1)
    assert_same(joined([dataset.part(step, part, parts) for part in range(parts)]), dataset[step])


@pytest.mark.parametrize("workers", [0, 3])
def test_a_batch_says_how_much_was_read_for_it_and_what_it_took(workers: int) -> None:
    class Slow(FakeSource):
        def image(self, instance: int) -> np.ndarray:
            until = time.thread_time() + 0.004
            while time.thread_time() < until:
                pass
            return super().image(instance)

    dataset = StepDataset(Slow(broken=frozenset({95})), FakeSchedule(), GREY, 1)
    made = list(batches(dataset, 0, 8, workers, pin=False))
    for batch in made:
        assert batch.read_bytes == sum(1000 + instance for instance in batch.ids_G[batch.filled_G].tolist())
        assert batch.cpu_seconds > 0.004 * np.count_nonzero(batch.filled_G)
    assert any(batch.unreadable for batch in made)
    assert StepDataset(FakeSource(), FakeSchedule(), GivenFeatures(8, (True,)), 1)[0].read_bytes == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_starting_in_the_middle_gives_the_rest_of_the_run(workers: int) -> None:
    whole = list(batches(grey_dataset(), 0, 8, workers, pin=False))
    rest = list(batches(grey_dataset(), 5, 8, workers, pin=False))
    assert [batch.step for batch in whole] == list(range(8))
    for one, other in zip(whole[5:], rest, strict=True):
        assert_same(one, other)


def test_a_batch_is_the_augmented_images_of_its_instances() -> None:
    dataset = grey_dataset()
    step = next(step for step in range(100) if (FakeSchedule().positions(step) >= 0).all())
    batch = dataset[step]
    np.testing.assert_array_equal(batch.positions_G, FakeSchedule().positions(step))
    np.testing.assert_array_equal(batch.ids_G, 100 - batch.positions_G)
    assert batch.filled_G.all()
    assert batch.positions_G.dtype == batch.ids_G.dtype == np.int64
    expected = GREY.views([FakeSource().image(int(i)) for i in batch.ids_G], 1, step, batch.ids_G)
    assert all(map(torch.equal, batch.views, expected))


def test_empty_places_are_black_and_leave_the_others_in_place() -> None:
    step = next(step for step in range(100) if (FakeSchedule().positions(step) < 0).any())
    batch = grey_dataset()[step]
    empty_G = FakeSchedule().positions(step) < 0
    np.testing.assert_array_equal(batch.filled_G, ~empty_G)
    assert (batch.ids_G[empty_G] == -1).all()
    for view_GCHW, augmented in zip(
        batch.views,
        GREY.views([FakeSource().image(int(i)) for i in batch.ids_G[~empty_G]], 1, step, batch.ids_G[~empty_G]),
        strict=True,
    ):
        assert view_GCHW.shape == (PLACES, 1, 32, 32)
        assert not view_GCHW[torch.from_numpy(empty_G)].any()
        assert torch.equal(view_GCHW[torch.from_numpy(~empty_G)], augmented)


def test_a_batch_without_any_image_keeps_its_shape() -> None:
    source = FakeSource((40, 50, 3), broken=frozenset(range(101)))
    batch = StepDataset(source, FakeSchedule(), PHOTOS, 1)[0]
    assert [tuple(view.shape) for view in batch.views] == [(PLACES, 3, 24, 24)] + [(PLACES, 3, 16, 16)] * 2
    assert not batch.filled_G.any()
    assert len(batch.unreadable) == np.count_nonzero(FakeSchedule().positions(0) >= 0)


@pytest.mark.parametrize(("augment", "shape"), [(GREY, (32, 32)), (PHOTOS, (40, 50, 3))], ids=["grey", "photos"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_an_image_that_cannot_be_read_empties_its_place_is_named_and_changes_no_other(
    augment: Augmentation, shape: tuple[int, ...], count: int
) -> None:
    for step in range(4):
        whole = StepDataset(FakeSource(shape), FakeSchedule(), augment, 1)[step]
        places = np.flatnonzero(whole.filled_G)[-count:].tolist()
        broken = [int(whole.ids_G[place]) for place in places]
        batch = StepDataset(FakeSource(shape, broken=frozenset(broken)), FakeSchedule(), augment, 1)[step]
        assert batch.unreadable == [
            Unreadable(place, instance, f"photos/{instance}.jpg", "truncated")
            for place, instance in zip(places, broken, strict=True)
        ]
        assert (batch.ids_G[places] == -1).all() and (batch.positions_G[places] == -1).all()
        others = [other for other in range(PLACES) if other not in places]
        np.testing.assert_array_equal(batch.ids_G[others], whole.ids_G[others])
        np.testing.assert_array_equal(batch.filled_G, batch.ids_G >= 0)
        for view, whole_view in zip(batch.views, whole.views, strict=True):
            assert not view[places].any()
            assert torch.equal(view[others], whole_view[others])


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_not_the_fault_of_an_image_is_raised_and_empties_no_place(workers: int) -> None:
    class Unmounted(FakeSource):
        def image(self, instance: int) -> np.ndarray:
            raise ImagesUnavailable(f"photos/{instance}.jpg", "Transport endpoint is not connected")

    with pytest.raises(ImagesUnavailable, match="endpoint is not connected") as caught:
        list(batches(StepDataset(Unmounted(), FakeSchedule(), GREY, 1), 0, 3, workers, pin=False))
    assert caught.value.name.startswith("photos/")


def test_of_photos_one_at_a_time_is_held_decoded() -> None:
    held: set[int] = set()
    most: list[int] = []

    class Counted(FakeSource):
        def image(self, instance: int) -> np.ndarray:
            image = super().image(instance).copy()
            held.add(id(image))
            weakref.finalize(image, held.discard, id(image))
            most.append(len(held))
            return image

    class Wide(FakeSchedule):
        lanes = 4

        def positions(self, step: int) -> np.ndarray:
            return np.arange(64) % 18

    dataset = StepDataset(Counted((60, 80, 3), broken=frozenset({95})), Wide(), PHOTOS, 1)
    batch = dataset[0]
    assert len(most) == 64 - len(batch.unreadable) and batch.unreadable
    assert max(most) == 1
    assert not held


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs an accelerator")
@pytest.mark.parametrize("workers", [0, 2])
def test_pinned_batches_are_the_same_batches(workers: int) -> None:
    plain = list(batches(grey_dataset(), 0, 4, workers, pin=False))
    pinned = list(batches(grey_dataset(), 0, 4, workers, pin=True))
    for one, other in zip(plain, pinned, strict=True):
        assert_same(one, other)
        assert all(view.is_pinned() for view in other.views)
