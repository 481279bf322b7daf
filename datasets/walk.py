"""Which files under a root are images: a walk in the byte order of the relative paths, links followed.

Left out:
    names that start with a dot
    directories of a system or an appliance (LEFT_OUT, in any case of letters): thumbnails, snapshots, waste bins
    what `exclude` names; what lies in a directory with the engine's mark, or in `leave_out`, where the run writes
    a link that leads back to a directory above it: it would never end
    files whose suffix is another, FIFOs, sockets and devices
`notes` tells of what is left out and may be missed.

The walk does not call itself, so a tree may be as deep as its paths may be long (PATH_MAX, 4,096 bytes with the root).
"""

import errno
import os
import stat
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path

from datasets.batch import MARK
from datasets.excluded import Patterns
from datasets.regular_file import is_of_the_file, kind_of, patiently
from datasets.shown import few, shown

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
LEFT_OUT = (
    *("@eaDir", "#recycle", "#snapshot", "@Recycle", "@Recently-Snapshot"),  # network disks
    *("lost+found", "$RECYCLE.BIN", "RECYCLER", "System Volume Information", "__MACOSX"),
)
# Images that this engine does not decode, and what images are often packed in.
_NOT_READ = (
    *(
        "avif",
        "heic",
        "heif",
        "jxl",
        "jp2",
        "j2k",
        "jpe",
        "jfif",
        "svg",
        "ico",
        "tga",
        "ppm",
        "pgm",
        "pbm",
        "exr",
        "hdr",
    ),
    *(
        "cr2",
        "cr3",
        "nef",
        "arw",
        "orf",
        "rw2",
        "raf",
        "dng",
        "psd",
        "xcf",
        "ai",
        "eps",
        "pdf",
        "dcm",
        "npy",
        "npz",
        "h5",
    ),
    *(
        "webm",
        "mp4",
        "mov",
        "avi",
        "mkv",
        "zip",
        "tar",
        "gz",
        "tgz",
        "bz2",
        "xz",
        "zst",
        "7z",
        "rar",
        "lmdb",
        "tfrecord",
    ),
)
_SUFFIXES_bytes = tuple(suffix.encode() for suffix in SUFFIXES)
_LEFT_OUT_bytes = {name.lower().encode() for name in LEFT_OUT}
_NOT_READ_bytes = {suffix.encode() for suffix in _NOT_READ}
_LONGEST_PATH_bytes = 4096  # PATH_MAX of Linux, with the zero byte at the end
_MARK_bytes = MARK.encode()
_Entry = os.DirEntry[bytes]
Identity = tuple[int, int]  # device and inode
Found = tuple[bytes, int, int]  # path from the root, size in bytes, mtime in ns


def identity_of(path: bytes) -> Identity | None:
    """(device, inode) of what is at a path now; None where nothing is, or the machine cannot say."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


@dataclass
class Counts:
    """What a walk leaves out and somebody may miss; those of several parts of a walk can be added up."""

    not_read: Counter[bytes] = field(default_factory=Counter)
    odd: list[str] = field(default_factory=list)
    circles: list[bytes] = field(default_factory=list)
    outputs: list[bytes] = field(default_factory=list)
    excluding: set[str] = field(default_factory=set)  # patterns that left something out

    def add(self, other: "Counts") -> None:
        self.not_read.update(other.not_read)
        self.odd += other.odd
        self.circles += other.circles
        self.outputs += other.outputs
        self.excluding |= other.excluding

    def notes(self) -> tuple[str, ...]:
        """A line for each kind of thing."""
        lines = [
            f"{count:,} .{suffix.decode()} {'file is' if count == 1 else 'files are'} not read; "
            f"images are read from {' '.join(SUFFIXES)}"
            for suffix, count in sorted(self.not_read.items(), key=lambda item: (-item[1], item[0]))
        ]
        if self.odd:
            lines.append(f"{few(self.odd[:1], len(self.odd))}: not a regular file, left out")
        if self.outputs:
            lines.append(f"{few([shown(self.outputs[0])], len(self.outputs))}: written by this engine, left out")
        if self.circles:
            link = few([shown(self.circles[0])], len(self.circles))
            lines.append(f"the link {link}: leads back to a folder above it, left out")
        return tuple(lines)


class Walk:
    """(path relative to the root, size in bytes, mtime in ns) of each image, in byte order of the paths; of a broken link -1 and 0.

    root       bytes, absolute
    exclude    names and paths that are left out
    leave_out  a directory that is left out; it need not be there
    ValueError where a directory cannot be listed; ImagesUnavailable where the machine fails.
    """

    def __init__(self, root: bytes, exclude: Patterns | None = None, leave_out: Path | None = None) -> None:
        self.root = root
        self._exclude = Patterns() if exclude is None else exclude
        self._leave_out = None if leave_out is None else os.fsencode(os.path.realpath(leave_out))
        self.counts = Counts()
        self._has_begun = False
        self._output_identity: tuple[int, int] | None = None
        self._root_identity: tuple[int, int] | None = None

    def __iter__(self) -> Iterator[Found]:
        self.begin()
        first = self._list(self.root, b"", {})
        assert first is not None
        # Of each directory on the way down: who it is, and what of it is still to come.
        identities, still = {first[0]: None}, [self._found(b"", first[1])]
        while still:
            for found in still[-1]:
                if not found[0].endswith(b"/"):
                    yield found
                    continue
                listed = self._list(os.path.join(self.root, found[0][:-1]), found[0], identities)
                if listed is not None:
                    identities[listed[0]] = None
                    still.append(self._found(found[0], listed[1]))
                    break
            else:
                still.pop()
                identities.popitem()

    def begin(self) -> None:
        """Forget what the last walk left out, and look what root and output are now."""
        self.counts, self._has_begun = Counts(), True
        self._output_identity = None if self._leave_out is None else identity_of(self._leave_out)
        self._root_identity = identity_of(self.root)

    def directory(self, prefix: bytes, above: Iterable[Identity]) -> tuple[Identity, Iterator[Found]] | None:
        """One directory: who it is, and its images and directories in order; None where it is left out.

        prefix   its path from the root, with a slash behind it; empty: the root      above   who the directories above it are
        Directories have a slash behind their path, and nothing else is said of them.
        """
        listed = self._list(os.path.join(self.root, prefix[:-1]) if prefix else self.root, prefix, set(above))
        return None if listed is None else (listed[0], self._found(prefix, listed[1]))

    def _found(self, prefix: bytes, named: list[tuple[bytes, _Entry]]) -> Iterator[Found]:
        for name, entry in named:
            if name.endswith(b"/"):
                yield prefix + name, -1, 0
            elif name.lower().endswith(_SUFFIXES_bytes):
                try:
                    status = entry.stat() if entry.is_file() else None
                except OSError:
                    status = None
                found = (status.st_size, status.st_mtime_ns) if status is not None else self._if_odd(entry)
                if found is not None:
                    yield prefix + name, *found
            else:
                suffix = name.rpartition(b".")[2].lower()
                if suffix in _NOT_READ_bytes:
                    self.counts.not_read[suffix] += 1

    def leaves_out(self, path: str) -> bool:
        """Whether a path relative to the root, as os.fsdecode has it, would be passed over wherever it were."""
        whole, above = os.fsencode(path), b""
        for part in whole.split(b"/"):
            if part in (b"", b".", b".."):
                return False  # no walk comes to such a path
            is_directory = len(above + part) < len(whole)
            if part.startswith(b".") or (is_directory and part.lower() in _LEFT_OUT_bytes):
                return True
            if self._exclude.matching(above, part):
                return True
            above += part + b"/"
        return whole.rpartition(b".")[2].lower() in _NOT_READ_bytes

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines about what the last walk left out and somebody may miss."""
        unused = self._exclude.note(self.counts.excluding) if self._has_begun else None
        return (*self.counts.notes(), *([unused] if unused else []))

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the last walk may have found no image: its notes, and what data.exclude left out."""
        excluding = ", ".join(map(repr, sorted(self.counts.excluding)))
        return (*([f"data.exclude left out what {excluding} names"] if excluding else []), *self.notes)

    def _list(
        self, path: bytes, prefix: bytes, above: Container[Identity]
    ) -> tuple[Identity, list[tuple[bytes, _Entry]]] | None:
        """(who the directory is, its entries in order, directories with a slash behind them); None where it is left out.

        Sorted with the slash: then the concatenated paths come out in the order of sorted full paths.
        """

        def read_entries() -> tuple[os.stat_result, list[_Entry]] | None:
            try:
                status = os.stat(path)
                with os.scandir(path) as entries:
                    return status, list(entries)
            except OSError as error:
                is_gone = error.errno in (errno.ENOENT, errno.ENOTDIR) and bool(prefix)
                if is_gone and identity_of(self.root) == self._root_identity is not None:
                    return None  # removed since the directory above it was listed
                if error.errno in (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG):
                    raise ValueError(self._refusal(path, prefix, error)) from error
                raise

        found = patiently(lambda: shown(path, 200), read_entries)
        if found is None:
            return None
        status, entries = found
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            self.counts.circles.append(prefix[:-1])
            return None
        if self._is_left_out(path, identity, prefix):
            return None
        named = self._in_order(prefix, entries)
        if named is not None:
            return identity, named
        if not prefix:
            raise ValueError(
                f"data.root: {shown(path)} is the output of a run (it holds {MARK}); set it to your folder of images"
            )
        self.counts.outputs.append(prefix[:-1])
        return None

    def _in_order(self, prefix: bytes, entries: list[_Entry]) -> list[tuple[bytes, _Entry]] | None:
        """None where the mark of this engine is among them."""
        named: list[tuple[bytes, _Entry]] = []
        append, matching = named.append, self._exclude.matching if self._exclude else None
        for entry in entries:
            name = entry.name
            if name.startswith(b"."):
                if name == _MARK_bytes:
                    return None
                continue
            if matching is not None and (excluding := matching(prefix, name)):
                self.counts.excluding.update(excluding)
                continue
            try:
                is_directory = entry.is_dir()
            except OSError as error:
                is_directory = _is_directory(entry, error)
            if not is_directory:
                append((name, entry))
            elif name.lower() not in _LEFT_OUT_bytes:
                append((name + b"/", entry))
        named.sort(key=itemgetter(0))
        return named

    def _is_left_out(self, path: bytes, identity: tuple[int, int], prefix: bytes) -> bool:
        if self._leave_out is None or not prefix:
            return False
        if os.path.basename(path) == os.path.basename(self._leave_out) and os.path.realpath(path) == self._leave_out:
            return True  # another process may make it just now
        return self._output_identity == identity

    def _if_odd(self, entry: _Entry) -> tuple[int, int] | None:
        """Of what was not found to be a file at once: size and time, (-1, 0) for a link to no file, None for what is neither."""
        status = patiently(lambda: shown(entry.path, 200), lambda: self._status(entry))
        if status is None:  # removed just now, unless
            return (-1, 0) if entry.is_symlink() or len(entry.path) >= _LONGEST_PATH_bytes else None
        if stat.S_ISREG(status.st_mode):
            return status.st_size, status.st_mtime_ns
        if entry.is_symlink():
            return -1, 0
        self.counts.odd.append(f"{shown(entry.path)} ({kind_of(status.st_mode)})")
        return None

    def _status(self, entry: _Entry) -> os.stat_result | None:
        try:
            return entry.stat()
        except OSError as error:
            if is_of_the_file(error):
                if identity_of(self.root) == self._root_identity is not None:
                    return None
                raise OSError(
                    f"data.root ({shown(self.root, 200)}) is gone, or another directory lies there now"
                ) from error
            if error.errno in (errno.EACCES, errno.EPERM):
                raise ValueError(self._refusal(entry.path, os.path.relpath(entry.path, self.root), error)) from error
            raise

    def _refusal(self, path: bytes, relative: bytes, error: OSError) -> str:
        if not relative:
            return f"data.root: {shown(path, 200)} cannot be listed: {error.strerror}"
        return (
            f"data.root: {shown(path, 200)} cannot be listed: {error.strerror}; change that, "
            f"or leave it out by data.exclude, for instance with the pattern {shown(relative.rstrip(b'/'), 100)!r}"
        )


def _is_directory(entry: _Entry, error: OSError) -> bool:
    if is_of_the_file(error):  # a link in a circle
        return False
    if error.errno in (errno.EACCES, errno.EPERM):  # a link to where we may not look: said when it is listed
        return not entry.name.lower().endswith(_SUFFIXES_bytes)
    return patiently(lambda: shown(entry.path, 200), entry.is_dir)
