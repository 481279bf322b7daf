"""Good pixels are not lost to what lies beside them, and damaged ones are not made up."""

import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datasets.decode import Undecodable
from tests.datasets.encoded_images import NOISE, PIXELS, chunk, encoded, png, seen, tiff

RNG = np.random.default_rng(0)


# ---- metadata


ICC = chunk(b"iCCP", b"profile\0\0" + zlib.compress(NOISE))


@pytest.mark.parametrize(
    "beside",
    [
        ICC,
        chunk(b"zTXt", b"key\0\0" + zlib.compress(NOISE)),
        chunk(b"iTXt", b"key\0\1\0\0\0" + zlib.compress(b"a" * 1_500_000)),
        chunk(b"tEXt", b"key\0" + b"a" * 70_000_000),
        chunk(b"iCCP", b"profile\0\7" + zlib.compress(b"x")),
        chunk(b"tEXt", b"key\0text")[:-1] + b"!",
        chunk(b"gAMA", b"\0"),
        chunk(b"pHYs", b"\0"),
        chunk(b"eXIf", b"\xff" * 30),
        chunk(b"acTL", b"\0"),
    ],
    ids=lambda content: content[4:8].decode(),
)
def test_a_png_is_read_whatever_is_told_beside_its_pixels(beside: bytes) -> None:
    np.testing.assert_array_equal(seen(png(beside)), PIXELS)


def test_the_orientation_stays_where_other_metadata_is_left_out() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = np.rot90(PIXELS, k=-1)
    np.testing.assert_array_equal(seen(png(ICC, chunk(b"eXIf", exif.tobytes()[6:]))), turned)
    xmp = b'XML:com.adobe.xmp\0\0\0\0\0<x:xmpmeta tiff:Orientation="6"/>'
    np.testing.assert_array_equal(seen(png(ICC, chunk(b"iTXt", xmp))), turned)
    raw = exif.tobytes()
    text = f"\nexif\n{len(raw):8}\n{raw.hex()}\n".encode()
    np.testing.assert_array_equal(
        seen(png(ICC, chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text)))), turned
    )


def segment(marker: int, data: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data


@pytest.mark.parametrize(
    "beside",
    [
        segment(0xE2, b"ICC_PROFILE\0"),
        segment(0xE2, b"ICC_PROFILE\0\5"),
        segment(0xE2, b"MPF\0II*\0" + b"\xff" * 40),
        segment(0xE0, b"JFIF\0"),
        segment(0xED, b"Photoshop 3.0\x008BIM\3\xed"),
        segment(0xEE, b"Adobe"),
        segment(0xE1, b"Exif\0\0" + b"\xff" * 50),
        segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\x05\0"),
        segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01" * 3),
        segment(0xE2, b"ICC_PROFILE\0\1\2" + b"x" * 60_000),
    ],
    ids=["icc", "icc5", "mpf", "jfif", "8bim", "adobe", "exif", "exif-cut", "exif-tags", "icc-missing"],
)
def test_a_jpeg_is_read_whatever_is_told_beside_its_pixels(beside: bytes) -> None:
    whole = encoded(PIXELS, "JPEG")
    np.testing.assert_array_equal(seen(whole[:2] + beside + whole[2:]), seen(whole))


def test_a_jpeg_keeps_orientation_and_adobes_colours_beside_a_broken_profile() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    whole = encoded(PIXELS, "JPEG", exif=exif)
    broken = whole[:2] + segment(0xE2, b"ICC_PROFILE\0") + whole[2:]
    np.testing.assert_array_equal(seen(broken), seen(encoded(PIXELS, "JPEG"))[::-1, ::-1])
    cmyk = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)
    np.testing.assert_array_equal(seen(cmyk[:2] + segment(0xE2, b"ICC_PROFILE\0") + cmyk[2:]), seen(cmyk))


@pytest.mark.parametrize("kind", ["WEBP", "PNG", "TIFF"])
def test_a_broken_exif_block_or_profile_loses_no_pixels(kind: str) -> None:
    options = {} if kind == "TIFF" else {"exif": b"Exif\0\0" + b"\xff" * 40}
    options |= {"lossless": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(seen(encoded(PIXELS, kind, icc_profile=b"junk", **options)), PIXELS)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_a_turned_tiff_is_no_other_image_than_when_it_is_packed(mode: str, orientation: int) -> None:
    """Mapped into memory by its path, as Pillow likes to have it, a plain one that lies on its side comes out sheared."""
    values = RNG.integers(0, 65536, (12, 20), dtype=np.uint16)
    image = Image.fromarray(values) if mode == "I;16" else Image.fromarray(PIXELS[:12, :20]).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    plain, packed = (encoded(image, "TIFF", exif=exif, compression=how) for how in ("raw", "tiff_deflate"))
    assert seen(plain).shape == ((12, 20, 3) if orientation < 5 else (20, 12, 3))
    np.testing.assert_array_equal(seen(plain), seen(packed))


# ---- what is cut


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"quality": 100, "subsampling": 0}, {"restart_marker_rows": 1}]
)
def test_a_jpeg_that_lacks_only_its_end_is_read_and_one_that_lacks_pixels_is_not(options: dict) -> None:
    whole = encoded(PIXELS, "JPEG", **options)
    for cut in (1, 2):
        np.testing.assert_array_equal(seen(whole[:-cut]), seen(whole))
    for kept in (0.3, 0.5, 0.7, 0.9, 0.95):
        with pytest.raises(Undecodable):
            seen(whole[: int(kept * len(whole))])


def test_padding_behind_an_image_and_a_trailer_that_is_missing_are_no_damage() -> None:
    for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF"):
        whole = encoded(PIXELS, kind)
        np.testing.assert_array_equal(seen(whole + bytes(1000)), seen(whole))
    for kind in ("PNG", "GIF"):
        whole = encoded(PIXELS, kind)
        np.testing.assert_array_equal(seen(whole[:-1]), seen(whole))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_of_an_animation_the_first_frame_is_read(kind: str) -> None:
    frames = [Image.fromarray(RNG.integers(0, 256, (40, 40, 3), dtype=np.uint8)) for _ in range(3)]
    options = {"lossless": True} if kind == "WEBP" else {}
    whole = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    first = seen(whole)
    if kind not in ("GIF", "MPO"):
        np.testing.assert_array_equal(first, np.asarray(frames[0]))
    if kind != "WEBP":  # its decoder wants the whole file
        np.testing.assert_array_equal(seen(whole[: int(0.9 * len(whole))]), first)
        damaged = bytearray(whole)
        damaged[int(0.8 * len(whole)) : int(0.9 * len(whole))] = bytes(int(0.9 * len(whole)) - int(0.8 * len(whole)))
        np.testing.assert_array_equal(seen(bytes(damaged)), first)


# ---- kinds of pixels


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I;16B", "I", "F"]
)
def test_every_kind_of_pixels_that_can_be_stored_is_read(mode: str) -> None:
    assert seen(encoded(Image.new(mode, (6, 4)), "TIFF")).shape == (4, 6, 3)


def test_premultiplied_grey_is_laid_over_white() -> None:
    two = np.array([[[100, 200], [0, 0]]], np.uint8)
    content = bytearray(encoded(Image.fromarray(two, "LA"), "TIFF"))
    place = content.index(struct.pack("<HHI", 338, 3, 1)) + 8  # ExtraSamples: 2 is plain transparency, 1 premultiplied
    content[place] = 1
    assert seen(bytes(content))[0, :, 0].tolist() == [155, 255]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_a_transparent_colour_of_a_png_is_white(mode: str) -> None:
    image = Image.new(mode, (4, 4))
    assert (seen(encoded(image, "PNG", transparency=(0, 0, 0) if mode == "RGB" else 0)) == 255).all()


# ---- damage


def test_a_header_that_claims_too_much_is_unreadable_before_memory_is_taken() -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    huge_png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")
    bmp = bytearray(encoded(PIXELS, "BMP"))
    bmp[18:26] = struct.pack("<ii", 2**31 - 1, 2**31 - 1)
    gif = bytearray(encoded(PIXELS, "GIF"))
    gif[6:10] = struct.pack("<HH", 65535, 65535)
    for content in (huge_png, bytes(bmp), bytes(gif), tiff(np.zeros((4, 4), np.uint8)).replace(*_wide("<"))):
        with pytest.raises(Undecodable):
            seen(content)


def _wide(order: str) -> tuple[bytes, bytes]:
    head = struct.pack(f"{order}HHI", 256, 4, 1)
    return head + struct.pack(f"{order}I", 4), head + struct.pack(f"{order}I", 2**31 - 1)


def test_the_reason_is_one_line_and_knows_a_damaged_image_from_no_image() -> None:
    with pytest.raises(Undecodable, match=r"^not an image in a known format$"):
        seen(b"<html>404</html>")
    with pytest.raises(Undecodable, match=r"^a TIFF file that is damaged or of a kind that is not read$"):
        seen(tiff(np.zeros((4, 4), np.float64), sample_format=3))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"]), st.data())
def test_no_damage_ends_in_anything_but_pixels_or_a_reason(kind: str, data: st.DataObject) -> None:
    content = bytearray(encoded(PIXELS[:12, :12], kind))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            pixels, reason = seen(bytes(content)), "none"
        except Undecodable as error:
            pixels, reason = PIXELS, str(error)
    assert pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype == np.uint8
    assert reason and "\n" not in reason
