"""Good pixels are not lost to what lies beside them, nor to bits that a format leaves unused; damaged ones are not made up."""

import io
import struct
import warnings
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datasets.decode import Undecodable, decode

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (40, 56, 3), dtype=np.uint8)
NOISE = RNG.integers(0, 256, 1_500_000, dtype=np.uint8).tobytes()


def encoded(image: Image.Image | np.ndarray, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def seen(content: bytes) -> np.ndarray:
    return decode(io.BytesIO(content))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*chunks: bytes) -> bytes:
    """PIXELS with these chunks in front of them."""
    whole = encoded(PIXELS, "PNG")
    return whole[:33] + b"".join(chunks) + whole[33:]


def deep_png(values: np.ndarray, colour_type: int) -> bytes:
    """uint16 [H, W, channels]"""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(
    values: np.ndarray, *, sample_format: int = 1, order: str = "<", packed: bool = False, nodata: str = ""
) -> bytes:
    """[H, W] or [H, W, channels] of any kind of numbers, in one strip."""
    height, width, *channels = values.shape
    samples = channels[0] if channels else 1
    bits = 8 * values.dtype.itemsize
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    data = zlib.compress(data) if packed else data
    extra = struct.pack(f"{order}{samples}H", *[bits] * samples) if samples > 2 else b""
    text = nodata.encode() + b"\0" if nodata else b""
    place = 8 + 2 + 12 * 12 + 4
    tags: list[tuple[int, int, int, int | bytes]] = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, samples, place if extra else bits),
        (259, 3, 1, 8 if packed else 1),
        (262, 3, 1, 2 if samples > 1 else 1),
        (273, 4, 1, place + 64),
        (277, 3, 1, samples),
        (278, 4, 1, height),
        (279, 4, 1, len(data)),
        (339, 3, 1, sample_format),
    ]
    if text:
        tags.append((42113, 2, len(text), place + 16 if len(text) > 4 else text))
    body = b"".join(
        struct.pack(f"{order}HHI", tag, kind, count)
        + (value.ljust(4, b"\0") if isinstance(value, bytes) else _number(order, kind, count, value))
        for tag, kind, count, value in tags
    )
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags)) + body + bytes(4)
    return (head.ljust(place, b"\0") + extra.ljust(16, b"\0") + text).ljust(place + 64, b"\0") + data


def _number(order: str, kind: int, count: int, value: int) -> bytes:
    return struct.pack(f"{order}HH", value, 0) if kind == 3 and count == 1 else struct.pack(f"{order}I", value)


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


# ---- bits


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize(
    "write",
    [
        lambda v: encoded(v, "PNG"),
        lambda v: encoded(v, "TIFF"),
        lambda v: tiff(v, order=">"),
        lambda v: tiff(v, packed=True),
    ],
)
def test_grey_of_fewer_than_16_bits_keeps_its_levels(bits: int, write: Callable[[np.ndarray], bytes]) -> None:
    values = np.linspace(0, 2**bits - 1, 256).astype(np.uint16).reshape(8, 32)
    grey = seen(write(values))[..., 0]
    np.testing.assert_array_equal(grey, values >> (bits - 8))
    assert len(np.unique(grey)) == 256


def test_full_range_16_bit_is_its_high_byte_also_where_an_image_is_dark() -> None:
    values = RNG.integers(0, 65536, (30, 30), dtype=np.uint16)
    np.testing.assert_array_equal(seen(encoded(values, "PNG"))[..., 0], values >> 8)
    dark = (values >> 1) + np.uint16(1)
    assert dark.max() >= 2**14
    np.testing.assert_array_equal(seen(encoded(dark, "PNG"))[..., 0], dark >> 8)


@pytest.mark.parametrize(("bits", "shift"), [(8, 0), (12, 4), (14, 6), (16, 8)])
@pytest.mark.parametrize("kind", ["png", "tiff", "tiff big-endian", "tiff deflate"])
def test_colour_of_fewer_than_16_bits_keeps_its_levels(bits: int, shift: int, kind: str) -> None:
    values = RNG.integers(0, 2**bits, (16, 20, 3)).astype(np.uint16)
    values[0, 0] = 2**bits - 1
    written = {
        "png": lambda: deep_png(values, 2),
        "tiff": lambda: tiff(values),
        "tiff big-endian": lambda: tiff(values, order=">"),
        "tiff deflate": lambda: tiff(values, packed=True),
    }[kind]()
    np.testing.assert_array_equal(seen(written), values >> shift)


def test_opaque_12_bit_images_with_transparency_keep_their_levels() -> None:
    values = RNG.integers(0, 4096, (16, 20, 3)).astype(np.uint16)
    opaque = np.full((16, 20, 1), 65535, np.uint16)
    np.testing.assert_array_equal(seen(deep_png(np.concatenate([values, opaque], 2), 6)), values >> 4)
    grey = seen(deep_png(np.concatenate([values[..., :1], opaque], 2), 4))
    np.testing.assert_array_equal(grey, np.repeat(values[..., :1] >> 4, 3, axis=2))


# ---- ranges


def levels(values: np.ndarray, **options: object) -> np.ndarray:
    return seen(tiff(values, **options))[..., 0]


SCENE = np.linspace(0.2, 0.7, 300).astype(np.float32).reshape(15, 20)


@pytest.mark.parametrize("mark", [-9999.0, -3.4028235e38, 1e20, np.nan, np.inf, -np.inf, -1e30])
def test_a_mark_for_no_data_does_not_press_a_float_image_into_two_levels(mark: float) -> None:
    values = SCENE.copy()
    values[:5] = mark
    grey = levels(values, sample_format=3)
    assert set(grey[:5].ravel()) == {255 if mark > 1 else 0}
    np.testing.assert_array_equal(grey[5:], levels(SCENE[5:].copy(), sample_format=3))
    assert len(np.unique(grey[5:])) > 190


def test_the_mark_that_a_tiff_names_is_left_out_wherever_it_lies() -> None:
    values = SCENE.copy()
    values[:5] = 0.1
    grey = levels(values, sample_format=3, nodata="0.1")
    assert not grey[:5].any()
    np.testing.assert_array_equal(grey[5:], levels(SCENE[5:].copy(), sample_format=3))
    counts = RNG.integers(0, 4096, (15, 20)).astype(np.uint16)
    counts[0, 0], counts[5:7] = 4095, 65535
    grey = levels(counts, nodata="65535")
    assert not grey[5:7].any()
    np.testing.assert_array_equal(grey[:5], counts[:5] >> 4)
    assert levels(SCENE, sample_format=3, nodata="none").max() == 255


@pytest.mark.parametrize("mark", [-9999, -32768, -32767])
def test_signed_heights_are_not_pressed_together_by_the_customary_marks(mark: int) -> None:
    heights = RNG.integers(0, 3000, (15, 20)).astype(np.int16)
    heights[3:5] = mark
    grey = levels(heights, sample_format=2)
    assert not grey[3:5].any()
    np.testing.assert_array_equal(grey[:3], levels(np.vstack([heights[:3], heights[5:]]), sample_format=2)[:3])


def test_images_without_such_a_mark_are_stretched_from_min_to_max_as_ever() -> None:
    for values, kind in (
        (RNG.normal(size=(20, 20)).astype(np.float32), 3),
        (np.array([[0, 1], [1, 0]], np.float32), 3),
        (np.array([[-9999, 5]], np.float32), 3),  # two values: a mask
        (RNG.integers(-2000, 2000, (20, 20)).astype(np.int16), 2),
        (np.exp(RNG.normal(size=(20, 20))).astype(np.float32), 3),
    ):
        wide = values.astype(np.float64)
        low, high = wide.min(), wide.max()
        np.testing.assert_array_equal(levels(values, sample_format=kind), np.rint((wide - low) * (255 / (high - low))))


def test_an_image_without_any_value_is_unreadable_and_one_of_one_value_black() -> None:
    with pytest.raises(Undecodable, match="no value that is finite and not marked"):
        levels(np.full((4, 4), np.nan, np.float32), sample_format=3)
    with pytest.raises(Undecodable, match="no value that is finite"):
        levels(np.full((4, 4), 7, np.float32), sample_format=3, nodata="7")
    assert not levels(np.full((4, 4), 7, np.float32), sample_format=3).any()


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
