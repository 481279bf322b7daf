"""Disks that fail.

`VolatileFiles` is a directory tree in memory that keeps a journal of primitive operations; `Platter` follows the journal and says
what a disk may hold when the power goes after any of them:

    a file's bytes     all of them once it was synced; before, all, none, or any sectors of them, the others zero or cut off
    a name             what it was when its directory was last synced, or anything that it was given since, each name by itself: so a
                       later change may survive where an earlier one does not, and a renamed file may have both names or neither

`FaultyFiles` is a disk on which one operation fails. What is left out: a disk that says it synced and did not.
"""

import errno
import os
import random
import time
from functools import partial

from engine.disk.files import TEMPORARY, DiskFiles


class Directory:
    def __init__(self, names=None):
        self.names = names or {}


class File:
    """Made once and written once."""

    content = b""


def plant(tree):
    """A tree as nested dicts with bytes at the ends -> the same of Directory and File."""
    if isinstance(tree, bytes):
        file = File()
        file.content = tree
        return file
    return Directory({name: plant(below) for name, below in tree.items()})


class VolatileFiles:
    """`Files` in memory. journal: primitive operations, each a list of changes that belong to one call of the system.

    tree      what the disk holds, durably, as nested dicts with bytes at the ends
    platter   instead of that: a disk with things on their way
    """

    def __init__(self, tree=None, platter=None):
        self.before = platter or Platter(plant(tree or {}))
        self.root = self.before.root
        self.journal = []

    def put_whole(self, path, parts):
        self._create(path + TEMPORARY, parts)
        self.rename(path + TEMPORARY, path)

    def put_if_absent(self, path, parts):
        self._create(path + TEMPORARY, parts)
        above, name = self._place(path)
        part = above.names[name + TEMPORARY]
        try:
            if name in above.names:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
            self._name(above, name, part)
        finally:
            self._name(above, name + TEMPORARY, None)

    def _create(self, path, parts):
        above, name = self._place(path)
        if name in above.names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        file = File()
        self._name(above, name, file)
        file.content = b"".join(bytes(part) for part in parts)
        self.journal.append([("written", file, file.content)])
        self._sync_file(file)

    def rename(self, old, new):
        (above, name), (new_above, new_name) = self._place(old), self._place(new)
        node = above.names.pop(name)
        new_above.names[new_name] = node
        self.journal.append([("named", new_above, new_name, node), ("named", above, name, None)])

    def sync_directory(self, path):
        self.journal.append([("names synced", self._find(path))])

    def make_directory(self, path):
        parts = path.split("/")
        for depth in range(1, len(parts) + 1):
            above, name = self._place("/".join(parts[:depth]))
            if name not in above.names:
                self._name(above, name, Directory())

    def read(self, path):
        return self._find_file(path).content

    def read_into(self, path, parts):
        content, start = self.read(path), 0
        for part in parts:
            some = content[start : start + part.nbytes]
            part[: len(some)] = some
            start += len(some)
        return len(content)

    def remove(self, path):
        above, name = self._place(path)
        self._find_file(path)
        self._name(above, name, None)

    def remove_directory(self, path):
        above, name = self._place(path)
        if self._find(path).names:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)
        self._name(above, name, None)

    def listing(self, path):
        try:
            names = self._find(path).names
        except FileNotFoundError:
            return {}
        return {n: -1 if isinstance(node, Directory) else len(node.content) for n, node in names.items()}

    def platters(self):
        """(k, the disk after the first k operations) for every k; the platter is good until the next."""
        platter = self.before.copy()
        yield 0, platter
        for k, operation in enumerate(self.journal, start=1):
            platter.follow(operation)
            yield k, platter

    def _find(self, path):
        node = self.root
        for part in path.split("/") if path else []:
            if not isinstance(node, Directory) or part not in node.names:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            node = node.names[part]
        return node

    def _find_file(self, path):
        file = self._find(path)
        if isinstance(file, Directory):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        return file

    def _place(self, path):
        above, _, name = path.rpartition("/")
        return self._find(above), name

    def _name(self, above, name, node):
        if node is None:
            del above.names[name]
        else:
            above.names[name] = node
        self.journal.append([("named", above, name, node)])

    def _sync_file(self, file):
        self.journal.append([("synced", file)])


class Platter:
    """What is durable, and what is on its way."""

    def __init__(self, root):
        self.root = root
        self.names = {}  # directory -> name -> what it stands for: the durable answer first, then the later ones
        self.bytes = {}  # file -> (content, whether it is synced)
        if root is not None:
            self._walk(root)

    def _walk(self, node):
        if isinstance(node, File):
            self.bytes[node] = node.content, True
        else:
            self.names[node] = {name: [below] for name, below in node.names.items()}
            for below in node.names.values():
                self._walk(below)

    def copy(self):
        other = Platter(None)
        other.root = self.root
        other.names = {d: {name: list(stands) for name, stands in names.items()} for d, names in self.names.items()}
        other.bytes = dict(self.bytes)
        return other

    def follow(self, operation):
        for change, node, *rest in operation:
            if change == "named":
                name, below = rest
                self.names.setdefault(node, {}).setdefault(name, [None]).append(below)
            elif change == "written":
                self.bytes[node] = rest[0], False
            elif change == "synced":
                self.bytes[node] = self.bytes[node][0], True
            else:
                names = self.names.get(node, {})
                self.names[node] = {name: [stands[-1]] for name, stands in names.items() if stands[-1] is not None}

    def after_kill(self):
        """The same disk for the next process: everything is seen, and what is on its way still is."""
        twins = {}

        def twin(node):
            if node is not None and node not in twins:
                twins[node] = type(node)()
                if isinstance(node, Directory):
                    stands = self.names.get(node, {})
                    twins[node].names = {n: twin(s[-1]) for n, s in stands.items() if s[-1] is not None}
                else:
                    twins[node].content = self.bytes.get(node, (b"", True))[0]
            return twins.get(node)

        other = Platter(None)
        other.root = twin(self.root)
        other.names = {
            twin(directory): {name: [twin(node) for node in stands] for name, stands in names.items()}
            for directory, names in self.names.items()
        }
        other.bytes = {twin(file): kept for file, kept in self.bytes.items()}
        return VolatileFiles(platter=other)

    def after_power_cut(self, fate):
        """The tree that the disk holds then."""
        return self._tree(self.root, fate)

    def _tree(self, node, fate):
        if isinstance(node, File):
            content, synced = self.bytes.get(node, (b"", True))
            return content if synced else fate.content(content)
        tree = {}
        for name, stands in self.names.get(node, {}).items():
            below = fate.name(stands) if len(stands) > 1 else stands[0]
            if below is not None:
                tree[name] = self._tree(below, fate)
        return tree


class NothingSurvives:
    def name(self, stands):
        return stands[0]

    def content(self, content):
        return b""


class EverythingSurvives:
    def name(self, stands):
        return stands[-1]

    def content(self, content):
        return content


class NamesSurvive(EverythingSurvives):
    """As on disks that write names before bytes: files of no length."""

    def content(self, content):
        return b""


class SomeSurvive:
    """A random subset; content in sectors of so many bytes."""

    def __init__(self, seed, sector):
        self.random, self.sector = random.Random(f"{seed}/{sector}"), sector
        self.share = self.random.random()  # so that nearly nothing and nearly everything are both likely

    def name(self, stands):
        if self.random.random() < self.share:
            return stands[-1]
        return self.random.choice(stands)

    def content(self, content):
        sectors = [content[start : start + self.sector] for start in range(0, len(content), self.sector)]
        torn = b"".join(s if self.random.random() < self.share else bytes(len(s)) for s in sectors)
        if self.random.random() < 0.5:
            return torn
        return torn[: self.sector * self.random.randrange(len(sectors) + 1)]


class FaultyFiles(DiskFiles):
    """A disk on which the `at`-th operation of one kind fails, counted from 1.

    half     of a file that cannot be created, half is written
    failed   whether it has come to that    changed_since   what was done to the disk after it
    """

    def __init__(self, root, kind, error, at, half=False):
        super().__init__(root)
        self.kind, self.error, self.at, self.half = kind, error, at, half
        self.count, self.failed, self.changed_since = 0, False, []
        for operation in {kind, "_create", "_link", "rename", "make_directory", "remove", "remove_directory"}:
            setattr(self, operation, partial(self._perform, operation, getattr(self, operation)))

    def _perform(self, operation, perform, path, *rest):
        self.count += operation == self.kind
        if operation == self.kind and self.count == self.at:
            if self.half:
                content = b"".join(bytes(part) for part in rest[0])
                perform(path, [content[: len(content) // 2]])
            time.sleep(0.02)  # disks take their time to give up; meanwhile more work is handed over
            self.failed = True
            raise OSError(self.error, os.strerror(self.error), path)
        if self.failed and not operation.startswith("read"):
            self.changed_since.append((operation, path))
        return perform(path, *rest)
