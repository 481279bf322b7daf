"""Fonts of a few rectangles, built here, say what becomes an instance; matplotlib's fonts say that real ones work."""

import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fontTools.ttLib import TTCollection, TTFont

from datasets import glyphs
from datasets.glyphs import Glyphs, find_faces, render
from datasets.source import Source
from tests.datasets.toy_fonts import CHARACTERS, DRAWN, EM, build_font


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    build_font(tmp_path / "toy.ttf", "Toy", CHARACTERS)
    return tmp_path


@pytest.fixture(scope="module")
def wheel() -> Glyphs:
    return Glyphs(None, 32)


def ink_box(image: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def test_characters_that_draw_nothing_or_the_notdef_box_are_no_instances(toy: Path) -> None:
    source: Source = Glyphs(toy, 40)
    # Not there: both blanks, the soft hyphen (a format character, though drawn), and the one that is drawn as .notdef.
    assert source.labels() is not None
    assert [int(label) for label in source.labels()] == DRAWN
    assert source.instance_name(0) == "Toy Regular U+0041 LATIN CAPITAL LETTER A"


def test_characters_of_one_glyph_are_one_instance_named_after_the_first(tmp_path: Path) -> None:
    build_font(tmp_path / "a.ttf", "Toy", {0x41: "tall", 0x391: "tall", 0x410: "tall", 0x42: "bar"})
    assert Glyphs(tmp_path, 24).labels().tolist() == [0x41, 0x42]


def test_faces_of_a_collection_do_not_repeat_the_outlines_that_they_share(tmp_path: Path) -> None:
    first = TTFont(build_font(tmp_path / "first.ttf", "Toy JP", {0x41: "tall", 0x42: "bar"}))
    second = TTFont(build_font(tmp_path / "second.ttf", "Toy SC", {0x41: "tall", 0x42: "small"}))
    collection = TTCollection()
    collection.fonts = [first, second]
    (tmp_path / "fonts").mkdir()
    collection.save(tmp_path / "fonts" / "both.ttc", shareTables=True)
    source = Glyphs(tmp_path / "fonts", 24)
    named = [source.instance_name(i) for i in range(len(source))]
    assert [name.rsplit(" LATIN")[0] for name in named] == [
        "Toy JP Regular U+0041",
        "Toy JP Regular U+0042",
        "Toy SC Regular U+0042",
    ]
    # Two files share nothing, even where they are equal.
    first.close()
    second.close()
    for path in (tmp_path / "fonts").iterdir():
        path.unlink()
    shutil.copy(tmp_path / "first.ttf", tmp_path / "fonts" / "a.ttf")
    shutil.copy(tmp_path / "first.ttf", tmp_path / "fonts" / "b.ttf")
    assert len(Glyphs(tmp_path / "fonts", 24)) == 4


def test_ink_is_centred_and_keeps_its_size_relative_to_the_em(toy: Path) -> None:
    face = find_faces(toy)[0]
    for character, width, height in [("A", 200, 800), ("B", 100, 100)]:
        image = render(face, ord(character), 50)
        left, top, right, bottom = ink_box(image)
        assert right - left == pytest.approx(width * 50 / EM, abs=1)
        assert bottom - top == pytest.approx(height * 50 / EM, abs=1)
        assert abs(left + right - 50) <= 1
        assert abs(top + bottom - 50) <= 1
        assert image.max() == 255


def test_ink_larger_than_the_image_is_reduced_and_never_clipped(toy: Path) -> None:
    image = render(find_faces(toy)[0], ord("C"), 40)
    left, top, right, bottom = ink_box(image)
    # Two posts three em apart: both at the edges, and a tenth as tall as they are apart.
    assert (left, right) == (0, 40)
    assert bottom - top == pytest.approx(4, abs=2)
    assert not image[:, 4:-4].any()


def test_the_wheel_holds_57000_glyphs_none_of_them_blank(wheel: Glyphs) -> None:
    assert 55_000 < len(wheel) < 57_697
    assert len({face.family for face in wheel.faces}) > 15
    assert not any("LastResort" in face.path.name for face in wheel.faces)
    for instance in range(0, len(wheel), 97):
        image = wheel.image(instance)
        assert image.shape == (32, 32)
        assert image.dtype == np.uint8
        assert image.any()


def test_a_held_out_family_takes_no_part(wheel: Glyphs) -> None:
    without = Glyphs(None, 32, held_out=["DejaVu Serif", "STIXGeneral"])
    families = [face.family for face in wheel.faces]
    gone = sum(wheel.instance_name(i).startswith(("DejaVu Serif B", "DejaVu Serif I")) for i in range(len(wheel)))
    gone += sum(wheel.instance_name(i).startswith("STIXGeneral ") for i in range(len(wheel)))
    assert families.count("DejaVu Serif") == 4
    assert not {"DejaVu Serif", "STIXGeneral"} & {face.family for face in without.faces}
    assert len(without) == len(wheel) - gone


def test_an_unknown_family_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(
        ValueError, match=r"data.held_out: no font family 'DejaVu Serfi'; the nearest are 'DejaVu Serif'"
    ):
        Glyphs(None, 32, held_out=["DejaVu Serfi"])


def test_holding_out_everything_is_refused(toy: Path) -> None:
    with pytest.raises(ValueError, match="no glyph is left"):
        Glyphs(toy, 32, held_out=["Toy"])


def test_fonts_are_found_without_importing_matplotlib() -> None:
    code = (
        "import sys; from datasets.glyphs import find_faces; print(len(find_faces(None)), 'matplotlib' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, imported = found.stdout.split()
    assert int(count) > 30
    assert imported == "False"


def _open_fonts_and_image(source: Glyphs, instance: int) -> tuple[list[str], bytes]:
    drawn = source.image(instance).tobytes()
    places = [Path("/proc/self/fd") / number for number in os.listdir("/proc/self/fd")]
    return [os.readlink(place) for place in places if place.is_symlink() and ".ttf" in os.readlink(place)], drawn


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_child_processes_share_no_open_font_and_draw_the_same(toy: Path, method: str) -> None:
    source = Glyphs(toy, 32)
    expected = source.image(1).tobytes()
    assert glyphs._font.cache_info().currsize > 0
    with multiprocessing.get_context(method).Pool(1) as pool:
        open_fonts, drawn = pool.apply(_open_fonts_and_image, (source, 1))
        pool.close()
        pool.join()
    assert open_fonts == []
    assert drawn == expected


def test_a_pickled_source_is_small_and_draws_the_same(wheel: Glyphs) -> None:
    content = pickle.dumps(wheel)
    assert len(content) < 10 * len(wheel)
    assert np.array_equal(pickle.loads(content).image(4321), wheel.image(4321))


def test_the_fingerprint_follows_the_images_and_not_the_path(toy: Path, tmp_path: Path) -> None:
    original = Glyphs(toy, 32).fingerprint()
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copy(toy / "toy.ttf", copy / "renamed.ttf")
    assert Glyphs(copy, 32).fingerprint() == original
    assert Glyphs(copy, 33).fingerprint() != original
    build_font(copy / "renamed.ttf", "Toy", CHARACTERS, style="Bold")
    assert Glyphs(copy, 32).fingerprint() != original
    build_font(copy / "another.ttf", "Another", CHARACTERS)
    assert len({Glyphs(copy, 32, held).fingerprint() for held in ([], ["Toy"], ["Another"])}) == 3


def test_fonts_that_sort_behind_all_others_append_their_glyphs(toy: Path) -> None:
    small = Glyphs(toy, 32)
    # A face without a character of its own, in both sources or in one, makes no difference.
    build_font(toy / "u.ttf", "Empty", {0x20: "blank"})
    assert len(Glyphs(toy, 32)) == len(small)
    assert Glyphs(toy, 32).fingerprint() == small.fingerprint() == small.fingerprint(len(small))
    build_font(toy / "v.ttf", "Later", CHARACTERS)
    large = Glyphs(toy, 32)
    assert [large.instance_name(i) for i in range(len(small))] == [small.instance_name(i) for i in range(len(small))]
    assert large.fingerprint(len(small)) == small.fingerprint()
    assert large.fingerprint(len(large)) == large.fingerprint() != small.fingerprint()
    build_font(toy / "a.ttf", "Before", CHARACTERS)
    assert Glyphs(toy, 32).fingerprint(len(small)) != small.fingerprint()


def test_a_bad_directory_of_fonts_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a directory"):
        Glyphs(tmp_path / "nowhere", 32)
    with pytest.raises(ValueError, match=r"no .ttf, .otf or .ttc file under"):
        Glyphs(tmp_path, 32)
    (tmp_path / "broken.ttf").write_bytes(b"this is not a font")
    with pytest.raises(ValueError, match=r"broken.ttf cannot be read as a font .*; move it away"):
        Glyphs(tmp_path, 32)
    whole = build_font(tmp_path / "broken.ttf", "Toy", CHARACTERS).read_bytes()
    for length in (1, 20, len(whole) // 3, len(whole) // 2, len(whole) - 20):
        (tmp_path / "broken.ttf").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"broken.ttf cannot be read as a font .*; move it away"):
            Glyphs(tmp_path, 32)
