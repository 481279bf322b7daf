"""The two published layouts of a set like ImageNet, made of a few images: class folders below train and val, and zips with maps."""

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("n01440764", "n01443537", "n01484850")


def jpeg(seed: int, label: int, side: int = 24) -> bytes:
    """A stripe whose direction and colour tell the class, in noise."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 90, (side, side + 4, 3))
    rows, columns = np.mgrid[:side, : side + 4]
    stripe = ((rows * (label == 0) + columns * (label == 1) + (rows + columns) * (label == 2)) // 3) % 2
    pixels[..., label] += 150 * stripe
    content = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(content, "JPEG", quality=90)
    return content.getvalue()


def images(split: str, each: int) -> list[tuple[str, int, bytes]]:
    """(path as a map file has it, label, content), in byte order of the paths."""
    first = 10_000 if split == "val" else 0
    return [
        (f"{name}/{name}_{number + first}.JPEG", label, jpeg(first + label * each + number, label))
        for label, name in enumerate(CLASSES)
        for number in range(10, 10 + each)
    ]


def as_folders(root: Path, train: int = 12, val: int = 4) -> Path:
    for split, each in (("train", train), ("val", val)):
        for path, _, content in images(split, each):
            (root / split / path).parent.mkdir(parents=True, exist_ok=True)
            (root / split / path).write_bytes(content)
    return root


def as_zips(root: Path, train: int = 12, val: int = 4, method: int = zipfile.ZIP_STORED) -> Path:
    """train.zip, train_map.txt, val.zip, val_map.txt: members have the split before their path, lines have not."""
    root.mkdir(parents=True, exist_ok=True)
    for split, each in (("train", train), ("val", val)):
        lines = []
        with zipfile.ZipFile(root / f"{split}.zip", "w", method) as archive:
            for path, label, content in images(split, each):
                archive.writestr(f"{split}/{path}", content)
                lines.append(f"{path}\t{label}\n")
        (root / f"{split}_map.txt").write_text("".join(lines))
    return root
