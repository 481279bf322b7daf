"""A manifest with its checksum made right may say anything: what the engine does not write is Damaged, and touches nothing."""

import copy
import hashlib
import json
import random
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from engine.disk import manifest
from engine.disk.files import DiskFiles
from engine.disk.manifest_body import check_body
from engine.disk.sweep import remove_run
from engine.jobs import store_jobs
from engine.rows.damaged import Damaged
from tests.engine.disk.test_links import SHORT, SHORT_SIZES, go_on, train, tree
from tests.engine.disk.test_power_cuts import SmallCase
from tests.engine.disk_runs import UnsyncedFiles
from tests.engine.faulty_files import Training

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A directory with checkpoints of steps 7 and 14, each a delta of tables that an earlier one has."""
    root = tmp_path_factory.mktemp("template") / "checkpoints"
    train(UnsyncedFiles(root), 15)
    return root


@pytest.fixture
def root(template, tmp_path):
    """A copy, beside a directory of the user's."""
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "trunk.safetensors").write_text("the user's")
    return shutil.copytree(template, tmp_path / "checkpoints")


def body_of(root, number=2):
    return json.loads((root / manifest.path_of(number)).read_text())["body"]


def put(root, body, number=2):
    """Write it with a checksum that is right."""
    content = {"sha256": manifest._digest(body), "body": body}
    (root / manifest.path_of(number)).write_text(json.dumps(content))


PATHS = [
    "../../victim", "../victim/trunk.safetensors", "/etc/passwd", "", ".", "..", "a/../b", "step-000000014/../../victim/x",
    "step-000000014/trunk.safetensors\0", "step-000000014//trunk.safetensors", "./step-000000014/trunk.safetensors",
    "step-000000014", "step-best/trunk.safetensors", "step-000000014/notes", "rows/000001-abcdef/weight/c.0.0",
    "manifests/000000001.json", "step-000000014/trunk.safetensors\n", "step-٠٠٠٠٠٠٠١٤/trunk.safetensors", "\ud800", "x" * 10**5,
    None, 7, [], {}, True,
]  # fmt: skip
NUMBERS = [-1, 2**63, 10**400, 1.0, 0.5, True, None, "7", [], {}, float("nan"), float("inf")]


def at_path(path):
    def change(body, value):
        *above, last = path
        for key in above:
            body = body[key]
        body[last] = value

    return change


def renamed(where):
    """The first key of an object becomes the value."""

    def change(body, value):
        names = body[where]
        first = next(iter(names))
        names[value if isinstance(value, str) else json.dumps(value)] = names.pop(first)

    return change


TEXTS = {
    "directory": at_path(["directory"]),
    "active": at_path(["parts", 0, "active"]),
    "the map": at_path(["parts", 0, "blocks", "full"]),
    "the log": at_path(["log", "full"]),
    "a file": renamed("files"),
    "a size's file": renamed("sizes"),
    "dtype": at_path(["rows", "dtype"]),
    "a file's hash": lambda body, value: body["files"].update({next(iter(body["files"])): value}),
    "what changed of the map": lambda body, value: body["parts"][0]["blocks"].update(delta=value or "x"),
    "what changed of the log": lambda body, value: body["log"].update(delta=value or "x"),
}
SIZES = {
    "number": at_path(["number"]),
    "step": at_path(["step"]),
    "next generation": at_path(["next_generation"]),
    "block": at_path(["rows", "block"]),
    "dim": at_path(["rows", "dim"]),
    "positions": at_path(["rows", "positions"]),
    "rank": at_path(["parts", 0, "rank"]),
    "ranks": at_path(["parts", 0, "ranks"]),
    "stored blocks": at_path(["parts", 0, "stored_blocks"]),
    "rows of the log": at_path(["log", "rows"]),
    "since": at_path(["parts", 0, "blocks", "since"]),
    "a size": lambda body, value: body["sizes"].update({next(iter(body["sizes"])): value}),
    "a number where an object is": lambda body, value: body.update(rows=value if value != {} else 1),
    "parts": lambda body, value: body.update(parts=value),
}


@pytest.mark.parametrize("where", TEXTS)
def test_a_text_that_the_engine_does_not_write_is_refused_in_a_line(root, where):
    for value in PATHS:
        if where == "directory" and value == "step-000000014":
            continue  # its own
        body = body_of(root)
        TEXTS[where](body, value)
        put(root, body)
        with pytest.raises(Damaged) as refused:
            manifest.read(DiskFiles(root), 2)
        line = str(refused.value)
        assert line.isprintable() and len(line) < 300, (value, line)


@pytest.mark.parametrize("where", SIZES)
def test_a_number_that_no_run_has_is_refused_in_a_line(root, where):
    for value in NUMBERS:
        body = body_of(root)
        SIZES[where](body, value)
        put(root, body)
        with pytest.raises(Damaged) as refused:
            manifest.read(DiskFiles(root), 2)
        assert str(refused.value).isprintable() and len(str(refused.value)) < 300, value


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("path", ["../victim/trunk.safetensors", "../victim", "/victim"])
def test_what_a_manifest_names_outside_is_not_removed_with_its_checkpoint(root, number, path):
    victim = root.parent / "victim"
    path = str(victim / "trunk.safetensors") if path == "/victim" else path
    body = body_of(root, number)
    digest = hashlib.sha256((victim / "trunk.safetensors").read_bytes()).hexdigest()
    body["files"][path], body["sizes"][path] = digest, 10
    put(root, body, number)
    before = tree(victim)
    with suppress(Damaged, OSError):
        go_on(root)
    assert tree(victim) == before


def test_a_set_aside_manifest_is_not_trusted_either(root):
    body = body_of(root)
    body["files"]["../victim/trunk.safetensors"] = "0" * 64
    put(root, body)
    (root / manifest.path_of(2)).rename(root / "manifests" / "000000002.damaged")
    before = tree(root.parent)
    assert store_jobs.scrub(DiskFiles(root)) == 1  # what it names is not known, so nothing goes
    assert tree(root.parent) == before


def test_a_manifest_under_another_s_name_is_refused(root):
    shutil.copy(root / manifest.path_of(2), root / manifest.path_of(5))
    with pytest.raises(Damaged, match="has the number 2 and the name of number 5"):
        manifest.read(DiskFiles(root), 5)


def test_texts_that_no_parser_likes_are_damage(root):
    for content in (b"[" * 10**5, b'{"body": ' + b"9" * 5000 + b"}", b"\xff\xfe{}", b"", b"null", b'"\\ud800"'):
        (root / manifest.path_of(2)).write_bytes(content)
        with pytest.raises(Damaged) as refused:
            manifest.read(DiskFiles(root), 2)
        assert str(refused.value).isprintable() and len(str(refused.value)) < 200


def test_what_the_engine_writes_is_what_it_reads(tmp_path):
    # publish() asserts it of each checkpoint; here of one that it would not write.
    files = UnsyncedFiles(tmp_path)
    train(files, 8)
    body = replace(manifest.read(files, 1).body, number=2, step=-1)
    with pytest.raises(AssertionError, match="would not be read again"):
        manifest.publish(files, body)
    assert manifest.numbers(files) == [1]


JUNK = st.one_of(
    st.sampled_from([p for p in PATHS if not isinstance(p, str) or len(p) < 1000]),
    st.sampled_from(NUMBERS),
    st.integers(-3, 40),
    st.sampled_from([2**31, 2**40, 2**62]),
    st.text(max_size=8),
    st.recursive(st.none() | st.booleans() | st.integers(), lambda below: st.lists(below, max_size=3), max_leaves=4),
)


def nodes(value, path=()):
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from nodes(value[key], (*path, key))


def mutated(body, data):
    """The body with something else, something less or something more in a random place."""
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from([p for p in nodes(body) if p]))
        *above, last = path
        parent = body
        for key in above:
            parent = parent[key]
        how = data.draw(st.sampled_from(["replace", "remove", "rename", "other"]))
        if how == "remove":
            del parent[last]
        elif how == "rename" and isinstance(parent, dict):
            value = data.draw(JUNK)
            parent[value if isinstance(value, str) else repr(value)] = parent.pop(last)
        elif how == "other":  # a value of the same manifest in another place
            other = body
            for key in data.draw(st.sampled_from(list(nodes(body)))):
                other = other[key]
            parent[last] = copy.deepcopy(other)
        else:
            parent[last] = data.draw(JUNK)
    return body


def use(root):
    """All that reads or removes; nothing but Damaged may come of it, and what is not printable of no line."""
    files = UnsyncedFiles(root)
    with suppress(Damaged):
        kept, complaints = manifest.recover(files)
        assert all(line.isprintable() for line in complaints)
        for one in kept:
            manifest.problems_of(one, every_block=True)
            store_jobs.inspect(one, root.parent / "store.png")
    manifest.steps(files)
    with suppress(Damaged):
        store_jobs.scrub(files)
    with suppress(Damaged):
        go_on(root)
    remove_run(files)


@pytest.mark.parametrize("name", ["format 3 of two ranks", "format 4"])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_whatever_a_manifest_says_is_damage_or_harmless(template, tmp_path_factory, monkeypatch_draw, name, data):
    base = tmp_path_factory.mktemp("fuzz")
    golden = {"format 3 of two ranks": "format-3"}.get(name)
    root = shutil.copytree(GOLDEN / golden if golden else template, base / "checkpoints")
    (root / "digest.txt").unlink(missing_ok=True)
    (base / "victim").mkdir()
    (base / "victim" / "trunk.safetensors").write_text("the user's")
    before = tree(base / "victim")
    number = data.draw(st.sampled_from([1, 2]))
    put(root, mutated(body_of(root, number), data), number)
    if golden:
        for look in (lambda: manifest.recover(DiskFiles(root)), lambda: store_jobs.verify(DiskFiles(root), None)):
            with suppress(Damaged):
                look()
    else:
        use(root)
    assert tree(base / "victim") == before
    assert {path.name for path in base.iterdir()} <= {"checkpoints", "victim", "store.png", "config"}


@pytest.fixture(scope="module")
def monkeypatch_draw():
    """Without the drawing of pictures, which takes longer than all the rest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_jobs, "draw", lambda *_: None)
        yield


# The arrays of a checkpoint's files


def put_arrays(root, path, content, number=2):
    """Write a file of a checkpoint, and what its manifest says of it."""
    (root / path).write_bytes(content)
    body = body_of(root, number)
    body["files"][path], body["sizes"][path] = hashlib.sha256(content).hexdigest(), len(content)
    put(root, body, number)


def own_files(root, kind):
    body = body_of(root)
    part = body["parts"][0]
    tables = {"blocks": part["blocks"], "log": body["log"]}
    return part["active"] if kind == "active" else tables[kind]["delta"] or tables[kind]["full"]


ARRAYS = {
    "a position past the end": ("active", lambda a: a["position"].__setitem__(0, 10**12)),
    "a position twice": ("active", lambda a: a["position"].__setitem__(slice(0, 2), a["position"][2])),
    "a negative position": ("active", lambda a: a["position"].__setitem__(0, -7)),
    "a position of a block that is not resident": ("active", lambda a: a.update(resident=a["resident"][:0])),
    "a resident block past the end": ("active", lambda a: a["resident"].__setitem__(0, 10**9)),
    "a negative resident block": ("active", lambda a: a["resident"].__setitem__(0, -1)),
    "rows of another type": ("active", lambda a: a.update(w=a["w"].astype(np.float64))),
    "rows of another width": ("active", lambda a: a.update(w=a["w"][:, :1].copy(), u=a["u"][:, :1].copy())),
    "fewer rows than positions": ("active", lambda a: a.update(w=a["w"][:1].copy())),
    "no counters": ("active", lambda a: a.pop("counters")),
    "a counter below 0": ("active", lambda a: a["counters"].__setitem__(0, -1)),
    "positions as floats": ("active", lambda a: a.update(position=a["position"].astype(np.float64))),
    "positions in two axes": ("active", lambda a: a.update(position=a["position"].reshape(1, -1))),
    "a block past the end": ("blocks", lambda a: a["block"].__setitem__(0, 10**15)),
    "a negative block": ("blocks", lambda a: a["block"].__setitem__(0, -1)),
    "a block twice": ("blocks", lambda a: a["block"].__setitem__(0, a["block"][1])),
    "an unknown generation": ("blocks", lambda a: a["generation"].__setitem__(0, 10**9)),
    "two checksums a block": ("blocks", lambda a: a.update(checks=a["checks"][:, :2].copy())),
    "checksums of another type": ("blocks", lambda a: a.update(checks=a["checks"].astype(np.int64))),
    "no generations": ("blocks", lambda a: a.pop("generation")),
    "blocks of a generation that is not there": ("blocks", lambda a: a["number"].__setitem__(0, 10**9)),
    "the generation 0": ("blocks", lambda a: a["number"].__setitem__(0, 0)),
    "a generation twice": ("blocks", lambda a: a["number"].__setitem__(0, a["number"][-1])),
    "a suffix of seven digits": ("blocks", lambda a: a["suffix"].__setitem__(0, 2**24)),
    "a kind that no generation has": ("blocks", lambda a: a["kind"].__setitem__(0, 4)),
    "generations without suffixes": ("blocks", lambda a: a.update(suffix=a["suffix"][:0])),
    "more arrays": ("blocks", lambda a: a.update(x=a["block"])),
    "fewer steps": ("log", lambda a: a.update(eta=a["eta"][1:].copy(), loss=a["loss"][1:].copy())),
    "losses and rates of other lengths": ("log", lambda a: a.update(loss=a["loss"][1:].copy())),
    "rates as integers": ("log", lambda a: a.update(eta=a["eta"].astype(np.int64))),
}


@pytest.mark.parametrize("what", ARRAYS)
def test_arrays_that_no_checkpoint_has_are_damage_and_the_one_before_goes_on(root, what):
    kind, change = ARRAYS[what]
    path = own_files(root, kind)
    arrays = load((root / path).read_bytes())
    change(arrays)
    put_arrays(root, path, save(arrays))
    training = Training(SHORT, UnsyncedFiles(root))
    assert len(training.complaints) == 1 and training.complaints[0].isprintable()
    assert training.first_step == 7


@pytest.mark.parametrize("kind", ["active", "blocks", "log"])
def test_a_file_of_another_kind_with_the_right_checksum_is_damage(root, kind):
    for content in (
        b"",
        b"\xff" * 100,
        (2**62).to_bytes(8, "little") + b"{}",
        b"\x02" + bytes(7) + b"{}",
        b"PK\x03\x04",
    ):
        put_arrays(root, own_files(root, kind), content)
        training = Training(SHORT, UnsyncedFiles(root))
        assert training.first_step == 7 and len(training.complaints) == 1


@pytest.mark.parametrize("name", ["trunk", "momentum"])
def test_a_trunk_that_is_none_is_damage(root, name):
    for content in (b"", b"\xff" * 100, save({"bias of another": np.zeros(3)})):
        put_arrays(root, f"step-000000014/{name}.safetensors", content)
        kept = manifest.read(DiskFiles(root), 2)
        if name == "momentum" or len(content) <= 100:
            with pytest.raises(Damaged):
                Training(SHORT, UnsyncedFiles(root))
        with suppress(Damaged):
            kept.tensors(name)


def test_more_active_rows_than_slots_are_damage(root):
    # As when the manifest of one run lies in the directory of another.
    case = SmallCase(**{**SHORT_SIZES, "active": 8})
    with pytest.raises(Damaged, match="active rows of one lane, and this run at most"):
        Training(case, UnsyncedFiles(root))
    case = SmallCase(**{**SHORT_SIZES, "dim": 3})
    with pytest.raises(Damaged, match=r"block \d+ \(weight\) of generation .* has 100 bytes instead of 76"):
        Training(case, UnsyncedFiles(root))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), kind=st.sampled_from(["active", "blocks", "log"]))
def test_whatever_is_in_the_arrays_is_damage_or_harmless(template, tmp_path_factory, seed, kind):
    root = shutil.copytree(template, tmp_path_factory.mktemp("fuzz") / "checkpoints")
    chosen = random.Random(seed)
    path = own_files(root, kind)
    arrays = {name: array.copy() for name, array in load((root / path).read_bytes()).items()}
    name = chosen.choice(sorted(arrays))
    array = arrays[name]
    if chosen.random() < 0.6 and array.size and array.dtype.kind in "iu":
        top = np.iinfo(array.dtype)
        array.reshape(-1)[chosen.randrange(array.size)] = chosen.choice([0, 1, 5, 11, 12, 72, top.min, top.max])
    else:
        odd = [array[:0], array.reshape(-1), array[None], array.astype(chosen.choice(["f4", "f8", "?"]))]
        arrays[name] = np.ascontiguousarray(chosen.choice(odd))
    put_arrays(root, path, save(arrays))
    with suppress(Damaged):
        Training(SHORT, UnsyncedFiles(root)).close()
    kept = manifest.read(DiskFiles(root), 2)
    assert all(line.isprintable() for line in manifest.problems_of(kept, every_block=True))


def test_the_check_takes_what_every_format_has(template):
    for number in (1, 2):
        check_body(body_of(template, number), number)
        check_body(body_of(GOLDEN / "format-3", number), number)
