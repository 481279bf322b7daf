"""Files of a checkpoint with checksums made right may hold any arrays: what the engine does not write is Damaged, and harmless."""

import hashlib
import random
import shutil
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from engine.disk import manifest
from engine.disk.files import DiskFiles
from engine.rows.damaged import Damaged
from tests.engine.disk.manifests import body_of, put
from tests.engine.disk.small_runs import SHORT, SHORT_SIZES, SmallCase
from tests.engine.disk_runs import UnsyncedFiles
from tests.engine.small_training import Training


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
