"""A disk that fails stops the run, and one that lies is found out; either way an earlier checkpoint ends where it should."""

import errno
import json
import os
import random
import shutil
from collections import Counter

import pytest

from engine.disk import manifest, shapes
from engine.disk.files import TEMPORARY, DiskFiles
from engine.disk.zarr_store import ROWS
from engine.jobs import store_jobs
from engine.rows.damaged import Damaged
from tests.engine.disk.small_runs import EVERY, SMALL, SmallCase, files_below, named_files, record
from tests.engine.faulty_files import EverythingSurvives, FaultyFiles, VolatileFiles
from tests.engine.small_training import Training

CASE = SmallCase(**SMALL)
SHORT = SmallCase(**{**SMALL, "passes": 1.2})  # 14 steps
SHORT_EVERY = 5


@pytest.fixture(scope="module")
def short():
    """step -> state, of a run that nothing disturbs."""
    training = Training(SHORT, VolatileFiles())
    states = {0: training.state()}
    states |= {step: training.state() for what, step in training.train(SHORT_EVERY) if what == "saving"}
    return states | {SHORT.steps: training.state()}


def attempt(files, threaded):
    """Train on a disk that may fail; returns (what it raised, the last step acknowledged, the state at the end)."""
    saved, training = [], None
    try:
        training = Training(SHORT, files, keep=1, threaded=threaded)
        for what, step in training.train(SHORT_EVERY):
            saved += [step] * (what == "saved")
        training.checkpoints.finish()
        return None, saved[-1], training.state()
    except OSError as error:
        # A save that returns says that the one before is on the disk.
        return error, max([0, *(saved[:-1] if threaded else saved)]), None
    finally:
        if training:
            training.close()


@pytest.mark.parametrize(
    ("kind", "error", "half"),
    [
        ("_create", errno.ENOSPC, False),
        ("_create", errno.ENOSPC, True),
        ("rename", errno.EIO, False),
        ("_link", errno.EIO, False),
        ("sync_directory", errno.EIO, False),
        ("make_directory", errno.ENOSPC, False),
        ("remove", errno.EROFS, False),
        ("read_into", errno.EIO, False),
    ],
)
def test_a_run_stops_with_the_error_of_the_disk_and_what_was_committed_goes_on(tmp_path, short, kind, error, half):
    trained = set()
    for at in range(1, 1000):
        root, threaded = tmp_path / str(at), at % 2 == 1
        files = FaultyFiles(root, kind, error, at, half)
        raised, acknowledged, state = attempt(files, threaded)
        if not files.failed:
            break
        assert raised is not None and raised.errno == error
        # From the thread too; and nothing was done to the disk after it, where it was the disk's thread that failed.
        assert files.changed_since == [] or kind == "read_into"
        again = Training(SHORT, DiskFiles(root), keep=1)
        assert again.complaints == []
        assert again.first_step >= acknowledged
        assert again.state() == short[again.first_step]
        if again.first_step not in trained or at % 4 < 2:  # threaded or not
            trained.add(again.first_step)
            assert again.finish() == short[SHORT.steps]
    assert raised is None and at > (4 if kind == "_link" else 8)
    assert state == short[SHORT.steps]


@pytest.mark.parametrize("kind", ["read", "read_into"])
def test_a_read_error_while_a_run_resumes_stops_it_and_costs_no_checkpoint(tmp_path, short, kind):
    first = Training(SHORT, DiskFiles(tmp_path / "first"), keep=2)
    for _ in first.train(SHORT_EVERY, until=10):  # a step more, and there would be a block that no checkpoint names
        pass
    stopped = 0
    for at in range(1, 1000):
        root = tmp_path / str(at)
        shutil.copytree(tmp_path / "first", root)
        files, raised = FaultyFiles(root, kind, errno.EIO, at), None
        before = sorted(path for path in root.rglob("*") if path.is_file())
        try:
            Training(SHORT, files, keep=2)
        except OSError as error:
            raised = error
        if not files.failed:
            break
        # It may pass: what is whole is neither passed over nor swept.
        assert raised is not None and raised.errno == errno.EIO
        assert sorted(path for path in root.rglob("*") if path.is_file()) == before
        again = Training(SHORT, DiskFiles(root), keep=2)
        assert again.first_step == 10 and again.complaints == []
        assert again.state() == short[10]
        assert again.finish() == short[SHORT.steps]
        stopped += 1
    assert stopped > 6


def test_a_checkpoint_that_cannot_be_read_for_good_is_set_aside_by_repair(tmp_path, short, capsys):
    first = Training(SHORT, DiskFiles(tmp_path), keep=2)
    for _ in first.train(SHORT_EVERY, until=11):
        pass

    class BadSector(DiskFiles):
        def read(self, path):
            if path == "step-000000010/active.safetensors":
                raise OSError(errno.EIO, os.strerror(errno.EIO), path)
            return super().read(path)

    with pytest.raises(OSError, match=r"Input/output error: 'step-000000010/active\.safetensors'"):
        Training(SHORT, BadSector(tmp_path), keep=2)
    assert store_jobs.repair(BadSector(tmp_path)) == 0
    assert "set aside" in capsys.readouterr().out
    again = Training(SHORT, BadSector(tmp_path), keep=2)
    assert again.first_step == 5
    assert again.finish() == short[SHORT.steps]


# Damage


@pytest.fixture(scope="module")
def healthy():
    """(the disk after the last checkpoint, step -> state): checkpoints 12 and 18 are kept."""
    recorded = record(CASE, VolatileFiles())
    platter = [platter for _, platter in recorded.files.platters()][-1]
    return platter.after_power_cut(EverythingSurvives()), recorded.states


def at(tree, path):
    *above, name = path.split("/")
    for part in above:
        tree = tree[part]
    return tree, name


def damaged(tree, path, change):
    """A copy of the tree with `change(content)` at `path`; None: nothing is there then."""
    copy = {name: dict_copy(below) for name, below in tree.items()}
    directory, name = at(copy, path)
    content = change(directory.pop(name))
    if content is not None:
        directory[name] = content
    return copy


def dict_copy(tree):
    return {name: dict_copy(below) for name, below in tree.items()} if isinstance(tree, dict) else tree


def flipped(content, bit):
    byte = bytes([content[bit // 8] ^ (1 << bit % 8)])
    return content[: bit // 8] + byte + content[bit // 8 + 1 :]


def some_bit(content):
    return flipped(content, random.Random(content).randrange(8 * len(content)))


ANY_FILE = {
    "a flipped bit": some_bit,
    "the last bit flipped": lambda content: flipped(content, 8 * len(content) - 1),
    "cut short": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "zeros": lambda content: bytes(len(content)),
    "missing": lambda content: None,
    "a directory": lambda content: {},
}


def kept_of(tree):
    """(newest, the one before)."""
    files = VolatileFiles(tree)
    return [manifest.read(files, number) for number in manifest.numbers(files)]


def chunks_of_newest(tree):
    newest, before = kept_of(tree)
    own = set(named_files(newest)) - set(named_files(before))
    return sorted(path for path in own if path.startswith(ROWS) and not path.endswith(".json"))


def named_in(line, path):
    """Whether a line names a chunk as people see it."""
    _, generation, column, chunk = path.split("/")
    return f"block {chunk.split('.')[1]} ({column}) of generation {generation}" in line


def look_at_damage(tree, states, named):
    """Recover, train on, and end right whatever is damaged. Returns who noticed: recovery, the look at all files, training or nobody."""
    try:
        training = Training(CASE, VolatileFiles(tree))
    except Damaged as error:
        training, line = None, str(error)
    if training is None:
        assert "\n" not in line and named(line), line
        go_on_from_the_one_before(tree, states)
        return "the look"
    if training.complaints:
        (line,) = training.complaints
        assert "\n" not in line and "trying the one before" in line and named(line), line
        assert training.first_step == 12 and training.state() == states[12]
        assert training.finish(EVERY) == states[CASE.steps]
        # The next checkpoints have removed what was damaged, and only that.
        again = Training(CASE, training.files)
        assert again.complaints == [] and again.first_step == 18 and len(again.kept) == 2
        assert set(files_below(tree_of(training.files))) == {p for kept in again.kept for p in named_files(kept)}
        return "recovery"
    assert training.first_step == 18
    try:
        state = training.finish()
    except Damaged as error:
        line = str(error)
    else:
        assert state == states[CASE.steps]
        return "nobody"
    assert "\n" not in line and named(line), line
    go_on_from_the_one_before(tree, states)
    return "training"


def go_on_from_the_one_before(tree, states):
    """As after repair."""
    files = VolatileFiles(tree)
    assert store_jobs.repair(files) == 0
    before = Training(CASE, files)
    assert before.first_step == 12 and before.state() == states[12]
    assert before.finish(EVERY) == states[CASE.steps]


def tree_of(files):
    return [platter for _, platter in files.platters()][-1].after_power_cut(EverythingSurvives())


@pytest.mark.parametrize("what", [*ANY_FILE, "another block's", "an older version"])
def test_a_damaged_block_is_named_by_recovery_or_when_it_is_read_and_never_trained_on(healthy, what):
    tree, states = healthy
    noticed = Counter()
    for path in chunks_of_newest(tree):
        directory, name = at(tree, path)
        if what == "another block's":
            others = [other for other in directory if other not in (name, "zarr.json")]
            contents = [directory[other] for other in others]
        elif what == "an older version":
            generations = [g for g in tree[ROWS] if g < path.split("/")[1]]
            columns = [tree[ROWS][g].get(path.split("/")[2], {}) for g in generations]
            contents = [column[name] for column in columns if name in column]
        else:
            contents = [ANY_FILE[what](directory[name])]
        contents = [content for content in contents if content != directory[name]]
        for content in contents[:1]:
            broken = damaged(tree, path, lambda _, content=content: content)
            if what == "a directory":
                named = lambda line, path=path: named_in(line, path) or path in line  # noqa: E731
            else:
                named = lambda line, path=path: named_in(line, path)  # noqa: E731
            noticed[look_at_damage(broken, states, named)] += 1
    assert noticed["recovery"] > 0
    if what in ("cut short", "empty", "missing", "a directory"):
        assert noticed.keys() == {"recovery", "the look"}
    elif what != "an older version":
        assert noticed["training"] > 0


def test_blocks_that_are_exchanged_are_both_noticed(healthy):
    tree, _ = healthy
    exchanged = 0
    for path in chunks_of_newest(tree):
        directory, name = at(tree, path)
        other = next(
            (o for o in sorted(directory) if o not in (name, "zarr.json") and directory[o] != directory[name]), None
        )
        if other is None:
            continue
        broken = dict_copy(tree)
        inside, _ = at(broken, path)
        inside[name], inside[other] = inside[other], inside[name]
        (newest, _before) = kept_of(broken)
        other_path = path.rpartition("/")[0] + "/" + other
        lines = manifest.problems_of(newest, every_block=True)
        for changed in {path, other_path} & set(named_files(newest)):
            assert any(named_in(line, changed) and "another block" in line for line in lines)
        exchanged += 1
    assert exchanged > 5


@pytest.mark.parametrize("what", ANY_FILE)
def test_a_damaged_file_of_a_checkpoint_is_named_and_the_one_before_goes_on(healthy, what):
    tree, states = healthy
    newest, before = kept_of(tree)
    own = sorted(set(newest.body.files) - set(before.body.files))
    assert {path.rpartition("/")[2].partition(".")[0].partition("-")[0] for path in own} == {
        "trunk", "momentum", "active", "log", "blocks",
    }  # fmt: skip
    for path in own:
        broken = damaged(tree, path, ANY_FILE[what])
        name = path.rpartition("/")[2]
        assert look_at_damage(broken, states, lambda line, name=name: name in line) == "recovery"


def other_format(content):
    body = {**json.loads(content)["body"], "format": 99}
    return json.dumps({"sha256": manifest._digest(body), "body": body}).encode()


BAD_MANIFESTS = {
    **{what: change for what, change in ANY_FILE.items() if what != "missing"},
    **{f"bit {bit} of a thousand flipped": None for bit in range(0, 1000, 50)},
    "no text": lambda _: b"\xff\xfe\x00",
    "no object": lambda _: b"[1, 2]",
    "null": lambda _: b"null",
    "of another format": other_format,
}


@pytest.mark.parametrize("what", BAD_MANIFESTS)
def test_a_bad_manifest_is_named_and_the_checkpoint_before_goes_on(healthy, what):
    tree, states = healthy
    number = kept_of(tree)[0].number
    change = BAD_MANIFESTS[what]
    if change is None:
        share = int(what.split()[1]) / 1000
        change = lambda content: flipped(content, int(share * 8 * len(content)))  # noqa: E731
    broken = damaged(tree, manifest.path_of(number), change)

    def named(line):
        return f"number {number}" in line or (what == "of another format" and "format 99 instead of" in line)

    assert look_at_damage(broken, states, named) == "recovery"


def test_a_bad_manifest_keeps_its_number_and_so_does_one_that_is_half_written(healthy):
    tree, states = healthy
    number = kept_of(tree)[0].number
    broken = damaged(tree, manifest.path_of(number), some_bit)
    half_written = manifest.path_of(number + 1) + TEMPORARY
    directory, name = at(broken, half_written)
    directory[name] = b"{"
    training = Training(CASE, VolatileFiles(broken))
    assert len(training.complaints) == 1
    assert training.finish(EVERY) == states[CASE.steps]
    assert training.checkpoints.newest.number > number + 1


def test_what_a_damaged_checkpoint_lacks_does_not_stop_the_run_that_removes_it(healthy):
    tree, states = healthy
    newest = kept_of(tree)[0]
    resident = {block for active in newest.active() for block in active["resident"].tolist()}
    chunk = next(
        path for path in chunks_of_newest(tree) if shapes.chunk_block("/".join(path.split("/")[2:])) in resident
    )
    for path in (chunk, f"{newest.name}/trunk.safetensors"):
        files = VolatileFiles(damaged(tree, path, lambda _: None))
        assert Training(CASE, files).finish(EVERY) == states[CASE.steps]
        tried = 0
        for k, platter in files.platters():
            # Killed at any moment while the checkpoint that replaces it is made and the damaged one is removed.
            if k > len(files.journal) - 60:
                again = Training(CASE, platter.after_kill())
                assert again.state() == states[again.first_step]
                assert again.finish(3) == states[CASE.steps]
                assert Training(CASE, again.files).complaints == []
                tried += 1
        assert tried == 60


def test_the_name_of_the_checkpoints_directory_is_durable_too(tmp_path, monkeypatch):
    synced = set()
    monkeypatch.setattr(os, "fsync", lambda handle: synced.add(os.fstat(handle).st_ino))
    files = DiskFiles(tmp_path / "checkpoints")
    files.make_directory("rows")
    files.sync_directory("rows")
    assert synced == {(files.root / "rows").stat().st_ino}
    files.sync_directory("")
    assert synced >= {files.root.stat().st_ino, tmp_path.stat().st_ino}
