"""No start looks at block files; a thread does, stops the run where one is missing, and finds what nobody names."""

import threading

import pytest

from engine.disk import manifest, patrol
from engine.disk.files import DiskFiles
from engine.disk.patrol import look, missing_files
from engine.rows.damaged import Damaged
from tests.engine.disk_runs import DiskRun, UnsyncedFiles
from tests.engine.harness import Case

CASE = Case(size=600, window=48, stride=24, active=32, passes=1.5)
SAVED = 60


@pytest.fixture
def root(tmp_path):
    """The directory of a run of 60 steps with a checkpoint each 10."""
    DiskRun(CASE, tmp_path).train(SAVED, save_every=10).finish().close()
    return tmp_path


def away(root):
    """(block, its files) of the newest checkpoint, of blocks that a resume does not read."""
    last = manifest.recover(DiskFiles(root))[0][-1]
    store = last.store()
    entries = last.entries(store)
    resident = {block for active in last.active() for block in active["resident"].tolist()}
    for block, entry in entries.items():
        generation = store.generations[entry.generation]
        if block not in resident:
            yield block, [root / "rows" / generation.name / column.file(block) for column in generation.columns]


class CountingFiles(UnsyncedFiles):
    """calls: (operation, path) of the thread that made it."""

    def __init__(self, root):
        super().__init__(root)
        self.calls, self._maker = [], threading.get_ident()

    def listing(self, path):
        self._count("listing", path)
        return super().listing(path)

    def read_into(self, path, parts):
        self._count("read_into", path)
        return super().read_into(path, parts)

    def _count(self, *call):
        if threading.get_ident() == self._maker:
            self.calls.append(call)


def calls_of_a_start(root, steps):
    run = DiskRun(CASE, root).train(steps, save_every=3).finish()
    blocks, generations = len(run.disk.blocks()), len(run.disk.disk.generations)
    run.close()
    files = CountingFiles(root)
    again = DiskRun(CASE, root, files=files)
    again.close()
    below_rows = [path for operation, path in files.calls if operation == "listing" and path.startswith("rows")]
    return blocks, generations, len(files.calls), below_rows


def test_a_start_looks_at_no_more_files_when_more_was_visited(tmp_path):
    few = calls_of_a_start(tmp_path, 15)
    many = calls_of_a_start(tmp_path, 140)
    assert many[0] > 4 * few[0] and many[1] > 2 * few[1]
    resident_files = 3 * 2 * 2 * (CASE.window + CASE.stride) // CASE.block  # checked, and then read
    assert many[2] <= few[2] + resident_files
    assert few[3] == many[3] == []


@pytest.mark.parametrize("how", ["missing", "cut short", "a directory"])
def test_a_block_that_is_missing_stops_the_run_by_name_before_it_is_asked_for(root, how):
    block, paths = list(away(root))[-1]
    path = paths[1]
    content = path.read_bytes()
    path.unlink()
    if how == "cut short":
        path.write_bytes(content[:-1])
    elif how == "a directory":
        path.mkdir()
    run = DiskRun(CASE, root)
    with pytest.raises(Damaged, match=rf"block {block} \(momentum\) of generation"):
        run.looked()
    with pytest.raises(Damaged):  # and nothing more is kept
        run.save()
    run.close()
    last = manifest.recover(DiskFiles(root))[0][-1]
    store = last.store()
    entries = last.entries(store)
    (line,) = missing_files(store, entries)
    assert (
        f"block {block} (momentum)" in line
        and {"missing": "is missing", "cut short": "bytes instead of"}.get(how, how) in line
    )


def test_a_file_that_goes_because_its_block_was_written_again_is_not_missed(root, monkeypatch):
    """The look is slower than the run: all that it looks at has been replaced."""
    gate, real = threading.Event(), patrol._in_generation
    monkeypatch.setattr(patrol, "_in_generation", lambda *arguments: (gate.wait(60), real(*arguments))[1])
    run = DiskRun(CASE, root, keep=1).train(CASE.steps, save_every=5).finish()
    gate.set()
    run.looked()
    whole = run.digest()
    run.close()
    assert DiskRun(CASE, root.parent / "undisturbed").train(CASE.steps).digest() == whole
    for one in manifest.recover(DiskFiles(root))[0]:
        assert not manifest.problems_of(one, every_block=True)


def test_a_stop_does_not_wait_for_the_look(root, monkeypatch):
    monkeypatch.setattr(patrol, "_SETTLING_SECONDS", 0.0)
    monkeypatch.setattr(patrol, "_RESTS", 10.0**6)
    run = DiskRun(CASE, root)
    run.close()
    assert not run.checkpoints._patrol.is_alive()


def test_what_nobody_names_is_found_and_what_is_foreign_told(root):
    kept = manifest.recover(DiskFiles(root))[0]
    store = kept[-1].store()
    maps = [(one.number, one.entries(store)) for one in kept]
    generations = store.generations
    versions = store.restore(maps, generations, kept[-1].body.next_generation)
    assert not any(found.garbage or found.foreign for found in look(store, versions, lambda _: True))
    named = next(iter(generations.values())).name
    for path in ("weight/c.999999.0", "last_step/c.999998.part", "zarr.json.part", "weight/notes.txt"):
        (root / "rows" / named / path).write_text("x")
    (root / "rows" / "000099-abcdef").mkdir()
    (root / "rows" / "mine").mkdir()
    found = list(look(store, versions, generations.has_name))
    garbage = {path for one in found for path in one.garbage if path.startswith(f"rows/{named}") or "abcdef" in path}
    assert garbage == {
        f"rows/{named}/weight/c.999999.0",
        f"rows/{named}/last_step/c.999998.part",
        f"rows/{named}/zarr.json.part",
        "rows/000099-abcdef",
    }
    assert {path for one in found for path in one.foreign} == {f"rows/{named}/weight/notes.txt", "rows/mine"}
