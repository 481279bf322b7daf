"""Images kept in memory: decoded once, also for forked workers, and the same batches as without."""

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.batch import Batch, UnreadableImage
from datasets.cached import BESIDE_BYTES, CachedSource
from datasets.folder import ImageFolder
from datasets.grey import GreyAugment
from datasets.loader import StepDataset, batches
from datasets.schedule import Schedule
from datasets.source import Source

N = 18
STEPS = 6  # each instance twice


class Counted:
    """Every instance another noise image; those of `broken` cannot be read. Counts, over all forked processes, what it was asked for."""

    name, channels, notes = "counted", 1, ()

    def __init__(self, *broken: int, buggy: int = -1) -> None:
        self.broken, self.buggy = broken, buggy
        self.order: list[int] = []
        self._asked = multiprocessing.get_context("fork").Value("i", 0)

    @property
    def asked(self) -> int:
        return self._asked.value

    def image(self, instance: int) -> np.ndarray:
        self.order.append(instance)
        with self._asked.get_lock():
            self._asked.value += 1
        if instance in self.broken:
            raise UnreadableImage(f"photos/{instance}.jpg", "truncated")
        if instance == self.buggy:
            raise KeyError("no such font")
        return pixels(instance)

    def file_bytes(self, instance: int) -> int:
        return instance


def pixels(instance: int) -> np.ndarray:
    return np.random.default_rng(instance).integers(256, size=(32, 24), dtype=np.uint8)


def steps_of(source: object, workers: int = 0) -> list[Batch]:
    schedule = Schedule(seed=0, size=N, window=N, stride=N, batch=6, block=3, lanes=2)
    dataset = StepDataset(source, schedule, GreyAugment(view_count=1), 1)
    return list(batches(dataset, 0, STEPS, workers, pin=False))


def assert_same(some: list[Batch], others: list[Batch]) -> None:
    for one, other in zip(some, others, strict=True):
        assert all(map(torch.equal, one.views, other.views))
        np.testing.assert_array_equal(one.ids_G, other.ids_G)
        assert one.unreadable == other.unreadable


def test_an_image_is_decoded_once() -> None:
    source = Counted()
    cached = CachedSource(source)
    cached.fill(range(N))
    cached.fill(np.array([3, 4]))
    for _ in range(3):
        for instance in range(N):
            np.testing.assert_array_equal(cached.image(instance), pixels(instance))
    assert source.asked == N


def test_instances_are_decoded_in_the_order_given() -> None:
    source = Counted()
    CachedSource(source).fill(iter([5, 3, 9, 3, 1]))
    assert source.order == [5, 3, 9, 1]


def test_what_was_not_kept_is_the_sources() -> None:
    source = Counted()
    cached = CachedSource(source)
    assert source.asked == 0 and cached.bytes == 0
    cached.fill([3])
    for _ in range(2):
        np.testing.assert_array_equal(cached.image(9), pixels(9))
    assert source.order == [3, 9, 9]


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_share_what_was_kept(workers: int) -> None:
    source, plain = Counted(), Counted()
    cached = CachedSource(source)
    cached.fill(range(N))
    assert_same(steps_of(cached, workers), steps_of(plain))
    assert (source.asked, plain.asked) == (N, 2 * N)


def test_unreadable_images_are_not_kept() -> None:
    source = Counted(5, 9)
    cached = CachedSource(source)
    cached.fill(range(N))
    assert cached.bytes == (N - 2) * 32 * 24
    for times in (1, 2):
        with pytest.raises(UnreadableImage, match=r"photos/5\.jpg: truncated"):
            cached.image(5)
        assert source.asked == N + times
    assert_same(steps_of(cached), steps_of(Counted(5, 9)))


def test_a_bug_of_the_source_is_not_taken_for_an_unreadable_image() -> None:
    with pytest.raises(KeyError, match="no such font"):
        CachedSource(Counted(buggy=4)).fill(range(N))


def test_a_caller_may_write_into_what_it_gets_and_nobody_into_what_is_kept() -> None:
    cached = CachedSource(Counted())
    cached.fill([3])
    cached.image(3)[:] = 0
    np.testing.assert_array_equal(cached.image(3), pixels(3))
    assert not any(image.flags.writeable for image in cached._kept.values())


def test_bytes_are_those_of_the_pixels() -> None:
    cached = CachedSource(Counted())
    cached.fill([3, 4, 3])
    assert cached.bytes == 2 * 32 * 24


def test_everything_else_is_the_sources(tmp_path: Path) -> None:
    for name, value in (("b/two", 1), ("a/one", 2), ("b/three", 3)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 3), (value, 0, 0)).save(tmp_path / f"{name}.png")
    folder = ImageFolder(tmp_path, "folders")
    cached: Source = CachedSource(folder)
    assert (len(cached), cached.name, cached.channels) == (3, folder.name, 3)
    assert [cached.instance_name(i) for i in range(3)] == [folder.instance_name(i) for i in range(3)]
    np.testing.assert_array_equal(cached.labels(), folder.labels())
    assert (cached.fingerprint(), cached.fingerprint(2)) == (folder.fingerprint(), folder.fingerprint(2))
    cached.save_index(tmp_path / "ours")
    folder.save_index(tmp_path / "theirs")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def folder(root: Path) -> ImageFolder:
    for number in range(6):
        (root / "images").mkdir(exist_ok=True)
        Image.new("RGB", (40 + number, 30), (number, 9, 9)).save(root / "images" / f"{number}.png")
    (root / "images" / "3.png").write_bytes(b"<html>")
    return ImageFolder(root / "images")


def test_files_are_kept_as_they_are_and_decoded_at_each_visit(tmp_path: Path) -> None:
    plain = folder(tmp_path)
    cached = CachedSource(plain, is_encoded=True)
    cached.fill(range(6))
    assert cached.bytes == sum(path.stat().st_size for path in (tmp_path / "images").iterdir())
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    for number in (0, 1, 2, 4, 5):
        assert cached.image(number).shape == (30, 40 + number, 3) and cached.image(number)[0, 0, 0] == number
    with pytest.raises(UnreadableImage, match=r"3\.png: not an image"):
        cached.image(3)
    with pytest.raises(ValueError, match="counted has no encoded images"):
        CachedSource(Counted(), is_encoded=True)


def test_what_does_not_fit_is_read_at_each_visit_and_counted() -> None:
    source = Counted()
    cached = CachedSource(source, most_bytes=4 * (32 * 24 + BESIDE_BYTES) + 1)
    cached.fill(range(N))
    assert cached.bytes == 4 * 32 * 24 and cached.left_over == N - 4
    for _ in range(2):
        for instance in range(N):
            np.testing.assert_array_equal(cached.image(instance), pixels(instance))
    assert source.asked == 5 + 2 * (N - 4)
