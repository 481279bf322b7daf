"""Corrupted zips: no crash, no wait without end, never the bytes of another member, and every member that is lost is accounted for."""

import io
import random
import struct
import zipfile
from collections import Counter
from pathlib import Path

from datasets.containers.zip_member import BrokenMember, ZipReader
from datasets.containers.zipped import members
from tests.datasets.containers.zips import DEFLATED, END_BYTES, STORED, central_entries, info, put, zip_of

ZIPS = 200
_WIDTHS = {
    6: 2,
    8: 2,
    10: 2,
    16: 4,
    20: 4,
    24: 4,
    28: 2,
    30: 2,
    32: 2,
    34: 2,
    38: 4,
    42: 4,
}  # fields of a central entry


def a_zip(draw: random.Random) -> tuple[bytes, dict[bytes, bytes]]:
    """(a whole zip; its images by their names)"""
    images = {
        f"n{number % 3}/{number}.jpg": draw.randbytes(draw.randrange(400)) + b"a" * draw.randrange(400)
        for number in range(9)
    }
    others = ["n0/", "__MACOSX/n0/._1.jpg", "n0/read.txt", "../out.jpg"]
    parts = [(info(name, draw.choice([STORED, DEFLATED])), content) for name, content in images.items()]
    parts += [(info(name), b"" if name.endswith("/") else b"other") for name in others]
    draw.shuffle(parts)
    content = zip_of(parts, comment=b"a comment" if draw.random() < 0.3 else b"")
    return content, {name.encode(): image for name, image in images.items()}


def corrupted(content: bytes, draw: random.Random, kind: str) -> bytes:
    entries = central_entries(content)
    entry, other, last = draw.choice(entries), draw.choice(entries), entries[-1] + 46
    match kind:
        case "bits":
            return flipped(content, draw, 0, len(content))
        case "bits of the directory":
            return flipped(content, draw, entries[0], len(content))
        case "cut":
            return content[: draw.randrange(len(content))]
        case "a part missing":
            start = draw.randrange(len(content))
            return content[:start] + content[start + draw.randrange(1, 200) :]
        case "a part twice":
            start, stop = sorted(draw.choices(range(len(content)), k=2))
            return content[:stop] + content[start:]
        case "spliced":
            size, start, to = draw.randrange(1, 300), draw.randrange(len(content)), draw.randrange(last)
            piece = content[start : start + size]
            return content[:to] + piece + content[to + len(piece) :]
        case "entries exchanged":
            ends = dict(zip(entries, [*entries[1:], len(content) - END_BYTES - comment_bytes(content)], strict=True))
            pieces = [content[start:stop] for start, stop in ends.items()]
            draw.shuffle(pieces)
            return content[: entries[0]] + b"".join(pieces) + content[ends[entries[-1]] :]
        case "fields exchanged":
            at = draw.choice(list(_WIDTHS))
            width = _WIDTHS[at]
            one, two = (int.from_bytes(content[place + at :][:width], "little") for place in (entry, other))
            return put(put(content, entry + at, two, width), other + at, one, width)
    assert kind == "a wrong number"
    at = draw.choice(list(_WIDTHS))
    value = draw.choice(
        [0, 1, draw.randrange(len(content)), draw.randrange(1 << 8 * _WIDTHS[at]), (1 << 8 * _WIDTHS[at]) - 1]
    )
    return put(content, entry + at, value % (1 << 8 * _WIDTHS[at]), _WIDTHS[at])


KINDS = [
    *("bits", "bits of the directory", "cut", "a part missing", "a part twice", "spliced"),
    *("entries exchanged", "fields exchanged", "a wrong number"),
]


def flipped(content: bytes, draw: random.Random, start: int, stop: int) -> bytes:
    damaged = bytearray(content)
    for _ in range(draw.randrange(1, 9)):
        damaged[draw.randrange(start, stop)] ^= 1 << draw.randrange(8)
    return bytes(damaged)


def comment_bytes(content: bytes) -> int:
    with zipfile.ZipFile(io.BytesIO(content)) as read:
        return len(read.comment)


def outcomes(path: Path, content: bytes, images: dict[bytes, bytes]) -> Counter[str]:
    """What became of the entries; asserts all that the top claims."""
    path.write_bytes(content)
    try:
        listed = members(path)
    except ValueError as error:
        return Counter(
            {"refused" if path.name in str(error) and "Copy it again" in str(error) else "refused without words": 1}
        )
    end = content.rindex(b"PK\5\6")
    assert len(listed) + sum(listed.left_out.values()) == struct.unpack_from("<H", content, end + 10)[0]
    found, reader = Counter({"left out": sum(listed.left_out.values())}), ZipReader(path)
    for member in listed:
        try:
            assert reader.read(member) == images[member.name]
            found["read"] += 1
        except BrokenMember as error:
            found["broken" if error.reason else "broken without a reason"] += 1
    reader.close()
    return found


def run(path: Path, seeds: range) -> Counter[str]:
    found: Counter[str] = Counter()
    for seed in seeds:
        draw = random.Random(seed)
        content, images = a_zip(draw)
        kind = KINDS[seed % len(KINDS)]
        try:
            found += outcomes(path, corrupted(content, draw, kind), images)
        except BaseException as error:
            error.add_note(f"seed {seed}, {kind}")
            raise
    return found


def test_a_corrupted_zip_loses_members_by_name_or_is_refused_and_never_gives_wrong_bytes(tmp_path: Path) -> None:
    found = run(tmp_path / "damaged.zip", range(ZIPS))
    assert set(found) == {"refused", "read", "broken", "left out"}
    # The corruptions are neither all fatal nor all harmless.
    assert all(found[outcome] > ZIPS // 10 for outcome in ("refused", "read", "broken", "left out")), found


def test_a_whole_zip_loses_nothing(tmp_path: Path) -> None:
    content, images = a_zip(random.Random(0))
    assert outcomes(tmp_path / "whole.zip", content, images) == {"read": len(images), "left out": 4}
