"""Corrupted images, decoded in processes of their own: `python -m tests.datasets.fuzz_images --count 2000`.

Decoders are C. What they may do with damaged bytes is end the process or never return, and neither can be caught beside a run. So
images are damaged by a seed and decoded by workers, which write down what they are about to decode and what came of it:

    decoded     uint8 [H, W, 3]
    refused     Undecodable with one line of text
    wrong       anything else: another exception, another kind of array, a text of two lines, pixels that Pillow does not give
    memory      MemoryError. In a run it would be taken for the machine's fault, and end it
    crash       the worker died; the signal is told
    hang        more than CPU_SECONDS of its time, or no end in WALL_SECONDS

A worker that is lost is replaced by one that begins behind the image that was its last. Image number n of a seed is the same whichever
worker makes it. `--only n --keep file` writes one to look at.
"""

import argparse
import io
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from datasets.decode import Undecodable, decode, decode_by_pillow

# The slowest of 60,000 took 16 s: a TIFF of floats whose header says 70 million pixels, decoded on both ways.
CPU_SECONDS, WALL_SECONDS = 60, 600
_MEMORY_BYTES = 4 << 30  # of addresses, of one worker
_IMAGES_A_WORKER = 250
GOOD, BAD = ("decoded", "refused"), ("wrong", "memory", "crash", "hang")


class Outcome(NamedTuple):
    number: int
    kind: str  # of the file that was damaged
    damage: str
    result: str
    told: str  # a reason, a shape and a checksum of the pixels, a signal
    cpu_seconds: float = 0.0


# ---- the images


def originals() -> dict[str, bytes]:
    """Small files of every format and of the layouts that have code of their own, of photographs that packages bring."""
    images = _photographs()
    first, second = images
    grey, palette = first.convert("L"), first.convert("P", palette=Image.Palette.ADAPTIVE)
    alpha = first.copy()
    alpha.putalpha(second.convert("L").resize(first.size))
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"

    def frames() -> dict:
        return {"save_all": True, "append_images": [second.resize(first.size)]}

    made: dict[str, tuple[Image.Image, str, dict]] = {
        "jpeg": (first, "JPEG", {"quality": 90}),
        "jpeg 444": (second, "JPEG", {"quality": 75, "subsampling": 0}),
        "jpeg progressive": (first, "JPEG", {"progressive": True}),
        "jpeg restart": (second, "JPEG", {"restart_marker_rows": 1}),
        "jpeg grey": (grey, "JPEG", {}),
        "jpeg cmyk": (first.convert("CMYK"), "JPEG", {}),
        "jpeg exif": (second, "JPEG", {"exif": exif, "icc_profile": b"x" * 3000}),
        "jpeg mpo": (first, "MPO", frames()),
        "png": (first, "PNG", {}),
        "png palette": (palette, "PNG", {"transparency": 3}),
        "png alpha": (alpha, "PNG", {"exif": exif}),
        "png 16 bit": (deep, "PNG", {}),
        "png animated": (first, "PNG", frames()),
        "webp": (first, "WEBP", {"quality": 80}),
        "webp lossless": (second, "WEBP", {"lossless": True}),
        "webp alpha": (alpha, "WEBP", {"exif": exif}),
        "webp animated": (first, "WEBP", frames()),
        "gif": (palette, "GIF", {}),
        "gif animated": (first, "GIF", frames()),
        "bmp": (second, "BMP", {}),
        "bmp palette": (palette, "BMP", {}),
        "tiff": (first, "TIFF", {}),
        "tiff grey 16": (deep, "TIFF", {}),
        "tiff float": (grey.convert("F"), "TIFF", {}),
        "tiff bits": (grey.convert("1"), "TIFF", {"compression": "group4"}),
        "tiff frames": (first, "TIFF", frames() | {"compression": "tiff_lzw"}),
    }
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd", "lzma"):
        made[f"tiff {compression}"] = (second, "TIFF", {"compression": compression})
    return {name: _encoded(*how) for name, how in made.items()}


def _photographs() -> list[Image.Image]:
    package = find_spec("sklearn")  # not imported: that takes longer than to decode a hundred images
    assert package is not None and package.origin is not None
    folder = Path(package.origin).parent / "datasets" / "images"
    whole = [Image.open(folder / f"{name}.jpg").convert("RGB") for name in ("china", "flower")]
    return [image.resize((133, 97)) for image in whole]


def _encoded(image: Image.Image, kind: str, options: dict) -> bytes:
    file = io.BytesIO()
    image.copy().save(file, kind, **options)  # what is saved keeps the settings of its encoder
    return file.getvalue()


# ---- the damage


def _flips(whole: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    damaged = bytearray(whole)
    for place in rng.integers(0, len(whole), int(rng.integers(1, 40))):
        damaged[place] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def _header(whole: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    """Bytes near the beginning or the end, where sizes and tables are, become the ones that decoders fear."""
    damaged = bytearray(whole)
    places = rng.integers(0, min(len(whole), 700), int(rng.integers(1, 6)))
    for place in places if rng.integers(2) else len(whole) - 1 - places:
        damaged[place] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFE, 0xFF, int(rng.integers(256))]))
    return bytes(damaged)


def _cut(whole: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    return whole[: int(rng.integers(0, len(whole)))]


def _hole(whole: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    start, stop = sorted(int(one) for one in rng.integers(0, len(whole), 2))
    return whole[:start] + (bytes(stop - start) if rng.integers(2) else b"") + whole[stop:]


def _again(whole: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    start, stop = sorted(int(one) for one in rng.integers(0, len(whole), 2))
    place = int(rng.integers(len(whole)))
    return whole[:place] + whole[start:stop] + whole[place:]


def _spliced(whole: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    other = others[int(rng.integers(len(others)))]
    return whole[: int(rng.integers(len(whole)))] + other[int(rng.integers(len(other))) :]


def _inserted(whole: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    place = int(rng.integers(len(whole)))
    return whole[:place] + rng.bytes(int(rng.integers(1, 3000))) + whole[place:]


def _sealed(whole: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    """Flips; in a PNG those of the data, with right checksums behind them, since what they guard is not decoded otherwise."""
    if not whole.startswith(b"\x89PNG"):
        return _flips(whole, rng, others)
    pieces, place = [whole[:8]], 8
    while place < len(whole):
        (length,) = struct.unpack_from(">I", whole, place)
        kind, data = whole[place + 4 : place + 8], whole[place + 8 : place + 8 + length]
        data = _flips(data, rng, others) if data and (kind == b"IDAT" or rng.integers(4) == 0) else data
        pieces += [whole[place : place + 8], data, struct.pack(">I", zlib.crc32(kind + data))]
        place += 12 + length
    return b"".join(pieces)


DAMAGES: dict[str, Callable[[bytes, np.random.Generator, list[bytes]], bytes]] = {
    "flips": _flips,
    "header": _header,
    "cut": _cut,
    "hole": _hole,
    "again": _again,
    "splice": _spliced,
    "insert": _inserted,
    "sealed": _sealed,
}


def damaged(seed: int, number: int, whole: dict[str, bytes]) -> tuple[str, str, bytes]:
    """(which file, how it is damaged, its bytes). Every pair of file and damage comes in turn."""
    rng = np.random.default_rng((seed, number))
    kind = list(whole)[number % len(whole)]
    damage = list(DAMAGES)[number // len(whole) % len(DAMAGES)]
    others = [content for name, content in whole.items() if name.split()[0] == kind.split()[0]]
    others = others if rng.integers(2) else list(whole.values())
    return kind, damage, DAMAGES[damage](whole[kind], rng, others)


# ---- decoding


def outcome_of(content: bytes) -> tuple[str, str]:
    """(result, what is told of it), where the process survives."""
    try:
        image = decode(content)
    except Undecodable as error:
        return ("refused", str(error)) if _is_a_line(str(error)) else ("wrong", repr(str(error)))
    except MemoryError:
        return "memory", ""
    except Exception as error:
        return "wrong", f"{type(error).__name__}: {error}"
    if not (isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3):
        return "wrong", f"not uint8 [H, W, 3]: {image!r}"
    if 0 in image.shape:
        return "wrong", f"an image of {image.shape}"
    return (
        ("decoded", f"{image.shape} {zlib.crc32(image):08x}")
        if _as_by_pillow(image, content)
        else ("wrong", "other pixels than Pillow's")
    )


def _is_a_line(text: str) -> bool:
    return bool(text.strip()) and text.isprintable()


def _as_by_pillow(image: np.ndarray, content: bytes) -> bool:
    try:
        return np.array_equal(image, decode_by_pillow(content))
    except Undecodable:
        return False


def _work(seed: int, first: int, stop: int, lines: Path) -> None:
    """Decode images first .. stop - 1. Each has a line before it is decoded, and one behind it."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    whole = originals()
    with lines.open("a") as file:
        for number in range(first, stop):
            kind, damage, content = damaged(seed, number, whole)
            print(json.dumps([number, kind, damage]), file=file, flush=True)
            # Of processor time, so that a busy machine is no hang; nothing catches the signal, so it ends C code too.
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
            started = time.process_time()
            result, told = outcome_of(content)
            line = [number, kind, damage, result, told, round(time.process_time() - started, 3)]
            print(json.dumps(line), file=file, flush=True)
    signal.setitimer(signal.ITIMER_PROF, 0)


def run(seed: int, first: int, stop: int, command: tuple[str, ...] = ()) -> list[Outcome]:
    """What came of images first .. stop - 1, each of them once. command: what decodes them; this module where it is empty."""
    found: list[Outcome] = []
    while first < stop:
        end = min(stop, first + _IMAGES_A_WORKER)
        with tempfile.TemporaryDirectory() as directory:
            lines = Path(directory) / "lines"
            words = ["--work", str(seed), str(first), str(end), str(lines)]
            ended = _ended([*(command or (sys.executable, "-m", "tests.datasets.fuzz_images")), *words])
            entries = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
        found += [Outcome(*entry) for entry in entries if len(entry) > 3]
        last = entries[-1] if entries else None
        if last is not None and len(last) == 3:
            result = "hang" if ended in (-signal.SIGPROF, None) else "crash"
            found.append(Outcome(*last, result, _in_words(ended)))
        elif ended != 0:
            raise RuntimeError(
                f"the worker that began at image {first} ended with {_in_words(ended)} between two images"
            )
        first = found[-1].number + 1
    return found


def _ended(command: list[str]) -> int | None:
    """The exit status; None where it had to be killed."""
    try:
        root = Path(__file__).parents[2]
        # What libtiff has to say of damage goes to the standard error of its process.
        return subprocess.run(
            command, cwd=root, timeout=WALL_SECONDS, stderr=subprocess.DEVNULL, check=False
        ).returncode
    except subprocess.TimeoutExpired:
        return None


def _in_words(ended: int | None) -> str:
    if ended is None:
        return "no end"
    return f"exit {ended}" if ended >= 0 else signal.Signals(-ended).name


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="write this image into --keep and do nothing else")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--work", nargs=4, metavar=("SEED", "FIRST", "STOP", "LINES"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.work:
        seed, first, stop = map(int, given.work[:3])
        _work(seed, first, stop, Path(given.work[3]))
        return 0
    if given.only is not None:
        kind, damage, content = damaged(given.seed, given.only, originals())
        given.keep.write_bytes(content)
        print(f"{kind}, {damage}: {len(content):,} bytes")
        return 0
    outcomes = run(given.seed, 0, given.count)
    assert [one.number for one in outcomes] == list(range(given.count))
    return _told(outcomes)


def _told(outcomes: list[Outcome]) -> int:
    table = Counter((one.kind.split()[0], one.result) for one in outcomes)
    for format_name in dict.fromkeys(one.kind.split()[0] for one in outcomes):
        counts = {result: table[format_name, result] for result in (*GOOD, *BAD)}
        print(f"{format_name:5}", *(f"{counts[result]:5} {result}" for result in counts))
    bad = [one for one in outcomes if one.result in BAD]
    for one in bad:
        print(*one)
    slowest = max(outcomes, key=lambda one: one.cpu_seconds)
    print(
        f"{len(outcomes):,} images, {len(bad)} of them neither decoded nor refused; the slowest took {slowest.cpu_seconds} s of"
    )
    print(f"processor time ({slowest.kind}, {slowest.damage}: {slowest.told})")
    return 1 if bad else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main(sys.argv[1:]))
