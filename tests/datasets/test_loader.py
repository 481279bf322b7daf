"""The loader: the same batches with any number of workers, places that stay empty, errors that can be read, processes that go away."""

import contextlib
import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.batch import Batch, ImagesUnavailable, Unreadable, UnreadableImage
from datasets.given import GivenFeatures
from datasets.grey import GreyAugment
from datasets.keyed import keyed, shuffle
from datasets.loader import Augmentation, StepDataset, batches
from datasets.parts import joined
from datasets.photos import Crop, PhotoAugment
from datasets.schedule import Schedule

PLACES = 6
REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class FakeSource:
    """Every instance another noise image; instances in `broken` cannot be read, those in `buggy` meet a bug."""

    shape: tuple[int, ...] = (32, 32)
    broken: frozenset[int] = frozenset()
    buggy: frozenset[int] = frozenset()
    pause_seconds: float = 0.0

    def image(self, instance: int) -> np.ndarray:
        time.sleep(self.pause_seconds)
        if instance in self.broken:
            raise UnreadableImage(f"photos/{instance}.jpg", "truncated")
        if instance in self.buggy:
            raise KeyError("no such font")
        return (
            (keyed(7, instance, np.arange(np.prod(self.shape))) >> np.uint64(56)).astype(np.uint8).reshape(self.shape)
        )

    def file_bytes(self, instance: int) -> int:
        return 1000 + instance


class FakeSchedule:
    """Six places a step in six lanes, out of 20 positions; position p holds instance 100 - p, but 18 and 19 are empty."""

    lanes = 6

    def positions(self, step: int) -> np.ndarray:
        positions = shuffle(step, 20)[:PLACES]
        return np.where(positions < 18, positions, -1)

    def instances(self, positions_B: np.ndarray) -> np.ndarray:
        assert (positions_B >= 0).all()
        return 100 - positions_B


GREY = GreyAugment(view_count=2)
PHOTOS = PhotoAugment(crops=(Crop(24, 1, (0.3, 1.0)), Crop(16, 2, (0.1, 0.3), rows_grad=False)))


def grey_dataset(**source: object) -> StepDataset:
    return StepDataset(FakeSource(**source), FakeSchedule(), GREY, seed=1)


def assert_same(one: Batch, other: Batch) -> None:
    assert one.step == other.step
    assert len(one.views) == len(other.views)
    assert all(map(torch.equal, one.views, other.views))
    for name in ("positions_G", "ids_G", "filled_G"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.unreadable == other.unreadable
    assert one.read_bytes == other.read_bytes


def digest_of(batch: Batch) -> str:
    """Of all that a step sees."""
    digest = hashlib.sha256()
    for array in (*(view.numpy() for view in batch.views), batch.positions_G, batch.ids_G, batch.filled_G):
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    digest.update(repr(batch.unreadable).encode())
    return digest.hexdigest()


@contextlib.contextmanager
def running(body: str) -> Iterator[subprocess.Popen]:
    """Python on a script that has this module's names, in a process group of its own; warnings are errors there too."""
    script = f"from tests.datasets.test_loader import *\n{body}"
    process = subprocess.Popen(
        [sys.executable, "-u", "-W", "error", "-c", script],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        # Where the test failed, the script or its workers may hang.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for_line(process: subprocess.Popen, line: str) -> None:
    assert process.stdout is not None
    while (read := process.stdout.readline()) != f"{line}\n":
        assert read, f"the script ended before it printed {line}"


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


def test_a_bug_in_a_worker_surfaces_with_its_type_and_traceback() -> None:
    dataset = grey_dataset(buggy=frozenset(range(101)))
    with pytest.raises(KeyError, match="no such font") as caught:
        list(batches(dataset, 0, 6, workers=2, pin=False))
    assert "in image" in caught.value.__notes__[0]
    assert multiprocessing.active_children() == []


def test_no_workers_means_no_processes() -> None:
    with contextlib.closing(batches(grey_dataset(), 0, 6, workers=0, pin=False)) as stream:
        next(stream)
        assert multiprocessing.active_children() == []


def test_workers_are_forked_before_the_first_batch_is_asked_for() -> None:
    with contextlib.closing(batches(grey_dataset(), 0, 6, workers=2, pin=False)):
        assert len(multiprocessing.active_children()) == 2


@pytest.mark.parametrize("taken", [0, 1, 6])
def test_closing_the_iterator_ends_its_workers(taken: int) -> None:
    stream = batches(grey_dataset(), 0, 6, workers=2, pin=False)
    for _ in range(taken):
        next(stream)
    stream.close()
    assert multiprocessing.active_children() == []


def test_no_steps_give_no_batches() -> None:
    assert list(batches(grey_dataset(), 4, 4, workers=2, pin=False)) == []
    assert multiprocessing.active_children() == []


def test_the_global_generator_stays_where_it_is() -> None:
    before = torch.get_rng_state()
    list(batches(grey_dataset(), 0, 3, workers=2, pin=False))
    list(batches(grey_dataset(), 0, 3, workers=0, pin=False))
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_do_not_hang_after_the_parent_has_used_its_threads() -> None:
    # In a process of its own: a hang there is a failure here, and the parent's threads surely exist at the fork.
    script = (
        "torch.set_num_threads(4)\n"
        "big = torch.rand(1500, 1500)\n"
        "for _ in range(3): (big @ big).exp_().sum()\n"
        "assert len(os.listdir('/proc/self/task')) >= 4\n"
        # Enough places that a worker with four threads would open parallel regions.
        "class Wide(FakeSchedule):\n"
        "    lanes = 5\n"
        "    def positions(self, step): return np.arange(500) % 18\n"
        "dataset = StepDataset(FakeSource(), Wide(), GREY, 1)\n"
        "print(len(list(batches(dataset, 0, 6, workers=2, pin=False))))\n"
        "(big @ big).sum()\n"
    )
    with running(script) as process:
        output, errors = process.communicate(timeout=60)
        assert (process.returncode, output, errors) == (0, "6\n", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_all_processes_leaves_the_parent_its_batches(number: signal.Signals) -> None:
    script = (
        # Forked before the parent's handlers are set, so that the workers do not inherit those.
        "stream = batches(grey_dataset(pause_seconds=0.005), 0, 10**9, workers=2, pin=False)\n"
        "stopping = []\n"
        "signal.signal(signal.SIGINT, lambda *_: stopping.append(1))\n"
        "signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))\n"
        "signal.signal(signal.SIGHUP, lambda *_: stopping.append(1))\n"
        "left = 20\n"
        "for batch in stream:\n"
        "    print(batch.step)\n"
        "    left -= bool(stopping)\n"
        "    if not left: break\n"
        "stream.close()\n"
        "print('left', len(multiprocessing.active_children()))\n"
    )
    with running(script) as process:
        wait_for_line(process, "5")
        os.killpg(process.pid, number)
        output, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")
        lines = output.split()
        assert lines[-2:] == ["left", "0"]
        steps = [int(line) for line in lines[:-2]]
        # What came in one piece with the line that was waited for, communicate does not see.
        assert steps[0] >= 6 and steps == list(range(steps[0], steps[0] + len(steps)))
        # Twenty batches after the signal, of which step 5, if it was still at work, is the first.
        assert len(steps) >= 19


def test_an_interrupt_that_is_not_caught_ends_the_workers_while_it_travels() -> None:
    script = (
        "try:\n"
        "    with contextlib.closing(batches(grey_dataset(pause_seconds=0.05), 0, 10**9, 2, pin=False)) as stream:\n"
        "        for batch in stream: print(batch.step)\n"
        "except KeyboardInterrupt as error:\n"
        "    print('left', len(multiprocessing.active_children()))\n"
    )
    with running(script) as process:
        wait_for_line(process, "3")
        os.killpg(process.pid, signal.SIGINT)
        output, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")
        assert output.endswith("left 0\n")


def test_a_program_that_forgets_to_close_still_ends() -> None:
    script = "stream = batches(grey_dataset(), 0, 10**9, workers=2, pin=False)\nprint(next(stream).step)\n"
    with running(script) as process:
        output, errors = process.communicate(timeout=60)
        assert (process.returncode, output, errors) == (0, "0\n", "")


def test_workers_end_when_their_parent_is_killed() -> None:
    script = (
        "stream = batches(grey_dataset(), 0, 10**9, workers=2, pin=False)\n"
        "print(*(child.pid for child in multiprocessing.active_children()))\n"
        "for batch in stream: pass\n"
    )
    with running(script) as process:
        assert process.stdout is not None
        workers = [int(word) for word in process.stdout.readline().split()]
        assert len(workers) == 2
        process.kill()
        process.wait()
        deadline = time.monotonic() + 60
        while alive := [pid for pid in workers if runs(pid)]:
            assert time.monotonic() < deadline, f"workers {alive} outlive their parent"
            time.sleep(0.1)


def runs(pid: int) -> bool:
    """Whether a process exists and is not a zombie that nobody has collected yet."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs an accelerator")
@pytest.mark.parametrize("workers", [0, 2])
def test_pinned_batches_are_the_same_batches(workers: int) -> None:
    plain = list(batches(grey_dataset(), 0, 4, workers, pin=False))
    pinned = list(batches(grey_dataset(), 0, 4, workers, pin=True))
    for one, other in zip(plain, pinned, strict=True):
        assert_same(one, other)
        assert all(view.is_pinned() for view in other.views)
