"""What every `Files` must do (engine/disk/files.py): one class of tests, subclassed per file system (tests/engine/disk/test_files.py).

Whoever adds another, for an object store say, subclasses FilesContract with a fixture `files` that is empty. What a power cut leaves
is not asked here: tests/engine/disk/test_power_cuts.py has a file system for that.
"""

import threading

import pytest

from engine.disk.files import DIRECTORY, TEMPORARY

WHERE = "rows/000001-abcdef"


def uses_of_a_file(files, path):
    """All that is done with a file that is there."""
    return (
        lambda: files.read(path),
        lambda: files.read_into(path, [memoryview(bytearray(1))]),
        lambda: files.remove(path),
    )


class FilesContract:
    """Subclasses have a fixture `files`: an empty tree."""

    def test_what_was_put_comes_back_in_one_piece_or_in_parts(self, files):
        files.make_directory(WHERE)
        files.put_whole(f"{WHERE}/zarr.json", [b"abc", memoryview(b"def"), bytearray(b"gh"), b""])
        files.sync_directory(WHERE)
        assert files.read(f"{WHERE}/zarr.json") == b"abcdefgh"
        parts = [bytearray(3), bytearray(5)]
        assert files.read_into(f"{WHERE}/zarr.json", [memoryview(part) for part in parts]) == 8
        assert parts == [b"abc", b"defgh"]

    def test_a_file_of_another_size_than_the_parts_says_so(self, files):
        files.make_directory("rows")
        files.put_whole("rows/file", [b"12345678"])
        short, long = bytearray(4), bytearray(16)
        assert files.read_into("rows/file", [memoryview(short)]) == 8 and short == b"1234"
        assert files.read_into("rows/file", [memoryview(long)]) == 8 and long[:8] == b"12345678"

    def test_a_put_replaces_what_was_there_and_leaves_nothing_else(self, files):
        files.make_directory("manifests")
        for content in (b"first", b"", b"second" * 1000):
            files.put_whole("manifests/000000001.json", [content])
            assert files.read("manifests/000000001.json") == content
            assert files.listing("manifests") == {"000000001.json": len(content)}

    def test_a_put_if_absent_succeeds_once_and_changes_nothing_after(self, files):
        files.make_directory("manifests")
        files.put_if_absent("manifests/000000001.json", [b"first"])
        for _ in range(2):
            with pytest.raises(FileExistsError):
                files.put_if_absent("manifests/000000001.json", [b"second"])
            assert files.read("manifests/000000001.json") == b"first"
            assert files.listing("manifests") == {"000000001.json": 5}

    def test_of_many_who_put_different_names_at_the_same_time_all_succeed(self, files):
        files.make_directory("rows")
        threads = [threading.Thread(target=files.put_if_absent, args=(f"rows/{n}", [bytes([n])])) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {name: files.read(f"rows/{name}") for name in files.listing("rows")} == {
            str(n): bytes([n]) for n in range(8)
        }

    def test_a_put_into_a_directory_that_is_not_there_is_an_error(self, files):
        for put in (files.put_whole, files.put_if_absent):
            with pytest.raises(FileNotFoundError):
                put("rows/file", [b"x"])

    def test_a_directory_is_made_with_those_above_it_and_again_without_harm(self, files):
        for _ in range(2):
            files.make_directory(f"{WHERE}/weight")
        assert files.listing("rows") == {"000001-abcdef": DIRECTORY}
        assert files.listing(WHERE) == {"weight": DIRECTORY}
        assert files.listing(f"{WHERE}/weight") == files.listing("rows/nothing") == {}

    def test_a_rename_gives_another_name_and_replaces_what_has_it(self, files):
        files.make_directory("manifests")
        files.put_whole("manifests/a", [b"a"])
        files.put_whole("manifests/b", [b"bb"])
        files.rename("manifests/a", "manifests/b")
        files.sync_directory("manifests")
        assert files.listing("manifests") == {"b": 1} and files.read("manifests/b") == b"a"

    def test_what_is_removed_is_gone_and_what_is_missing_is_an_error(self, files):
        files.make_directory("rows")
        files.put_whole("rows/file", [b"x"])
        with pytest.raises(OSError, match="not empty"):
            files.remove_directory("rows")
        files.remove("rows/file")
        for use in uses_of_a_file(files, "rows/file"):
            with pytest.raises(FileNotFoundError):
                use()
        files.remove_directory("rows")
        assert files.listing("") == {}

    def test_a_directory_is_no_file(self, files):
        files.make_directory("rows/below")
        for use in uses_of_a_file(files, "rows"):
            with pytest.raises(IsADirectoryError):
                use()

    def test_half_a_file_of_a_killed_run_is_in_nobodys_way_once_it_is_removed(self, files):
        files.make_directory("rows")
        files.put_whole(f"rows/file{TEMPORARY}", [b"half"])
        files.remove(f"rows/file{TEMPORARY}")
        files.put_whole("rows/file", [b"whole"])
        assert files.listing("rows") == {"file": 5}
