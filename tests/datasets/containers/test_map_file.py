"""The published map files: which lines are images, which are mistakes, and which are told and left out."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.containers.map_file import mapped
from datasets.containers.names import Names

NAMES = Names.of([b"n01/a.JPEG", b"n01/b.JPEG", b"n02/a.JPEG", b"n02/c d.JPEG"])
WHOLE = b"n02/a.JPEG\t1\nn01/b.JPEG\t0\nn01/a.JPEG\t0\nn02/c d.JPEG\t1\n"


def mapped_from(path: Path, content: bytes, names: Names = NAMES) -> tuple[list[int], list[int], tuple[str, ...]]:
    path.write_bytes(content)
    numbers, labels, notes = mapped(path, names)
    assert numbers.dtype == labels.dtype == np.int64
    return numbers.tolist(), labels.tolist(), notes


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("maps")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "train_map.txt"


@pytest.mark.parametrize(
    "content",
    [
        WHOLE,
        WHOLE.rstrip(b"\n"),
        WHOLE.replace(b"\n", b"\r\n"),
        b"\xef\xbb\xbf" + WHOLE,
        WHOLE + b"\n\r\n\n",
    ],
    ids=["as published", "no end of the last line", "CRLF", "BOM", "blank lines at the end"],
)
def test_images_and_labels_come_in_the_order_of_the_lines(path: Path, content: bytes) -> None:
    assert mapped_from(path, content) == ([2, 1, 0, 3], [1, 0, 0, 1], ())


@given(st.data())
def test_a_map_is_what_a_dict_of_the_names_says(maps: Path, data: st.DataObject) -> None:
    name = st.binary(min_size=1, max_size=3).filter(lambda one: not set(one) & set(b"\t\r\n\0"))
    listed = data.draw(st.lists(name, min_size=1, max_size=20, unique=True))
    paths = [b"/" + one for one in data.draw(st.lists(name | st.sampled_from(listed), max_size=20, unique=True))]
    labels = data.draw(st.lists(st.integers(0, 2**31 - 1), min_size=len(paths) + 1, max_size=len(paths) + 1))
    names, paths = [b"/" + one for one in listed], [*paths, b"/" + listed[0]]
    pairs = dict(zip(paths, labels, strict=True))
    content = b"".join(b"%b\t%d\n" % pair for pair in pairs.items())
    found = [(names.index(one), label) for one, label in pairs.items() if one in names]
    numbers, its_labels, notes = mapped_from(maps / "map.txt", content, Names.of(names))
    assert list(zip(numbers, its_labels, strict=True)) == found
    assert len(notes) == (len(found) < len(pairs)) + (len(found) < len(names))


def test_folders_that_all_members_share_are_put_before_the_lines_and_told(path: Path) -> None:
    names = Names.of(b"data/train/" + name for name in NAMES)
    numbers, labels, notes = mapped_from(path, WHOLE, names)
    assert (numbers, labels) == ([2, 1, 0, 3], [1, 0, 0, 1])
    assert len(notes) == 1 and "data/train/" in notes[0]
    numbers, labels, notes = mapped_from(path, WHOLE.replace(b"n0", b"train/n0"), names)
    assert numbers == [2, 1, 0, 3] and "lie in data/," in notes[0]


@pytest.mark.parametrize("prefix", [b"train/", b"./", b"/data/train/"])
def test_folders_that_all_lines_share_are_taken_off_and_told(path: Path, prefix: bytes) -> None:
    numbers, labels, notes = mapped_from(path, WHOLE.replace(b"n0", prefix + b"n0"))
    assert (numbers, labels) == ([2, 1, 0, 3], [1, 0, 0, 1])
    assert len(notes) == 1 and f"begin with {prefix.decode()}," in notes[0]


def test_a_prefix_is_used_for_the_whole_file_or_not_at_all(path: Path) -> None:
    lines = b"n01/a.JPEG\t0\ntrain/n01/b.JPEG\t0\n"
    numbers, _, notes = mapped_from(path, lines)
    assert numbers == [0]
    assert "1 of 2 lines" in notes[0] and "train/n01/b.JPEG (line 2)" in notes[0]


def test_lines_without_a_member_and_members_without_a_line_are_counted_and_named(path: Path) -> None:
    lines = b"".join(b"n09/%d.JPEG\t9\n" % number for number in range(5)) + b"n02/a.JPEG\t1\n"
    numbers, labels, notes = mapped_from(path, lines)
    assert (numbers, labels) == ([2], [1])
    assert "5 of 6 lines" in notes[0] and "n09/0.JPEG (line 1), n09/1.JPEG (line 2)" in notes[0]
    assert "3 of 4 images" in notes[1] and "n01/a.JPEG" in notes[1]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"n01/a.JPEG\t0\nn01/b.JPEG 0\n", "line 2"),
        (b"n01/a.JPEG\t0\n\nn01/b.JPEG\t0\n", "line 2"),
        (b"n01/a.JPEG\t0\r\nn01/b.JPEG\tcat\r\n", "line 2"),
        (b"n01/a.JPEG\t-1\n", "line 1"),
        (b"n01/a.JPEG\t2147483648\n", "line 1"),
        (b"n01/a.JPEG\t99999999999\n", "line 1"),
        (b"n01/a.JPEG\t0\tx\n", "line 1"),
        (b"\t0\n", "line 1"),
        (b"path\tlabel\n", "line 1"),
        (b"n01/a.JPEG\t0\nn01/\0.JPEG\t0\n", "line 2"),
        ("n01/a.JPEG\t0\n".encode("utf-16"), "UTF-16"),
        (
            b"n01/a.JPEG\t0\nn01/b.JPEG\t0\nn09/x.JPEG\t1\nn01/b.JPEG\t1\nn01/a.JPEG\t0\n",
            "line 4 is a second one for n01/b.JPEG (the first is line 2",
        ),
        (b"", "empty"),
        (b"\n", "empty"),
        (b"n09/a.JPEG\t0\n", "none of its 1 lines"),
    ],
)
def test_a_mistake_is_told_by_its_line(path: Path, content: bytes, words: str) -> None:
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"train_map\.txt") as caught:
        mapped(path, NAMES)
    assert words in str(caught.value)


def test_a_map_that_is_not_there_is_a_mistake(path: Path) -> None:
    with pytest.raises(ValueError, match="beside its zip"):
        mapped(path, NAMES)


def test_no_line_names_an_image_of_an_empty_zip(path: Path) -> None:
    path.write_bytes(WHOLE)
    with pytest.raises(ValueError, match="none of its 4 lines"):
        mapped(path, Names.of([]))
