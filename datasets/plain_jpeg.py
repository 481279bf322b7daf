"""JPEGs that need no care, by simplejpeg: the pixels of Pillow in three fifths of its time.

Both call libjpeg-turbo, so what differs is how it is called. simplejpeg hands over the whole file in one call and makes the array
that is returned; Pillow feeds pieces, keeps an image of four bytes a pixel and copies it. Both transform exactly (ISLOW) and smooth the
colour channels as they enlarge them, so their pixels are equal; the tests compare them over qualities, samplings, sizes, restart
markers and progressive files.

Left to Pillow, and why:

    four channels          simplejpeg turns CMYK into RGB by another rounding
    12 bits, lossless,     other frames than baseline, extended and progressive: what becomes of them depends on how a library was built
    arithmetic coding
    other samplings        of the colours than 1 x 1, 2 x 1, 1 x 2, 2 x 2 and 4 x 1: TurboJPEG knows no others by name
    an orientation         in EXIF or XMP, that is not certainly "upright"
    too many pixels        Pillow says so, and nobody takes memory for them
    a header that is odd   bytes between segments, two frames, a segment that leads out of the file
    any warning            `strict`: what libjpeg would pass over (a file that is cut, data that is damaged) simplejpeg refuses

So a file that is damaged in any way that libjpeg notices is judged by Pillow alone, and which images can be read is as without this
module. The cost is that such a file is begun twice.
"""

from typing import Literal

import numpy as np
import simplejpeg

_START = b"\xff\xd8\xff"
_BASELINE, _EXTENDED, _PROGRESSIVE = 0xC0, 0xC1, 0xC2
_HUFFMAN, _SCAN, _QUANTISATION, _RESTART, _COMMENT = 0xC4, 0xDA, 0xDB, 0xDD, 0xFE
_FRAMES = frozenset((_BASELINE, _EXTENDED, _PROGRESSIVE))
_APP_1 = 0xE1
_PASSED_OVER = frozenset((_HUFFMAN, _QUANTISATION, _RESTART, _COMMENT, *range(0xE0, 0xF0)))
# Of the brightness, across and down; the colours have 0x11.
_SAMPLINGS = frozenset((0x11, 0x21, 0x12, 0x22, 0x41))
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_ORIENTATION_IN_XMP = b"tiff:Orientation"
# By the order of bytes in an EXIF block: its head, the tag of the orientation, and "one number of 16 bits, which is 1".
_ORDERS: dict[bytes, tuple[Literal["little", "big"], bytes, bytes]] = {
    b"II*\0": ("little", b"\x12\x01", b"\x03\0\x01\0\0\0\x01\0"),
    b"MM\0*": ("big", b"\x01\x12", b"\0\x03\0\0\0\x01\0\x01"),
}


def decoded(content: bytes, most_pixels: int) -> np.ndarray | None:
    """uint8 [H, W, 3] of a whole file, or None where Pillow has to look at it. MemoryError where there is none."""
    if not is_plain(content, most_pixels):
        return None
    try:
        return simplejpeg.decode_jpeg(content, "RGB", fastdct=False, fastupsample=False, strict=True)
    except (ValueError, RuntimeError):
        return None


def is_plain(content: bytes, most_pixels: int) -> bool:
    """Whether the segments before the first scan allow the fast way; reasons against it are in the table at the top.

    Takes some five microseconds: the segments are leapt over by their lengths. Of EXIF the first directory is looked through,
    of XMP one word is searched.
    """
    if not content.startswith(_START):
        return False
    place, end = 2, len(content)
    has_frame = has_exif = is_upright = may_be_turned = False
    while place + 4 <= end and content[place] == 0xFF:
        marker = content[place + 1]
        start, place = place + 4, place + 2 + (content[place + 2] << 8 | content[place + 3])
        if not start <= place <= end:
            return False
        if marker == _SCAN:
            return has_frame and (is_upright or not may_be_turned)
        if marker in _FRAMES:
            if has_frame or not _is_plain_frame(content[start:place], most_pixels):
                return False
            has_frame = True
        elif marker == _APP_1 and content.startswith(_EXIF, start, place):
            told = _orientation(content[start + len(_EXIF) : place])
            if has_exif or told == "odd":  # a second block goes on where the first one ends
                return False
            has_exif, is_upright = True, told == "upright"
        elif marker == _APP_1 and content.startswith(_XMP, start, place):
            may_be_turned |= content.find(_ORIENTATION_IN_XMP, start, place) >= 0
        elif marker not in _PASSED_OVER:
            return False
    return False


def _is_plain_frame(frame: bytes, most_pixels: int) -> bool:
    """precision, height, width, number of channels; of each channel its number, sampling and table."""
    if len(frame) < 6 or frame[0] != 8 or len(frame) != 6 + 3 * frame[5]:
        return False
    pixels = (frame[1] << 8 | frame[2]) * (frame[3] << 8 | frame[4])
    if not 0 < pixels <= most_pixels:
        return False
    samplings = frame[7::3]
    if len(samplings) == 1:  # grey is not enlarged, whatever its sampling says
        return True
    return len(samplings) == 3 and samplings[0] in _SAMPLINGS and samplings[1:] == b"\x11\x11"


def _orientation(exif: bytes) -> str:
    """ "upright", "untold", or "odd": turned, or not certainly one of the others."""
    order = _ORDERS.get(exif[:4])
    if order is None:
        return "odd"
    name, tag, upright = order
    start = int.from_bytes(exif[4:8], name) + 2
    stop = start + 12 * int.from_bytes(exif[start - 2 : start], name)
    if start < 10 or stop > len(exif):
        return "odd"
    told = "untold"
    for place in range(start, stop, 12):
        if exif.startswith(tag, place):
            if exif[place + 2 : place + 10] != upright:
                return "odd"
            told = "upright"
    return told
