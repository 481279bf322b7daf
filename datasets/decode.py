"""From the bytes of an image file to RGB, uint8, turned upright by its EXIF orientation.

    palette, grey, CMYK        converted
    transparency               laid over white
    16-bit grey                its sensor's bits: the least of 8, 10, 12, 14, 16 that holds the largest value (a TIFF may say 12 itself);
                               the range of so many bits becomes 0..255. Full-range 16 bit is so its high byte, and brightness stays
                               comparable among images of one sensor
    16-bit RGB                 the same over all three channels
    32-bit and signed          min..max of the image becomes 0..255: these formats have no agreed range. Left out of min and max:
    integers, floats           the value that the GDAL_NODATA tag names, what is not finite, and a least or greatest value that stands
                               apart (below). They become black; what is greater than all others without a tag to name it, white
    animations                 first frame

A value stands apart that is the least or the greatest, where the others are at least two values, and where the gap to them is more
than 8 times their range; for the customary marks of no data (-9999, -32768, ...) a gap above a 16th of it is enough. One such
value, shared by many pixels, would press all others into a few levels.

Metadata is not pixels. Where a decoder stumbles over a colour profile, a comment, a broken EXIF block or a checksum of such, it is
asked again with these left out (PNG, JPEG), and a JPEG that lacks nothing but the marker at its end gets one. Colour profiles are ignored.

JPEGs that need no care go the fast way of `plain_jpeg.py`, which gives the same pixels. Everything else, and what it refuses, goes
Pillow's way. So Pillow alone says which images are unreadable, and why.
"""

import io
import sys
import warnings
from typing import IO, Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from datasets import plain_jpeg
from datasets.metadata import with_end, without_metadata

# Only decoders of image data: left to itself, Pillow would hand a misnamed PostScript file to an interpreter.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF")
_MAGIC = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"BM": "BMP",
    b"RIFF": "WebP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"GIF8": "GIF",
}
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SENSOR_BITS = (8, 10, 12, 14, 16)
_BITS_PER_SAMPLE, _GDAL_NODATA = 258, 42113
_CUSTOMARY_NO_DATA = (-999, -9999, -99999, -32767, -32768, -(2**31))
# Of 16 bits a channel Pillow keeps the high byte. Read by these names of other formats with as many bits, the low one is kept.
_LOW_BYTES = {
    "RGB;16B": "RGB;16L",
    "RGB;16L": "RGB;16B",
    "RGB;16N": "RGB;16B" if sys.byteorder == "little" else "RGB;16L",
    "RGBA;16B": "RGBA;16L",
    "RGBA;16L": "RGBA;16B",
    "RGBA;16N": "RGBA;16B" if sys.byteorder == "little" else "RGBA;16L",
    "LA;16B": "RGBA",  # all four bytes, of which the second is the grey's
}


class Undecodable(Exception):
    """The bytes are no image that can be shown; the message says why, and fits on a line."""


def decode(content: bytes | IO[bytes]) -> np.ndarray:
    """uint8 [H, W, 3], of the bytes of a file or of what `open_content` opened; see the table at the top.

    Raises Undecodable, and what is the machine's: MemoryError, and OSError with a number. Not for threads: see `decode_by_pillow`.
    """
    if isinstance(content, bytes):
        whole: bytes | None = content
    else:  # what is read in its place, since it may be larger than memory, has no whole
        whole = content.getvalue() if isinstance(content, io.BytesIO) else None
    pixels = None if whole is None else plain_jpeg.decoded(whole, Image.MAX_IMAGE_PIXELS or 0)
    return decode_by_pillow(content) if pixels is None else pixels


def decode_by_pillow(content: bytes | IO[bytes]) -> np.ndarray:
    """What `decode` gives, and for a plain JPEG its slow twin.

    Not for threads: Pillow's warnings (about oversized or odd files) are caught by a process-wide switch.
    """
    content = io.BytesIO(content) if isinstance(content, bytes) else content
    with warnings.catch_warnings():
        # Pillow's own; what numpy warns of (RuntimeWarning) would be a mistake of ours.
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            return _decoded(content)
        # A decoder fed with damaged bytes raises whatever it stumbles over: OSError, SyntaxError, struct.error, ...
        except Exception as error:
            _let_pass(error)
            pixels = None if _is_bomb(error) else _without_what_is_odd(content)
            if pixels is None:
                raise Undecodable(_reason(error, content)) from error
            return pixels


def _let_pass(error: Exception) -> None:
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
        raise error


def _without_what_is_odd(content: IO[bytes]) -> np.ndarray | None:
    """The image by its pixels alone, or None where they are damaged too."""
    for plainer in without_metadata(content):
        try:
            return _decoded(io.BytesIO(plainer))
        except Exception as error:
            _let_pass(error)
    try:  # What else an end could be taken for (a file cut in two) would come out differently with each of them.
        one, *others = [_decoded(io.BytesIO(ended)) for ended in with_end(content)]
    except Exception as error:
        _let_pass(error)
        return None
    return one if all(np.array_equal(one, other) for other in others) else None


def _decoded(content: IO[bytes]) -> np.ndarray:
    content.seek(0)
    with Image.open(content, formats=FORMATS) as opened:
        layout = _layout(opened)
        image = _upright(opened)
        tags = getattr(opened, "tag_v2", {})
        if image.mode.startswith("I;16"):
            return _grey_to_rgb(_sixteen_bits(np.asarray(image), _no_data(tags), tags.get(_BITS_PER_SAMPLE)))
        if image.mode in ("I", "F"):
            return _grey_to_rgb(_stretched(np.asarray(image).astype(np.float64), _no_data(tags)))
    if layout in _LOW_BYTES:
        image = _fewer_bits(content, image, layout)
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        pixels = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, pixels)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _layout(opened: Image.Image) -> str:
    """How the pixels lie in the file, in Pillow's words."""
    tile = getattr(opened, "tile", None)
    arguments = tile[0].args if tile else ""
    return arguments if isinstance(arguments, str) else str(arguments[0]) if arguments else ""


def _upright(opened: Image.Image) -> Image.Image:
    opened.load()
    try:
        orientation = opened.getexif().get(ExifTags.Base.Orientation, 1)
        turn = _UPRIGHT.get(orientation)
    except Exception as error:  # a block of metadata that is damaged says nothing of the pixels
        _let_pass(error)
        turn = None
    return opened if turn is None else opened.transpose(turn)


def _sixteen_bits(values: np.ndarray, no_data: float | None, declared_bits: tuple[int, ...] | None) -> np.ndarray:
    """uint16 [H, W] -> uint8, by the bits that are used. told: BitsPerSample of a TIFF."""
    if no_data is not None:
        values = np.where(values == no_data, 0, values)
    largest = int(values.max())
    bits = declared_bits[0] if declared_bits and declared_bits[0] in _SENSOR_BITS[:-1] else 0
    bits = max(bits, next(bits for bits in _SENSOR_BITS if largest < 1 << bits))
    return (values >> (bits - 8)).astype(np.uint8)


def _fewer_bits(content: IO[bytes], image: Image.Image, layout: str) -> Image.Image:
    """A 16-bit image of which Pillow kept the high bytes, by the bits that its colours use."""
    colours = slice(0, 1) if layout == "LA;16B" else slice(0, 3)
    high = np.array(image)
    largest = int(high[..., colours].max())
    bits = next(bits for bits in _SENSOR_BITS if largest < 1 << (bits - 8))
    if bits == 16:
        return image
    content.seek(0)
    with Image.open(content, formats=FORMATS) as opened:
        opened.tile = [_relaid(tile, _LOW_BYTES[layout]) for tile in opened.tile]
        low = np.asarray(_upright(opened))
    low = low[..., 1:2] if layout == "LA;16B" else low[..., colours]
    values = (high[..., colours].astype(np.uint16) << 8) | low
    high[..., :3] = values >> (bits - 8)
    shown = Image.fromarray(high, image.mode)
    shown.info = image.info
    return shown


def _relaid(tile: Any, layout: str) -> Any:
    return tile._replace(args=layout if isinstance(tile.args, str) else (layout, *tile.args[1:]))


def _no_data(tags: Any) -> float | None:
    try:
        return float(str(tags.get(_GDAL_NODATA)).strip("\0 "))
    except ValueError:
        return None


def _stretched(values: np.ndarray, no_data: float | None) -> np.ndarray:
    """float64 [H, W] -> uint8: min..max of what counts becomes 0..255."""
    counts = np.isfinite(values)
    if no_data is not None:  # the tag is a decimal text, and the pixels may be float32
        counts &= (values != no_data) & (values != np.float64(np.float32(no_data)))
    counted = values[counts]
    if len(counted) == 0:
        raise ValueError("has no value that is finite and not marked as missing")
    low, high = counted.min(), counted.max()
    if low < high:
        low, high = _without_apart(counted, low, high)
    with np.errstate(invalid="ignore", over="ignore"):
        levels = np.rint((values - low) * (255 / max(high - low, 1e-300)))
    levels = np.nan_to_num(levels, nan=0, posinf=255, neginf=0).clip(0, 255)
    if no_data is not None:
        levels[~counts & np.isfinite(values)] = 0
    return levels.astype(np.uint8)


def _without_apart(counted: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """(min, max) of the values but a least and a greatest one that stand apart."""
    above = counted[counted > low].min()
    if above < high and above - low > (1 / 16 if low in _CUSTOMARY_NO_DATA else 8) * (high - above):
        low = above
    below = counted[counted < high].max()
    if below > low and high - below > 8 * (below - low):
        high = below
    return low, high


def _grey_to_rgb(grey_HW: np.ndarray) -> np.ndarray:
    return np.repeat(grey_HW[:, :, None], 3, axis=2)


def _is_bomb(error: Exception) -> bool:
    return isinstance(error, Image.DecompressionBombWarning | Image.DecompressionBombError)


def _reason(error: Exception, content: IO[bytes]) -> str:
    if _is_bomb(error):
        return f"more than {Image.MAX_IMAGE_PIXELS} pixels"
    if isinstance(error, UnidentifiedImageError):
        content.seek(0)
        start = content.read(8)
        if not start:
            return "an empty file"
        found = next((name for magic, name in _MAGIC.items() if start.startswith(magic)), None)
        return (
            f"a {found} file that is damaged or of a kind that is not read"
            if found
            else "not an image in a known format"
        )
    return " ".join(f"{type(error).__name__}: {error}".split())
