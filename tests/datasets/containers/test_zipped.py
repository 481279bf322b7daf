"""Which members of a zip are images, beside Python's zipfile; what is left out and why; zips that are refused as a whole."""

import io
import os
import struct
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.containers import zip_directory, zip_left_out
from datasets.containers.zip_directory import _ENTRY_BYTES
from datasets.containers.zip_left_out import _fault_of, _is_plain
from datasets.containers.zip_member import read_member
from datasets.containers.zipped import Members, members
from tests.datasets.containers.zips import DEFLATED, END_BYTES, STORED, central_entries, info, members_of, put, zip_of

TWO = [("n01/a.jpg", b"first" * 9), ("n02/b.jpg", b"second")]


def contents(path: Path, listed: Members) -> list[tuple[bytes, bytes]]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return [(member.name, read_member(descriptor, member)) for member in listed]
    finally:
        os.close(descriptor)


def twin(content: bytes) -> list[tuple[bytes, bytes]]:
    """What zipfile reads."""
    with zipfile.ZipFile(io.BytesIO(content)) as read:
        return [
            (one.orig_filename.encode("utf-8" if one.flag_bits & 0x800 else "cp437"), read.read(one))
            for one in read.infolist()
        ]


def check_same(path: Path, content: bytes) -> Members:
    listed = members_of(path, content)
    assert contents(path, listed) == twin(content)
    assert not listed.left_out and not listed.notes
    return listed


@pytest.fixture(scope="module")
def zips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zips")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "train.zip"


NAME = st.text("abé /", max_size=6).map(lambda text: f"n{text}n.jpg")
PARTS = st.dictionaries(
    NAME, st.tuples(st.binary(max_size=300), st.sampled_from([STORED, DEFLATED]), st.binary(max_size=9))
)


# zipfile takes this signature in a comment for an end record.
COMMENT = st.binary(max_size=50).filter(lambda comment: b"PK\5\6" not in comment)


@given(PARTS, st.binary(max_size=50), COMMENT, st.integers(300, 2000))
@settings(max_examples=50)
def test_a_zip_is_what_zipfile_says(
    zips: Path, parts: dict[str, tuple[bytes, int, bytes]], stub: bytes, comment: bytes, piece_bytes: int
) -> None:
    made = []
    for name, (content, method, entry_comment) in parts.items():
        entry = info(name, method)
        entry.comment = entry_comment
        entry.extra = struct.pack("<2H", 0x7777, len(entry_comment)) + entry_comment
        made.append((entry, content))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zip_directory, "PIECE_BYTES", piece_bytes)
        check_same(zips / "a.zip", stub + zip_of(made, comment))


def test_a_stub_may_be_counted_in_the_offsets_or_not(path: Path) -> None:
    stub = b"#!/bin/sh\nexit 1\n"
    buffer = io.BytesIO()
    buffer.write(stub)
    with zipfile.ZipFile(buffer, "w") as made:
        made.writestr(*TWO[0])
    assert check_same(path, buffer.getvalue())[0].header_at == len(stub)
    assert check_same(path, stub + zip_of(TWO[:1]))[0].header_at == len(stub)


def test_zip64_is_read_in_entries_local_headers_and_end_records(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("ZIP64_LIMIT", "ZIP_FILECOUNT_LIMIT"):
        with monkeypatch.context() as patch:
            patch.setattr(zipfile, limit, 2)
            content = zip_of([*TWO, ("n03/c.png", b"third")], b"a comment")
        assert b"PK\6\6" in content
        check_same(path, content)
        check_same(path, b"a stub" + content)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made, made.open("a.jpg", "w", force_zip64=True) as file:
        file.write(b"forced")
    check_same(path, buffer.getvalue())


def test_members_beyond_4_gib_are_read(path: Path) -> None:
    hole = 5 << 30
    with open(path, "wb") as file:
        file.seek(hole)
        with zipfile.ZipFile(file, "w") as made:
            for name, content in TWO:
                made.writestr(name, content, DEFLATED)
    listed = members(path)
    assert contents(path, listed) == [(name.encode(), content) for name, content in TWO]
    assert listed[0].header_at == hole


def test_sizes_come_behind_a_member_that_was_written_to_a_pipe(path: Path) -> None:
    class Pipe(io.RawIOBase):
        content = b""

        def writable(self) -> bool:
            return True

        def write(self, some) -> int:
            self.content += bytes(some)
            return len(some)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", DEFLATED) as made:
        for name, content in TWO:
            made.writestr(name, content)
    listed = check_same(path, pipe.content)
    assert all(member.flags & 8 for member in listed)


def test_a_directory_in_another_order_than_the_members_is_followed(path: Path) -> None:
    content = zip_of(TWO)
    first, second = central_entries(content)
    end = len(content) - END_BYTES
    swapped = content[:first] + content[second:end] + content[first:second] + content[end:]
    listed = check_same(path, swapped)
    assert list(listed.names) == [b"n02/b.jpg", b"n01/a.jpg"]


LEFT_OUT = {
    zip_left_out.DIRECTORY: [(info("n01/", mode=0o40755), b"")],
    zip_left_out.LINK: [(info("n01/link.jpg", mode=0o120777), b"a.jpg"), (info("pipe.jpg", mode=0o10644), b"")],
    zip_left_out.UNSAFE: [
        (info(name), b"x")
        for name in ("/a.jpg", "../a.jpg", "n01/../a.jpg", "C:a.jpg", "n01\\a.jpg", "\\a.jpg", "n01/..")
    ],
    zip_left_out.HIDDEN: [
        (info(name), b"x")
        for name in ("n01/._a.jpg", "__MACOSX/n01/a.jpg", "n01/__macosx/a.jpg", ".git/a.jpg", "@eaDir/a.jpg")
    ],
    zip_left_out.OTHER: [(info(name), b"x") for name in ("n01/a.txt", "LICENSE", "n01/a.jpg.npy")],
    "compressed by bzip2 (12; stored and deflated members are read)": [(info("a.jpg", zipfile.ZIP_BZIP2), b"x")],
    "compressed by LZMA (14; stored and deflated members are read)": [(info("a.jpg", zipfile.ZIP_LZMA), b"x")],
}


@pytest.mark.parametrize("reason", LEFT_OUT)
def test_what_is_no_image_is_counted_and_told_by_its_reason(path: Path, reason: str) -> None:
    odd = LEFT_OUT[reason]
    listed = members_of(path, zip_of([TWO[0], *odd, TWO[1]]))
    assert list(listed.names) == [b"n01/a.jpg", b"n02/b.jpg"]
    assert listed.left_out == {reason: len(odd)}
    if reason != zip_left_out.DIRECTORY:
        (note,) = listed.notes
        assert reason in note and odd[0][0].filename.replace("\\", "\\\\") in note.replace("\\", "\\\\")


def test_encrypted_and_large_members_and_names_with_a_zero_byte_are_left_out(path: Path) -> None:
    content = zip_of([(f"{name}.jpg", b"x") for name in "abcde"])
    a, b, c, d, _ = central_entries(content)
    content = put(content, a + 8, 1, 2)
    content = put(content, b + 8, 0x41, 2)
    content = put(content, c + 24, (1 << 30) + 1, 4)
    content = put(content, d + _ENTRY_BYTES, 0, 1)
    listed = members_of(path, content)
    assert list(listed.names) == [b"e.jpg"]
    assert listed.left_out == {zip_left_out.ENCRYPTED: 2, zip_left_out.LARGE: 1, zip_left_out.UNSAFE: 1}
    assert any(note.startswith("\\x00.jpg: an unsafe path") for note in listed.notes)
    assert any(note == "a.jpg and 1 other member: encrypted, left out" for note in listed.notes)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_equal_names_one_is_read_where_the_contents_are_equal_and_none_where_they_differ(path: Path) -> None:
    parts = [("a.jpg", b"old"), ("b.jpg", b"same"), ("a.jpg", b"new"), ("b.jpg", b"same"), ("c.jpg", b"c")]
    listed = members_of(path, zip_of(parts))
    assert contents(path, listed) == [(b"b.jpg", b"same"), (b"c.jpg", b"c")]
    assert listed.left_out == {zip_left_out.TWICE: 2, zip_left_out.COPY: 1}
    assert len(listed.notes) == 2


@given(
    st.binary(max_size=8)
    | st.from_regex(r"([@.#a_~:/]{0,3}|__MACOSX)/?[a.:/]{0,2}\.(jpg|txt|jp)", fullmatch=True).map(str.encode)
)
def test_a_name_that_is_taken_without_a_look_would_be_taken_after_one(name: bytes) -> None:
    if _is_plain(name):
        assert _fault_of(name) is None


def test_a_usual_name_is_taken_without_a_look() -> None:
    assert _is_plain(b"train/n01440764/n01440764_10026.JPEG") and _is_plain("bilder/süß (1).png".encode())


def test_names_for_people_are_utf_8_by_flag_and_else_code_page_437(path: Path) -> None:
    content = zip_of([("ä.jpg", b"x"), ("b.jpg", b"x")])
    content = content.replace(b"b.jpg", b"\x84.jpg")
    listed = members_of(path, content)
    assert [member.shown_name for member in listed] == ["ä.jpg", "ä.jpg"]
    assert list(listed.names) == ["ä.jpg".encode(), b"\x84.jpg"]


def test_an_empty_zip_has_no_members(path: Path) -> None:
    assert len(members_of(path, zip_of([]))) == 0


def refused(path: Path, content: bytes) -> str:
    with pytest.raises(ValueError, match=r"train\.zip") as caught:
        members_of(path, content)
    assert "Copy it again" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("comment", [b"", b"a comment"])
def test_a_zip_that_is_cut_anywhere_is_refused(path: Path, comment: bytes) -> None:
    content = zip_of(TWO, comment)
    for length in range(len(content)):
        assert "no end record" in refused(path, content[:length])


def test_what_follows_the_end_of_a_zip_is_told(path: Path) -> None:
    assert "bytes follow its end" in refused(path, zip_of(TWO) + b"\n")


def test_a_signature_of_an_end_record_in_a_comment_is_passed_over(path: Path) -> None:
    listed = members_of(path, zip_of(TWO, b"a PK\5\6 and then some more text"))
    assert contents(path, listed) == [(name.encode(), content) for name, content in TWO]


def test_a_comment_that_is_an_end_record_is_refused(path: Path) -> None:
    inner = zip_of([])
    assert "2 end records" in refused(path, zip_of(TWO, inner))


def test_wrong_numbers_in_the_end_record_are_refused(path: Path) -> None:
    content = zip_of(TWO)
    end, first = len(content) - END_BYTES, central_entries(content)[0]
    assert "says 3" in refused(path, put(put(content, end + 8, 3, 2), end + 10, 3, 2))
    assert "several parts" in refused(path, put(content, end + 4, 1, 2))
    assert "several parts" in refused(path, put(content, end + 8, 1, 2))
    for offset in (first + 1, len(content), 0xFFFFFFFF):
        assert "does not fit before" in refused(path, put(content, end + 16, offset, 4))
    for offset in (first - 1, 0):
        assert "offsets are wrong" in refused(path, put(content, end + 16, offset, 4))
    for size in (len(content), 0xFFFFFFFF):
        assert "does not fit before" in refused(path, put(content, end + 12, size, 4))
    for size in (end - first - 1, end - first + 1):
        assert "entry" in (told := refused(path, put(content, end + 12, size, 4))) or "does not fit" in told


def test_zip64_end_records_that_contradict_or_are_not_there_are_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)
    content = zip_of(TWO)
    end = len(content) - END_BYTES
    locator, wide = end - 20, end - 76
    assert content[locator:].startswith(b"PK\6\7") and content[wide:].startswith(b"PK\6\6")
    assert "say different things" in refused(path, put(content, end + 12, 77, 4))
    assert "zip64 end record is not at" in refused(path, put(content, wide, 0, 1))
    assert "zip64 end record is not at" in refused(path, put(content, wide + 4, 45, 8))
    assert "says 3" in refused(path, put(put(put(content, wide + 24, 3, 8), wide + 32, 3, 8), end + 8, 0xFFFFFFFF, 4))
    assert "does not fit" in refused(path, put(put(content, wide + 40, 1 << 63, 8), end + 12, 0xFFFFFFFF, 4))


def test_entries_that_overlap_or_lie_outside_are_refused(path: Path) -> None:
    content = zip_of(TWO)
    first, second = central_entries(content)
    assert "1 of its members overlap" in refused(path, put(content, first + 20, 0x7FFFFFFF, 4))
    assert "no member begins at byte 1;" in refused(path, put(content, first + 42, 1, 4))
    assert "overlap" in refused(path, put(content, second + 42, 0, 4))
    assert "overlap" in refused(path, put(content, second + 42, 40, 4))
    assert "the central directory begins" in refused(path, put(content, second + 42, 1 << 31, 4))
    assert "the central directory begins" in refused(path, put(content, second + 20, 7, 4))


def test_a_damaged_entry_is_told_by_its_number(path: Path) -> None:
    content = zip_of(TWO)
    first, second = central_entries(content)
    assert "entry 1 " in refused(path, put(content, second, 0, 1))
    assert "entry 1 " in refused(path, put(content, first + 28, 8, 2))
    assert "entry 1 " in refused(path, put(content, second + 28, 10, 2))
    assert "entry 1 " in refused(path, put(content, second + 32, 0xFFFF, 2))


def test_zip64_fields_that_are_short_or_say_too_much_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 2)
    content = zip_of(TWO)
    first, _ = central_entries(content)
    extra = first + _ENTRY_BYTES + len(TWO[0][0])
    assert content[extra : extra + 4] == struct.pack("<2H", 1, 16)
    assert "entry 0 of its central directory has a zip64 field that is too short" in refused(
        path, put(content, extra + 2, 12, 2)
    )
    assert "has a size or an offset" in refused(path, put(content, extra + 4, 1 << 61, 8))


def test_old_zips_that_count_only_to_65535_are_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = zip_of([(f"{number}.jpg", b"") for number in range(300)])
    end = len(content) - END_BYTES
    monkeypatch.setattr(zip_directory, "_FULL_16", 0xFF)  # as if they counted to 255
    assert len(members_of(path, put(put(content, end + 8, 44, 2), end + 10, 44, 2))) == 300


def test_what_is_no_file_is_a_mistake(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("gone.zip", "pipe", "."):
        with pytest.raises(ValueError, match=r"set the path of a \.zip file"):
            members(tmp_path / name)
    (tmp_path / "text").write_text("no zip")
    with pytest.raises(ValueError, match="no whole zip"):
        members(tmp_path / "text")
