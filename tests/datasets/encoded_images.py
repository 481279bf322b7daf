"""Images as files of many formats, also such as no library writes, and what the decoder sees in them."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from datasets.decode import decode

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
