"""A csv file as people have it: each works, or ends in one line that names file and line and what to change."""

import os
import random
import tempfile
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.folder import ImageFolder
from datasets.label_file import LabelFile
from datasets.shown import shown

NFC, NFD = unicodedata.normalize("NFC", "café.jpg"), unicodedata.normalize("NFD", "café.jpg")


def folder(root: Path, *names: str | bytes) -> Path:
    root.mkdir(exist_ok=True)
    for name in names:
        path = os.path.join(os.fsencode(root), os.fsencode(name))
        with open(path, "wb"):
            pass
    return root


def labels(tmp_path: Path, content: bytes, *names: str | bytes) -> dict[str, str]:
    """label by shown name"""
    (tmp_path / "labels.csv").write_bytes(content)
    source = ImageFolder(folder(tmp_path / "root", *names), tmp_path / "labels.csv")
    numbers = source.labels()
    assert numbers is not None
    return {source.instance_name(i): source.label_names[number] for i, number in enumerate(numbers)}


AB = {"a.jpg": "x", "b.jpg": "y"}


@pytest.mark.parametrize(
    "content",
    [
        b"path,label\na.jpg,x\nb.jpg,y\n",
        b"path,label\na.jpg,x\nb.jpg,y",
        b"path,label\na.jpg,x\nb.jpg,y\n\n",
        b"path,label\na.jpg,x\n\n   \nb.jpg,y\n,\n\n",
        b"path,label\r\na.jpg,x\r\nb.jpg,y\r\n\r\n",
        b"path,label\ra.jpg,x\rb.jpg,y\r",
        b"\xef\xbb\xbfpath,label\r\na.jpg,x\r\nb.jpg,y\r\n",
        "path,label\na.jpg,x\nb.jpg,y\n".encode("utf-16"),
        b"\xfe\xff" + "path,label\r\na.jpg,x\r\nb.jpg,y\r\n".encode("utf-16-be"),
        b'path,label\n"a.jpg","x"\n"b.jpg",y\n',
    ],
)
def test_files_of_any_editor_are_read(tmp_path: Path, content: bytes) -> None:
    assert labels(tmp_path, content, "a.jpg", "b.jpg") == AB


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'path,label\na.jpg,x\n"b.jpg,y\nc.jpg,z\n', "line 3: a quote opens here and is not closed"),
        (b'path,label\n"a.jpg,x\n' + b"b.jpg,y\n" * 50_000, "line 2: a quote opens here and is not closed"),
        (b'path,label\n"a".jpg,x\n', r"line 2 is not csv \(.*put a field"),
        (b"path,label\na.jpg,x\n" + b"b" * 200_000 + b",y\n", "line 3: .*the field is longer than a path can be"),
        (
            "path,label\na.jpg,x\nb.jpg,y\n".encode("utf-16-le"),
            "line 1: this is UTF-16 without a mark; save the file as UTF-8",
        ),
        ("path,label\na.jpg,x\n".encode("utf-16")[:-1], "is not UTF-16, as its mark says"),
        (b"path,label\na.jpg,x\nb.jpg\0,y\n", "line 3 has a zero byte, which no name has; take it out"),
        (b"path,label\na.jpg,x\nb\xe9.jpg,y\n", r"line 3 is not UTF-8 \(b\\xe9\.jpg\).*; save the file as UTF-8"),
        (b"path;label\na.jpg;x\n", "the first line of .* is 'path;label'; it must be 'path,label'"),
        (b"\x89PNG\r\n\x1a\n", "the first line of"),
        (b"path,label\na.jpg,x\nb.jpg,y\nx\\c.jpg,z\n", r"line 4 names x\\c\.jpg, .*with / between folders"),
        (b"path,label\na.jpg,x\nb.jpg,y\na.jpg,x\n", r"line 4 gives a\.jpg a second label \(the first is in line 2\)"),
        (b"path,label\na.jpg,x\nb.jpg,y\n../../etc/passwd,z\n", r"line 4 names \.\./\.\./etc/passwd"),
        (
            b"path,label\na.jpg,x\nb.jpg,y,\x1b[2J\n",
            r"line 3 is not a path, a comma and a label: \['b\.jpg', 'y', '\\\\?x1b",
        ),
    ],
)
def test_what_cannot_be_read_is_told_with_its_line_and_what_to_change(
    tmp_path: Path, content: bytes, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        labels(tmp_path, content, "a.jpg", "b.jpg")
    assert str(tmp_path / "labels.csv") in str(error.value)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 500 + len(str(tmp_path))


def test_a_cp1252_file_whose_paths_are_plain_labels_them(tmp_path: Path) -> None:
    assert labels(tmp_path, "path,label\na.jpg,Käse\nb.jpg,y\n".encode("cp1252"), "a.jpg", "b.jpg") == {
        "a.jpg": "K\\xe4se",
        "b.jpg": "y",
    }


def test_names_that_are_not_utf8_are_named_by_their_bytes(tmp_path: Path) -> None:
    assert labels(tmp_path, b"path,label\ncaf\xe9.jpg,x\n", b"caf\xe9.jpg") == {"caf\\xe9.jpg": "x"}


def test_what_is_shown_of_a_name_is_not_what_it_is_found_by(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no line for caf\\xe9\.jpg"):
        labels(tmp_path, b"path,label\ncaf\\xe9.jpg,x\n", b"caf\xe9.jpg")
    labels(tmp_path, b"path,label\ncaf\xe9.jpg,x\ncaf\\xe9.jpg,y\n", b"caf\\xe9.jpg")
    source = ImageFolder(tmp_path / "root", tmp_path / "labels.csv")
    numbers = source.labels()
    assert numbers is not None
    assert source.instance_name(0) == source.instance_name(1)
    assert [source.label_names[number] for number in numbers] == ["y", "x"]  # the backslash sorts before the byte 0xe9


@pytest.mark.parametrize(("in_file", "on_disk"), [(NFC, NFD), (NFD, NFC)])
def test_accents_may_be_composed_in_another_way_than_in_the_names_of_the_files(
    tmp_path: Path, in_file: str, on_disk: str
) -> None:
    assert in_file != on_disk
    content = f"path,label\na.jpg,x\n{in_file},y\n".encode()
    assert labels(tmp_path, content, "a.jpg", on_disk) == {"a.jpg": "x", on_disk: "y"}


def test_where_two_names_differ_only_in_composition_each_needs_its_own_line(tmp_path: Path) -> None:
    both = labels(tmp_path, f"path,label\n{NFC},x\n{NFD},y\n".encode(), NFC, NFD)
    assert both == {NFC: "x", NFD: "y"}
    with pytest.raises(ValueError, match="has no line for"):
        labels(tmp_path, f"path,label\n{NFC},x\n".encode(), NFC, NFD)
    (tmp_path / "root" / NFC).unlink()
    with pytest.raises(ValueError, match="line 2 names"):
        labels(tmp_path, f"path,label\n{NFC},x\n{NFD},y\n".encode(), NFD)
    third, fourth = "q\u0323\u0307.jpg", "q\u0307\u0323.jpg"  # one letter in two orders of its marks
    (tmp_path / "root" / NFD).unlink()
    assert list(labels(tmp_path, f"path,label\n{third},x\n".encode(), fourth).values()) == ["x"]


def test_an_ambiguous_line_is_refused(tmp_path: Path) -> None:
    one, two, three = "ệ.jpg", "e\u0323\u0302.jpg", "e\u0302\u0323.jpg"
    with pytest.raises(ValueError, match="line 2 may mean more than one image or line"):
        labels(tmp_path, f"path,label\n{one},x\n".encode(), two, three)
    (tmp_path / "root" / three).unlink()
    with pytest.raises(ValueError, match="line 2 may mean more than one image or line"):
        labels(tmp_path, f"path,label\n{one},x\n{three},y\n".encode(), two)


def test_a_path_over_two_lines_is_found(tmp_path: Path) -> None:
    assert labels(tmp_path, b'path,label\n"new\nline.jpg",x\n', "new\nline.jpg") == {"new\\nline.jpg": "x"}


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 2**32))
def test_no_bytes_end_in_anything_but_labels_or_one_line(noise: bytes, seed: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        labels_or_a_line(Path(directory) / "labels.csv", noise, seed)


def labels_or_a_line(path: Path, noise: bytes, seed: int) -> None:
    content = bytearray(b'path,label\na.jpg,x\n"b.jpg",y\r\n')
    place = random.Random(seed).randrange(len(content))
    content[place:place] = noise
    path.write_bytes(content)
    try:
        LabelFile(path).labels_of(["a.jpg", "b.jpg"], "root")
        message = "labels.csv is read"
    except ValueError as error:
        message = str(error)
    assert shown(message) == message, message  # one line, and nothing in it that a terminal obeys
    assert "labels.csv" in message


def test_a_line_may_name_what_is_left_out_of_the_folder_on_purpose(tmp_path: Path) -> None:
    lines = "a.jpg,x", "raw/b.jpg,y", "@eaDir/c.jpg,y", "d.avif,y", ".e/f.jpg,y", "g.gif,y", "\u00e9/h.jpg,y"
    names = [line.partition(",")[0] for line in lines]
    (tmp_path / "root").mkdir()
    for name in ("raw", "@eaDir", ".e", "\u00e9"):
        (tmp_path / "root" / name).mkdir()
    root = folder(tmp_path / "root", *names)
    (tmp_path / "labels.csv").write_text("path,label\n" + "\n".join(lines))
    exclude = ("raw", "*.gif", "e\u0301/*")
    source = ImageFolder(root, tmp_path / "labels.csv", exclude=exclude)
    assert [source.instance_name(i) for i in range(len(source))] == ["a.jpg"]
    with (tmp_path / "labels.csv").open("a") as file:
        file.write("\nrawhide/b.jpg,y")
    with pytest.raises(ValueError, match=r"line 9 names rawhide/b\.jpg"):
        ImageFolder(root, tmp_path / "labels.csv", exclude=exclude)


def test_paths_that_are_written_in_another_way_are_shown_beside_the_right_one(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes(b"path,label\ncats\\a.jpg,x\ndogs\\b.jpg,y\n")
    file = LabelFile(tmp_path / "labels.csv")
    with pytest.raises(
        ValueError, match=r"has no line for cats/a\.jpg \(2 of 2 .*line 2 is for .*with / between folders"
    ):
        file.labels_of(["cats/a.jpg", "dogs/b.jpg"], "root")
