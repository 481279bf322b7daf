"""A baseline JPEG whose blocks are flat, written by hand: any sampling, any numbers of the channels, any segments in front of it.

Encoders know a few samplings. Here each block has one coefficient, its mean, which is coded by a table of 4-bit codes; an end of block
takes one bit. Pixels differ from block to block, so that another way to enlarge a channel shows.
"""

import struct

import numpy as np

_HEAD = b"\xff\xd8"


def segment(marker: int, data: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data


def flat_jpeg(
    width: int,
    height: int,
    samplings: list[tuple[int, int]],
    seed: int = 0,
    numbers: tuple[int, ...] = (1, 2, 3, 4),
    before: bytes = b"",
) -> bytes:
    """samplings: (horizontal, vertical) of each channel; before: segments between the start and the tables."""
    channels = len(samplings)
    frame = struct.pack(">BHHB", 8, height, width, channels)
    scan = bytes([channels])
    for number, (across, down) in zip(numbers, samplings, strict=False):
        frame += bytes([number, across << 4 | down, 0])
        scan += bytes([number, 0])
    tables = segment(0xDB, b"\0" + b"\x08" * 64)
    tables += segment(0xC4, b"\x00" + bytes([0, 0, 0, 12, *[0] * 12]) + bytes(range(12)))
    tables += segment(0xC4, b"\x10" + bytes([1, *[0] * 15]) + b"\0")
    data = _scan(width, height, samplings, np.random.default_rng(seed))
    head = _HEAD + before + tables + segment(0xC0, frame)
    return head + segment(0xDA, scan + b"\0\x3f\0") + data + b"\xff\xd9"


def _scan(width: int, height: int, samplings: list[tuple[int, int]], rng: np.random.Generator) -> bytes:
    if len(samplings) == 1:  # a scan of one channel has its blocks one by one, whatever its sampling says
        samplings = [(1, 1)]
    across = -(-width // (8 * max(one for one, _ in samplings)))
    down = -(-height // (8 * max(one for _, one in samplings)))
    bits, means = [], [0] * len(samplings)
    for _ in range(across * down):
        for channel, (blocks_across, blocks_down) in enumerate(samplings):
            for _ in range(blocks_across * blocks_down):
                mean = int(rng.integers(-120, 120))
                bits.append(_coded(mean - means[channel]) + "0")
                means[channel] = mean
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")


def _coded(difference: int) -> str:
    size = abs(difference).bit_length()
    value = difference if difference >= 0 else difference + (1 << size) - 1
    return f"{size:04b}" + (f"{value:0{size}b}" if size else "")
