"""What an index of N images costs: to make, to open, to read from in forked workers, and to add a million to.

    .venv/bin/python -m tests.bench_index --count 100000 100000000 --directory /a/disk      # 10^8 take 6.4 GB there

For each N an index of made-up paths is written (16 bytes each, 1,000 labels) and opened in a fresh process. The source's container gives
one and the same JPEG for every entry, since 10^8 files would measure the file system. In that process the loader makes the batches of the
first steps of a schedule with two forked workers; its window of 131,072 images slides once. So entries from all over the index are looked
up, and all of its groups that they touch are compared with their checksums. PSS is that of the process and its workers together, at the
end of the steps.
Then a million images are appended, and the fingerprint of the first N and some entries are compared with those before.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import numpy as np
import psutil
from PIL import Image

from datasets.index.image_index import ImageIndex
from datasets.index.rows import ENDS, ENTRY, Entry, Rows
from datasets.index.stored import COLUMNS, Header, Writer, opened
from tests.bench_support import machine, scratch

_AT_ONCE = 1 << 20
_LABELS = 1000
_WINDOW, _STRIDE, _BATCH, _WORKERS = 131_072, 8192, 64, 2
_STEPS = _STRIDE // _BATCH + 32  # the window slides once
APPENDED = 1_000_000


def rows(first: int, count: int) -> Rows:
    """`00/0000000000000.jpg`-like paths of 16 bytes, by arithmetic on digits."""
    numbers = np.arange(first, first + count, dtype=np.int64)
    paths = np.zeros((count, 17), np.uint8)
    for place in range(11):
        paths[:, 10 - place] = 48 + numbers // 10**place % 10
    paths[:, 11:16] = np.frombuffer(b"a.jpg", np.uint8)
    paths[:, 3] = ord("/")  # three digits of the number make the directory
    entries_n = np.zeros(count, ENTRY)
    entries_n["size"] = 20_000 + numbers % 977
    entries_n["stamp"] = numbers
    entries_n["label"] = numbers % _LABELS
    return Rows(entries_n, np.arange(1, count + 1, dtype=ENDS) * 17, paths.tobytes())


def write(directory: Path, first: int, count: int) -> float:
    """Seconds to add so many images."""
    names = [b"%03d" % label for label in range(_LABELS)]
    began = time.perf_counter()
    with Writer(directory, Header("folder")) as writer:
        for start in range(first, first + count, _AT_ONCE):
            stop = min(start + _AT_ONCE, first + count)
            writer.add(rows(start, stop - start), names, begins_run=start == first)
        writer.put_header(is_whole=True)
    return time.perf_counter() - began


class Same:
    """A container that has one image."""

    kind = "folder"

    def __init__(self) -> None:
        content = io.BytesIO()
        pixels = np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(content, "JPEG")
        self._content = content.getvalue()

    def read(self, entry: Entry) -> IO[bytes]:
        return io.BytesIO(self._content)

    def place(self, entry: Entry) -> tuple[bytes, int]:
        return entry.path, 0

    def shown_name(self, entry: Entry) -> str:
        return entry.path.decode()

    def size_bytes(self, entry: Entry) -> int:
        return entry.size


def run_steps(index: ImageIndex, opened_seconds: float) -> dict[str, float]:
    """What a loader with forked workers takes that looks up entries all over the index."""
    from datasets.indexed import IndexedImages
    from datasets.loader import StepDataset, batches
    from datasets.photos import Crop, PhotoAugment
    from datasets.schedule import Schedule

    source = IndexedImages(index, Same())
    schedule = Schedule(
        seed=0,
        size=len(index),
        window=min(_WINDOW, len(index) // 8 // _STRIDE * _STRIDE),
        stride=_STRIDE,
        batch=_BATCH,
        block=1024,
        lanes=8,
    )
    dataset = StepDataset(source, schedule, PhotoAugment(crops=(Crop(32, 1, (0.2, 1.0)),)), 0)
    began = time.perf_counter()
    instances = set()
    stream = batches(dataset, 0, _STEPS, _WORKERS, pin=False)
    for batch in stream:
        instances |= set(batch.ids_G.tolist())
        tree = [psutil.Process(), *psutil.Process().children(recursive=True)]
        pss = sum(process.memory_full_info().pss for process in tree)
    steps_seconds = time.perf_counter() - began
    stream.close()
    began = time.perf_counter()
    fingerprint = index.fingerprint(len(index))
    return {
        "images": len(index),
        "open_seconds": opened_seconds,
        "fingerprint_seconds": time.perf_counter() - began,
        "pss_bytes": pss,
        "steps_seconds": steps_seconds,
        "groups_touched": len({instance // 4096 for instance in instances}),
        "fingerprint": int(fingerprint[:12], 16),
    }


def look(directory: Path) -> None:
    """In a fresh process: open, run, and print."""
    before = psutil.Process().memory_full_info().uss
    began = time.perf_counter()
    index = opened(directory)
    seconds = time.perf_counter() - began
    grown = psutil.Process().memory_full_info().uss - before
    print(json.dumps({**run_steps(index, seconds), "open_bytes": grown}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--directory", type=Path, default=Path("/tmp"))
    parser.add_argument("--look", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.look:
        look(asked.look)
        return
    print(machine(), "\n")
    for count in asked.count:
        with scratch(asked.directory) as place:
            seconds = write(place / "index", 0, count)
            size_bytes = sum((place / "index" / name).stat().st_size for name in COLUMNS)
            line = [sys.executable, "-m", "tests.bench_index", "--look", str(place / "index")]
            found = json.loads(subprocess.run(line, check=True, stdout=subprocess.PIPE, env=os.environ).stdout)
            before = [opened(place / "index").entry(number) for number in range(0, count, count // 7)]
            appended = write(place / "index", count, APPENDED)
            index = opened(place / "index")
            is_same = int(index.fingerprint(count)[:12], 16) == found["fingerprint"]
            is_same &= [index.entry(number) for number in range(0, count, count // 7)] == before
            print(
                f"{count:>11,} images: written in {seconds:.1f} s, {size_bytes / count:.1f} bytes each; opened in "
                f"{found['open_seconds'] * 1e3:.1f} ms and {found['open_bytes'] / 2**20:.1f} MiB, fingerprint in "
                f"{found['fingerprint_seconds'] * 1e3:.1f} ms; PSS with {_WORKERS} workers {found['pss_bytes'] / 2**20:.1f} MiB after "
                f"{_STEPS} steps in {found['steps_seconds']:.1f} s ({found['groups_touched']:,} groups touched); "
                f"{APPENDED:,} appended in {appended:.1f} s, old numbers unchanged: {is_same}",
                flush=True,
            )


if __name__ == "__main__":
    main()
