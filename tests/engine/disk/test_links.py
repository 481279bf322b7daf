"""Nothing of ours follows a link below the checkpoints, removes one, or removes what it did not write."""

import os
import shutil
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.disk import manifest, sweep, zarr_store
from engine.disk.files import DIRECTORY, LINK, SPECIAL, DiskFiles, remove_any, remove_tree
from engine.disk.sweep import foreign, foreign_line, remove_run
from engine.jobs import store_jobs
from engine.rows.damaged import Damaged
from tests.engine.disk.small_runs import SHORT, go_on, train
from tests.engine.disk_runs import UnsyncedFiles
from tests.engine.harness import method_of
from tests.engine.small_training import Training
from tests.trees import tree


@pytest.fixture
def thesis(tmp_path):
    """A directory of the user's."""
    path = tmp_path / "thesis"
    (path / "weight").mkdir(parents=True)
    for name in ("chapter-1", "trunk.safetensors", "000000001.json", "zarr.json", "weight/c.0.0", "part-of-a-run"):
        (path / name).write_text(f"the user's {name}")
    return path


JOBS = {
    "start": lambda root: Training(SHORT, UnsyncedFiles(root)),
    "go on": go_on,
    "verify": lambda root: store_jobs.verify(DiskFiles(root), None),
    "scrub": lambda root: store_jobs.scrub(DiskFiles(root)),
    "repair": lambda root: store_jobs.repair(UnsyncedFiles(root)),
    "fresh": lambda root: remove_run(UnsyncedFiles(root)),
}


@pytest.mark.parametrize("job", JOBS)
def test_a_foreign_directory_with_a_link_to_a_thesis_costs_no_thesis(root, thesis, job):
    before = tree(thesis)
    (root / "step-best").mkdir()
    (root / "step-best" / "x").symlink_to(thesis)
    JOBS[job](root)
    assert tree(thesis) == before
    assert (root / "step-best" / "x").is_symlink()


@pytest.mark.parametrize("job", ["start", "verify", "scrub", "repair"])
def test_a_link_to_the_newest_checkpoint_costs_no_checkpoint(root, end, job):
    (root / "step-best").symlink_to("step-000000014")
    JOBS[job](root)
    assert (root / "step-best").is_symlink()
    assert not manifest.problems_of(manifest.read(DiskFiles(root), 2), every_block=True)
    again = Training(SHORT, UnsyncedFiles(root), keep=2)
    assert again.first_step == 14 and again.finish() == end


def moved_behind_a_link(root, path, elsewhere):
    elsewhere.mkdir(exist_ok=True)
    (root / path).rename(elsewhere / "moved")
    (root / path).symlink_to(elsewhere / "moved")


def places(root):
    """Every path of a run, and new ones of ours and of others' shapes."""
    there = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
    generation = sorted((root / "rows").iterdir())[0].name
    new = [
        "step-best", "step-000000021", "step-000000021-2", "notes", "part-of-a-run", "images.index", "rows/mine",
        "rows/000099-abcdef", "manifests/000000009.json", "manifests/000000003.json.part", "manifests/000000003.damaged",
        "step-000000014/x", "step-000000014/trunk.safetensors.part", f"rows/{generation}/weight/c.99.0",
        f"rows/{generation}/x", f"rows/{generation}/zarr.json.part",
    ]  # fmt: skip
    return there + new


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_whatever_is_a_link_nothing_behind_one_changes_and_none_goes(template, tmp_path_factory, data):
    root = shutil.copytree(template, tmp_path_factory.mktemp("run") / "checkpoints")
    outside = root.parent / "outside"
    for name in ("zarr.json", "c.0.0", "trunk.safetensors", "000000001.json", "moved", "weight/c.0.0"):
        (outside / name).parent.mkdir(parents=True, exist_ok=True)
        (outside / name).write_bytes(b"kept")
    planted = {}
    for number in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(places(root)))
        if not os.path.lexists((root / path).parent) or (root / path).parent.resolve() != (root / path).parent:
            continue  # below a link that is planted already
        if os.path.lexists(root / path):
            if (root / path).is_symlink():
                continue
            moved_behind_a_link(root, path, outside / str(number))
        elif data.draw(st.booleans()):
            (root / path).symlink_to(data.draw(st.sampled_from([outside, outside / "zarr.json", root / "nowhere"])))
        else:
            os.mkfifo(root / path)
            planted[path] = None
            continue
        planted[path] = os.readlink(root / path)
    before = tree(outside)
    for job in data.draw(st.lists(st.sampled_from(sorted(JOBS)), min_size=1, max_size=3)):
        with suppress(Damaged, ValueError):
            JOBS[job](root)
        assert tree(outside) == before, job
        for path, leads_to in planted.items():
            assert os.path.lexists(root / path), (job, path)
            assert leads_to is None or os.readlink(root / path) == leads_to


@pytest.mark.parametrize(
    "path", ["rows", "manifests", "generation", "column", "step-000000014", "step-000000014/trunk.safetensors", "manifests/000000002.json"]
)  # fmt: skip
def test_a_run_behind_a_link_is_refused_in_a_line_that_says_what_to_do(root, tmp_path, path):
    generation = next(iter(manifest.read(DiskFiles(root), 2).generations().values())).name
    path = {"generation": f"rows/{generation}", "column": f"rows/{generation}/weight"}.get(path, path)
    moved_behind_a_link(root, path, tmp_path / "elsewhere")
    try:
        line = Training(SHORT, UnsyncedFiles(root)).complaints[0]
    except Damaged as error:
        line = str(error)
    assert f"{path} is a link; put the files themselves there, or link the whole checkpoints directory" in line
    assert "\n" not in line


@pytest.mark.parametrize("kind", ["fifo", "link to nothing", "link to a device"])
def test_no_file_of_another_kind_is_waited_for_or_read(root, kind):
    kept = manifest.read(DiskFiles(root), 2)
    chunk = next((root / "rows").rglob("weight/c.*")).relative_to(root)
    for path in ("manifests/000000009.json", f"{kept.name}/trunk.safetensors", str(chunk)):
        with suppress(FileNotFoundError):
            (root / path).unlink()
        if kind == "fifo":
            os.mkfifo(root / path)
        else:
            (root / path).symlink_to("/dev/zero" if kind == "link to a device" else "nowhere")
        what = "neither a file nor a directory" if kind == "fifo" else "is a link"
        files = DiskFiles(root)
        for look in (lambda: files.read(path), lambda: files.read_into(path, [memoryview(bytearray(4))])):  # noqa: B023
            with pytest.raises(Damaged, match=what):
                look()
        assert files.listing(path.rpartition("/")[0])[path.rpartition("/")[2]] == (SPECIAL if kind == "fifo" else LINK)
    assert store_jobs.verify(DiskFiles(root), None) == 1


@pytest.mark.parametrize(
    "operation",
    [
        lambda files: files.put_whole("link/x", [b"x"]),
        lambda files: files.put_whole("file", [b"x"]),
        lambda files: files.rename("ours", "link/x"),
        lambda files: files.rename("ours", "file"),
        lambda files: files.rename("file", "manifests"),
        lambda files: files.make_directory("link"),
        lambda files: files.make_directory("link/below"),
        lambda files: files.sync_directory("link"),
        lambda files: files.listing("link"),
        lambda files: files.listing("link/weight"),
        lambda files: files.read("link/chapter-1"),
        lambda files: files.read_into("file", [memoryview(bytearray(4))]),
        lambda files: files.remove("link/chapter-1"),
        lambda files: files.remove("link"),
        lambda files: files.remove("file"),
        lambda files: files.remove_directory("link"),
        lambda files: files.read("../thesis/chapter-1"),
        lambda files: files.listing("../thesis"),
        lambda files: files.make_directory("../thesis/new"),
        lambda files: files.put_whole("rows/../../thesis/new", [b"x"]),
        lambda files: files.remove("./../thesis/chapter-1"),
    ],
)
def test_no_operation_goes_through_a_link_or_out_of_the_root(tmp_path, thesis, operation):
    root = tmp_path / "checkpoints"
    root.mkdir()
    (root / "ours").write_text("ours")
    (root / "rows").mkdir()
    (root / "link").symlink_to(thesis)
    (root / "file").symlink_to(thesis / "chapter-1")
    before = tree(tmp_path)
    with pytest.raises((Damaged, FileExistsError, NotADirectoryError)):
        operation(DiskFiles(root))
    assert tree(tmp_path) == before


def test_a_linked_checkpoints_directory_works_and_fresh_leaves_the_link(root, end, tmp_path):
    elsewhere = tmp_path / "another disk"
    root.rename(elsewhere)
    root.symlink_to(elsewhere)
    again = train(UnsyncedFiles(root), SHORT.steps)
    assert again.first_step == 14 and again.state() == end
    (elsewhere / "notes.txt").write_text("the user's")
    assert remove_run(DiskFiles(root)) == ["notes.txt"]
    assert root.is_symlink() and tree(elsewhere) == {"notes.txt": b"the user's"}
    assert train(UnsyncedFiles(root), SHORT.steps).state() == end


def test_a_checkpoints_directory_that_leads_nowhere_or_is_a_file_is_refused(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "unmounted" / "disk")
    with pytest.raises(ValueError, match="nothing is there; mount that disk"):
        DiskFiles(tmp_path / "link")
    assert not (tmp_path / "unmounted").exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is no directory"):
        DiskFiles(tmp_path / "file")


def test_what_is_foreign_is_told_in_a_line_and_stays(root, thesis, capsys):
    (root / "step-best").symlink_to("step-000000014")
    (root / "rows" / "000099-abcdef").symlink_to(thesis)
    (root / "manifests" / "notes").write_text("x")
    (root / "step-000000014" / "\x1b[2J\udcff").mkdir()
    (root / "step-000000014" / "\x1b[2J\udcff" / "trunk.safetensors").write_text("x")
    (root / "images.index").write_text("of the sources")
    column = next((root / "rows").rglob("weight"))
    (column / "c.0.0.bak").write_text("x")
    expected = ["manifests/notes", "rows/000099-abcdef", "step-000000014/\x1b[2J\udcff", "step-best"]
    assert foreign(DiskFiles(root), rows=False) == [path for path in expected if not path.startswith("rows")]
    assert set(foreign(DiskFiles(root))) == {*expected, str((column / "c.0.0.bak").relative_to(root))}
    before = tree(root)
    Training(SHORT, UnsyncedFiles(root))
    out = capsys.readouterr().out
    assert out.count("did not write") == 2 and "manifests/notes, step-000000014" in out
    assert (
        f"rows/000099-abcdef, {column.relative_to(root)}/c.0.0.bak" in out
        or f"{column.relative_to(root)}/c.0.0.bak, rows/000099-abcdef" in out
    )
    assert store_jobs.scrub(DiskFiles(root)) == 0
    assert capsys.readouterr().out.count("did not write") == 1
    assert tree(root) == before
    line = foreign_line(foreign(DiskFiles(root / "step-000000014")))
    assert line and line.isprintable() and "\\x1b[2J\\xff" in line


def test_names_of_new_directories_are_not_those_of_links(root, thesis, monkeypatch):
    before = tree(thesis)
    (root / "step-000000021").symlink_to(thesis)
    (root / "step-000000021-2").write_text("a file")
    names = iter([bytes.fromhex("abcdef"), *(number.to_bytes(3, "big") for number in range(1000))])
    monkeypatch.setattr(zarr_store.os, "urandom", lambda _: next(names))
    training = Training(SHORT, UnsyncedFiles(root))
    taken = f"rows/{training.disk.disk.next_generation:06d}-abcdef"
    (root / taken).symlink_to(thesis)
    training.finish()
    method = method_of(training.case, training.rows)
    training.checkpoints.save(training.rows.log.steps, method, training.trunk.state(), training.losses, {})
    assert training.checkpoints.newest.name == "step-000000021-3"
    assert (root / taken).is_symlink() and tree(thesis) == before
    assert Training(SHORT, UnsyncedFiles(root)).first_step == 21


def test_odd_numbers_in_names_are_no_numbers(root, end):
    # str.isdigit takes these for numbers, and int does not, or gives one that no array holds.
    for name in ("manifests/².json", "manifests/٣.json", "rows/²-abcdef", f"rows/{'9' * 40}-abcdef"):
        (root / name).mkdir()
    (root / "manifests" / f"{'9' * 30}.json").write_text("{}")
    training = Training(SHORT, UnsyncedFiles(root), keep=2)
    assert training.first_step == 14 and training.finish(2) == end


def test_a_manifest_that_is_a_link_protects_what_it_names(root, tmp_path):
    # As a tree of links has it: its checkpoint is passed over, and the blocks that it names are not swept at once.
    for number in (1, 2):
        moved_behind_a_link(root, f"manifests/00000000{number}.json", tmp_path / f"other-{number}")
    before = tree(root)
    training = Training(SHORT, UnsyncedFiles(root))
    assert training.kept == [] and len(training.complaints) == 2
    assert tree(root) == before
    assert store_jobs.repair(DiskFiles(root)) == 1 and tree(root) == before


# --fresh


def test_fresh_removes_a_run_and_leaves_what_is_not_of_one(root, thesis):
    before = tree(thesis)
    (root / "step-000000014" / "notes.txt").write_text("x")
    (root / "step-000000007" / "x").symlink_to(thesis)
    (root / "rows" / "000099-abcdef").symlink_to(thesis)
    (root / "step-000000060").symlink_to(thesis)
    (root / "images.index").write_text("of the sources")
    (root / "manifests" / "000000003.damaged").write_text("{}")
    (root / "part-of-a-run").write_text("")
    stays = ["rows/000099-abcdef", "step-000000007/x", "step-000000014/notes.txt", "step-000000060"]
    assert remove_run(DiskFiles(root)) == stays
    above = {"rows": False, "step-000000007": False, "step-000000014": False}
    assert tree(root).keys() == {*stays, *above} and tree(thesis) == before
    assert Training(SHORT, UnsyncedFiles(root)).first_step == 0


def test_fresh_leaves_nothing_of_a_run_that_is_alone(root):
    assert remove_run(DiskFiles(root)) == [] and not root.exists()
    assert remove_run(DiskFiles(root)) == []


@pytest.mark.parametrize("path", ["rows", "manifests", "manifests/000000002.json"])
def test_fresh_is_refused_before_anything_goes_where_a_link_stays_in_the_way(root, tmp_path, path):
    moved_behind_a_link(root, path, tmp_path / "elsewhere")
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=r"is a link; .*nothing was removed"):
        remove_run(DiskFiles(root))
    assert tree(tmp_path) == before


def test_fresh_is_refused_before_anything_goes_where_a_directory_may_not_be_changed(root, monkeypatch):
    real, closed = os.access, next((root / "rows").rglob("momentum"))
    monkeypatch.setattr(sweep.os, "access", lambda path, mode: path != closed and real(path, mode))
    before = tree(root)
    with pytest.raises(ValueError, match=r"momentum may not be changed; .*nothing was removed"):
        remove_run(DiskFiles(root))
    assert tree(root) == before


def test_fresh_that_is_cut_short_leaves_whole_checkpoints_or_none(root):
    removed = []

    class Recording(UnsyncedFiles):
        def remove(self, path):
            removed.append(path)
            super().remove(path)

    remove_run(Recording(root))
    assert removed[:2] == ["manifests/000000002.json", "manifests/000000001.json"]


def test_only_names_of_ours_are_removed(tmp_path):
    files = DiskFiles(tmp_path)
    files.make_directory("rows/000001-abcdef/weight")
    files.put_whole("rows/000001-abcdef/weight/c.1.0", [b"1234"])
    files.put_whole("rows/000001-abcdef/weight/c.01.0", [b"1234"])
    assert remove_tree(files, "rows") == 4
    assert foreign(files) == ["rows/000001-abcdef/weight/c.01.0"]
    for path in ("step-best", "notes", "../x", "rows/x", "rows/000001-abcdef/weight/c.1.0\n"):
        with pytest.raises(AssertionError):
            remove_any(files, path)
    assert files.listing("")["rows"] == DIRECTORY
