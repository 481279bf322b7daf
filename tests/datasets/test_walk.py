"""What a walk over a folder takes, leaves out, and says about it."""

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from datasets import regular_file
from datasets.batch import MARK, ImagesUnavailable
from datasets.catalog import open_source
from datasets.excluded import Patterns
from datasets.folder import ImageFolder
from datasets.shown import shown
from datasets.walk import LEFT_OUT, Walk

OPTIONS: dict[str, Any] = {"image_size": 8, "limit": None, "held_out": (), "labels": None}


def touch(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")


def found(root: Path, exclude: tuple[str, ...] = (), **options: Any) -> list[str]:
    return [os.fsdecode(path) for path, *_ in Walk(os.fsencode(root), Patterns(exclude), **options)]


def test_directories_of_systems_and_appliances_are_left_out_in_any_case(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "a.jpg",
        "x/b.jpg",
        *(f"x/{name}/thumb.jpg" for name in LEFT_OUT),
        "x/$Recycle.Bin/b.jpg",
        "@EADIR/c.jpg",
    )
    assert found(tmp_path) == ["a.jpg", "x/b.jpg"]
    (tmp_path / "lost+found.jpg").write_bytes(b"")  # a file of such a name is a file
    assert "lost+found.jpg" in found(tmp_path)


@pytest.mark.parametrize(
    ("pattern", "left"),
    [
        ("*.gif", ["a.jpg", "raw/2019/d.jpg", "raw/2019b/x/e.jpg", "x/2019/f.jpg"]),
        ("raw/2019*", ["a.jpg", "c.gif", "raw/b.gif", "x/2019/f.jpg"]),
        ("/raw/", ["a.jpg", "c.gif", "x/2019/f.jpg"]),
        ("raw", ["a.jpg", "c.gif", "x/2019/f.jpg"]),
        ("./2019", ["a.jpg", "c.gif", "raw/2019/d.jpg", "raw/2019b/x/e.jpg", "raw/b.gif", "x/2019/f.jpg"]),
        ("2019", ["a.jpg", "c.gif", "raw/2019b/x/e.jpg", "raw/b.gif"]),
        ("*/*/d.jpg", ["a.jpg", "c.gif", "raw/2019b/x/e.jpg", "raw/b.gif", "x/2019/f.jpg"]),
        ("raw/*.jpg", ["a.jpg", "c.gif", "raw/2019/d.jpg", "raw/2019b/x/e.jpg", "raw/b.gif", "x/2019/f.jpg"]),
        ("[ac].*", ["raw/2019/d.jpg", "raw/2019b/x/e.jpg", "raw/b.gif", "x/2019/f.jpg"]),
        ("RAW", ["a.jpg", "c.gif", "raw/2019/d.jpg", "raw/2019b/x/e.jpg", "raw/b.gif", "x/2019/f.jpg"]),
    ],
)
def test_a_pattern_without_a_slash_means_names_and_one_with_a_slash_paths(
    tmp_path: Path, pattern: str, left: list[str]
) -> None:
    touch(tmp_path, "a.jpg", "c.gif", "raw/b.gif", "raw/2019/d.jpg", "raw/2019b/x/e.jpg", "x/2019/f.jpg")
    assert found(tmp_path, exclude=(pattern,)) == left


def test_a_pattern_matches_accents_however_they_are_composed_and_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    touch(tmp_path, "e\u0301t\u00e9/a.jpg", "b.jpg")
    (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"")
    for pattern in ("\u00e9t\u00e9", "e\u0301te\u0301", "e\u0301t\u00e9/*"):
        assert len(found(tmp_path, exclude=(pattern,))) == 2
    assert found(tmp_path, exclude=("caf?.jpg", "b.*")) == ["e\u0301t\u00e9/a.jpg"]


def test_a_pattern_that_leaves_nothing_out_is_told(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "thumbs/b.jpg", "raw/c.gif")
    walk = Walk(os.fsencode(tmp_path), Patterns(("tumbs", "thumbs", "thumb*", "*.gif", "raw/*.jpg")))
    assert walk.notes == ()  # nothing was listed yet
    for _ in range(2):
        assert len(list(walk)) == 1
        assert walk.notes == ("data.exclude: 'tumbs', 'raw/*.jpg' left nothing out",)


def test_patterns_that_leave_nothing_over_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b/c.jpg")
    with pytest.raises(ValueError, match=r"no image under .*\(data\.exclude left out what '\*\.jpg', 'b/\*' names\)"):
        ImageFolder(tmp_path, exclude=["b/*", "*.jpg"])


def test_the_key_of_the_config_reaches_the_walk_and_is_refused_for_other_sources(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.gif")
    assert len(open_source("folder", root=str(tmp_path), exclude=("*.gif",), **OPTIONS)) == 1
    with pytest.raises(ValueError, match=r"data\.exclude is for folders; digits has no use for it"):
        open_source("digits", root=None, exclude=("*.gif",), **OPTIONS)


def test_what_a_run_writes_is_no_image_of_its_folder(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "out/store.png", "other/run/store.png", f"other/run/{MARK}", "other/b.jpg", "x/out/c.jpg")
    assert found(tmp_path, leave_out=tmp_path / "out") == ["a.jpg", "other/b.jpg", "x/out/c.jpg"]
    walk = Walk(os.fsencode(tmp_path), leave_out=tmp_path / "out")
    list(walk)
    assert walk.notes == ("other/run: written by this engine, left out",)
    (tmp_path / "link").symlink_to("out")
    assert found(tmp_path, leave_out=tmp_path / "link") == ["a.jpg", "other/b.jpg", "x/out/c.jpg"]
    assert found(tmp_path, leave_out=tmp_path / "out" / ".." / "out") == ["a.jpg", "other/b.jpg", "x/out/c.jpg"]
    assert "out/store.png" in found(tmp_path, leave_out=tmp_path / "nowhere")
    source = open_source("folder", root=str(tmp_path), leave_out=tmp_path / "out", **OPTIONS)
    before = source.fingerprint()
    touch(tmp_path, "out/another.png", "out/deep/more.png")
    assert open_source("folder", root=str(tmp_path), leave_out=tmp_path / "out", **OPTIONS).fingerprint() == before


def test_an_output_as_root_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "store.png", MARK)
    with pytest.raises(ValueError, match=r"is the output of a run .*; set it to your folder of images"):
        ImageFolder(tmp_path)


def test_links_in_circles_end(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "b/2.jpg")
    (tmp_path / "a" / "to_b").symlink_to("../b")
    (tmp_path / "b" / "to_a").symlink_to("../a")
    (tmp_path / "here").symlink_to(".")
    (tmp_path / "itself").symlink_to("itself")
    (tmp_path / "itself.jpg").symlink_to("itself.jpg")
    walk = Walk(os.fsencode(tmp_path))
    assert [os.fsdecode(path) for path, *_ in walk] == [
        "a/1.jpg",
        "a/to_b/2.jpg",
        "b/2.jpg",
        "b/to_a/1.jpg",
        "itself.jpg",
    ]
    assert walk.notes == ("the link a/to_b/to_a and 2 more: leads back to a folder above it, left out",)


def fails(monkeypatch: pytest.MonkeyPatch, call: str, number: int, at: str, times: int = 10**9) -> None:
    whole, left = getattr(os, call), [times]

    def failing(path: Any, *others: Any, **named: Any) -> Any:
        if left[0] and os.fsdecode(path).endswith(at):
            left[0] -= 1
            raise OSError(number, os.strerror(number))
        return whole(path, *others, **named)

    monkeypatch.setattr(os, call, failing)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.ENAMETOOLONG])
def test_a_directory_that_may_not_be_listed_ends_the_start_in_a_line_that_can_be_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    touch(tmp_path, "a.jpg", "x/secret/b.jpg")
    fails(monkeypatch, "scandir", number, "secret")
    with pytest.raises(ValueError, match=r"x/secret cannot be listed: .*data.exclude") as error:
        ImageFolder(tmp_path)
    pattern = str(error.value).rsplit("'", 2)[1]
    assert pattern == "x/secret"
    assert len(ImageFolder(tmp_path, exclude=(pattern,))) == 1
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("call", ["scandir", "stat"])
def test_a_walk_waits_for_the_machine_and_then_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    touch(tmp_path, "a.jpg", "x/b.jpg")
    pauses: list[float] = []
    monkeypatch.setattr(regular_file.time, "sleep", pauses.append)
    with monkeypatch.context() as patched:
        fails(patched, call, errno.EIO, "/x", times=2)
        assert found(tmp_path) == ["a.jpg", "x/b.jpg"]
    assert len(pauses) == 2
    fails(monkeypatch, call, errno.ESTALE, "/x")
    with pytest.raises(ImagesUnavailable, match=r"cannot read .*/x: Stale file handle"):
        found(tmp_path)


def test_a_root_that_vanishes_during_the_walk_is_not_a_small_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    touch(root, "a.jpg", "x/b.jpg", "y/c.jpg")
    monkeypatch.setattr(regular_file.time, "sleep", lambda _: None)
    steps = iter(Walk(os.fsencode(root)))
    assert next(steps)[0] == b"a.jpg"
    root.rename(tmp_path / "elsewhere")
    root.mkdir()
    with pytest.raises(ImagesUnavailable):
        list(steps)


def test_a_directory_that_is_removed_during_the_walk_is_as_if_it_had_not_been_there(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "x/b.jpg", "y/c.jpg")
    steps = iter(Walk(os.fsencode(tmp_path)))
    next(steps)
    (tmp_path / "x" / "b.jpg").unlink()
    (tmp_path / "x").rmdir()
    assert [path for path, *_ in steps] == [b"y/c.jpg"]


def test_formats_that_are_not_read_are_counted_by_suffix(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "a.jpg",
        *(f"x/{number}.AVIF" for number in range(100)),
        "b.heic",
        "x/c.cr2",
        "notes.txt",
        "data.tar.gz",
    )
    source = ImageFolder(tmp_path)
    assert source.notes[0].startswith("100 .avif files are not read; images are read from .jpg .jpeg .png")
    assert [note.split(" ")[1] for note in source.notes] == [".avif", ".cr2", ".gz", ".heic"]
    assert "1 .heic file is not read" in source.notes[-1]
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(ValueError, match=r"no image under .*\(100 \.avif files are not read"):
        ImageFolder(tmp_path)


# ---- deep, long and odd paths


def deep(root: Path, name: str, levels: int) -> None:
    """Made level by level from within: the whole path may be longer than a call takes."""
    descriptor = os.open(root, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir(name, dir_fd=descriptor)
        below = os.open(name, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(os.open("a.jpg", os.O_WRONLY | os.O_CREAT, dir_fd=descriptor))
    os.close(descriptor)


@pytest.fixture
def bottomless(tmp_path: Path) -> Iterator[Path]:
    """A directory that is removed by a program that can: Python's own removal calls itself at each level."""
    root = tmp_path / "bottomless"
    root.mkdir()
    yield root
    subprocess.run(["rm", "-rf", root], check=True)


def test_folders_may_be_nested_as_deep_as_a_path_is_long(bottomless: Path) -> None:
    deep(bottomless, "d", 1_100)
    assert found(bottomless) == ["d/" * 1_100 + "a.jpg"]
    source = ImageFolder(bottomless)
    assert source.file_bytes(0) == 0


def test_a_path_that_is_too_long_is_told_in_a_line(bottomless: Path) -> None:
    touch(bottomless, "b.jpg")
    deep(bottomless, "d" * 100, 60)
    with pytest.raises(ValueError, match=r"cannot be listed: File name too long.*data.exclude") as error:
        ImageFolder(bottomless)
    assert len(str(error.value)) < 600
    assert len(ImageFolder(bottomless, exclude=("d" * 100,))) == 1


@pytest.mark.parametrize("name", [b"new\nline", b"caf\xe9", b"\x1b[31mred", "\u202eevil".encode(), b" "])
def test_a_root_may_have_any_name_and_is_shown_on_one_line(tmp_path: Path, name: bytes) -> None:
    root = tmp_path / os.fsdecode(name)
    root.mkdir()
    with pytest.raises(ValueError, match="no image under") as error:
        ImageFolder(root)
    assert str(error.value).isprintable()
    Image.new("RGB", (6, 4)).save(root / "a.png")
    assert ImageFolder(root).image(0).shape == (4, 6, 3)


def test_a_name_is_shown_on_one_line_with_nothing_that_a_terminal_obeys(tmp_path: Path) -> None:
    names = [
        b"\x1b[2Jx.png",
        b"caf\xe9.png",
        b"new\nline.png",
        "a\u202egnp.png".encode(),
        "é 日本.png".encode(),
        b"tab\t.png",
    ]
    for name in names:
        (tmp_path / os.fsdecode(name)).write_bytes(b"")
    source = ImageFolder(tmp_path)
    seen = sorted(source.instance_name(i) for i in range(len(source)))
    expected = ["\\x1b[2Jx.png", "caf\\xe9.png", "new\\nline.png", "a\\u202egnp.png", "é 日本.png", "tab\\t.png"]
    assert seen == sorted(expected)
    assert shown("x" * 100, 11) == "xxxx...xxxx"


# ---- where the root is


SPELLINGS: list[Callable[[Path], str]] = [
    lambda root: str(root),
    lambda root: f"{root}/",
    lambda root: f"{root}//.",
    lambda root: f"../{root.parent.name}/{root.name}",
    lambda root: "root",
    lambda root: "~/root",
]


def test_the_spelling_of_the_root_is_no_part_of_fingerprint_or_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "root", "x/a.jpg", "b.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    prints, indices = set(), set()
    for spelling in SPELLINGS:
        source = open_source("folder", root=spelling(tmp_path / "root"), **OPTIONS)
        source.save_index(tmp_path / "index")
        prints.add(source.fingerprint())
        indices.add((tmp_path / "index").read_bytes())
    (tmp_path / "root").rename(tmp_path / "moved")
    prints.add(open_source("folder", root="moved", **OPTIONS).fingerprint())
    (tmp_path / "link").symlink_to("moved")
    prints.add(open_source("folder", root="link", **OPTIONS).fingerprint())
    assert len(prints) == len(indices) == 1


def test_the_home_of_labels_fonts_and_idx_files_is_found_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    touch(tmp_path, "root/a.jpg")
    (tmp_path / "labels.csv").write_text("path,label\na.jpg,x\n")
    labelled = open_source("folder", root="~/root", **{**OPTIONS, "labels": "~/labels.csv"})
    assert labelled.labels() is not None
    with pytest.raises(ValueError, match=f"{tmp_path}/fonts is not a directory"):
        open_source("glyphs", root="~/fonts", **OPTIONS)
    with pytest.raises(ValueError, match="~nobody-of-this-name/x does not exist"):
        open_source("folder", root="~nobody-of-this-name/x", **OPTIONS)


# ---- parts of a data set


@pytest.mark.parametrize(
    ("paths", "refused"),
    [
        (["train/cat/1.jpg", "train/dog/2.jpg"], True),
        (["val/cat/1.jpg", "test/cat/2.jpg"], True),
        (["train/1.jpg", "bus/2.jpg", "plane/3.jpg"], False),
        (["train/steam/1.jpg", "bus/red/2.jpg"], False),
        (["val/1.jpg", "test/2.jpg"], False),
    ],
)
def test_one_part_of_a_data_set_is_not_taken_for_a_label(tmp_path: Path, paths: list[str], refused: bool) -> None:
    touch(tmp_path, *paths)
    assert ImageFolder(tmp_path).labels() is None
    if not refused:
        assert ImageFolder(tmp_path, "folders").labels() is not None
        return
    with pytest.raises(ValueError, match="which are parts of a data set") as error:
        ImageFolder(tmp_path, "folders")
    root = str(error.value).rsplit("Set data.root to ", 1)[1]
    assert ImageFolder(Path(root), "folders").label_names


def test_labels_of_folders_are_told_apart_by_their_bytes(tmp_path: Path) -> None:
    for name in (b"caf\xe9", b"caf\\xe9", "café".encode()):
        (tmp_path / os.fsdecode(name)).mkdir()
        (tmp_path / os.fsdecode(name + b"/1.jpg")).write_bytes(b"")
    source = ImageFolder(tmp_path, "folders")
    assert len(set(source.labels())) == 3
