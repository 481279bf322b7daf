"""The fast way gives Pillow's pixels or nothing; what needs care is left to Pillow by its header alone."""

import io
import struct

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datasets import plain_jpeg
from datasets.decode import Undecodable, decode, decode_by_pillow
from tests.datasets.flat_jpeg import flat_jpeg, segment

RNG = np.random.default_rng(0)
MOST = 89_478_485
PIXELS = RNG.integers(0, 256, (40, 56, 3), dtype=np.uint8)
SMOOTH = np.asarray(Image.fromarray(RNG.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((400, 300), 3))
ADOBE = {code: segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([code])) for code in (0, 1, 2, 9)}
JFIF = segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0")


def encoded(image: Image.Image | np.ndarray = PIXELS, **options: object) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, "JPEG", **options)
    return file.getvalue()


def with_segments(*segments: bytes, whole: bytes = b"") -> bytes:
    whole = whole or encoded()
    return whole[:2] + b"".join(segments) + whole[2:]


def fast(content: bytes) -> np.ndarray | None:
    return plain_jpeg.decoded(content, MOST)


def both(content: bytes) -> np.ndarray | str:
    """The pixels or the reason, which both ways must give alike."""
    ways: list[np.ndarray | str] = []
    for way in (decode, decode_by_pillow):
        try:
            ways.append(way(content))
        except Undecodable as error:
            ways.append(str(error))
    one, other = ways
    assert np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other, (one, other)
    return one


# ---- the same pixels


@settings(max_examples=250, deadline=None)
@given(
    quality=st.integers(1, 100),
    subsampling=st.sampled_from(["4:4:4", "4:2:2", "4:2:0", "4:1:1"]),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    noisy=st.booleans(),
    options=st.fixed_dictionaries(
        {},
        optional={
            "progressive": st.just(True),
            "optimize": st.just(True),
            "restart_marker_blocks": st.integers(1, 20),
            "restart_marker_rows": st.integers(1, 3),
            "keep_rgb": st.just(True),
        },
    ),
    mode=st.sampled_from(["RGB", "L"]),
)
def test_the_fast_way_gives_pillows_pixels(quality, subsampling, size, noisy, options, mode) -> None:
    width, height = size
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels if noisy else SMOOTH[:height, :width]).convert(mode)
    if mode == "L":
        options.pop("keep_rgb", None)
    if options.get("keep_rgb"):
        subsampling = "4:4:4"
    content = encoded(image, quality=quality, subsampling=subsampling, **options)
    shown = fast(content)
    assert shown is not None
    np.testing.assert_array_equal(shown, decode_by_pillow(content))
    assert shown.dtype == np.uint8 and shown.flags.writeable and shown.flags.c_contiguous


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411"])
@pytest.mark.parametrize("size", [(1, 1), (1, 17), (16, 16), (15, 33), (40, 56)])
def test_the_fast_way_gives_pillows_pixels_at_every_sampling_that_it_takes(
    subsampling: str, size: tuple[int, int]
) -> None:
    pixels = np.ascontiguousarray(PIXELS[: size[0], : size[1]])
    content = simplejpeg.encode_jpeg(pixels, 90, "rgb", subsampling)
    np.testing.assert_array_equal(fast(content), decode_by_pillow(content))


SAMPLINGS = st.tuples(st.integers(1, 4), st.integers(1, 4))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(SAMPLINGS, min_size=1, max_size=4).filter(lambda one: sum(a * b for a, b in one) <= 10),
    st.tuples(st.integers(1, 80), st.integers(1, 80)),
    st.permutations([1, 2, 3, 82, 71, 66]),
    st.sampled_from([b"", JFIF, *ADOBE.values(), JFIF + ADOBE[0]]),
)
def test_any_sampling_any_numbers_of_channels_and_any_adobe_marker_give_pillows_pixels(
    samplings: list[tuple[int, int]], size: tuple[int, int], numbers: list[int], before: bytes
) -> None:
    content = flat_jpeg(*size, samplings, numbers=tuple(numbers), before=before)
    both(content)
    is_grey = len(samplings) == 1
    is_known = len(samplings) == 3 and samplings[1:] == [(1, 1), (1, 1)]
    is_known = is_known and samplings[0] in [(1, 1), (2, 1), (1, 2), (2, 2), (4, 1)]
    assert plain_jpeg.is_plain(content, MOST) == (is_grey or is_known)


@pytest.mark.parametrize("numbers", [(1, 2, 3), (82, 71, 66), (0, 1, 2)])
@pytest.mark.parametrize("before", [b"", JFIF, ADOBE[0], ADOBE[1], JFIF + ADOBE[0]])
def test_which_colours_a_jpeg_has_is_told_by_its_markers_as_pillow_takes_them(
    numbers: tuple[int, ...], before: bytes
) -> None:
    content = flat_jpeg(37, 29, [(2, 2), (1, 1), (1, 1)], numbers=numbers, before=before)
    np.testing.assert_array_equal(fast(content), decode_by_pillow(content))


def test_what_lies_beside_the_pixels_costs_nothing() -> None:
    icc = b"".join(segment(0xE2, b"ICC_PROFILE\0" + bytes([n + 1, 3]) + b"x" * 60_000) for n in range(3))
    comment, photoshop = segment(0xFE, b"made by hand"), segment(0xED, b"Photoshop 3.0\x008BIM\3\xed")
    content = with_segments(icc, comment, photoshop, ADOBE[1])
    np.testing.assert_array_equal(fast(content), decode_by_pillow(content))
    np.testing.assert_array_equal(fast(content), decode_by_pillow(encoded()))
    np.testing.assert_array_equal(fast(content + bytes(1000)), fast(content))


# ---- what needs care


def arithmetic() -> bytes:
    return encoded().replace(b"\xff\xc0", b"\xff\xc9", 1)


@pytest.mark.parametrize(
    "content",
    [
        encoded(Image.fromarray(PIXELS).convert("CMYK")),
        arithmetic(),
        encoded().replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c", 1),
        encoded().replace(b"\xff\xc0", b"\xff\xc3", 1),
        encoded()[:2] + b"\xff" + encoded()[2:],
        encoded()[:2] + b"\0" + encoded()[2:],
        with_segments(segment(0xDC, b"\0\x28")),
        with_segments(b"\xff\xe4\0\1"),
        encoded()[:2] + segment(0xE4, b"x" * 10)[:-5],
        b"\xff\xd8\xff",
        b"\xff\xd8\xff\xd9",
        b"",
        b"<html>404</html>",
    ],
    ids=[
        "cmyk",
        "arithmetic",
        "12-bit",
        "lossless",
        "fill",
        "junk",
        "lines",
        "length",
        "cut",
        "start",
        "end",
        "none",
        "html",
    ],
)
def test_what_needs_care_is_left_to_pillow(content: bytes) -> None:
    assert not plain_jpeg.is_plain(content, MOST)
    both(content)


def exif(order: str, entries: list[tuple[int, int, int, bytes]], start: int = 8, magic: int = 42) -> bytes:
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", magic, start)
    body = b"".join(struct.pack(f"{order}HHI", *entry[:3]) + entry[3] for entry in entries)
    return segment(
        0xE1, b"Exif\0\0" + head.ljust(start, b"\0") + struct.pack(f"{order}H", len(entries)) + body + bytes(4)
    )


def orientation(order: str, value: int) -> tuple[int, int, int, bytes]:
    return (0x0112, 3, 1, struct.pack(f"{order}HH", value, 0))


def make(order: str) -> tuple[int, int, int, bytes]:
    return (0x010F, 2, 4, b"abc\0")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("start", [8, 20])
def test_an_orientation_sends_a_jpeg_to_pillow_unless_it_is_upright(order: str, start: int) -> None:
    for value in (1, 2, 3, 4, 5, 6, 7, 8, 0, 9):
        content = with_segments(exif(order, [make(order), orientation(order, value)], start))
        assert plain_jpeg.is_plain(content, MOST) == (value == 1), value
        both(content)
    assert plain_jpeg.is_plain(with_segments(exif(order, [make(order)], start)), MOST)
    turned = both(with_segments(exif(order, [orientation(order, 6)], start)))
    np.testing.assert_array_equal(turned, np.rot90(decode_by_pillow(encoded()), k=-1))


@pytest.mark.parametrize(
    "block",
    [
        exif("<", [(0x0112, 4, 1, b"\6\0\0\0")]),
        exif("<", [orientation("<", 1), orientation("<", 6)]),
        exif("<", [orientation("<", 6), orientation("<", 1)]),
        exif("<", [orientation("<", 1)]) + exif("<", [orientation("<", 6)]),
        exif("<", [make("<")]) + exif("<", [orientation("<", 1)]),
        exif("<", [orientation("<", 6)], magic=43),
        segment(0xE1, b"Exif\0\0"),
        segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\x05\0"),
        segment(0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff\x05\0"),
        segment(0xE1, b"Exif\0\0Exif\0\0" + exif("<", [orientation("<", 6)])[10:]),
    ],
    ids=["long", "twice", "twice-other", "two-blocks", "two-untold", "big", "empty", "cut", "nowhere", "named-twice"],
)
def test_an_exif_block_that_is_odd_is_pillows(block: bytes) -> None:
    assert not plain_jpeg.is_plain(with_segments(block), MOST)
    both(with_segments(block))


def test_an_orientation_in_xmp_counts_where_exif_tells_none() -> None:
    xmp = segment(0xE1, b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta tiff:Orientation="6"/>')
    turned = np.rot90(decode_by_pillow(encoded()), k=-1)
    for beside in ([xmp], [xmp, exif("<", [make("<")])], [exif(">", [make(">")]), xmp]):
        np.testing.assert_array_equal(both(with_segments(*beside)), turned)
    for beside in ([xmp, exif("<", [orientation("<", 1)])], [exif(">", [orientation(">", 1)]), xmp]):
        content = with_segments(*beside)
        assert plain_jpeg.is_plain(content, MOST)
        np.testing.assert_array_equal(both(content), decode_by_pillow(encoded()))


ENTRY = st.tuples(
    st.sampled_from([0x010F, 0x0112, 0x1201, 0x8769, 0x0000]),
    st.integers(0, 13),
    st.integers(0, 3),
    st.one_of(st.sampled_from([b"\1\0\0\0", b"\6\0\0\0", b"\0\1\0\0", b"\0\6\0\0"]), st.binary(min_size=4, max_size=4)),
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from("<>"), st.lists(ENTRY, max_size=4), st.integers(8, 14), st.integers(0, 6), st.binary(max_size=4))
def test_no_exif_block_shows_an_image_in_another_way_than_pillow(
    order: str, entries: list[tuple[int, int, int, bytes]], start: int, cut: int, behind: bytes
) -> None:
    block = exif(order, entries, start)[4:]
    both(with_segments(segment(0xE1, (block[: len(block) - cut] if cut else block) + behind)))


# ---- what is damaged


@pytest.mark.parametrize(
    "options",
    [{}, {"progressive": True}, {"quality": 100, "subsampling": 0}, {"restart_marker_rows": 1}, {"grey": True}],
)
def test_a_file_that_is_cut_or_ends_early_is_pillows_to_judge(options: dict) -> None:
    options = dict(options)
    image = Image.fromarray(PIXELS).convert("L" if options.pop("grey", False) else "RGB")
    whole = encoded(image, **options)
    for kept in (*range(2, len(whole), max(1, len(whole) // 40)), len(whole) - 2, len(whole) - 1):
        assert fast(whole[:kept]) is None
        ended = whole[:kept] + b"\xff\xd9"
        if kept < len(whole) - 3:
            shown = fast(ended)
            assert shown is None or np.array_equal(shown, decode_by_pillow(ended))
    with pytest.raises(Undecodable):
        decode(whole[: len(whole) // 2])


@settings(max_examples=200, deadline=None)
@given(st.data(), st.booleans())
def test_damage_comes_out_as_pillow_has_it(data: st.DataObject, progressive: bool) -> None:
    content = bytearray(encoded(PIXELS[:24, :24], progressive=progressive))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    both(bytes(content))


def sized(width: int, height: int) -> bytes:
    """A small JPEG whose header claims another size."""
    whole = bytearray(encoded())
    place = whole.index(b"\xff\xc0") + 5
    whole[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(whole)


def test_a_header_that_claims_too_many_pixels_never_comes_to_the_fast_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simplejpeg, "decode_jpeg", None)
    for size in ((30_000, 30_000), (65_500, 65_500), (10_000, 10_000), (0, 10), (10, 0)):
        reason = both(sized(*size))
        assert isinstance(reason, str)
        assert min(size) == 0 or reason == f"more than {MOST} pixels"


def test_long_and_single_pixels_are_images_like_others() -> None:
    for shape in ((1, 1), (10, 30_000), (30_000, 10)):
        content = encoded(np.full((*shape, 3), 77, np.uint8))
        shown = fast(content)
        assert shown is not None and shown.shape == (*shape, 3)
        np.testing.assert_array_equal(shown, decode_by_pillow(content))


def test_no_memory_for_the_pixels_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(simplejpeg, "decode_jpeg", full)
    with pytest.raises(MemoryError):
        decode(encoded())


def test_the_fast_way_is_taken_for_bytes_and_for_a_file_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    marked = np.zeros((1, 1, 3), np.uint8)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_, **__: marked)
    assert decode(encoded()) is marked
    assert decode(io.BytesIO(encoded())) is marked
    assert decode_by_pillow(encoded()).shape == (40, 56, 3)
