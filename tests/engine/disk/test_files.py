"""Every file system under one contract; and the real one where the system has no hard links."""

import errno
import os

import pytest

from engine.disk import files as engine_files
from engine.disk.files import DiskFiles, checkpoint_files
from tests.engine.disk.files_contract import FilesContract
from tests.engine.disk_runs import UnsyncedFiles
from tests.engine.faulty_files import FaultyFiles, VolatileFiles


class TestDiskFiles(FilesContract):
    @pytest.fixture
    def files(self, tmp_path):
        return checkpoint_files(tmp_path)

    def test_one_look_at_the_same_tree_by_two_is_the_same(self, files, tmp_path):
        files.make_directory("manifests")
        files.put_if_absent("manifests/000000001.json", [b"x"])
        assert checkpoint_files(tmp_path).read("manifests/000000001.json") == b"x"
        with pytest.raises(FileExistsError):
            checkpoint_files(tmp_path).put_if_absent("manifests/000000001.json", [b"y"])


class TestUnsyncedFiles(FilesContract):
    @pytest.fixture
    def files(self, tmp_path):
        return UnsyncedFiles(tmp_path / "checkpoints")


class TestVolatileFiles(FilesContract):
    @pytest.fixture
    def files(self):
        return VolatileFiles()


class TestFaultyFiles(FilesContract):
    """One whose time has not come."""

    @pytest.fixture
    def files(self, tmp_path):
        return FaultyFiles(tmp_path / "checkpoints", "_create", errno.ENOSPC, 10**9)


class TestWithoutHardLinks(FilesContract):
    """As on FAT and some network disks."""

    @pytest.fixture
    def files(self, tmp_path, monkeypatch):
        def link(*_, **__):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr(os, "link", link)
        return DiskFiles(tmp_path / "checkpoints")


def test_an_error_of_the_disk_in_the_middle_of_a_put_leaves_what_was_there(tmp_path):
    for kind in ("_create", "rename", "_link"):
        files = FaultyFiles(tmp_path / kind, kind, errno.EIO, 2 if kind != "_link" else 1, half=kind == "_create")
        files.make_directory("rows")
        files.put_whole("rows/file", [b"before"])
        put, path = (files.put_if_absent, "rows/new") if kind == "_link" else (files.put_whole, "rows/file")
        with pytest.raises(OSError, match="Input/output"):
            put(path, [b"after"])
        assert files.read("rows/file") == b"before"
        assert "new" not in files.listing("rows")


def test_of_very_many_directories_only_the_last_are_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr(engine_files, "_MOST_KNOWN", 8)
    files = DiskFiles(tmp_path)
    for number in range(50):
        files.make_directory(f"rows/{number:06d}-abcdef/weight")
        files.put_whole(f"rows/{number:06d}-abcdef/weight/c.0.0", [b"x"])
    assert all(files.read(f"rows/{number:06d}-abcdef/weight/c.0.0") == b"x" for number in range(50))
    assert len(files._known) <= 8 and files._made <= files._known
