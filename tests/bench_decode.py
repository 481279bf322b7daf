"""How many JPEGs a core decodes in a second: this project's way beside its slow twin and other libraries.

    python -m tests.bench_decode [--images 48] [--rounds 9]

The files are pieces of 160 to 500 px of the photographs that scikit-learn and matplotlib bring, quality 75 to 95, in memory; each ends
as an array of RGB. In a round every way decodes all files, in an order that is shuffled anew; what is told is the median of the
rounds' processor time and its range. Compare within a table only. OpenCV gets one thread, as a worker of the loader has.
"""

import argparse
import importlib.util
import io
import random
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from datasets import plain_jpeg
from datasets.decode import decode, decode_by_pillow
from tests.bench_support import machine

Way = Callable[[bytes], object]
_PHOTOGRAPHS = (
    ("sklearn", "datasets/images/china.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
)
_SIDES = (160, 500)


def photographs() -> list[Image.Image]:
    found = []
    for package, name in _PHOTOGRAPHS:
        spec = importlib.util.find_spec(package)
        assert spec is not None and spec.origin is not None
        found.append(Image.open(Path(spec.origin).parent / name).convert("RGB"))
    return found


def files(count: int, **options: object) -> list[bytes]:
    """So many JPEGs, the same ones each time."""
    draw, whole, made = random.Random(0), photographs(), []
    for number in range(count):
        image = whole[number % len(whole)]
        width, height = (min(draw.randint(*_SIDES), side) for side in image.size)
        left, top = draw.randint(0, image.width - width), draw.randint(0, image.height - height)
        file = io.BytesIO()
        piece = image.crop((left, top, left + width, top + height))
        piece.save(file, "JPEG", quality=draw.randint(75, 95), **options)
        made.append(file.getvalue())
    return made


def ways() -> dict[str, Way]:
    """Every one returns uint8 [H, W, 3]."""
    found: dict[str, Way] = {
        "decode": decode,
        "decode_by_pillow": decode_by_pillow,
        "Pillow alone": lambda content: np.asarray(Image.open(io.BytesIO(content)).convert("RGB")),
        "simplejpeg alone": lambda content: simplejpeg.decode_jpeg(content, "RGB"),
    }
    if importlib.util.find_spec("cv2"):
        import cv2

        cv2.setNumThreads(1)
        found["OpenCV"] = lambda content: cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
    return found


def images_a_second(ways: dict[str, Way], contents: Sequence[bytes], rounds: int) -> dict[str, list[float]]:
    """Of each way, one figure a round."""
    figures: dict[str, list[float]] = {name: [] for name in ways}
    order = list(ways)
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            way, started = ways[name], time.process_time()
            for content in contents:
                way(content)
            figures[name].append(len(contents) / (time.process_time() - started))
    return figures


def microseconds(call: Callable[[], object], times: int) -> float:
    started = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - started) / times * 1e6


def _catch() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args(arguments)
    print(machine() + "".join(f", {name} {version(name)}" for name in ("pillow", "simplejpeg")))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 1, "maker"
    for title, options in (
        ("baseline", {}),
        ("baseline, 4:4:4", {"subsampling": 0}),
        ("upright by EXIF, with a profile", {"exif": exif, "icc_profile": bytes(3000)}),
        ("progressive", {"progressive": True}),
    ):
        contents = files(given.images, **options)
        figures = images_a_second(ways(), contents, given.rounds)
        print(f"\n{title}: images a second of one core" + ("" if "OpenCV" in figures else "; cv2 is not installed"))
        base = statistics.median(figures["decode_by_pillow"])
        for name, values in figures.items():
            middle = statistics.median(values)
            print(f"  {name:18} {middle:6.0f} ({min(values):.0f} - {max(values):.0f}), {middle / base:.2f} times")
    content = files(1)[0]
    plain = microseconds(lambda: plain_jpeg.is_plain(content, 10**8), 1000)
    print(
        f"\nof it, per image: the decision {plain:.1f} microseconds, warnings.catch_warnings {microseconds(_catch, 1000):.1f}"
    )


if __name__ == "__main__":
    main()
