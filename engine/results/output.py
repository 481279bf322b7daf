"""The output directory of a run: known to be this engine's before anything is written there, and rid of nothing else.

A directory that the engine makes holds a mark, `.pic-engine`. Its first line says whose it is. Then comes the name of each file that the
engine writes there, a line each, added just before the file appears. A minus stands before a name that --fresh removed.

    This directory was made by pic-engine, which wrote what is named below and removes nothing else.
    lock
    config.json
    exports/rows.npy
    -exports/rows.npy

A name that is in the list may be replaced and, by --fresh, removed. A file that has one of our names and is not in the list is
somebody's: a job that would write it is refused before it begins. Lines are only added, each in one write, so jobs side by side lose none.
A line that is no name of ours counts for nothing: the list is a file that anybody can change.
What lies below `checkpoints` is told by the shapes of names instead (engine/disk/files.py), because blocks come and go.

No file here is reached through a link, with one exception: `checkpoints` itself may be a link to a directory on another disk.
What is left out: somebody who puts a file of his own in the place of one that we wrote is not noticed.
"""

import errno
import fcntl
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from datasets.batch import MARK
from datasets.shown import few, shown
from engine.disk import manifest, shapes
from engine.disk.files import CHECKPOINTS, checkpoint_files
from engine.disk.shapes import PART_OF_A_RUN, TEMPORARY
from engine.disk.sweep import remove_run
from engine.results.json_files import json_text, read_text
from engine.results.output_names import DIRECTORIES, EVERY, IN_ZARR, LOCK, PART_SHAPE, WITH_PART, is_name
from engine.rows.damaged import Damaged

_HEADER = "This directory was made by pic-engine, which wrote what is named below and removes nothing else.\n"
# Keys that every config.json of ours has, and hardly another file: a run that was made before there was a mark is known by them.
_CONFIG_KEYS = {"job", "seed", "output", "epochs", "data", "schedule", "backbone", "optimizer", "store"}
_ONE_OF_THEM = {"method", "classifier"}  # as it was called before


class Output:
    """A directory that this engine made, or may make, and the only way in which a job writes files for people there.

    path     may not exist yet     names     that the job will write, relative     images     the folder of images, if there is one
    Making the object looks and writes nothing. Raises ValueError where the directory, or one of the names, is somebody else's or a
    link; where nothing can be written; where the images lie inside.
    """

    def __init__(self, path: Path, names: Sequence[str] = (), images: Path | None = None) -> None:
        self.path = path
        require_writable(path)
        _require_images_outside(path, images)
        self._is_marked = False
        self._own = self._read()
        for name in names:
            self._require_own(name)

    def make(self) -> None:
        """Make the directory and mark it; nothing to do where that was done."""
        made = [path for path in (self.path.absolute(), *self.path.absolute().parents) if not path.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        for path in made:
            _sync_name(path)  # a checkpoint is not safe in a directory whose name a power cut can take
        if not self._is_marked:
            with self._opened_mark() as handle:
                with suppress(OSError):  # engine/disk/lock.py says it where a file system has none
                    # Of jobs that begin together one makes the mark, and the others find it.
                    fcntl.lockf(handle, fcntl.LOCK_EX)
                text = os.pread(handle, len(_HEADER), 0).decode(errors="replace")
                if text != _HEADER:
                    os.ftruncate(handle, 0)  # what was cut short when it was made
                    self._append(handle, _HEADER, *(f"{name}\n" for name in sorted(self._own)))
            _sync_name(self.path / MARK)
            self._own = self._read()

    def enter(self, name: str) -> Path:
        """The path of a file or directory that is about to be written: from now on it is ours. ValueError where it is not."""
        assert self._is_marked and is_name(name), name
        if name not in self._own:
            self._own = self._read()  # another job may have entered it meanwhile
        if name not in self._own:
            self._require_own(name)
            self.take(name)
        return self._placed(name)

    def take(self, name: str) -> None:
        """Enter a name that a library made up, of a file that it has just written."""
        self._add_lines(f"{name}\n")
        self._own.add(name)

    def write_text(self, name: str, text: str) -> Path:
        """Make or replace a file, whole or not at all; returns its path."""
        path = self._placed(name)
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
            os.replace(part, self.enter(name))
        except OSError as error:
            if error.errno is not None and error.filename is None:  # as of a full disk
                error.filename = str(path)
            raise
        finally:
            part.unlink(missing_ok=True)
        return path

    def write_json(self, name: str, content: Any) -> None:
        """The same for JSON, in which a number that is not finite is null."""
        self.write_text(name, json_text(content, indent=2) + "\n")

    @contextmanager
    def lines(self, name: str) -> Iterator[TextIO]:
        """A file to add lines to, made where it is missing; a line that a killed run left half is ended."""
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(self.enter(name), flags, 0o666)
        size = os.fstat(handle).st_size
        with os.fdopen(handle, "a", encoding="utf-8", errors="backslashreplace") as file:
            if size and os.pread(handle, 1, size - 1) != b"\n":
                file.write("\n")
            yield file

    def remove(self, name: str) -> None:
        """A file of ours, or a directory of ours with what is ours in it; nothing to do where there is none."""
        if name not in self._own:
            return
        self._require_no_link(name)
        path = self.path / name
        if name.endswith(".zarr"):
            _remove_shaped(path, IN_ZARR)
        elif path.is_dir():
            with suppress(OSError):  # somebody's files are in it
                path.rmdir()
        parts = [path.with_name(path.name + TEMPORARY)] if WITH_PART.fullmatch(name) else []
        for one in (path, *parts):
            if _kind(one) == "file":
                one.unlink()
        if not _kind(path):
            self._add_lines(f"-{name}\n")
            self._own.discard(name)

    def remove_run(self) -> list[str]:
        """What --fresh removes: the files that the list names, and checkpoints. Returns the paths of what stayed in their directories.

        Raises ValueError, before anything is removed, where a name of the list is a link now.
        """
        names = [name for name in sorted(self._own, reverse=True) if name not in (LOCK, CHECKPOINTS)]
        for name in names:
            self._require_no_link(name)
        stayed = []
        if CHECKPOINTS in self._own:
            stayed = [f"{CHECKPOINTS}/{path}" for path in remove_run(checkpoint_files(self.path))]
        for name in names:
            self.remove(name)
        for name in _names_in(self.path):
            if PART_SHAPE.fullmatch(name) and _kind(self.path / name) == "file":  # of a killed run
                (self.path / name).unlink()
        for directory in ("exports", "linear", "profile"):
            with suppress(OSError):
                (self.path / directory).rmdir()
        directories = ["exports", "linear", "profile", *(name for name in names if (self.path / name).is_dir())]
        return stayed + [
            f"{directory}/{name}" for directory in directories for name in _names_in(self.path / directory)
        ]

    def _read(self) -> set[str]:
        """The names that are this engine's. Raises ValueError where the directory is somebody's."""
        there = _names_in(self.path)
        text = read_text(self.path / MARK) if _kind(self.path / MARK) == "file" else None
        if text is not None and text.startswith(_HEADER):
            self._is_marked = True
            own: set[str] = set()
            for line in text.removeprefix(_HEADER).split("\n"):
                own.discard(line[1:]) if line.startswith("-") else own.add(line)
            return {name for name in own if is_name(name)}
        if MARK in there and text is not None and _HEADER.startswith(text):  # cut short when it was made
            there.remove(MARK)
        if not there or (
            there == [CHECKPOINTS] and not set(_names_in(self.path / CHECKPOINTS)) - {shapes.LOCK_OF_LINKED}
        ):
            return set()
        if MARK not in there and self._has_checkpoints():
            return self._names_of_earlier_run()
        names = few([shown(name, 60) for name in there[:3]], len(there))
        raise ValueError(
            f"output {self.path} holds files that this engine did not write ({names});\n"
            "set output to a new or an empty directory"
        )

    def _names_of_earlier_run(self) -> set[str]:
        """What an engine that made no mark has written: its checkpoints and, where config.json is one of ours, what has our names."""
        try:
            config = json.loads(read_text(self.path / "config.json"))
        except (OSError, ValueError, RecursionError):
            config = None
        if not isinstance(config, dict) or not config.keys() >= _CONFIG_KEYS or not config.keys() & _ONE_OF_THEM:
            return {CHECKPOINTS}
        inside = [f"{above}/{name}" for above in ("exports", "tensorboard") for name in _names_in(self.path / above)]
        return {name for name in (*EVERY, *inside) if is_name(name) and _kind(self.path / name)}

    def _placed(self, name: str) -> Path:
        """The path of a name, whose directory is there then."""
        self._require_no_link(name)
        path = self.path / name
        if path.parent != self.path:
            path.parent.mkdir(exist_ok=True)
        return path

    def _add_lines(self, *lines: str) -> None:
        """All of the lines, or none of them."""
        with self._opened_mark() as handle:
            self._append(handle, *lines)

    @contextmanager
    def _opened_mark(self) -> Iterator[int]:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        handle = os.open(self.path / MARK, flags, 0o666)
        try:
            yield handle
        finally:
            os.close(handle)

    def _append(self, handle: int, *lines: str) -> None:
        size = os.fstat(handle).st_size
        torn = size and os.pread(handle, 1, size - 1) != b"\n"  # by a power cut
        content = ("\n" * bool(torn) + "".join(lines)).encode()
        try:
            if os.write(handle, content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(handle)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(handle, size)
            raise OSError(error.errno, error.strerror, str(self.path / MARK)) from None

    def _has_checkpoints(self) -> bool:
        """Whether `checkpoints` has what a run leaves there, whole or not; where it is a link, whole."""
        if _kind(self.path / CHECKPOINTS) == "link":
            return self._has_whole_checkpoint()
        with suppress(OSError, Damaged):
            files = checkpoint_files(self.path)
            found = [
                f"{above}{name}"
                for above in ("", f"{manifest.MANIFESTS}/")
                for name in files.listing(above.rstrip("/"))
            ]
            known = [
                path
                for path in found
                if shapes.is_file(path) or (path.startswith("step-") and shapes.is_directory(path))
            ]
            return any(path.startswith((manifest.MANIFESTS, "step-", PART_OF_A_RUN)) for path in known)
        return False

    def _has_whole_checkpoint(self) -> bool:
        """Whether a manifest can be read: where a link leads, names alone prove nothing."""
        with suppress(OSError, ValueError, Damaged):
            files = checkpoint_files(self.path)
            for number in manifest.numbers(files):
                with suppress(Damaged):
                    manifest.read(files, number)
                    return True
        return False

    def _require_own(self, name: str) -> None:
        self._require_no_link(name)
        path = self.path / name
        part = path.with_name(path.name + TEMPORARY)
        if WITH_PART.fullmatch(name) and _kind(part) and name not in self._own:  # which is written first
            path = part
        kind = _kind(path)
        if kind == "directory" and not DIRECTORIES.fullmatch(name):
            raise ValueError(f"{path} is a directory, and a file of that name would be written; move it away")
        is_empty = kind == "directory" and not _names_in(path)
        is_moved_here = name == CHECKPOINTS and kind == "directory" and self._has_checkpoints()
        inside = set(_names_in(path)) - {shapes.LOCK_OF_LINKED} if kind == "link" else set()
        is_strange_link = bool(inside) and not self._has_whole_checkpoint()
        is_strange = kind in ("file", "directory") and not is_empty and not is_moved_here
        if name not in self._own and (is_strange or is_strange_link):
            raise ValueError(
                f"{path} was not written by this engine and would be replaced; move it away, or choose another output"
            )

    def _require_no_link(self, name: str) -> None:
        path = self.path
        for part in Path(name).parts:
            path = path / part
            kind = _kind(path)
            if kind == "other" or (kind == "link" and not (name == CHECKPOINTS and path.is_dir())):
                what = "a link" if kind == "link" else "no regular file"
                raise ValueError(f"{path} is {what}, and nothing is written through it; remove it")


def places_to_lock(output: Path) -> list[tuple[Path, str]]:
    """(directory, name) of the locks that a job takes: the output's and, where its checkpoints are a link, those of where that leads.

    Another output may have its checkpoints at that place: as a link too, or because it is that output's own.
    """
    places = [(output, LOCK)]
    if (output / CHECKPOINTS).is_symlink():
        real = Path(os.path.realpath(output / CHECKPOINTS))
        is_of_another = _kind(real.parent / MARK) == "file" and not real.parent.samefile(output)
        places += [(real.parent, LOCK)] if is_of_another else []
        places.append((real, shapes.LOCK_OF_LINKED))
    return places


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


def _require_images_outside(output: Path, images: Path | None) -> None:
    """ValueError where the images lie in the output directory, or behind its link to checkpoints."""
    if images is None:
        return
    inner = Path(os.path.realpath(images))
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
