"""Whose fault it is that something cannot be read: the machine's, or the file's own."""

import errno
import os
from pathlib import Path

import pytest
from PIL import ImageFile

from datasets import regular_file
from datasets.batch import ImagesUnavailable, UnreadableImage
from datasets.folder import ImageFolder
from tests.datasets.faulty_reads import MACHINES, Pauses, fails, save


@pytest.mark.parametrize("number", MACHINES)
@pytest.mark.parametrize("call", ["open", "read"])
def test_an_error_of_the_machine_is_tried_again_and_then_ends_the_run(
    folder: ImageFolder, monkeypatch: pytest.MonkeyPatch, pauses: Pauses, number: int, call: str
) -> None:
    fails(monkeypatch, call, number)
    with pytest.raises(ImagesUnavailable) as error:
        folder.image(1)
    assert str(error.value) == f"cannot read cat/b.png: {os.strerror(number)}"
    assert pauses == list(regular_file.PAUSES_SECONDS)
    assert 1.5 < sum(pauses) < 3
    assert pauses == sorted(pauses)


@pytest.mark.parametrize("call", ["open", "read"])
def test_what_the_machine_gives_at_the_second_try_is_the_image(
    folder: ImageFolder, monkeypatch: pytest.MonkeyPatch, pauses: Pauses, call: str
) -> None:
    fails(monkeypatch, call, errno.ESTALE, times=2)
    assert folder.image(1)[0, 0].tolist() == [10, 20, 30]
    assert len(pauses) == 2


@pytest.mark.parametrize("number", [errno.EIO, errno.EUCLEAN, errno.EBADMSG])
def test_a_file_that_fails_twice_while_others_come_is_unreadable_and_others_are_read_on(
    folder: ImageFolder, monkeypatch: pytest.MonkeyPatch, pauses: Pauses, number: int
) -> None:
    fails(monkeypatch, "open", number, of="b.png")
    for _ in range(2):
        pauses.clear()
        with pytest.raises(UnreadableImage) as error:
            folder.image(1)
        assert error.value.name == "cat/b.png"
        assert error.value.reason == f"{os.strerror(number)}, twice, while other images come"
        assert pauses == [0.1]
    assert folder.image(2).shape == (4, 6, 3)


def test_a_sector_that_is_read_at_the_second_try_is_an_image(
    folder: ImageFolder, monkeypatch: pytest.MonkeyPatch, pauses: Pauses
) -> None:
    fails(monkeypatch, "open", errno.EIO, times=1, of="b.png")
    assert folder.image(1)[0, 0].tolist() == [10, 20, 30]
    assert pauses == [0.1]


def test_a_sector_in_the_middle_of_a_file_is_found_where_it_is_read(
    folder: ImageFolder, monkeypatch: pytest.MonkeyPatch, pauses: Pauses
) -> None:
    """The first byte comes, and what is read of others comes too."""
    real = os.read

    def read(descriptor: int, size: int) -> bytes:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("b.png") and size > 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(descriptor, size)

    monkeypatch.setattr(os, "read", read)
    with pytest.raises(UnreadableImage, match="Input/output error, twice"):
        folder.image(1)


def test_a_disk_that_fails_for_all_and_a_file_without_witnesses_end_the_run(
    folder: ImageFolder, monkeypatch: pytest.MonkeyPatch, pauses: Pauses, tmp_path: Path
) -> None:
    (tmp_path / "one").mkdir()
    save(tmp_path / "one" / "b.png")
    alone = ImageFolder(tmp_path / "one")
    fails(monkeypatch, "read", errno.EIO)
    for source in (folder, alone):
        with pytest.raises(ImagesUnavailable, match="Input/output error"):
            source.image(0)
    monkeypatch.undo()
    monkeypatch.setattr(regular_file.time, "sleep", pauses.append)
    fails(monkeypatch, "open", errno.EIO, of="b.png")
    with pytest.raises(ImagesUnavailable, match="Input/output error"):
        alone.image(0)


def test_a_disk_that_goes_between_two_failures_is_not_the_files_fault(
    folder: ImageFolder, monkeypatch: pytest.MonkeyPatch, pauses: Pauses
) -> None:
    answers = iter([True, False, True, False, False])
    monkeypatch.setattr("datasets.indexed.any_answers", lambda _: next(answers))
    fails(monkeypatch, "open", errno.EIO)
    with pytest.raises(ImagesUnavailable):
        folder.image(1)
    assert len(pauses) == len(regular_file.PAUSES_SECONDS)


def test_witnesses_are_read_from_the_disk_at_any_offset_and_need_a_byte_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = os.fsencode(tmp_path / "a")
    Path(os.fsdecode(path)).write_bytes(bytes(200_000))
    dropped: list[tuple[int, int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, *advice: dropped.append(advice))
    before = len(os.listdir("/proc/self/fd"))
    assert regular_file.any_answers([(path, 0)])
    assert regular_file.any_answers([(b"/nowhere", 0), (path, 199_999)])
    assert not regular_file.any_answers([(path, 200_000)])
    assert not regular_file.any_answers([])
    assert not regular_file.any_answers([(os.fsencode(tmp_path), 0)])
    assert [
        (start <= place < start + length, how)
        for place, (start, length, how) in zip((0, 199_999), dropped, strict=False)
    ] == [(True, os.POSIX_FADV_DONTNEED)] * 2
    assert len(os.listdir("/proc/self/fd")) == before


def test_no_memory_to_decode_is_the_machines(
    folder: ImageFolder, monkeypatch: pytest.MonkeyPatch, pauses: Pauses
) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", full)
    with pytest.raises(ImagesUnavailable, match=r"cat/a\.png: out of memory"):
        folder.image(0)
    assert len(pauses) == len(regular_file.PAUSES_SECONDS)


@pytest.mark.parametrize(
    "number", [errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO, errno.EISDIR]
)
def test_what_is_the_files_own_fault_is_not_waited_for(
    folder: ImageFolder, monkeypatch: pytest.MonkeyPatch, pauses: Pauses, number: int
) -> None:
    fails(monkeypatch, "open", number)
    with pytest.raises(UnreadableImage) as error:
        folder.image(2)
    assert (error.value.name, error.value.reason) == ("cat/c.png", os.strerror(number))
    assert not pauses


def test_a_root_that_vanished_is_not_the_fault_of_its_images(folder: ImageFolder, pauses: Pauses) -> None:
    folder.root.rename(folder.root.with_name("elsewhere"))
    with pytest.raises(ImagesUnavailable, match=r"cat/a\.png: data.root \(.*root\) is gone, or another directory"):
        folder.image(0)
    folder.root.mkdir()  # the place where a disk was mounted, say
    with pytest.raises(ImagesUnavailable, match="is gone, or another directory lies there now"):
        folder.image(0)
    folder.root.rmdir()
    folder.root.with_name("elsewhere").rename(folder.root)
    assert folder.image(0).shape == (4, 6, 3)


def test_a_root_that_comes_back_in_time_is_read_on(folder: ImageFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = folder.root.with_name("elsewhere")
    folder.root.rename(elsewhere)
    monkeypatch.setattr(regular_file.time, "sleep", lambda _: elsewhere.exists() and elsewhere.rename(folder.root))
    assert folder.image(0).shape == (4, 6, 3)


def test_a_file_that_is_removed_alone_is_unreadable(folder: ImageFolder, pauses: Pauses) -> None:
    (folder.root / "cat" / "b.png").unlink()
    with pytest.raises(UnreadableImage, match=r"cat/b\.png: No such file"):
        folder.image(1)
    assert folder.image(2).shape == (4, 6, 3)


def test_a_process_may_change_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "root" / "a.png")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    folder = ImageFolder(Path("root"))
    monkeypatch.chdir(tmp_path / "other")
    assert folder.image(0).shape == (4, 6, 3)
