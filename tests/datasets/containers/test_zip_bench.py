"""The bench of zips measures what it says: its zips are whole, and every way reads the same."""

import zipfile
from pathlib import Path

import pytest

from datasets.containers.zipped import members
from tests import bench_zip


@pytest.mark.parametrize("hole_bytes", [0, 5 << 30])
def test_the_zip_that_the_bench_writes_is_one_that_zipfile_reads_too(tmp_path: Path, hole_bytes: int) -> None:
    path = tmp_path / "many.zip"
    bench_zip.write_many(path, 2000, hole_bytes)
    listed = members(path)
    with zipfile.ZipFile(path) as read:
        assert [name.encode() for name in read.namelist()] == list(listed.names)
        assert {read.read(name) for name in read.namelist()[::100]} == {b"ten bytes."}
        assert read.infolist()[0].header_offset == listed[0].header_at == hole_bytes
    for way in ("members", "zipfile", "map"):
        seconds, kept, peak = map(float, bench_zip.list_one(way, path).strip("|").split("|")[1:])
        assert seconds >= 0 and kept <= peak + 1


def test_every_way_to_read_has_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench_zip.read_all(20, 1000, 1, tmp_path)
    lines = [line for line in capsys.readouterr().out.splitlines() if "(" in line]
    assert [line.split("|")[1] for line in lines] == [
        *("stored, pread", "stored, zipfile", "deflated, pread", "deflated, zipfile"),
        "single files",
    ]
