"""What is kept between starts: used where it is whole and this user's, found out again and said where it is not."""

import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest

from datasets import disk_cache, glyphs
from datasets.glyphs import Glyphs
from tests.datasets.toy_fonts import CHARACTERS, DRAWN, build_font


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PIC_GLYPHS_CACHE", str(tmp_path / "above" / "cache"))
    monkeypatch.setattr(disk_cache, "_printed", set())
    return tmp_path / "above" / "cache"


@pytest.fixture
def fonts(tmp_path: Path) -> Path:
    (tmp_path / "fonts").mkdir()
    build_font(tmp_path / "fonts" / "one.ttf", "One", CHARACTERS)
    build_font(tmp_path / "fonts" / "two.ttf", "Two", CHARACTERS)
    return tmp_path / "fonts"


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An entry for each face whose characters are found out by drawing them."""
    drawn: list[int] = []
    find = glyphs._find_characters

    def counted(content: bytes, index: int, image_size: int) -> tuple[np.ndarray, np.ndarray]:
        drawn.append(image_size)
        return find(content, index, image_size)

    monkeypatch.setattr(glyphs, "_find_characters", counted)
    return drawn


def same(one: Glyphs, other: Glyphs) -> bool:
    pictures = all(np.array_equal(one.image(i), other.image(i)) for i in range(len(one)))
    return pictures and one.fingerprint() == other.fingerprint() and one.labels().tolist() == other.labels().tolist()


def test_the_second_start_draws_no_character_and_is_the_same_to_the_bit(cache, fonts, found, capsys):
    first = Glyphs(fonts, 32)
    assert first.labels().tolist() == DRAWN * 2
    assert found == [32, 32]
    assert same(Glyphs(fonts, 32), first)
    assert found == [32, 32]
    assert capsys.readouterr().err == ""
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert len(list(cache.iterdir())) == 2


def test_a_start_that_keeps_nothing_is_the_same_and_says_so_in_one_line(fonts, found, cache, monkeypatch, capsys):
    first = Glyphs(fonts, 32)
    capsys.readouterr()
    (fonts.parent / "file").write_text("")
    for place in ("/dev/null", "/dev/null/below", str(fonts.parent / "file" / "below"), "~nobody-of-this-name/cache"):
        monkeypatch.setenv("PIC_GLYPHS_CACHE", place)
        assert same(Glyphs(fonts, 32), first)
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("glyphs: nothing is kept: ") and "set PIC_GLYPHS_CACHE" in line
    assert len(found) == 2 + 2 * 4


def test_a_full_disk_is_said_and_leaves_nothing(cache, fonts, monkeypatch, capsys):
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert len(Glyphs(fonts, 32)) == 2 * len(DRAWN)
    (line,) = capsys.readouterr().err.splitlines()
    assert "No space left on device" in line
    assert list(cache.iterdir()) == []


def test_another_font_size_or_library_is_found_out_anew(cache, fonts, found, monkeypatch):
    Glyphs(fonts, 32)
    Glyphs(fonts, 33)
    assert found == [32, 32, 33, 33]
    build_font(fonts / "two.ttf", "Two", {0x41: "tall", 0x42: "bar"})
    assert Glyphs(fonts, 32).labels().tolist() == [*DRAWN, 0x41, 0x42]
    assert len(found) == 5
    shutil.copy(fonts / "two.ttf", fonts / "zwei.ttf")
    Glyphs(fonts, 32)
    assert len(found) == 5  # the same content at another path
    monkeypatch.setattr(glyphs.features, "version", lambda feature: "another FreeType")
    Glyphs(fonts, 32)
    assert len(found) == 7


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "link", "directory"])
def test_what_is_damaged_is_found_out_again_said_and_mended(cache, fonts, found, damage, capsys):
    first = Glyphs(fonts, 32)
    path = sorted(cache.iterdir())[0]
    content = path.read_bytes()
    path.unlink()
    if damage == "link":
        (fonts.parent / "elsewhere").write_bytes(content)
        path.symlink_to(fonts.parent / "elsewhere")
    elif damage == "directory":
        path.mkdir()
    else:
        path.write_bytes({"cut": content[:-1], "changed": b"\xff" + content[1:], "empty": b""}[damage])
    assert same(Glyphs(fonts, 32), first)
    assert len(found) == 3
    said = capsys.readouterr().err
    assert f"glyphs: {path} " in said and "found out again" in said
    if damage != "directory":
        assert path.read_bytes() == content and not path.is_symlink()
        Glyphs(fonts, 32)
        assert len(found) == 3


def test_what_others_may_have_written_is_not_read(cache, fonts, found, capsys):
    Glyphs(fonts, 32)
    path = sorted(cache.iterdir())[0]
    path.chmod(0o666)
    Glyphs(fonts, 32)
    assert len(found) == 3
    assert f"others may write to {path} (mode 0666)" in capsys.readouterr().err
    assert not path.stat().st_mode & stat.S_IWOTH  # it was written again
    cache.chmod(0o777)
    before = {path: path.read_bytes() for path in cache.iterdir()}
    Glyphs(fonts, 16)
    Glyphs(fonts, 32)
    assert len(found) == 7
    (line,) = capsys.readouterr().err.splitlines()
    assert f"others may write to {cache}" in line
    assert {path: path.read_bytes() for path in cache.iterdir()} == before


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")
def test_what_belongs_to_another_user_is_not_read(cache, fonts, found, capsys):
    Glyphs(fonts, 32)
    os.chown(sorted(cache.iterdir())[0], 12345, 12345)
    Glyphs(fonts, 32)
    assert len(found) == 3
    assert "belongs to another user (12345)" in capsys.readouterr().err
    os.chown(cache, 12345, 12345)
    Glyphs(fonts, 32)
    assert len(found) == 5


def test_the_directory_is_the_variables_else_the_users_own(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for chosen, caches, expected in (
        ("~/mine", "/x", tmp_path / "mine"),
        ("", "/x", Path("/x/pic-engine/glyphs")),
        ("  ", "relative", tmp_path / ".cache/pic-engine/glyphs"),
        ("", "", tmp_path / ".cache/pic-engine/glyphs"),
    ):
        monkeypatch.setenv("PIC_GLYPHS_CACHE", chosen)
        monkeypatch.setenv("XDG_CACHE_HOME", caches)
        assert disk_cache.cache_directory() == expected
