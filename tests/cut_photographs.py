"""A folder of small labelled JPEGs, cut from the photographs of a few directories; what configs/photos.json was measured on.

    python -m tests.cut_photographs /usr/share/backgrounds /usr/share/wallpapers --output photos --count 6000

Of each photograph one folder is made, with its name; its cuts are squares and rectangles of 160 to 500 px, from anywhere in it. What they
were cut from is their label: `data.labels=folders`. The same directories and seed give the same cuts.
"""

import argparse
import random
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

_SIDES = (160, 500)
_SMALLEST = 900  # px of the shorter side: smaller files are screenshots, icons and textures


def photographs(directories: list[Path]) -> list[Path]:
    """The files of enough pixels, in the order of their names; of one picture in several sizes the largest file."""
    found: dict[str, Path] = {}
    for directory in directories:
        for path in sorted(directory.rglob("*")):
            if path.suffix.lower() != ".jpg" or not path.is_file():  # other files there are drawings
                continue
            with Image.open(path) as image:
                if min(image.size) < _SMALLEST:
                    continue
            name = _name(path)
            if name not in found or path.stat().st_size > found[name].stat().st_size:
                found[name] = path
    return [found[name] for name in sorted(found)]


def _name(path: Path) -> str:
    """Of the picture: 2560x1600.jpg of a theme is named as the theme's directory."""
    stem = path.stem.split("_")[0]
    return path.parts[-4] if stem[0].isdigit() and "contents" in path.parts else stem


def cuts(image: Image.Image, count: int, draw: random.Random) -> Iterator[Image.Image]:
    """So many pieces of the picture: each shows a square or rectangle of it, at a scale of its own."""
    for _ in range(count):
        width, height = (draw.randint(*_SIDES) for _ in range(2))
        scale = draw.uniform(1.0, min(4.0, image.width / width, image.height / height))
        wide, high = int(width * scale), int(height * scale)
        left, top = draw.randint(0, image.width - wide), draw.randint(0, image.height - high)
        yield image.resize((width, height), Image.Resampling.BICUBIC, box=(left, top, left + wide, top + high))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--count", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    paths = photographs(options.directories)
    draw = random.Random(options.seed)
    for number, path in enumerate(paths):
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        directory = options.output / _name(path)
        directory.mkdir(parents=True, exist_ok=True)
        share = (number + 1) * options.count // len(paths) - number * options.count // len(paths)
        for index, cut in enumerate(cuts(image, share, draw)):
            cut.save(directory / f"{index:04d}.jpg", quality=90)
    print(f"{options.count} cuts of {len(paths)} photographs in {options.output}")


if __name__ == "__main__":
    main()
