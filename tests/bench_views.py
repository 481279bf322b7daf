"""Views of photographs, images a second of processor time: this engine beside torchvision and a slow twin, taken in turns.

    python -m tests.bench_views [--photographs DIRECTORY] [--count 48] [--rounds 5]

The images are JPEGs of 160 to 500 px, cut by tests/cut_photographs.py out of the photographs in a directory, or out of the two that
scikit-learn ships (enlarged, so that 500 px can be cut). Each image gets the four views of PIC's published recipe: one of 160 px and three
of 96, with jitter, grey, blur and mirror.

    engine             datasets/photos.py, decoding by datasets/decode.py
    numpy              tests/datasets/slow_photos.py, decoding by Pillow
    torchvision, PIL   the published program's own way, decoding by Pillow
    torchvision, v2    torchvision's transforms on uint8 tensors, decoding by Pillow
"""

import argparse
import io
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import sklearn.datasets
import torch
from PIL import Image, ImageFilter
from torchvision import transforms
from torchvision.transforms import v2

from datasets.decode import decode
from datasets.photos import OFFICIAL_CROPS, PhotoAugment
from tests.bench_support import machine
from tests.cut_photographs import cuts
from tests.datasets import slow_photos

_SHORTER_SIDE = 1000  # px that a photograph has at least when it is cut


class PillowBlur:
    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


def on_pillow(image_HW3: np.ndarray) -> list[torch.Tensor]:
    image = Image.fromarray(image_HW3)
    return [one(image) for crop, one in zip(OFFICIAL_CROPS, PILLOW, strict=True) for _ in range(crop.count)]


def on_tensors(image_HW3: np.ndarray) -> list[torch.Tensor]:
    image = torch.from_numpy(image_HW3.copy()).permute(2, 0, 1)
    return [one(image) for crop, one in zip(OFFICIAL_CROPS, TENSORS, strict=True) for _ in range(crop.count)]


PILLOW = [
    transforms.Compose(
        [
            transforms.RandomResizedCrop(crop.size, scale=crop.scale),
            transforms.RandomHorizontalFlip(),
            transforms.RandomApply([transforms.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
            transforms.RandomGrayscale(p=0.2),
            transforms.RandomApply([PillowBlur()], p=0.5),
            transforms.ToTensor(),
        ]
    )
    for crop in OFFICIAL_CROPS
]
TENSORS = [
    v2.Compose(
        [
            v2.RandomResizedCrop(crop.size, scale=crop.scale, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.RandomApply([v2.GaussianBlur(13, (0.1, 2.0))], p=0.5),
        ]
    )
    for crop in OFFICIAL_CROPS
]


def by_pillow(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


Way = tuple[Callable[[bytes], np.ndarray], Callable[[Sequence[np.ndarray], int], object]]


def ways() -> dict[str, Way]:
    """How an image is decoded, and how the views of several images are made; the number is of the round."""
    engine, numpy = PhotoAugment(), slow_photos.PhotoAugment()
    return {
        "engine": (
            lambda content: decode(io.BytesIO(content)),
            lambda images, step: engine.views(images, 0, step, np.arange(len(images))),
        ),
        "numpy": (by_pillow, lambda images, step: numpy.views(images, 0, step, np.arange(len(images)))),
        "torchvision, PIL": (by_pillow, lambda images, step: [on_pillow(image) for image in images]),
        "torchvision, v2": (by_pillow, lambda images, step: [on_tensors(image) for image in images]),
    }


def seconds_of(contents: list[bytes], rounds: int) -> dict[str, tuple[list[float], list[float]]]:
    """By way: seconds an image, for its views alone and for decoding as well, of each round; what warms up is not counted."""
    seconds: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in ways()}
    for step in range(-1, rounds):
        for name, (decoded, views) in ways().items():
            start = time.process_time()
            images = [decoded(content) for content in contents]
            between = time.process_time()
            views(images, step % 1000)
            end = time.process_time()
            if step >= 0:
                seconds[name][0].append((end - between) / len(contents))
                seconds[name][1].append((end - start) / len(contents))
    return seconds


def table(seconds: dict[str, tuple[list[float], list[float]]]) -> str:
    """A Markdown table of medians."""
    ours = [statistics.median(part) for part in seconds["engine"]]
    lines = [
        "| | views alone, images/s | engine, times | decode and views, images/s | engine, times |",
        "|---|---|---|---|---|",
    ]
    for name, parts in seconds.items():
        alone, both = (statistics.median(part) for part in parts)
        lines.append(f"| {name} | {1 / alone:,.0f} | {alone / ours[0]:.2f} | {1 / both:,.0f} | {both / ours[1]:.2f} |")
    return "\n".join(lines)


def jpegs(directory: Path | None, count: int, seed: int = 0) -> list[bytes]:
    """JPEGs of quality 90."""
    if directory:
        paths = sorted(directory.rglob("*.jpg"))
        photographs = [Image.open(path).convert("RGB") for path in paths[:: max(1, len(paths) // count)][:count]]
    else:
        photographs = [Image.fromarray(image) for image in sklearn.datasets.load_sample_images().images]
    draw, found = random.Random(seed), []
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        enlarged = max(1.0, _SHORTER_SIDE / min(photograph.size))
        for cut in cuts(photograph.resize([round(side * enlarged) for side in photograph.size]), 1, draw):
            content = io.BytesIO()
            cut.save(content, "JPEG", quality=90)
            found.append(content.getvalue())
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Views of photographs, images a second on one core.")
    parser.add_argument("--photographs", type=Path, help="a directory of large JPEGs; left out: scikit-learn's two")
    parser.add_argument("--count", type=int, default=48, help="images")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(f"{machine()}; one thread; {arguments.count} images, {arguments.rounds} rounds\n")
    print(table(seconds_of(jpegs(arguments.photographs, arguments.count), arguments.rounds)))


if __name__ == "__main__":
    main()
