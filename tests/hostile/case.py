"""What every hostile start is made of: the case with its trap, the photos and the config that each finds, an earlier run."""

import atexit
import contextlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

import launch
from tests.conftest import TINY

Prepare = Callable[[Path], "list[str] | None"]
CASES: list["Hostile"] = []


@dataclass(frozen=True)
class Hostile:
    """prepare(directory) lays the trap and returns further words of the command line.

    code     what the start ends with     expect   words of what it says
    env      variables, in which {directory} stands for the case's own     others as in tests/pooled_start.py
    """

    name: str
    prepare: Prepare
    code: int
    expect: str
    env: dict[str, str] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)
    fault: Callable[[], None] | None = None
    encoding: str = "utf-8"


def hostile(code: int, expect: str, **options) -> Callable[[Prepare], Prepare]:
    """Enter a function into the table, under its own name."""

    def enter(prepare: Prepare) -> Prepare:
        CASES.append(Hostile(prepare.__name__.strip("_"), prepare, code, expect, **options))
        return prepare

    return enter


def config(directory: Path, **changed) -> dict:
    """Photos in `directory`/photos, a run in `directory`/out."""
    augment = {"kind": "photos", "crops": [{"size": 16, "scale": [0.3, 1.0]}]}
    return {
        **TINY,
        "output": str(directory / "out"),
        "epochs": 4,
        "steps": 2,
        "data": {
            "source": "folder",
            "root": str(directory / "photos"),
            "image_size": 16,
            "augment": augment,
            "max_unreadable": 0.2,
        },
        "schedule": {"batch": 8, "window": 16, "stride": 8, "block": 4, "lanes": 2, "reshuffle": False},
        "method": {**TINY["method"], "active": 8},
        **changed,
    }


def lay(directory: Path) -> None:
    """What every start finds: 24 photos in two classes, and a config."""
    draw = np.random.default_rng(0)
    for number in range(24):
        path = directory / "photos" / ("cats" if number % 2 else "dogs") / f"{number:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(path)
    write_config(directory, config(directory))


def write_config(directory: Path, content: dict) -> None:
    (directory / "config.json").write_text(json.dumps(content))


@cache
def earlier_run() -> Path:
    """A run of two steps; made once, and copied."""
    directory = Path(tempfile.mkdtemp(prefix="hostile-starts-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    lay(directory)
    with contextlib.redirect_stdout(io.StringIO()):
        assert launch.main(["--config", str(directory / "config.json")]) == 0
    return directory / "out"


def photo(directory: Path, name: str | bytes = "cats/01.jpg") -> bytes:
    """The path of a photo, as bytes; the file that was there is removed."""
    path = os.path.join(os.fsencode(directory / "photos"), os.fsencode(name))
    if os.path.lexists(path):
        os.unlink(path)
    return path


def labelled(directory: Path, content: bytes) -> list[str]:
    (directory / "labels.csv").write_bytes(content)
    return [f"data.labels={directory / 'labels.csv'}"]


def all_labels(directory: Path, head: str = "path,label\n", tail: str = "", end: str = "\n") -> str:
    root = directory / "photos"
    return head + "".join(f"{p.relative_to(root)},{p.parent.name}{end}" for p in sorted(root.glob("*/*.jpg"))) + tail
