"""The bytes of a member: what its own fault is and what the machine's, in threads and in forked processes."""

import errno
import multiprocessing
import os
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from datasets import regular_file
from datasets.batch import ImagesUnavailable
from datasets.containers.zip_member import MOST_BYTES, BrokenMember, Member, ZipReader, read_member
from datasets.containers.zipped import Members, members
from tests.datasets.containers.zips import DEFLATED, STORED, central_entries, info, members_of, put, zip_of

TEXT = b"the first of them " * 50
PARTS = [
    (info("n01/a.jpg", DEFLATED), TEXT),
    (info("n01/b.jpg", STORED), b"the second"),
    (info("n02/c.jpg", DEFLATED), b""),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "train.zip"


def read_all(path: Path, listed: Members) -> list[bytes | str]:
    """The content of each member, or why it is broken."""
    reader = ZipReader(path)
    found: list[bytes | str] = []
    for member in listed:
        try:
            found.append(reader.read(member))
        except BrokenMember as error:
            found.append(error.reason)
    reader.close()
    return found


def first_fault(path: Path, content: bytes) -> str:
    """Why the first member is broken; the others are read as they were."""
    first, *others = read_all(path, members_of(path, content))
    assert others == [b"the second", b""]
    assert isinstance(first, str)
    return first


def test_a_damage_of_a_member_is_its_own_and_has_a_reason(path: Path) -> None:
    content = zip_of(PARTS)
    first = central_entries(content)[0]
    name, data = len("n01/a.jpg"), 30 + len("n01/a.jpg")
    assert "has another name" in first_fault(path, put(content, 30, ord("m"), 1))
    assert "has another name" in first_fault(path, put(content, 26, name - 1, 2))
    assert "says that it is encrypted" in first_fault(path, put(content, 6, 1, 2))
    assert "says method 12, the directory method 8" in first_fault(path, put(content, 8, 12, 2))
    assert "reach into what lies behind" in first_fault(path, put(content, 28, 1, 2))
    assert "stream is damaged" in first_fault(path, put(content, data, 0xFF, 1))
    assert "crc32 does not fit" in first_fault(path, put(content, first + 16, 1, 4))
    assert "inflates to more than the 899 bytes" in first_fault(path, put(content, first + 24, len(TEXT) - 1, 4))
    assert "900 bytes are stored where the directory says 901" in first_fault(
        path, put(content, first + 24, len(TEXT) + 1, 4)
    )
    stored = struct.unpack_from("<L", content, first + 20)[0]
    assert "stream is cut off" in first_fault(path, put(content, first + 20, stored - 1, 4))


def test_a_stored_member_of_two_sizes_is_broken(path: Path) -> None:
    content = zip_of(PARTS)
    second = central_entries(content)[1]
    assert read_all(path, members_of(path, put(content, second + 24, 9, 4)))[1] == (
        "10 bytes are stored where the directory says 9"
    )


def test_a_header_that_is_not_where_the_directory_says_is_a_fault_of_the_member(path: Path) -> None:
    content = zip_of(PARTS)
    second = members_of(path, content)[1].header_at
    assert (
        read_all(path, members_of(path, put(content, second, 0, 4)))[1]
        == "no local header lies where the directory says"
    )


def test_bytes_behind_the_deflated_stream_are_told(path: Path) -> None:
    packed = zlib.compress(TEXT, wbits=-15) + b"more"
    content = zip_of([(info("n01/a.jpg", STORED), packed), *PARTS[1:]])
    first = central_entries(content)[0]
    for at, value, size_bytes in (
        (8, 8, 2),
        (first + 10, 8, 2),
        (first + 16, zlib.crc32(TEXT), 4),
        (first + 24, len(TEXT), 4),
    ):
        content = put(content, at, value, size_bytes)
    assert "ends before its data do" in first_fault(path, content)


def test_two_members_whose_entries_are_exchanged_are_never_read_as_each_other(path: Path) -> None:
    content = zip_of([("a.jpg", b"one"), ("b.jpg", b"two"), ("c.jpg", b"three")])
    first, second, _ = central_entries(content)
    for field, size_bytes in ((42, 4), (16, 4)):  # offsets, crc32s
        one, two = content[first + field :][:size_bytes], content[second + field :][:size_bytes]
        exchanged = put(content, first + field, int.from_bytes(two, "little"), size_bytes)
        exchanged = put(exchanged, second + field, int.from_bytes(one, "little"), size_bytes)
        *broken, third = read_all(path, members_of(path, exchanged))
        assert third == b"three"
        assert len(set(broken)) == 1 and broken[0] in (
            "the member where the directory says has another name",
            "its crc32 does not fit: the content is damaged",
        )


@pytest.mark.parametrize("extra_bytes", [0, 63, 65, 3000])
def test_an_extra_field_that_only_the_local_header_has_is_passed_over(path: Path, extra_bytes: int) -> None:
    content = zip_of(PARTS[:1])
    first, extra = central_entries(content)[0], b"\x77\x77" + struct.pack("<H", extra_bytes) + b"x" * extra_bytes
    begin = 30 + len("n01/a.jpg")
    content = put(content, 28, len(extra), 2)
    content = put(content, len(content) - 6, first + len(extra), 4)
    assert read_all(path, members_of(path, content[:begin] + extra + content[begin:])) == [TEXT]


def test_a_bomb_is_stopped_at_the_size_that_it_says(path: Path) -> None:
    content = zip_of([(info("n01/a.jpg", DEFLATED), bytes(50_000_000)), *PARTS[1:]])
    content = put(content, central_entries(content)[0] + 24, 1000, 4)
    listed = members_of(path, content)
    tracemalloc.start()
    (fault, *_) = read_all(path, listed)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(fault, str) and "inflates to more than the 1,000 bytes" in fault
    assert peak_bytes < 1_000_000  # with the 50 kB that are stored, several times


def test_a_member_of_more_than_a_gib_is_refused_unread() -> None:
    large = Member(b"a.jpg", 0, 100, MOST_BYTES + 1, DEFLATED, 0, 0, 1000)
    with pytest.raises(BrokenMember, match="at most"):
        read_member(-1, large)
    with pytest.raises(BrokenMember, match="at most"):
        read_member(-1, large._replace(stored_bytes=MOST_BYTES * 2, raw_bytes=100))


def test_a_file_that_was_cut_after_it_was_listed_loses_the_members_behind_the_cut(path: Path) -> None:
    listed = members_of(path, zip_of(PARTS))
    os.truncate(path, listed[1].header_at - 1)
    first, second, third = read_all(path, listed)
    assert first == "the file ends in the middle of it" or "cut off" in str(first)
    assert second == third == "the file ends before its local header"


def test_a_file_that_was_replaced_by_another_zip_gives_none_of_its_bytes(path: Path) -> None:
    listed = members_of(path, zip_of(PARTS))
    path.write_bytes(zip_of([(name, content[::-1] + b"?") for name, content in PARTS]))
    assert all(isinstance(one, str) for one in read_all(path, listed))


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regular_file.time, "sleep", lambda seconds: None)


def failing(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """os.pread fails so many times as a bad disk does."""
    whole, left = os.pread, [times]

    def pread(*given: int) -> bytes:
        if left[0]:
            left[0] -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return whole(*given)

    monkeypatch.setattr(os, "pread", pread)


@pytest.mark.usefixtures("no_pauses")
def test_a_disk_that_fails_is_tried_again_and_then_it_is_the_machines_fault(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed, reader = members_of(path, zip_of(PARTS)), ZipReader(path)
    failing(monkeypatch, 2)
    assert reader.read(listed[0]) == TEXT
    failing(monkeypatch, 10**9)
    with pytest.raises(ImagesUnavailable, match=r"n01/a\.jpg in .*train\.zip: Input/output error"):
        reader.read(listed[0])
    with pytest.raises(ImagesUnavailable, match=r"train\.zip: Input/output error"):
        members(path)
    reader.close()


@pytest.mark.usefixtures("no_pauses")
def test_a_zip_that_is_gone_or_became_another_thing_is_the_machines_fault(path: Path) -> None:
    listed = members_of(path, zip_of(PARTS))
    path.unlink()
    with pytest.raises(ImagesUnavailable, match="No such file"):
        ZipReader(path).read(listed[0])
    path.mkdir()
    with pytest.raises(ImagesUnavailable, match="another thing lies there now: a directory"):
        ZipReader(path).read(listed[0])


def test_reads_that_give_less_than_they_were_asked_for_go_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(zip_of(PARTS))
    whole = os.pread
    monkeypatch.setattr(os, "pread", lambda descriptor, size_bytes, at: whole(descriptor, min(size_bytes, 7), at))
    assert read_all(path, members(path)) == [TEXT, b"the second", b""]


def test_a_relative_path_is_the_one_of_when_the_reader_was_made(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = members_of(path, zip_of(PARTS))
    monkeypatch.chdir(tmp_path)
    reader = ZipReader(Path(path.name))
    monkeypatch.chdir("/")
    assert reader.read(listed[0]) == TEXT
    reader.close()


def descriptors_of(path: Path) -> list[int]:
    """Which of this process's descriptors are of this file."""
    links = (Path("/proc/self/fd") / number for number in os.listdir("/proc/self/fd"))
    return [int(link.name) for link in links if os.path.realpath(link) == str(path)]


def test_a_closed_reader_has_no_descriptor_and_reads_again(path: Path) -> None:
    listed = members_of(path, zip_of(PARTS))
    assert not descriptors_of(path)
    reader = ZipReader(path)
    for _ in range(2):
        assert reader.read(listed[1]) == reader.read(listed[1]) == b"the second"
        assert len(descriptors_of(path)) == 1
        reader.close()
        assert not descriptors_of(path)
    reader.close()


def test_threads_share_a_reader(path: Path) -> None:
    parts = [(f"{number}.jpg", os.urandom(2000)) for number in range(200)]
    listed, reader = members_of(path, zip_of(parts)), ZipReader(path)
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(reader.read, list(listed) * 3)) == [content for _, content in parts] * 3
    reader.close()


def in_a_fork(work: Callable[[], object]) -> object:
    """What a forked process finds."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=lambda: theirs.send(work()))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    finally:
        process.join()


def test_a_forked_process_opens_the_zip_for_itself(path: Path) -> None:
    listed, reader = members_of(path, zip_of(PARTS)), ZipReader(path)
    contents = [TEXT, b"the second", b""]
    assert [reader.read(member) for member in listed] == contents
    (inherited,) = descriptors_of(path)

    def work() -> list[bytes]:
        # As where a process closes what it does not know, and another file gets the number.
        os.dup2(os.open("/dev/null", os.O_RDONLY), inherited)
        return [reader.read(member) for member in listed]

    assert in_a_fork(work) == contents
    assert [reader.read(member) for member in listed] == contents
    reader.close()
