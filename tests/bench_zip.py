"""What a zip of images costs beside Python's zipfile and beside single files: listing it, its map file, and reading it.

    python -m tests.bench_zip [--members 1000000] [--images 2000] [--bytes 30000] [--rounds 5] [--directory .]

List: a zip of many small members, once below 4 GiB and once behind a hole of 5 GiB, where each entry has a zip64 field. Each way runs in
a process of its own: seconds, and by how much its memory grew, at the end and at its peak. Then a map file with a line a member, in
another order.

Read: as many images of random bytes (which deflate to their own size, as JPEGs do), stored and deflated, in a random order, from the page
cache, on one core. The ways take turns in each round; told are the median, the least and the most of images a second.
"""

import argparse
import os
import random
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from datasets.containers.map_file import mapped
from datasets.containers.names import Names
from datasets.containers.zip_member import ZipReader
from datasets.containers.zipped import Members, members
from datasets.regular_file import read_whole
from tests.bench_support import machine, scratch, spread, status_kib

_HOLE_BYTES = 5 << 30
_FULL = 0xFFFFFFFF


def write_many(path: Path, count: int, hole_bytes: int) -> None:
    """A zip of as many stored members of ten bytes as fast as can be, with zip64 end records."""
    data = b"ten bytes."
    crc32, entries, at = zlib.crc32(data), bytearray(), hole_bytes
    with open(path, "wb") as file:
        file.seek(hole_bytes)
        for number in range(count):
            name = b"n%08d/n%08d_%d.JPEG" % (number // 1300, number // 1300, number)
            wide = struct.pack("<2HQ", 1, 8, at) if at >= _FULL else b""
            sizes = struct.pack("<3L2H", crc32, len(data), len(data), len(name), 0)
            at += file.write(struct.pack("<4s5H", b"PK\3\4", 20, 0, 0, 0, 0) + sizes + name + data)
            header_at = min(at - 30 - len(name) - len(data), _FULL)
            entries += struct.pack("<4s6H", b"PK\1\2", 0x314, 20, 0, 0, 0, 0) + sizes[:-2]
            entries += struct.pack("<4H2L", len(wide), 0, 0, 0, 0o100644 << 16, header_at) + name + wide
        file.write(entries)
        size_bytes = len(entries)
        file.write(struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size_bytes, at))
        file.write(struct.pack("<4sLQL", b"PK\6\7", 0, at + size_bytes, 1))
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, _FULL, _FULL, 0))


def write_map(path: Path, names: Names) -> None:
    lines = [b"%b\t%d\n" % (name, number // 1300) for number, name in enumerate(names)]
    random.Random(0).shuffle(lines)
    path.write_bytes(b"".join(lines))


def memory(field: str) -> float:
    """MiB of this process."""
    return status_kib(os.getpid(), field) / 1024


def costs(what: str, work: Callable[[], object]) -> str:
    """A line of the table: what `work` took. What it returns is still there when memory is measured."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory("VmRSS")
    start = time.process_time()
    kept = work()
    seconds = time.process_time() - start
    line = f"|{what}|{seconds:.2f}|{memory('VmRSS') - before:.0f}|{memory('VmHWM') - before:.0f}|"
    del kept
    return line


def list_one(way: str, path: Path) -> str:
    """The line of one way to list a zip, or to read its map; in a process of its own."""
    if way == "zipfile":
        return costs("zipfile", lambda: zipfile.ZipFile(path))
    if way == "map":
        names = members(path).names
        write_map(path.with_suffix(".txt"), names)
        return costs("its map file", lambda: mapped(path.with_suffix(".txt"), names))
    return costs("members", lambda: members(path))


def list_all(count: int, directory: Path) -> None:
    print(f"\nList {count:,} members\n\n|way|CPU seconds|MiB kept|MiB at the peak|\n|---|---|---|---|", flush=True)
    for hole_bytes in (0, _HOLE_BYTES):
        path = directory / "many.zip"
        write_many(path, count, hole_bytes)
        for way in ("members", "zipfile", "map") if not hole_bytes else ("members", "zipfile"):
            line = [sys.executable, "-m", "tests.bench_zip", "--one", way, "--directory", str(path)]
            printed = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
            print(printed.replace("|", "|zip64: ", 1) if hole_bytes else printed, flush=True)
        path.unlink()


def write_images(directory: Path, count: int, size_bytes: int) -> None:
    draw = random.Random(0)
    (directory / "folder").mkdir()
    with (
        zipfile.ZipFile(directory / "stored.zip", "w", zipfile.ZIP_STORED) as stored,
        zipfile.ZipFile(directory / "deflated.zip", "w", zipfile.ZIP_DEFLATED) as deflated,
    ):
        for number in range(count):
            content = draw.randbytes(size_bytes)
            stored.writestr(f"{number}.jpg", content)
            deflated.writestr(f"{number}.jpg", content)
            (directory / "folder" / f"{number}.jpg").write_bytes(content)


def ways_of(directory: Path) -> dict[str, Callable[[int], bytes]]:
    """How image i is read."""

    def by_pread(reader: ZipReader, listed: Members) -> Callable[[int], bytes]:
        return lambda number: reader.read(listed[number])

    def by_zipfile(opened: zipfile.ZipFile) -> Callable[[int], bytes]:
        names = opened.namelist()
        return lambda number: opened.read(names[number])

    ways: dict[str, Callable[[int], bytes]] = {}
    for kind in ("stored", "deflated"):
        path = directory / f"{kind}.zip"
        ways[f"{kind}, pread"] = by_pread(ZipReader(path), members(path))
        ways[f"{kind}, zipfile"] = by_zipfile(zipfile.ZipFile(path))
    ways["single files"] = lambda number: read_whole(str(directory / "folder" / f"{number}.jpg"))
    return ways


def read_all(count: int, size_bytes: int, rounds: int, directory: Path) -> None:
    write_images(directory, count, size_bytes)
    ways = ways_of(directory)
    order = random.Random(1).sample(range(count), count)
    assert all(len({read(number) for read in ways.values()}) == 1 for number in order[:10])
    speeds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, read in ways.items():
            start = time.process_time()
            for number in order:
                read(number)
            speeds[way].append(count / (time.process_time() - start))
    print(f"\nRead {count:,} images of {size_bytes:,} bytes\n\n|way|images/s a core|\n|---|---|")
    for way, found in speeds.items():
        print(f"|{way}|{spread(found, 0)}|")


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=1_000_000)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--bytes", type=int, default=30_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, default=Path("."))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    if given.one:
        print(list_one(given.one, given.directory))
        return
    print(machine())
    with scratch(given.directory) as directory:
        list_all(given.members, directory)
        read_all(given.images, given.bytes, given.rounds, directory)


if __name__ == "__main__":
    main()
