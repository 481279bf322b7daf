"""A manifest with its checksum made right may say anything: what the engine does not write is Damaged, and touches nothing."""

import copy
import hashlib
import json
import shutil
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.disk import manifest
from engine.disk.files import DiskFiles
from engine.disk.manifest_body import check_body
from engine.disk.sweep import remove_run
from engine.jobs import store_jobs
from engine.rows.damaged import Damaged
from tests.engine.disk.manifests import GOLDEN, NUMBERS, PATHS, body_of, put
from tests.engine.disk.small_runs import go_on, train
from tests.engine.disk_runs import UnsyncedFiles
from tests.trees import tree


@pytest.fixture
def root(root, tmp_path):
    """The copy, beside a directory of the user's."""
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "trunk.safetensors").write_text("the user's")
    return root


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


def test_the_check_takes_what_every_format_has(template):
    for number in (1, 2):
        check_body(body_of(template, number), number)
        check_body(body_of(GOLDEN / "format-3", number), number)
