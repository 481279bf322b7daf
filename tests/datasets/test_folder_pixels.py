"""What files become as pixels, and which are unreadable."""

import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.batch import UnreadableImage
from datasets.folder import ImageFolder
from tests.datasets.pictures import RNG, only, save


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
