"""The output directory of a run: known to be this engine's before anything is written there, and rid of nothing else.

A directory that the engine makes holds a mark, `.pic-engine`. Its first line says whose it is. Then comes the name of each file that the
engine writes there, a line each, added before the file is written:

    This directory was made by pic-engine, which wrote what is named below and removes nothing else.
    lock
    config.json
    exports/rows.npy

A name that is in the list may be replaced and, by --fresh, removed. A file that has one of our names and is not in the list is
somebody's: the job is refused before it begins. Lines are only added, each in one write, so jobs side by side lose none.
What lies below `checkpoints` is told by the shapes of names instead (engine/files.py), because blocks come and go.

No file here is reached through a link, with one exception: `checkpoints` itself may be a link to a directory on another disk.
"""

import json
import math
import os
import re
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from datasets.batch import MARK
from engine import manifest
from engine.checkpoint import PART_OF_A_RUN
from engine.files import DiskFiles
from engine.store import Damaged

_HEADER = "This directory was made by pic-engine, which wrote what is named below and removes nothing else.\n"
CHECKPOINTS, LOCK, UNREADABLE = "checkpoints", "lock", "unreadable.jsonl"
# What each job writes.
PRETRAIN = (
    *(LOCK, "config.json", "plan.json", CHECKPOINTS, "metrics.jsonl", "evaluations.jsonl", "summary.json"),
    *("report.html", "backbone.safetensors", UNREADABLE),
)
KNN = ("knn.json",)
EXPORT = tuple(f"exports/{name}" for name in ("backbone.safetensors", "embeddings.npy", "rows.npy", "manifest.json"))
PICTURE = ("store.png",)
EVENTS = ("tensorboard",)
# Of runs that were made before there was a mark.
_EARLIER = (*PRETRAIN, *KNN, *EXPORT, *PICTURE, *EVENTS, "images.index")
_ROWS_OF_A_STEP = re.compile(r"rows-\d+\.(npy|json|zarr)")
# Directories that other libraries fill, and how they name what they put there.
_FILLED_BY_OTHERS = ((re.compile(r"tensorboard"), re.compile(r"events\.out\.tfevents\.[^/]+")),)
_FILLED_BY_OTHERS += ((re.compile(r"exports/[^/]+\.zarr"), re.compile(r"zarr\.json|c/\d+/\d+")),)
_PART = ".part"  # how the name of a file ends that is not whole yet


def rows_of_step(step: int, format: str) -> tuple[str, ...]:
    """What job store writes for verb export."""
    return f"exports/rows-{step}.{format}", f"exports/rows-{step}.json"


class Output:
    """A directory that this engine made, or may make, and the names that one job is about to write there.

    path     may not exist yet     names     of files and directories, relative     images     the folder of images, if there is one
    Making the object looks and writes nothing. Raises ValueError where the directory, or one of the names, is somebody else's or a
    link; where nothing can be written; where the images lie inside.
    """

    def __init__(self, path: Path, names: Sequence[str] = (), images: Path | None = None) -> None:
        self.path, self._names = path, tuple(names)
        require_writable(path)
        _require_images_outside(path, images)
        self._is_marked = False
        self._own = self._read()
        for name in self._names:
            for one in (name, name + _PART):
                self._require_own(one)

    def make(self) -> None:
        """Make the directory, mark it, and enter the names; nothing to do where that was done."""
        made = [path for path in (self.path.absolute(), *self.path.absolute().parents) if not path.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        new = [name for name in (*(() if self._is_marked else self._own), *self._names) if name not in self._listed()]
        lines = ("" if self._is_marked else _HEADER) + "".join(f"{name}\n" for name in dict.fromkeys(new))
        if lines:
            handle = os.open(self.path / MARK, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
            try:
                os.write(handle, lines.encode())
                os.fsync(handle)
            finally:
                os.close(handle)
        for path in (*made, *([self.path / MARK] if lines else [])):
            _sync_name(path)  # a checkpoint is not safe in a directory whose name a power cut can take
        self._is_marked = True
        self._own = {**self._own, **dict.fromkeys(self._names)}

    def remove_run(self) -> list[str]:
        """What --fresh removes: the files that the list names, and checkpoints. Returns the paths of what stayed in their directories.

        Raises ValueError, before anything is removed, where a name of the list is a link now.
        """
        names = [name for name in self._own if name not in (LOCK, CHECKPOINTS)]
        for name in names:
            self._require_no_link(name)
        stayed = manifest.remove_run(DiskFiles(self.path / CHECKPOINTS))
        for name in names:
            shapes = [inside for shape, inside in _FILLED_BY_OTHERS if shape.fullmatch(name)]
            for path in (self.path / name, self.path / (name + _PART)):
                if shapes and path.is_dir():
                    _remove_shaped(path, shapes[0])
                elif _kind(path) == "file":
                    path.unlink()
        for directory in ("exports", *(name for name in names if (self.path / name).is_dir())):
            with suppress(OSError):
                (self.path / directory).rmdir()
            stayed += [f"{directory}/{name}" for name in _names_in(self.path / directory)]
        return stayed

    def _read(self) -> dict[str, None]:
        """The names that are this engine's, in order. Raises ValueError where the directory is somebody's."""
        there = _names_in(self.path)
        kind = _kind(self.path / MARK)
        if kind == "file":
            text = _read_text(self.path / MARK)
            if text.startswith(_HEADER):
                self._is_marked = True
                return dict.fromkeys(text.removeprefix(_HEADER).split("\n")[:-1])
            if _HEADER.startswith(text) and there == [MARK]:  # killed while it was made
                (self.path / MARK).unlink()
                return {}
        if not there or there == [CHECKPOINTS] and not _names_in(self.path / CHECKPOINTS):
            return {}
        if kind != "file" and self._has_checkpoints():
            exports = [
                f"exports/{name}" for name in _names_in(self.path / "exports") if _ROWS_OF_A_STEP.fullmatch(name)
            ]
            return dict.fromkeys(name for name in (*_EARLIER, *exports) if _kind(self.path / name))
        shown = ", ".join(repr(name) for name in there[:3]) + (f" and {len(there) - 3} more" if len(there) > 3 else "")
        raise ValueError(
            f"output {self.path} holds files that this engine did not write ({shown});\n"
            "set output to a new or an empty directory"
        )

    def _listed(self) -> dict[str, None]:
        return self._own if self._is_marked else {}

    def _has_checkpoints(self) -> bool:
        files = DiskFiles(self.path / CHECKPOINTS)
        for number in manifest.numbers(files):
            with suppress(Damaged, OSError):
                manifest.read(files, number)
                return True
        return PART_OF_A_RUN in files.listing("")

    def _require_own(self, name: str) -> None:
        self._require_no_link(name)
        kind = _kind(self.path / name)
        is_empty = kind == "directory" and not _names_in(self.path / name)
        is_moved_here = name == CHECKPOINTS and kind == "directory" and self._has_checkpoints()
        is_own = name.removesuffix(_PART) in self._own or is_empty or is_moved_here
        if kind and kind != "link" and not is_own:
            raise ValueError(
                f"{self.path / name} was not written by this engine and would be replaced; move it away, or choose another output"
            )

    def _require_no_link(self, name: str) -> None:
        path = self.path
        for part in Path(name).parts:
            path = path / part
            kind = _kind(path)
            if kind == "other" or (kind == "link" and not (name == CHECKPOINTS and path.is_dir())):
                what = "a link" if kind == "link" else "no regular file"
                raise ValueError(f"{path} is {what}, and nothing is written through it; remove it")


def require_writable(output: Path) -> None:
    """ValueError where nothing can be written at `output`, which need not exist yet; touches nothing."""
    if output.is_symlink() and not output.exists():
        raise ValueError(f"output {output} is a link to nothing; set output to a directory of your own")
    ancestor = next(path for path in (output, *output.absolute().parents) if path.exists())
    if not ancestor.is_dir() or not os.access(ancestor, os.W_OK | os.X_OK):
        what = "not a directory" if not ancestor.is_dir() else "read-only"
        raise ValueError(
            f"cannot write into output {output}: {ancestor} is {what}; set output to a directory of your own"
        )


def is_finished(output: Path, end: int) -> bool:
    """Whether an earlier run came to its end, with its last evaluation and summary."""
    try:
        summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(summary, dict) and summary.get("status") == "finished" and summary.get("steps") == end


def json_text(content: Any, indent: int | None = None) -> str:
    """JSON that every reader takes: a number that is not finite is null."""
    return json.dumps(_finite(content), indent=indent, allow_nan=False)


def write_json(path: Path, content: Any) -> None:
    write_text(path, json_text(content, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace a file of ours by `text`, whole or not at all. Raises ValueError where there is a link in its place."""
    if _kind(path) == "link":
        raise ValueError(f"{path} is a link, and nothing is written through it; remove it")
    part = path.with_name(path.name + _PART)
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
    os.replace(part, path)


def _require_images_outside(output: Path, images: Path | None) -> None:
    """ValueError where the images lie in the output directory, or behind its link to checkpoints."""
    if images is None:
        return
    inner = images.absolute()
    with suppress(OSError):
        inner = images.resolve()
    for directory in (output, output / CHECKPOINTS):
        with suppress(OSError):
            if any(os.path.samefile(directory, above) for above in (inner, *inner.parents) if above.exists()):
                raise ValueError(
                    f"output {output} is above data.root {images}: the run would live among your images; "
                    "set output to a directory of its own"
                )


def _kind(path: Path) -> str | None:
    """ "file", "directory", "link", "other", or None where there is nothing; links are not followed."""
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISLNK(mode):
        return "link"
    return "file" if stat.S_ISREG(mode) else "directory" if stat.S_ISDIR(mode) else "other"


def _names_in(directory: Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _read_text(path: Path) -> str:
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), encoding="utf-8", errors="backslashreplace") as file:
        return file.read()


def _sync_name(path: Path) -> None:
    handle = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove_shaped(directory: Path, shape: re.Pattern[str]) -> None:
    """Remove the files below a directory whose relative paths have a shape, and the directories that are empty then."""
    for above, _, names in os.walk(directory, topdown=False):
        for name in names:
            path = Path(above, name)
            if shape.fullmatch(path.relative_to(directory).as_posix()) and _kind(path) == "file":
                path.unlink()
        with suppress(OSError):  # something else is in it
            os.rmdir(above)


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return content
