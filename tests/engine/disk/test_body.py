"""A body says the same before and after it had types; and what a run without rows, or with shared components, has in its manifest."""

import copy
import hashlib
import json
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save
from safetensors.torch import save as torch_save

from engine.disk import manifest, shapes
from engine.disk.body import FORMAT, Body, Part, RunState, Table, Written
from engine.disk.files import DiskFiles
from engine.disk.manifest_body import check_body, check_run_state
from engine.jobs import row_table, store_jobs
from engine.ranks.lanes import Lanes
from engine.rows.damaged import Damaged
from tests.engine.disk.manifests import GOLDEN
from tests.engine.disk_runs import UnsyncedFiles

STATE = {
    "config": {"seed": 0, "data": {"root": None}},
    "source": "glyphs 1",
    "segments": [[26, 0], [3, 7]],
    "kernels": {"sampled_softmax": "cpp"},
    "totals": {"images": 68, "seconds": 1.5},
    "loss_scale": None,
    "unreadable": [[3, 170], [4, -1]],
    "window_reads": [12, 1],
}


def golden(name, number):
    return json.loads((GOLDEN / name / manifest.path_of(number)).read_text())["body"]


@pytest.mark.parametrize("number", [1, 2])
def test_a_manifest_of_format_3_is_written_again_byte_for_byte(number):
    text = (GOLDEN / "format-3" / manifest.path_of(number)).read_text()
    content = json.loads(text)
    assert json.dumps({**content, "body": Body.of(content["body"]).json()}, indent=1) == text


@pytest.mark.parametrize("scale", [None, [65536.0, 12]])
def test_what_a_run_keeps_is_written_in_the_order_that_it_had_byte_for_byte(scale):
    said = {**golden("format-3", 2), **STATE, "loss_scale": scale}
    check_body(said, 2)
    body = Body.of(said)
    assert json.dumps(body.json()) == json.dumps(said)
    assert (body.state.loss_scale, body.state.totals["images"]) == (scale, 68)
    assert Body.of(body.json()) == body
    check_run_state(body)


@pytest.mark.parametrize("name", ["format-3"])
@pytest.mark.parametrize("number", [1, 2])
def test_a_checkpoint_of_an_earlier_version_says_the_same_after_a_round_trip(name, number):
    said = golden(name, number)
    assert Body.of(said) == manifest.read(DiskFiles(GOLDEN / name), number).body
    assert manifest._digest(Body.of(said).json()) == manifest._digest(said)


KEYS = st.sampled_from(["extra", "state", "rows2", "x", "", "\ud800", "name", "shared", "rank", "full", "format "])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=3), below, max_size=3),
    max_leaves=4,
)


def objects(value):
    if isinstance(value, dict):
        yield value
    for below in value.values() if isinstance(value, dict) else value if isinstance(value, list) else []:
        yield from objects(below)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_whatever_the_check_accepts_says_the_same_after_a_round_trip(data):
    said = data.draw(st.sampled_from([golden("format-3", 1), golden("format-3", 2), without_rows()]))
    chosen = data.draw(st.lists(st.sampled_from(sorted(STATE)), unique=True))
    said |= {key: data.draw(st.just(STATE[key]) | VALUES) for key in chosen}
    said = copy.deepcopy(said)  # the state is everybody's
    if data.draw(st.booleans()):
        for kept in (kept for part in said["parts"] for kept in part.get("generations", {}).values()):
            kept.pop("shared")
    for _ in range(data.draw(st.integers(0, 4))):
        data.draw(st.sampled_from(list(objects(said))))[data.draw(KEYS)] = data.draw(VALUES)
    said = json.loads(json.dumps(said))
    try:
        check_body(said, said["number"])
    except Damaged:
        assume(False)
    body = Body.of(said)
    assert json.dumps(body.json(), sort_keys=True) == json.dumps(said, sort_keys=True)
    with suppress(Damaged):  # and nothing else
        check_run_state(body)


# Without rows, and with shared components

DIRECTORY = "step-000000004"
CONTENTS = {
    "trunk": torch_save({"weight": torch.arange(6.0)}),
    "momentum": torch_save({"weight": torch.ones(6)}),
    "log-full": save({"loss": np.array([4.0, 3.0, np.nan, 2.0])}),
    "shared-queue": torch_save({"queue": torch.arange(8.0).reshape(4, 2), "next": torch.tensor(3)}),
    "shared-ema_2": torch_save({"weight": torch.zeros(6)}),
}


def contents_of(names=CONTENTS):
    return {f"{DIRECTORY}/{name}.safetensors": CONTENTS[name] for name in names}


def body_without_rows(contents=None, ranks=2, shared=("queue", "ema_2"), state=None):
    contents = contents_of() if contents is None else contents
    files = {path: hashlib.sha256(content).hexdigest() for path, content in contents.items()}
    first = Written(Part(0, ranks), files, {path: len(content) for path, content in contents.items()}, 1)
    written = [first, *(Written(Part(rank, ranks), {}, {}, 1) for rank in range(1, ranks))]
    log = Table(f"{DIRECTORY}/log-full.safetensors", None, 4, 0)
    return Body.of_ranks(written, 1, 4, DIRECTORY, None, log, RunState.of(STATE if state is None else state), shared)


def without_rows():
    return copy.deepcopy(body_without_rows().json())


@pytest.fixture
def root(tmp_path):
    """A directory with one checkpoint of a run without rows, of two ranks."""
    files = UnsyncedFiles(tmp_path / "checkpoints")
    (tmp_path / "checkpoints" / DIRECTORY).mkdir(parents=True)
    (tmp_path / "checkpoints" / manifest.MANIFESTS).mkdir()
    for path, content in contents_of().items():
        (tmp_path / "checkpoints" / path).write_bytes(content)
    manifest.publish(files, body_without_rows())
    return tmp_path / "checkpoints"


def put(root, said):
    content = {"sha256": manifest._digest(said), "body": said}
    (root / manifest.path_of(1)).write_text(json.dumps(content))


def test_without_rows_the_json_has_null_for_them_and_of_a_part_its_rank_alone(root):
    said = json.loads((root / manifest.path_of(1)).read_text())["body"]
    assert (said["format"], said["rows"], said["shared"]) == (FORMAT, None, ["queue", "ema_2"])
    assert said["parts"] == [{"rank": 0, "ranks": 2}, {"rank": 1, "ranks": 2}]
    assert [*said][:11] == [*[*golden("format-3", 1)][:10], "shared"]
    assert {key: said[key] for key in STATE} == STATE


def test_where_nothing_is_shared_the_json_has_no_key_for_it():
    assert "shared" not in body_without_rows(contents_of(["trunk", "momentum", "log-full"]), shared=()).json()


def test_without_rows_a_checkpoint_is_whole_and_gives_nothing_for_them(root):
    (kept,), complaints = manifest.recover(DiskFiles(root))
    assert not complaints
    assert kept.active() == [] and kept.generations() == {} and kept.entries(kept.store()) == {}
    assert not manifest.problems_of(kept, every_block=True) and not manifest.problems_of(kept, every_block=False)
    assert kept.log().keys() == {"loss"}
    np.testing.assert_array_equal(kept.log()["loss"], [4.0, 3.0, np.nan, 2.0])
    for rank in range(2):
        lanes = Lanes(2, rank, 2)
        manifest.check(kept, lanes)
        manifest.inspect_checkpoint(kept, is_newest=False, lanes=lanes)
        assert kept.parts(lanes) == [Part(rank, 2)]
        assert kept.files_of(lanes) == (list(contents_of()) if rank == 0 else [])
    check_run_state(kept.body)


def test_a_shared_component_is_read_by_its_name_and_damage_of_it_is_named(root):
    kept = manifest.read(DiskFiles(root), 1)
    assert kept.tensors("shared-queue")["queue"].tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0], [6.0, 7.0]]
    path = root / shapes.shared_path(DIRECTORY, "queue")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(Damaged, match=r"^shared-queue.safetensors does not match its checksum$"):
        manifest.check(kept)
    manifest.check(kept, Lanes(2, 1, 2))  # it is rank 0's to read
    path.unlink()
    with pytest.raises(Damaged, match=r"shared-queue.safetensors is missing"):
        manifest.check(kept)


def test_verify_scrub_and_repair_look_after_a_run_without_rows(root, capsys):
    left = root / "step-000000005" / "shared-queue.safetensors"
    left.parent.mkdir()
    left.write_bytes(b"of a run that was killed")
    files = UnsyncedFiles(root)
    assert store_jobs.verify(files, None) == 0
    assert "0 blocks, 5 files" in capsys.readouterr().out
    assert store_jobs.scrub(files) == 0
    assert not left.exists() and not manifest.problems_of(manifest.read(files, 1), every_block=True)
    assert store_jobs.repair(files) == 0
    (root / shapes.shared_path(DIRECTORY, "ema_2")).unlink()
    assert store_jobs.verify(files, None) == 1


def test_jobs_that_look_at_rows_refuse_a_run_without_them(root, tmp_path):
    kept = manifest.read(DiskFiles(root), 1)
    with pytest.raises(ValueError, match="the method of this run has no rows; "):
        store_jobs.inspect(kept, tmp_path / "store.png")
    with pytest.raises(ValueError, match="the method of this run has no rows; "):
        row_table.rows_of(None, kept, None)
    assert not (tmp_path / "store.png").exists()


def named(said, path, content=b"x"):
    said["files"][path], said["sizes"][path] = hashlib.sha256(content).hexdigest(), len(content)


def unnamed(said, path):
    del said["files"][path], said["sizes"][path]


OF_ANOTHER = golden("format-3", 1)["parts"][0]
HOSTILE = {
    "no word of rows": lambda said: said.pop("rows"),
    "false rows": lambda said: said.update(rows=False),
    "rows of nothing": lambda said: said.update(rows={}),
    "rows, and no part that has some": lambda said: said.update(rows=golden("format-3", 1)["rows"]),
    "no parts": lambda said: said.update(parts=[]),
    "a part of another number": lambda said: said["parts"][0].update(rank=1),
    **{
        f"{key} without rows": lambda said, key=key: said["parts"][1].update({key: OF_ANOTHER[key]})
        for key in ("active", "blocks", "stored_blocks")
    },
    "active null": lambda said: said["parts"][1].update(active=None),
    "a file of active rows": lambda said: named(said, f"{DIRECTORY}/active-0.safetensors"),
    "shared null": lambda said: said.update(shared=None),
    "nothing shared": lambda said: said.update(shared=[]),
    "shared in words": lambda said: said.update(shared="queue"),
    "shared twice": lambda said: said["shared"].append("queue"),
    "a shared file that is not named": lambda said: unnamed(said, shapes.shared_path(DIRECTORY, "queue")),
    "a shared file without a name": lambda said: said["shared"].remove("queue"),
    "the shared file of another step": lambda said: (
        unnamed(said, shapes.shared_path(DIRECTORY, "queue")),
        named(said, shapes.shared_path("step-000000003", "queue")),
    ),
    "shared files without the key": lambda said: said.pop("shared"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_no_run_without_rows_says_is_refused_in_a_line(root, what):
    said = without_rows()
    HOSTILE[what](said)
    put(root, said)
    with pytest.raises(Damaged) as refused:
        manifest.read(DiskFiles(root), 1)
    assert str(refused.value).isprintable() and len(str(refused.value)) < 300


NAMES = [
    "",
    "Queue",
    "2queue",
    "_q",
    "a-b",
    "a/b",
    "../x",
    "q\n",
    "q" * 33,
    "é",
    "a.b",
    "q\0",
    "\ud800",
    7,
    None,
    True,
    ["q"],
    {},
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_shared_name_that_is_no_file_s_is_refused_in_a_line(root, name):
    said = without_rows()
    said["shared"].append(name)
    if isinstance(name, str):
        named(said, shapes.shared_path(DIRECTORY, name))
        assert not shapes.is_file(shapes.shared_path(DIRECTORY, name))
    put(root, said)
    with pytest.raises(Damaged) as refused:
        manifest.read(DiskFiles(root), 1)
    assert str(refused.value).isprintable() and len(str(refused.value)) < 300


@pytest.mark.parametrize("name", ["q", "queue", "ema_2", "q" * 32])
def test_the_file_of_a_shared_component_is_the_engine_s(name):
    assert shapes.is_shared_name(name)
    path = shapes.shared_path(DIRECTORY, name)
    assert shapes.is_step_file(path) and shapes.is_file(path) and shapes.is_file(f"{path}.part")


def test_a_run_with_rows_may_share_components_too(tmp_path):
    said = golden("format-3", 2)
    said["shared"] = ["queue"]
    with pytest.raises(Damaged, match="says nothing of step-000000017/shared-queue"):
        check_body(said, 2)
    named(said, "step-000000017/shared-queue.safetensors")
    check_body(said, 2)
    assert Body.of(said).shared == ("queue",) and Body.of(said).json() == said


@pytest.mark.parametrize(
    "arrays",
    [
        {"eta": np.zeros(3), "loss": np.zeros(4)},
        {"eta": np.zeros(4)},
        {"loss": np.zeros(3)},
        {"loss": np.zeros(4, np.float32)},
        {"loss": np.zeros((4, 1))},
        {"x": np.zeros(4)},
    ],
    ids=lambda arrays: " ".join(f"{name} {array.dtype}{array.shape}" for name, array in arrays.items()),
)
def test_a_log_without_losses_or_of_other_arrays_is_damage_without_rows(root, arrays):
    content = save(arrays)
    path = f"{DIRECTORY}/log-full.safetensors"
    (root / path).write_bytes(content)
    said = without_rows()
    named(said, path, content)
    put(root, said)
    with pytest.raises(Damaged):
        manifest.check(manifest.read(DiskFiles(root), 1))


@pytest.mark.parametrize("scale", [0, "", False, {}, [1.0], [1.0, True], "12"])
def test_a_loss_scale_is_null_or_a_list_of_numbers(scale):
    with pytest.raises(Damaged, match="loss_scale"):
        check_body({**without_rows(), "loss_scale": scale}, 1)


@pytest.mark.parametrize("what", [2, 5, "3", None, True, 3.0])
def test_a_body_of_another_format_is_refused(what):
    with pytest.raises(Damaged, match="format"):
        check_body({**without_rows(), "format": what}, 1)
