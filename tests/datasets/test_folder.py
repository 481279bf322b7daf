"""Images are generated here: no package holds labelled photographs."""

import os
import pickle
import struct
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datasets.batch import UnreadableImage
from datasets.catalog import Kept, open_source
from datasets.digits import Digits
from datasets.folder import ImageFolder
from datasets.source import Source

RNG = np.random.default_rng(0)


def save(path: Path, colour: tuple[int, int, int] = (10, 20, 30), size: tuple[int, int] = (6, 4)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def names(source: ImageFolder) -> list[str]:
    return [source.instance_name(i) for i in range(len(source))]


def only(path: Path) -> np.ndarray:
    """The one image of the folder that holds `path`."""
    source = ImageFolder(path.parent)
    assert len(source) == 1
    return source.image(0)


# ---- which files are instances, and in which order


def test_instances_are_the_images_below_the_root_in_order_of_their_paths(tmp_path: Path) -> None:
    paths = ["b.JPG", "a/z.png", "a/b/c.Jpeg", "a.png", "a-b/x.bmp", "a0.tif", "ä/ö ü.webp", "c.gif", "d.tiff"]
    for path in paths:
        save(tmp_path / path)
    resource_forks = ["._b.JPG", "a/._z.png"]
    for path in ["notes.txt", "a/.hidden.png", ".cache/x.png", "png", "archive.png.zip", *resource_forks]:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(b"")
    source = ImageFolder(tmp_path)
    assert names(source) == sorted(paths, key=os.fsencode)
    assert source.labels() is None
    protocol: Source = source
    assert protocol.image(0).shape == (4, 6, 3)


def test_the_order_does_not_depend_on_the_order_of_creation(tmp_path: Path) -> None:
    for root, order in (("one", [3, 1, 2]), ("two", [2, 3, 1])):
        for number in order:
            save(tmp_path / root / f"{number % 2}" / f"{number}.png")
    one, two = ImageFolder(tmp_path / "one"), ImageFolder(tmp_path / "two")
    assert names(one) == names(two)
    assert one.fingerprint() == two.fingerprint()


def test_the_index_takes_the_bytes_of_the_paths_and_forty_more_for_each(tmp_path: Path) -> None:
    for number in range(200):
        (tmp_path / f"{number:032d}.jpg").touch()
    source = ImageFolder(tmp_path)
    assert len(pickle.dumps(source)) < 200 * (37 + 40) + 2000


def test_a_source_works_after_pickling(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    source = pickle.loads(pickle.dumps(ImageFolder(tmp_path)))
    assert source.image(0)[0, 0].tolist() == [10, 20, 30]


def test_links_are_followed_and_those_that_lead_back_left_out(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "deep" / "a.png")
    root = tmp_path / "root"
    root.mkdir()
    (root / "folder").symlink_to(tmp_path / "elsewhere")
    (root / "file.png").symlink_to(tmp_path / "elsewhere" / "deep" / "a.png")
    source = ImageFolder(root)
    assert names(source) == ["file.png", "folder/deep/a.png"]
    assert np.array_equal(source.image(0), source.image(1))
    (tmp_path / "elsewhere" / "loop").symlink_to(root)
    looped = ImageFolder(root)
    assert names(looped) == names(source)
    assert looped.notes == ("the link folder/loop: leads back to a folder above it, left out",)


def test_names_that_are_not_utf8_are_images_like_others(tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/caf\xe9.png"
    os.rename(save(tmp_path / "plain.png"), odd)
    source = ImageFolder(tmp_path)
    assert names(source) == ["caf\\xe9.png"]
    assert source.image(0).shape == (4, 6, 3)


def test_the_fingerprint_sees_added_renamed_and_resized_files(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    prints = [ImageFolder(tmp_path).fingerprint()]
    save(tmp_path / "b.png")
    prints.append(ImageFolder(tmp_path).fingerprint())
    (tmp_path / "b.png").rename(tmp_path / "c.png")
    prints.append(ImageFolder(tmp_path).fingerprint())
    with (tmp_path / "c.png").open("ab") as file:
        file.write(b"\0")
    prints.append(ImageFolder(tmp_path).fingerprint())
    assert len(set(prints)) == 4
    os.utime(tmp_path / "c.png", (0, 0))
    assert ImageFolder(tmp_path).fingerprint() == prints[-1]


# ---- files that are added between two starts of a run


def start_again(root: Path, index: Path, labels: Path | None = None) -> ImageFolder:
    """As launch.py does it: with the index of the start before, if there was one, and saving it anew."""
    source = ImageFolder(root, labels, known=index if index.exists() else None)
    source.save_index(index)
    return source


def test_added_files_come_after_the_known_ones_wherever_their_names_sort(tmp_path: Path) -> None:
    root, index = tmp_path / "root", tmp_path / "index"
    for path in ("b/1.png", "d.png", "m/x.png"):
        save(root / path)
    first = start_again(root, index)
    assert names(first) == ["b/1.png", "d.png", "m/x.png"]
    for path in ("z.png", "a.png", "b/0.png", "b/2.png", "e.png", "b.png"):
        save(root / path, colour=(200, 0, 0))
    second = start_again(root, index)
    assert names(second) == [*names(first), "a.png", "b.png", "b/0.png", "b/2.png", "e.png", "z.png"]
    for path in ("0.png", "c.png", "zz.png"):
        save(root / path)
    third = start_again(root, index)
    assert names(third) == [*names(second), "0.png", "c.png", "zz.png"]
    assert names(start_again(root, index)) == names(third)
    assert third.image(1)[0, 0].tolist() == [10, 20, 30]
    assert third.image(3)[0, 0].tolist() == [200, 0, 0]
    assert names(ImageFolder(root)) == sorted(names(third), key=os.fsencode)


STEMS = ["a", "a/a", "a/b", "a0", "b", "b.c", "b/a", "c/a/b", "ä"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sets(st.sampled_from(STEMS), min_size=1), min_size=1, max_size=4))
def test_each_start_keeps_the_numbers_of_all_before_and_sorts_what_is_new(additions: list[set[str]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        root, index = Path(directory) / "root", Path(directory) / "index"
        expected: list[str] = []
        for added in additions:
            files = {f"{name}.png" for name in added}
            for name in files:
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_text("x" * len(name))
            expected += sorted(files - set(expected), key=os.fsencode)
            source = start_again(root, index)
            assert names(source) == expected
            for count in range(1, len(expected) + 1):
                assert source.file_bytes(count - 1) == len(expected[count - 1])


def test_the_fingerprint_of_the_first_images_is_that_of_the_folder_without_the_others(tmp_path: Path) -> None:
    root, index = tmp_path / "root", tmp_path / "index"
    save(root / "b.png")
    save(root / "c.png")
    before = start_again(root, index)
    save(root / "a.png")
    after = ImageFolder(root, known=index)
    assert after.fingerprint(2) == before.fingerprint() == before.fingerprint(2)
    assert after.fingerprint(3) == after.fingerprint() != before.fingerprint()
    assert after.fingerprint() != ImageFolder(root).fingerprint()  # other numbers
    with (root / "c.png").open("ab") as file:
        file.write(b"\0")
    changed = ImageFolder(root, known=index)
    assert changed.fingerprint(2) == before.fingerprint(2)  # the index knows what it was
    assert changed.changes.resized.tolist() == [1] and "c.png" in changed.notes[0]
    assert ImageFolder(root).fingerprint(3) != after.fingerprint(3)


def test_a_known_file_that_is_gone_keeps_its_number_and_is_told_and_counted(tmp_path: Path) -> None:
    root, index = tmp_path / "root", tmp_path / "index"
    for name in "bdfh":
        save(root / f"{name}.png")
    start_again(root, index)
    save(root / "a.png")
    whole = start_again(root, index)
    (root / "f.png").rename(root / "g.png")
    source = ImageFolder(root, known=index)
    assert names(source) == ["b.png", "d.png", "f.png", "h.png", "a.png", "g.png"]
    assert source.changes.gone.tolist() == [2]
    assert source.notes == ("1 image is gone and skipped; a number is never given to another one: f.png",)
    assert source.fingerprint(5) == whole.fingerprint()
    with pytest.raises(UnreadableImage, match=r"f\.png: No such file"):
        source.image(2)
    (root / "a.png").unlink()
    (root / "h.png").unlink()
    assert ImageFolder(root, known=index).changes.gone.tolist() == [2, 3, 4]
    for name in "bdg":
        (root / f"{name}.png").unlink()
    assert ImageFolder(root, known=index).changes.gone.tolist() == [0, 1, 2, 3, 4]
    assert "b.png, d.png, f.png, ..." in ImageFolder(root, known=index).notes[0]
    save(root / "f.png")
    back = ImageFolder(root, known=index)
    assert back.changes.gone.tolist() == [0, 1, 3, 4]
    assert back.image(2).shape == (4, 6, 3)


def test_an_index_keeps_any_bytes_that_a_name_may_have(tmp_path: Path) -> None:
    root, index = tmp_path / "root", tmp_path / "index"
    odd = [b"caf\xe9.png", b"new\nline.png", b"\x01.png", b"\xff\xfe.png", b" .png", b"new\n/line.png"]
    save(root / "plain.png")
    start_again(root, index)
    (root / "new\n").mkdir()
    for name in odd:
        (root / os.fsdecode(name)).write_bytes((root / "plain.png").read_bytes())
    grown = start_again(root, index)
    assert [grown.index.entry(i).path for i in range(len(grown))] == [b"plain.png", *sorted(odd)]
    again = start_again(root, index)
    assert again.fingerprint() == grown.fingerprint()
    assert all(again.image(i).shape == (4, 6, 3) for i in range(len(again)))
    (root / os.fsdecode(odd[0])).unlink()
    assert r"caf\xe9.png" in ImageFolder(root, known=index).notes[0]


def test_an_index_is_replaced_whole_or_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, index = tmp_path / "root", tmp_path / "index"
    save(root / "a.png")
    start_again(root, index)
    before = index.read_bytes()
    save(root / "b.png")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    grown = ImageFolder(root, known=index)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            grown.save_index(index)
    assert index.read_bytes() == before
    start_again(root, index)
    assert index.read_bytes().endswith(b"a.png\0b.png\0")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "root"]


@pytest.mark.parametrize("content", [b"", b"a.png", b"a.png\0b.p"])
def test_an_index_that_is_cut_short_is_refused(tmp_path: Path, content: bytes) -> None:
    save(tmp_path / "root" / "a.png")
    (tmp_path / "index").write_bytes(content)
    with pytest.raises(ValueError, match=r"index is not a whole list of images; restore it, or start over"):
        ImageFolder(tmp_path / "root", known=tmp_path / "index")


def test_labels_follow_the_numbers_of_a_grown_folder(tmp_path: Path) -> None:
    root, index, table = tmp_path / "root", tmp_path / "index", tmp_path / "labels.csv"
    for path in ("dog/1.png", "dog/3.png"):
        save(root / path)
    start_again(root, index)
    for path in ("cat/1.png", "dog/2.png"):
        save(root / path)
    table.write_text("path,label\ncat/1.png,c\ndog/1.png,d1\ndog/2.png,d2\ndog/3.png,d3\n")
    by_folder, by_table = ImageFolder(root, "folders", index), ImageFolder(root, table, index)
    assert names(by_table) == ["dog/1.png", "dog/3.png", "cat/1.png", "dog/2.png"]
    assert [by_folder.label_names[label] for label in by_folder.labels()] == ["dog", "dog", "cat", "dog"]
    assert [by_table.label_names[label] for label in by_table.labels()] == ["d1", "d3", "c", "d2"]
    table.write_text("path,label\ndog/1.png,d1\ndog/3.png,d3\n")
    with pytest.raises(ValueError, match=r"no line for cat/1\.png \(2 of 4 images have no label\)"):
        ImageFolder(root, table, index)


def test_the_catalog_gives_the_index_to_a_folder_and_to_nothing_else(tmp_path: Path) -> None:
    root, index = tmp_path / "root", tmp_path / "index"
    save(root / "b.png")
    start_again(root, index)
    save(root / "a.png")
    options: dict[str, Any] = {"image_size": 8, "limit": None, "held_out": (), "labels": None, "kept": Kept(index)}
    source = open_source("folder", root=str(root), **options)
    assert [source.instance_name(i) for i in range(2)] == ["b.png", "a.png"]
    digits = open_source("digits", root=None, **options)
    digits.save_index(tmp_path / "unwritten")
    assert digits.fingerprint() == Digits("train").fingerprint()
    assert not (tmp_path / "unwritten").exists()


# ---- mistakes of the user


def test_a_bad_root_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere does not exist; set it to your folder"):
        ImageFolder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"a.png is a file; set it to the folder"):
        ImageFolder(save(tmp_path / "full" / "a.png"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"no image under .*empty; looked for .jpg .jpeg .png") as error:
        ImageFolder(tmp_path / "empty")
    assert "\n" not in str(error.value)


# ---- decoding


def test_an_image_is_turned_upright_by_its_exif_orientation(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to see it upright
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(only(tmp_path / "a.png"), np.rot90(pixels, k=-1))


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = (255, 0, 0, 255)
    rgba[0, 1] = (0, 0, 0, 51)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    expected = [[[255, 0, 0], [204, 204, 204]], [[255, 255, 255], [255, 255, 255]]]
    assert only(tmp_path / "a.png").tolist() == expected


def test_a_transparent_palette_is_laid_over_white(tmp_path: Path) -> None:
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "L").convert("P")
    palette.putpalette([9, 9, 9, 40, 50, 60, 70, 80, 90])
    palette.save(tmp_path / "a.png", transparency=0)
    assert only(tmp_path / "a.png").tolist() == [[[255, 255, 255], [40, 50, 60], [70, 80, 90]]]


def test_grey_and_bilevel_images_become_rgb(tmp_path: Path) -> None:
    grey = RNG.integers(0, 256, (3, 5), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.png")
    assert np.array_equal(only(tmp_path / "a.png"), np.stack([grey] * 3, axis=2))
    Image.fromarray(grey > 127).save(tmp_path / "a.png")
    assert np.array_equal(only(tmp_path / "a.png")[..., 1], (grey > 127) * np.uint8(255))


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    red, green, blue = only(tmp_path / "a.jpg")[4, 4].tolist()
    assert red > 250
    assert max(green, blue) < 5


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_keeps_its_full_range(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    assert only(tmp_path / f"a.{suffix}")[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_floats_and_wide_integers_are_stretched(tmp_path: Path) -> None:
    for values in (np.array([[-1.0, 0.0, 1.0]], np.float32), np.array([[-5, 0, 5]], np.int32)):
        Image.fromarray(values).save(tmp_path / "a.tif")
        assert only(tmp_path / "a.tif")[0, :, 2].tolist() == [0, 128, 255]
    Image.fromarray(np.full((2, 2), 7, np.float32)).save(tmp_path / "a.tif")
    assert not only(tmp_path / "a.tif").any()
    Image.fromarray(np.array([[np.nan, np.inf]], np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UnreadableImage, match=r"a\.tif: .*no value that is finite"):
        only(tmp_path / "a.tif")


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert only(tmp_path / "a.gif")[0, 0].tolist() == [255, 0, 0]


def test_an_image_belongs_to_the_caller(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    source = ImageFolder(tmp_path)
    source.image(0)[:] = 0
    assert source.image(0).max() == 30


# ---- images that cannot be decoded


def test_a_truncated_image_is_unreadable_and_named(tmp_path: Path) -> None:
    noise = Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for name in ("a.jpg", "b.png", "c.webp"):
        (tmp_path / "sub").mkdir(exist_ok=True)
        noise.save(tmp_path / "sub" / name)
        content = (tmp_path / "sub" / name).read_bytes()
        (tmp_path / "sub" / name).write_bytes(content[: len(content) // 2])
    source = ImageFolder(tmp_path)
    for instance, name in enumerate(("a.jpg", "b.png", "c.webp")):
        with pytest.raises(UnreadableImage) as error:
            source.image(instance)
        assert error.value.name == f"sub/{name}"
        assert error.value.reason


def test_files_that_are_no_images_are_unreadable(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "b.png").write_text("<html>404</html>")
    # A PostScript file would start an interpreter, were it not refused for its format.
    (tmp_path / "c.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    (tmp_path / "d.png").symlink_to(tmp_path / "gone.png")
    source = ImageFolder(tmp_path)
    for instance, reason in enumerate(["an empty file", *["not an image in a known format"] * 2]):
        with pytest.raises(UnreadableImage, match=reason):
            source.image(instance)
    with pytest.raises(UnreadableImage, match=r"d\.png: No such file"):
        source.image(3)


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_a_decompression_bomb_is_unreadable(tmp_path: Path, side: int) -> None:
    """Pillow warns at the smaller size and raises at the larger one; neither may decode, nor may a warning escape."""
    save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[16:24] = struct.pack(">II", side, side)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UnreadableImage, match=r"more than \d+ pixels"):
        only(tmp_path / "a.png")


def test_odd_metadata_is_no_reason_to_fail_or_to_warn(tmp_path: Path) -> None:
    save(tmp_path / "a.jpg", size=(8, 8))
    content = (tmp_path / "a.jpg").read_bytes()
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01" * 3
    (tmp_path / "a.jpg").write_bytes(content[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + content[2:])
    assert only(tmp_path / "a.jpg").shape == (8, 8, 3)


def test_an_unreadable_image_crosses_process_borders() -> None:
    error = pickle.loads(pickle.dumps(UnreadableImage("a.jpg", "truncated")))
    assert (error.name, error.reason) == ("a.jpg", "truncated")


# ---- labels


def test_folders_label_by_the_first_component(tmp_path: Path) -> None:
    for path in ("dog/1.png", "cat/deep/2.png", "cat-big/3.png", "cat/4.png"):
        save(tmp_path / path)
    source = ImageFolder(tmp_path, labels="folders")
    assert source.label_names == ["cat", "cat-big", "dog"]
    found = {source.instance_name(i): source.label_names[label] for i, label in enumerate(source.labels())}
    assert found == {"dog/1.png": "dog", "cat/deep/2.png": "cat", "cat-big/3.png": "cat-big", "cat/4.png": "cat"}
    save(tmp_path / "stray.png")
    with pytest.raises(ValueError, match=r'"folders", but stray\.png lies directly in'):
        ImageFolder(tmp_path, labels="folders")


def test_a_csv_file_labels_by_path(tmp_path: Path) -> None:
    for path in ("x/1.png", "2.png", "x/3, big.png"):
        save(tmp_path / path)
    table = tmp_path / "labels.csv"
    table.write_text('path,label\n2.png,zebra\n"x/3, big.png",ant\nx/1.png,zebra\n')
    source = ImageFolder(tmp_path, labels=table)
    assert source.label_names == ["ant", "zebra"]
    found = {source.instance_name(i): source.label_names[label] for i, label in enumerate(source.labels())}
    assert found == {"x/1.png": "zebra", "2.png": "zebra", "x/3, big.png": "ant"}
    assert source.fingerprint() == ImageFolder(tmp_path).fingerprint()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,label\na.png,1\n", r"no line for b\.png \(2 of 3 images have no label\)"),
        (
            "path,label\na.png,1\nb.png,1\nc.png,1\nd.png,2\ne.png,2\n",
            r"names d\.png, .*\(2 of 5 lines name no image\)",
        ),
        ("path,label\na.png,1\nb.png,1\nc.png,1\na.png,2\n", r"line 5 gives a\.png a second label"),
        ("a.png,1\nb.png,1\nc.png,1\n", "the first line of .* is 'a.png,1'; it must be 'path,label'"),
        ("path,label\na.png,1,2\n", "line 2 is not a path, a comma and a label"),
        ("path,label\na.png,\n", "line 2 is not a path, a comma and a label"),
        ("", "must be 'path,label'"),
    ],
)
def test_a_csv_file_that_does_not_fit_is_refused(tmp_path: Path, content: str, message: str) -> None:
    for name in "abc":
        save(tmp_path / f"{name}.png")
    (tmp_path / "labels.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        ImageFolder(tmp_path, labels=tmp_path / "labels.csv")


def test_a_missing_csv_file_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="is not a file; set it to a csv file"):
        ImageFolder(tmp_path, labels=tmp_path / "labels.csv")
