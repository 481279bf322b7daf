"""Small images in folders, and what a folder says of them."""

from pathlib import Path

import numpy as np
from PIL import Image

from datasets.folder import ImageFolder
from datasets.source import Source

RNG = np.random.default_rng(0)


def save(path: Path, colour: tuple[int, int, int] = (10, 20, 30), size: tuple[int, int] = (6, 4)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def names(source: Source) -> list[str]:
    return [source.instance_name(i) for i in range(len(source))]


def only(path: Path) -> np.ndarray:
    """The one image of the folder that holds `path`."""
    source = ImageFolder(path.parent)
    assert len(source) == 1
    return source.image(0)
