"""An index in a directory: columns that only grow, and a header that says how much of them counts.

    header.json   how many images, bytes of paths, labels and content hashes; checksums of what is not a whole group
    entries ends paths labels      see rows.py; labels: their names, each with a zero byte behind it
    checks        8 bytes a group of 4,096: identity and form
    hashes        8 bytes an image, of the encoded content (content_hash.py), for the first so many images; 0 is unknown

More images are written behind what the header counts, and made durable; then the header is replaced, whole or not at all. What lies behind
that when a process is killed counts for nothing, and the next one that adds images writes over it. So an index that is open never changes
under a reader, who has the header's numbers of its time.
"""

import errno
import fcntl
import json
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from datasets.batch import ImagesUnavailable
from datasets.index.image_index import ImageIndex, Seen, WrongIndex
from datasets.index.rows import ENDS, ENTRY, GROUP, Entry, Rows, joined
from datasets.regular_file import NotRegular, is_of_the_file, patiently, read_whole
from datasets.shown import shown

HEADER, LOCK = "header.json", "lock"
_FORMAT = 1
_FIELDS, _TWO_ENDS = struct.Struct("<qqqIi"), struct.Struct("<qq")  # an ENTRY, and two ENDS
_CHECK = np.dtype([("identity", "<u4"), ("form", "<u4")])
_HASH = np.dtype("<u8")
COLUMNS = ("entries", "ends", "paths", "labels", "checks", "hashes")


@dataclass(frozen=True)
class Header:
    """What of the columns counts.

    kind, split, files   of the container; split: the directory below the root that the images are in, or ""
    count, path_bytes    images, and the bytes of their paths
    label_bytes          of the names of labels
    runs                 see ImageIndex
    is_whole             whether the first listing came to its end
    last                 identity and form of the images behind the last whole group
    checks_crc           of all checks
    hashed, hashes_crc   images whose content was hashed, from the first on; of these hashes
    """

    kind: str
    split: str = ""
    files: list[str] = field(default_factory=list)
    count: int = 0
    path_bytes: int = 0
    label_bytes: int = 0
    runs: list[int] = field(default_factory=list)
    is_whole: bool = False
    last: tuple[int, int] = (0, 0)
    checks_crc: int = 0
    hashed: int = 0
    hashes_crc: int = 0


def read_header(directory: Path) -> Header | None:
    """None where there is no index. WrongIndex where it is damaged or of a later version."""
    path = directory / HEADER

    def read() -> bytes | None:
        try:
            return read_whole(os.fsencode(path))
        except NotRegular as error:
            raise WrongIndex(f"{shown(path)} is {error}; choose another data.index") from error
        except OSError as error:
            if is_of_the_file(error):
                return None
            raise

    content = patiently(lambda: shown(path), read)
    if content is None:
        return None
    try:
        tree = json.loads(content)
        of_format, crc = tree.pop("format"), tree.pop("crc")
        if of_format == _FORMAT and crc == _crc_of(tree):
            return Header(**{**tree, "last": tuple(tree["last"])})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WrongIndex(f"{shown(path)} is damaged; restore it, or remove the directory and make it anew") from error
    raise WrongIndex(
        f"{shown(path)} is damaged, or of a later version of this engine (format {shown(str(of_format), 20)}); "
        "restore it, or remove the directory and make it anew"
    )


def opened(directory: Path) -> ImageIndex:
    """The index that lies there, as much of it as its header counts. WrongIndex where there is none, or it is damaged or unfinished."""
    header = read_header(directory)
    if header is None or not header.is_whole:
        what = "is not finished" if header else "holds no index"
        raise WrongIndex(f"data.index: {shown(directory)} {what}; make it with the same words and job=index")
    return index_of(directory, header)


def index_of(directory: Path, header: Header) -> ImageIndex:
    """The same, finished or not."""
    names = _content(directory / "labels", header.label_bytes).split(b"\0")[:-1]
    return ImageIndex(header.kind, Stored(directory, header), header.runs, names, files=tuple(header.files))


class Stored:
    """The images of a directory as a part of an index."""

    def __init__(self, directory: Path, header: Header) -> None:
        self._directory, self._header = directory.absolute(), header
        self._open_columns()
        self._seen = Seen(-(-header.count // GROUP))
        groups = header.count // GROUP
        checks = self._read("checks", 0, groups * _CHECK.itemsize)
        if google_crc32c.value(checks) != header.checks_crc:
            raise WrongIndex(f"{shown(directory)}: its checks are damaged; restore them, or make the index anew")
        self._checks = np.frombuffer(checks, _CHECK)

    def _open_columns(self) -> None:
        # Processes that are forked use them as well: a pread moves no place that they share.
        self._descriptors = {name: _open(self._directory / name) for name in ("entries", "ends", "paths", "checks")}

    def __del__(self) -> None:
        for descriptor in vars(self).get("_descriptors", {}).values():
            os.close(descriptor)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "_descriptors"}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._open_columns()

    def __len__(self) -> int:
        return self._header.count

    def identities(self, groups: int) -> np.ndarray:
        return self._checks["identity"][:groups]

    def piece(self, start: int, stop: int) -> Rows:
        if stop <= start:
            return joined([])
        first, last = start // GROUP, (stop - 1) // GROUP
        if all(self._seen[group] for group in range(first, last + 1)):
            return self._unchecked(start, stop)
        whole = joined(self._checked(group) for group in range(first, last + 1))
        return whole.piece(start - first * GROUP, stop - first * GROUP)

    def entry(self, number: int) -> Entry:
        group = number // GROUP
        if not self._seen[group]:
            return self._checked(group).entry(number - group * GROUP)
        found = self._read_at_once(number)
        return self._unchecked(number, number + 1).entry(0) if found is None else found

    def _read_at_once(self, number: int) -> Entry | None:
        """_unchecked(number, number + 1).entry(0) in a third of the time. None of number 0, and where one has to be patient."""
        columns = self._descriptors
        try:
            fields = _FIELDS.unpack(os.pread(columns["entries"], ENTRY.itemsize, number * ENTRY.itemsize))
            begin, end = _TWO_ENDS.unpack(os.pread(columns["ends"], 2 * ENDS.itemsize, (number - 1) * ENDS.itemsize))
            if 0 <= begin < end <= self._header.path_bytes:
                path = os.pread(columns["paths"], end - begin, begin)
                return Entry(path[:-1], *fields) if len(path) == end - begin else None
        except (OSError, MemoryError, struct.error):
            pass
        return None

    def _unchecked(self, start: int, stop: int) -> Rows:
        entries_n = np.frombuffer(self._read("entries", start * ENTRY.itemsize, (stop - start) * ENTRY.itemsize), ENTRY)
        before = min(start, 1)  # the end of the path before is where the first one begins
        ends = self._read("ends", (start - before) * ENDS.itemsize, (stop - start + before) * ENDS.itemsize)
        ends_n = np.frombuffer(ends, ENDS)
        begin = int(ends_n[0]) if before else 0
        end = int(ends_n[-1])
        if not 0 <= begin <= end <= self._header.path_bytes:
            raise _damaged(self._directory, start, stop)
        return Rows(entries_n, ends_n[before:] - begin, self._read("paths", begin, end - begin))

    def _checked(self, group: int) -> Rows:
        start, stop = group * GROUP, min((group + 1) * GROUP, self._header.count)
        rows = self._unchecked(start, stop)
        wanted = self._checks[group].item() if group < len(self._checks) else self._header.last
        if rows.checks(self._header.kind) != tuple(wanted):
            raise _damaged(self._directory, start, stop)
        self._seen.add(group)
        return rows

    def _read(self, name: str, offset: int, count_bytes: int) -> bytes:
        return _pread(self._descriptors[name], offset, count_bytes, self._directory / name)


class Writer:
    """Adds images to the index of a directory, which is made where there is none; of several processes only one may, at a time.

    new: the header of an index that is not there yet. ValueError where another process writes; WrongIndex where what is there is damaged.
    """

    def __init__(self, directory: Path, new: Header | None = None) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(directory)
        header = read_header(directory) or new
        if header is None:
            raise WrongIndex(
                f"data.index: {shown(directory)} holds no index; make it with the same words and job=index"
            )
        self.header = header
        for name in COLUMNS:
            (directory / name).touch()
        last = header.count % GROUP
        self._rest = index_of(directory, header).piece(header.count - last, header.count) if last else joined([])

    def close(self) -> None:
        """Let others write."""
        os.close(self._lock)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, rows: Rows, label_names: list[bytes], *, begins_run: bool) -> None:
        """Put images behind the others; they count when this returns. label_names: all of them, old ones first."""
        header = self.header
        groups = joined([self._rest, rows])
        whole = len(groups) // GROUP
        checks = np.array(
            [groups.piece(at * GROUP, (at + 1) * GROUP).checks(header.kind) for at in range(whole)] or [], np.uint32
        ).astype("<u4")
        self._rest = groups.piece(whole * GROUP, len(groups))
        labels = b"".join(name + b"\0" for name in label_names)
        self._put("entries", header.count * ENTRY.itemsize, rows.entries_n.tobytes())
        self._put("ends", header.count * ENDS.itemsize, (rows.ends_n + header.path_bytes).astype(ENDS).tobytes())
        self._put("paths", header.path_bytes, rows.paths)
        self._put("labels", header.label_bytes, labels[header.label_bytes :])
        self._put("checks", header.count // GROUP * _CHECK.itemsize, checks.tobytes())
        self.put_header(
            count=header.count + len(rows),
            path_bytes=header.path_bytes + len(rows.paths),
            label_bytes=len(labels),
            runs=[*header.runs, header.count] if begins_run and len(rows) else header.runs,
            last=self._rest.checks(header.kind) if len(self._rest) else (0, 0),
            checks_crc=google_crc32c.extend(header.checks_crc, checks.tobytes()),
        )

    def add_hashes(self, hashes_n: np.ndarray) -> None:
        """uint64, of the images behind those that are hashed."""
        content = hashes_n.astype(_HASH).tobytes()
        self._put("hashes", self.header.hashed * _HASH.itemsize, content)
        self.put_header(
            hashed=self.header.hashed + len(hashes_n), hashes_crc=google_crc32c.extend(self.header.hashes_crc, content)
        )

    def hashes(self) -> np.ndarray:
        """uint64 [hashed]"""
        path = self.directory / "hashes"
        content = _content(path, self.header.hashed * _HASH.itemsize)
        if google_crc32c.value(content) != self.header.hashes_crc:
            raise WrongIndex(f"{shown(path)} is damaged; restore it, or make the index anew")
        return np.frombuffer(content, _HASH)

    def put_header(self, **changes: Any) -> None:
        """Have the header say this from now on."""
        self.header = replace(self.header, **changes)
        tree = asdict(self.header)
        text = json.dumps({"format": _FORMAT, **tree, "crc": _crc_of(tree)}, indent=1) + "\n"
        with replaced(self.directory / HEADER) as descriptor:
            _write(descriptor, text.encode(), 0)

    def _put(self, name: str, offset: int, content: bytes) -> None:
        if not content:
            return
        descriptor = os.open(self.directory / name, os.O_WRONLY | os.O_CLOEXEC)
        try:
            _write(descriptor, content, offset)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _locked(directory: Path) -> int:
    """A descriptor that holds the lock until it is closed; processes that are forked do not hold it."""
    descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise ValueError(f"data.index: another job writes into {shown(directory)}; wait for it to end") from error
        raise
    return descriptor


@contextmanager
def replaced(path: Path) -> Iterator[int]:
    """A descriptor of what takes the place of a file, whole or not at all, and is on the disk then."""
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)  # it may be a link to something else
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        yield descriptor
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(partial, path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _write(descriptor: int, content: bytes, offset: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(descriptor, view[: 1 << 30], offset)
        view, offset = view[written:], offset + written


def _crc_of(tree: dict[str, object]) -> int:
    return google_crc32c.value(json.dumps(tree, sort_keys=True).encode())


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if is_of_the_file(error):
            raise WrongIndex(f"{shown(path)}: {error.strerror}; restore it, or make the index anew") from error
        raise


def _pread(descriptor: int, offset: int, count_bytes: int, path: Path) -> bytes:
    def read() -> bytes:
        first = os.pread(descriptor, count_bytes, offset)
        if len(first) == count_bytes:
            return first
        pieces, missing = [first], count_bytes - len(first)
        while missing and pieces[-1]:
            pieces.append(os.pread(descriptor, missing, offset + count_bytes - missing))
            missing -= len(pieces[-1])
        if missing:
            raise ImagesUnavailable(
                shown(path), "it is shorter than the index says; restore it, or make the index anew"
            )
        return b"".join(pieces)

    return patiently(lambda: shown(path), read)


def _content(path: Path, count_bytes: int) -> bytes:
    descriptor = _open(path)
    try:
        return _pread(descriptor, 0, count_bytes, path)
    finally:
        os.close(descriptor)


def _damaged(directory: Path, start: int, stop: int) -> ImagesUnavailable:
    why = f"its entries of the images {start:,} to {stop - 1:,} are damaged; restore it, or make the index anew"
    return ImagesUnavailable(f"the index {shown(directory)}", why)
