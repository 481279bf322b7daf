"""Files that are somebody's, around and inside a run's directories, and the check that none of them changes or goes. Not a test."""

import os
import random
from pathlib import Path

from PIL import Image

from engine.disk import shapes

_INSIDE = (
    "",
    "exports",
    "checkpoints",
    "checkpoints/manifests",
    "checkpoints/rows",
    "tensorboard",
    "checkpoints/step-000000002",
)
# Close to the names of a run's own files.
_STRANGE = (
    *(
        "thesis.tex",
        "notes",
        ".hidden",
        "step-best",
        "99.json",
        "0000000099.json",
        "000000098.damage",
        "step-0000077",
        "lock.part",
    ),
    *("00001-abcdef", "000001-abcdeg", "trunk.safetensor", "active-x.safetensors", "zarr.jso", "c.1.0", "events.out"),
    *("config.json.part", "run\x1b[31m", ".pic-engine2", "part-of-another-run"),
)


class Foreign:
    """A tree below `base`, drawn from a seed.

    images/    24 small JPEGs in two classes, which nobody may change either
    victim/    what links point to
    out/       where runs go, unless `some_output` gives another place
    names      that the engine itself would write
    """

    def __init__(self, base: Path, seed: int, names: list[str]) -> None:
        self.base, self.draw, self.names = base, random.Random(seed), names
        self.images, self.victim = base / "images", base / "victim"
        self.planted: dict[Path, str | bytes] = {}  # path -> target of a link, or content
        for label in ("cats", "dogs"):
            (self.images / label).mkdir(parents=True)
            for number in range(12):
                path = self.images / label / f"{number:02}.jpg"
                Image.new("RGB", (20, 20), tuple(self.draw.randbytes(3))).save(path)
                self.planted[path] = path.read_bytes()
        for name in ("a", "deep/b", "manifests/000000001.json", "step-000000060/trunk.safetensors", "rows.npy"):
            self._file(self.victim / name)

    def some_output(self) -> Path:
        """Mostly the same, so that runs go on; now and then one at a place that a mistake leads to."""
        out = self.base / "out"
        if self.draw.random() < 0.7:
            return out
        link = self.base / "link"
        if not link.is_symlink():
            link.symlink_to(out, target_is_directory=True)
        places = (
            self.base,
            self.images,
            self.images / "runs",
            self.victim,
            self.victim / "new",
            link,
            self.images / "cats",
        )
        return self.draw.choice(places)

    def plant(self) -> None:
        """Some files and links at names that nothing has yet."""
        for _ in range(self.draw.randint(0, 4)):
            root = self.draw.choice((self.base / "out", self.base / "out", self.base / "out", self.images, self.victim))
            directory = root / self.draw.choice(_INSIDE)
            if not directory.resolve().is_relative_to(self.base) or directory.is_symlink():
                continue
            if not directory.is_dir() and self.draw.random() < 0.7:
                continue  # mostly where something is already
            name = self.draw.choice((*_STRANGE, *self.names))
            path = directory / name
            if self._is_shaped(path):
                continue
            if os.path.lexists(path) or any(
                above.is_symlink() or (above.exists() and not above.is_dir()) for above in path.parents
            ):
                continue
            if self.draw.random() < 0.5:
                self._file(path)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                target = self.draw.choice((self.victim, self.victim / "a", self.victim / "nothing", self.images))
                path.symlink_to(target)
                self.planted[path] = os.readlink(path)

    def check(self) -> None:
        """Every planted file and link is there, with every byte."""
        for path, content in self.planted.items():
            assert os.path.lexists(path), f"{path} is gone"
            if isinstance(content, str):
                assert path.is_symlink() and os.readlink(path) == content, path
            else:
                assert not path.is_symlink() and path.read_bytes() == content, path

    def _is_shaped(self, path: Path) -> bool:
        """Whether a run takes the name for its own: below `checkpoints` the shape of a name says whose it is."""
        below = self.base / "out" / "checkpoints"
        return path.is_relative_to(below) and shapes.is_file(path.relative_to(below).as_posix())

    def _file(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.draw.randbytes(self.draw.randint(0, 40)))
        self.planted[path] = path.read_bytes()
