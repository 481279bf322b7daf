"""PNG and JPEG files without what is not pixels: profiles, comments, thumbnails, text.

Decoders read these along the way and give up where one is too long or damaged, with the pixels unread behind it. Pixel data
is passed on byte for byte, so what is damaged in it stays damaged.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from itertools import pairwise
from typing import IO

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_LONGEST_TEXT_BYTES = 1 << 20  # as Pillow has it; the orientation may stand in one
# Of the segments of a JPEG, those by which pixels are shown: orientation, and what the channels are.
_EXIF, _ADOBE = 0xE1, 0xEE
_SCAN, _END = 0xDA, 0xD9
_LARGEST_BYTES = 1 << 28  # files above it are passed on as they are


def without_metadata(content: IO[bytes]) -> Iterator[bytes]:
    """The file with less and less beside its pixels; nothing for other formats."""
    whole = _whole(content)
    if whole.startswith(_PNG):
        plainer = [_png(whole, keeps_texts) for keeps_texts in (True, False)]
    elif whole.startswith(_JPEG):
        plainer = [_jpeg(whole, keeps) for keeps in ((_EXIF, _ADOBE), (_ADOBE,), ())]
    else:
        return
    for before, after in pairwise([whole, *plainer]):
        if len(after) < len(before):
            yield after


def with_end(content: IO[bytes]) -> list[bytes]:
    """A JPEG that has no marker at its end, with one: at once, and behind bits of two kinds.

    If all pixels were there, the bits in between are passed over, and all three are the same image.
    """
    whole = _jpeg(_whole(content), (_EXIF, _ADOBE))
    if not whole.startswith(_JPEG):
        raise ValueError("only a JPEG has a marker at its end")
    end = bytes([0xFF, _END])
    whole = whole.removesuffix(b"\xff")
    return [whole + end, whole + b"\x55\xaa" * 2048 + end, whole + b"\x0f\x3c" * 2048 + end]


def _whole(content: IO[bytes]) -> bytes:
    content.seek(0, io.SEEK_END)
    if content.tell() > _LARGEST_BYTES:
        return b""
    content.seek(0)
    return content.read()


def _png(whole: bytes, keeps_texts: bool) -> bytes:
    pieces, place = [_PNG], len(_PNG)
    while place + 12 <= len(whole):
        (length,) = struct.unpack_from(">I", whole, place)
        kind, chunk = whole[place + 4 : place + 8], whole[place : place + 12 + length]
        place += 12 + length
        is_critical = not kind[0] & 0x20
        is_whole = len(chunk) == 12 + length and struct.unpack(">I", chunk[-4:])[0] == zlib.crc32(chunk[4:-4])
        is_text = keeps_texts and kind in _TEXTS and _is_short(kind, chunk[8:-4])
        if is_critical or kind == b"tRNS" or (is_whole and (kind == b"eXIf" or is_text)):
            pieces.append(chunk)
    return b"".join(pieces)


def _is_short(kind: bytes, text: bytes) -> bool:
    if len(text) > _LONGEST_TEXT_BYTES:
        return False
    packed = {b"tEXt": b"", b"zTXt": text.partition(b"\0")[2][1:], b"iTXt": b""}[kind]
    if kind == b"iTXt":
        rest = text.partition(b"\0")[2]
        packed = rest[2:].split(b"\0", 2)[-1] if rest[:1] == b"\1" else b""
    if not packed:
        return True
    unpacked = zlib.decompressobj()
    try:
        unpacked.decompress(packed, _LONGEST_TEXT_BYTES)
    except zlib.error:
        return False
    return not unpacked.unconsumed_tail


def _jpeg(whole: bytes, keeps: tuple[int, ...]) -> bytes:
    """Without the segments APP0 .. APP15 and comments that stand before the first scan, but those that are named."""
    pieces, place = [whole[:2]], 2
    while place + 4 <= len(whole) and whole[place] == 0xFF and whole[place + 1] != _SCAN:
        marker = whole[place + 1]
        if marker == 0xFF:  # a byte to fill up
            place += 1
            continue
        stop = place + 2 + struct.unpack_from(">H", whole, place + 2)[0]
        is_metadata = 0xE0 <= marker <= 0xEF or marker == 0xFE
        if not is_metadata or marker in keeps:
            pieces.append(whole[place:stop])
        place = stop
    return b"".join(pieces) + whole[place:]
