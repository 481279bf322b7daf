"""Files for people: room first, names at the end, the old ones until then, and nothing through a link."""

import errno
import json
import os
import signal
import stat
import subprocess
import sys

import numpy as np
import pytest
import torch
import zarr
from safetensors.torch import load_file

from datasets.batch import Loaded
from engine.disk import manifest
from engine.disk.files import DiskFiles
from engine.disk.shapes import is_export
from engine.jobs import store_jobs
from engine.jobs.store_export import export as export_of_store
from engine.results import exports, whole_files
from engine.results.exports import NAMES, export_backbone, export_run
from engine.results.whole_files import Together, write_file
from engine.rows.snapshots import RowReader
from tests.conftest import REPOSITORY
from tests.engine.disk_runs import DiskRun
from tests.engine.harness import Case, rows_of_engine
from tests.trees import tree

CASE = Case(size=60, active=16, window=24, stride=12, batch=8, block=6, lanes=2, dim=4, passes=1.0)
BACKBONE = {"conv.weight": torch.arange(6.0).reshape(2, 3)}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return DiskRun(CASE, tmp_path_factory.mktemp("run") / "checkpoints").train(CASE.steps)


def batches(fails_at=None):
    for number in range(0, CASE.size, 16):
        if number == fails_at:
            raise OSError(errno.EIO, "Input/output error", "x.jpg")
        ids = np.arange(number, min(number + 16, CASE.size))
        yield ids, Loaded(torch.from_numpy(ids)[:, None].to(torch.uint8), np.ones(len(ids), dtype=bool))


def export(directory, run, step=1, images=None, embed=None):
    return export_run(
        directory,
        reader=RowReader(run.rows),
        size=CASE.size,
        instances=CASE.schedule.instances,
        backbone=BACKBONE,
        model={"torchvision": "vgg"},
        embed=embed or (lambda loaded: loaded.images.numpy() * np.float32(step)),
        images=images or batches(),
        name_of=lambda instance: f"image {instance} of step {step}",
        about={"step": step, "source": "digits"},
    )


def store_export(directory, run, form="npy", step=5):
    return export_of_store(directory, run.rows, CASE.size, CASE.schedule.instances, step, form)


def failing(name, code, at=1):
    """A function of `os` that fails from its `at`-th call on."""
    real, calls = getattr(os, name), []

    def call(*arguments, **words):
        calls.append(arguments)
        if len(calls) >= at:
            raise OSError(code, os.strerror(code))
        return real(*arguments, **words)

    return call


def test_the_files_of_an_export_are_what_the_run_has(run, tmp_path):
    shapes, unreadable, first = export(tmp_path / "exports", run)
    assert (unreadable, first) == (0, [])
    assert shapes == {"rows": (CASE.size, CASE.dim), "embeddings": (CASE.size, 1)}
    expected = rows_of_engine(CASE, run.rows)[0].astype(np.float32)
    np.save(tmp_path / "expected.npy", expected)
    assert (tmp_path / "exports" / "rows.npy").read_bytes() == (tmp_path / "expected.npy").read_bytes()
    assert np.load(tmp_path / "exports" / "embeddings.npy").tolist() == [[float(n)] for n in range(CASE.size)]
    assert load_file(tmp_path / "exports" / "backbone.safetensors")["conv.weight"].equal(BACKBONE["conv.weight"])
    names = (tmp_path / "exports" / "names.txt").read_text().splitlines()
    assert names == [f"image {instance} of step 1" for instance in range(CASE.size)]
    about = json.loads((tmp_path / "exports" / "manifest.json").read_text())
    assert about["step"] == 1 and about["shapes"] == {name: list(shape) for name, shape in shapes.items()}
    assert sorted(os.listdir(tmp_path / "exports")) == sorted(NAMES)


def with_unreadable(places):
    """The batches, without the images at some places."""
    for ids, loaded in batches():
        loaded.readable_B[:] = ~np.isin(ids, places)
        yield ids, loaded


def test_images_that_cannot_be_read_are_counted_and_named_and_an_export_of_none_is_refused(run, tmp_path):
    def embed(loaded):
        features = loaded.images.numpy().astype(np.float32)
        features[~loaded.readable_B] = np.nan
        return features

    exported = export(tmp_path / "exports", run, images=with_unreadable([3, 20, 21, 50]), embed=embed)
    assert exported.unreadable == 4
    assert str(exported).endswith(
        "4 images could not be read, and their embeddings are NaN: " + ", ".join(exported.first) + " and 1 more"
    )
    assert exported.first == [f"image {number} of step 1" for number in (3, 20, 21)]
    assert json.loads((tmp_path / "exports" / "manifest.json").read_text())["unreadable"] == 4
    with pytest.raises(ValueError, match="none of 60 images can be read"):
        export(tmp_path / "exports", run, images=with_unreadable(range(60)), embed=embed)
    assert json.loads((tmp_path / "exports" / "manifest.json").read_text())["unreadable"] == 4


FAULTS = {
    "images cannot be read": lambda patch: {"images": batches(fails_at=32)},
    "the disk is full": lambda patch: patch.setattr(os, "posix_fallocate", failing("posix_fallocate", errno.ENOSPC)),
    "it is full at the second": lambda patch: patch.setattr(os, "posix_fallocate", failing("posix_fallocate", 28, 2)),
    "it is full without such a call": lambda patch: (
        patch.setattr(os, "posix_fallocate", failing("posix_fallocate", errno.EOPNOTSUPP)),
        patch.setattr(os, "pwrite", failing("pwrite", errno.ENOSPC)),
    ),
    "it fails at the end": lambda patch: patch.setattr(os, "fsync", failing("fsync", errno.EIO, 2)),
    "it is full of the backbone": lambda patch: patch.setattr(os, "write", failing("write", errno.EDQUOT)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_export_that_fails_leaves_the_one_before_and_nothing_else(run, tmp_path, monkeypatch, fault):
    export(tmp_path, run, step=1)
    before = tree(tmp_path)
    with monkeypatch.context() as patch:
        words = FAULTS[fault](patch)
        with pytest.raises(OSError, match=r".") as failed:
            export(tmp_path, run, step=2, **(words if isinstance(words, dict) else {}))
    line = str(failed.value)
    assert "\n" not in line
    assert ".part" in line or fault in ("images cannot be read", "it fails at the end")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("form", ["npy", "zarr"])
def test_a_full_disk_says_which_file_and_how_much_is_lacking(run, tmp_path, monkeypatch, form):
    monkeypatch.setattr(os, "posix_fallocate", failing("posix_fallocate", errno.ENOSPC))
    monkeypatch.setattr(os, "fstatvfs", lambda _: type("V", (), {"f_bavail": 2, "f_frsize": 100}))
    with pytest.raises(OSError, match="No space left on device") as full:
        store_export(tmp_path / "exports", run, form)
    line = str(full.value)
    assert (
        f"rows-5.{'npy' if form == 'npy' else 'zarr.room'}.part" in line
        and "200 are free; " in line
        and "are lacking" in line
    )
    assert os.listdir(tmp_path / "exports") == []


LIMITED = """
import resource, sys
from pathlib import Path
from engine.results.whole_files import Together
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
try:
    with Together(Path(sys.argv[1]), ["rows.npy"]) as new:
        new.array("rows.npy", (2**20, 16))[:] = 1
except OSError as error:
    print(error)
    sys.exit(3)
"""


def test_a_limit_on_the_length_of_files_is_a_line_and_no_signal(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 3, done.stderr
    assert "rows.npy.part" in done.stdout and "67,108,992 bytes" in done.stdout
    assert os.listdir(tmp_path) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from engine.results.whole_files import Together
with Together(Path(sys.argv[1]), ["rows.npy", "manifest.json"]) as new:
    rows = new.array("rows.npy", (1000, 16))
    rows[:500] = 1
    if sys.argv[2] == "between the names":
        rename = os.rename
        os.rename = lambda *a: (rename(*a), os.kill(os.getpid(), signal.SIGKILL))
        new.write("manifest.json", b"{}")
    else:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("when", ["in the middle", "between the names"])
def test_after_kill_9_the_old_export_is_there_or_the_file_that_vouches_for_it_is_not(run, tmp_path, when):
    export(tmp_path, run)
    before = tree(tmp_path)
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), when], cwd=REPOSITORY, timeout=60)
    assert done.returncode == -signal.SIGKILL
    after = tree(tmp_path)
    left = {name for name in after if name.endswith(".part")}
    assert left and all(is_export(name) for name in left)
    if when == "in the middle":
        assert {name: after[name] for name in after.keys() - left} == before
    else:
        assert "manifest.json" not in after
        assert len(after["rows.npy"]) == 128 + 4 * 16 * 1000  # whole, as all that has its name
    export(tmp_path, run)
    assert tree(tmp_path) == before


def test_room_is_taken_where_the_file_system_has_no_such_call(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", failing("posix_fallocate", errno.EOPNOTSUPP))
    monkeypatch.setattr(whole_files, "_PIECE_BYTES", 1000)
    with Together(tmp_path, ["rows.npy"]) as new:
        rows = new.array("rows.npy", (1000, 16))
        status = os.stat(tmp_path / "rows.npy.part")
        assert status.st_size == 128 + 64000 and status.st_blocks * 512 >= status.st_size
        rows[:] = 3
    assert (np.load(tmp_path / "rows.npy") == 3).all()


def test_an_array_takes_its_room_before_anything_is_written(tmp_path):
    with Together(tmp_path, ["rows.npy"]) as new:
        new.array("rows.npy", (10**6, 2))
        status = os.stat(tmp_path / "rows.npy.part")
        assert status.st_blocks * 512 >= status.st_size == 128 + 8 * 10**6


@pytest.mark.parametrize("name", [*NAMES, *(f"{name}.part" for name in NAMES)])
@pytest.mark.parametrize("target", ["a file", "a directory", "nothing"])
def test_no_file_of_an_export_is_written_through_a_link(run, tmp_path, monkeypatch, name, target):
    victim = tmp_path / "victim"
    if target == "a file":
        victim.write_text("the user's")
    elif target == "a directory":
        victim.mkdir()
    (tmp_path / "exports").mkdir()
    (tmp_path / "exports" / name).symlink_to(victim)
    before = tree(tmp_path)
    monkeypatch.setattr(RowReader, "block", lambda *_: pytest.fail("no row is read"))
    with pytest.raises(ValueError, match=r"is a link, and nothing is written through or over it"):
        export(tmp_path / "exports", run)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("form", ["npy", "zarr"])
def test_an_exports_directory_that_is_a_link_is_refused(run, tmp_path, form):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "exports").symlink_to("elsewhere")
    for job in (lambda: export(tmp_path / "exports", run), lambda: store_export(tmp_path / "exports", run, form)):
        with pytest.raises(ValueError, match="exports is a link"):
            job()
    assert os.listdir(tmp_path / "elsewhere") == []


@pytest.mark.parametrize(
    "name", ["rows-5.zarr", "rows-5.zarr.part", "rows-5.zarr.old.part", "rows-5.npy", "rows-5.json"]
)
def test_no_zarr_array_takes_the_place_of_what_is_not_one_of_ours(run, tmp_path, name):
    exports_at = tmp_path / "exports"
    store_export(exports_at, run, "zarr")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "zarr.json").write_text("the user's")
    form = "zarr" if "zarr" in name else "npy"
    for plant in (
        lambda path: path.symlink_to(tmp_path / "thesis"),
        lambda path: (path.mkdir(), (path / "notes").write_text("the user's")),
    ):
        if (exports_at / name).is_dir():
            (exports_at / name).rename(tmp_path / "moved")
        (exports_at / name).unlink(missing_ok=True)
        plant(exports_at / name)
        before = tree(tmp_path)
        with pytest.raises(ValueError, match="move it away"):
            store_export(exports_at, run, form)
        assert tree(tmp_path) == before
        (exports_at / name).rename(tmp_path / f"aside-{len(before)}")


def test_a_note_inside_an_exported_array_keeps_it(run, tmp_path):
    store_export(tmp_path, run, "zarr")
    (tmp_path / "rows-5.zarr" / "c" / "notes.txt").write_text("the user's")
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=r"notes\.txt is nothing that an export wrote"):
        store_export(tmp_path, run, "zarr")
    assert tree(tmp_path) == before


def test_an_array_that_was_to_be_replaced_when_the_job_was_killed_comes_back(run, tmp_path, monkeypatch):
    store_export(tmp_path, run, "zarr")
    expected = np.asarray(zarr.open_array(str(tmp_path / "rows-5.zarr"), mode="r")[:])
    (tmp_path / "rows-5.zarr").rename(tmp_path / "rows-5.zarr.old.part")
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", failing("posix_fallocate", errno.ENOSPC))
        with pytest.raises(OSError, match="No space"):
            store_export(tmp_path, run, "zarr")
    assert np.asarray(zarr.open_array(str(tmp_path / "rows-5.zarr"), mode="r")[:]).tobytes() == expected.tobytes()
    store_export(tmp_path, run, "zarr")
    assert sorted(os.listdir(tmp_path)) == ["rows-5.json", "rows-5.zarr"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_files_get_the_mode_that_the_user_has_set_for_new_ones(run, tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        export_backbone(tmp_path / "backbone.safetensors", BACKBONE, {"torchvision": "vgg"})
        export(tmp_path / "exports", run)
        store_export(tmp_path / "exports", run)
        write_file(tmp_path / "store.png", b"png")
        files = DiskFiles(tmp_path / "checkpoints")
        files.make_directory(manifest.MANIFESTS)
        files.put_whole("manifests/000000001.json", [b"{}"])
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*") if path.is_file()}
    assert set(modes.values()) == {mode} and len(modes) == 10


def test_two_exports_at_once_never_make_half_a_file(tmp_path):
    first = Together(tmp_path, ["rows.npy"])
    first.array("rows.npy", (10, 2))[:] = 1
    with Together(tmp_path, ["rows.npy"]) as second:
        second.array("rows.npy", (20, 2))[:] = 2
        assert os.listdir(tmp_path) == ["rows.npy.part"]
    with pytest.raises(ValueError, match="another job writes"):
        first.__exit__(None)
    assert os.listdir(tmp_path) == ["rows.npy"]
    assert (np.load(tmp_path / "rows.npy") == 2).all()


def test_a_picture_is_whole_or_not_there_and_never_behind_a_link(tmp_path, monkeypatch):
    run = DiskRun(CASE, tmp_path / "checkpoints").train(10)
    run.save()
    kept = run.finish().checkpoints.newest
    (tmp_path / "photo.png").write_bytes(b"the user's")
    (tmp_path / "store.png").symlink_to("photo.png")
    monkeypatch.setattr(store_jobs, "ages_of", lambda *_: pytest.fail("nothing is read"))
    with pytest.raises(ValueError, match=r"store\.png is a link"):
        store_jobs.inspect(kept, tmp_path / "store.png")
    assert (tmp_path / "photo.png").read_bytes() == b"the user's"
    run.close()


def test_an_exported_array_is_removed_and_nothing_else(run, tmp_path):
    store_export(tmp_path, run, "zarr")
    (array,) = tmp_path.glob("*.zarr")
    exports.remove_zarr(array)
    assert not array.exists()
    store_export(tmp_path, run, "zarr")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "zarr.json").write_text("the user's")
    (array / "c" / "9").symlink_to(tmp_path / "thesis")
    (array / "notes").write_text("the user's")
    assert exports.foreign_in(tmp_path, array.name) == [f"{array.name}/c/9", f"{array.name}/notes"]
    exports.remove_zarr(array)
    assert tree(array).keys() == {"c", "c/9", "notes"}
    assert (tmp_path / "thesis" / "zarr.json").exists()


def test_an_export_wrote_what_its_names_say(run, tmp_path):
    for form in ("npy", "zarr"):
        store_export(tmp_path, run, form)
    export(tmp_path, run)
    files = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()]
    assert all(is_export(path) for path in files) and exports.foreign_in(tmp_path, "") == []
