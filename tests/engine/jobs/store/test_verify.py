"""Damage of every kind is found and named by store.verb=verify."""

import json
import shutil

import pytest

from engine.disk import manifest
from engine.disk.files import DiskFiles
from engine.disk.zarr_store import ROWS
from engine.jobs.store_jobs import repair, scrub, verify
from tests.engine.jobs.store.stores import (
    CASES,
    EARLIER,
    LATER,
    blocks_of,
    checkpoint_of,
    chunk,
    flip,
    new_block,
    saved,
    truncate,
    zero,
)
from tests.trees import contents


@pytest.mark.parametrize("name", CASES)
def test_whole_checkpoints_are_said_to_be_whole(tmp_path, capsys, name):
    case = CASES[name]
    steps = (case.steps // 2, case.steps)
    files = saved(case, tmp_path, stops=steps)
    assert verify(files, None) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    for line, step in zip(lines, reversed(steps), strict=True):
        stored = len(blocks_of(tmp_path, step))
        own = len(checkpoint_of(tmp_path, step).body.files)
        assert line.startswith(f"checkpoint step-{step:09d}: {stored} blocks, {own} files, ")
        assert line.endswith(" MiB: whole")
    assert verify(files, steps[0]) == 0
    assert capsys.readouterr().out.splitlines() == lines[1:]
    assert scrub(files) == 0
    assert "there was nothing to remove" in capsys.readouterr().out
    assert repair(files) == 0
    assert "nothing is to be repaired" in capsys.readouterr().out


@pytest.mark.parametrize("column", ["weight", "momentum", "last_step"])
@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (flip, "does not match its checksum"),
        (lambda path: flip(path, at=-1), "does not match its checksum"),
        (zero, "does not match its checksum"),
        (truncate, "bytes instead of"),
        (lambda path: path.unlink(), "is missing"),
    ],
    ids=["flipped bit", "flipped bit of zarr's checksum", "zeroed", "truncated", "missing"],
)
def test_a_damaged_block_is_named_by_block_column_and_generation(root, capsys, column, damage, complaint):
    block, _, generation = new_block(root)
    damage(chunk(root, generation, column, block))
    assert verify(DiskFiles(root), None) == 1
    out = capsys.readouterr().out
    assert f"step-{LATER:09d}: block {block} ({column}) of generation {generation} " in out
    assert complaint in out
    assert out.count("of generation") == 1
    assert f"checkpoint step-{EARLIER:09d}: {len(blocks_of(root, EARLIER))} blocks" in out
    assert "1 of 2 checkpoints is damaged; store.verb=repair" in out.splitlines()[-1]


def test_two_blocks_that_changed_places_are_both_named(root, capsys):
    block, _, generation = new_block(root)
    other = next(b for b, (name, _) in blocks_of(root, LATER).items() if name == generation and b != block)
    one, two = (chunk(root, generation, "weight", number) for number in (block, other))
    one_bytes, two_bytes = one.read_bytes(), two.read_bytes()
    one.write_bytes(two_bytes)
    two.write_bytes(one_bytes)
    assert verify(DiskFiles(root), None) == 1
    out = capsys.readouterr().out
    for number in (block, other):
        line = f"block {number} (weight) of generation {generation} holds another block, or an older version of it"
        assert f"checkpoint step-{LATER:09d}: {line}\n" in out
    assert out.count("of generation") == 2


def test_an_older_version_in_place_of_a_block_is_named(root, capsys):
    block, old, generation = new_block(root)
    for column in ("weight", "momentum", "last_step"):
        shutil.copyfile(chunk(root, old, column, block), chunk(root, generation, column, block))
    assert verify(DiskFiles(root), LATER) == 1
    line = f"block {block} (weight) of generation {generation} holds another block, or an older version of it"
    assert line in capsys.readouterr().out
    assert verify(DiskFiles(root), EARLIER) == 0


def test_every_damaged_block_and_file_is_named_in_one_go(root, capsys):
    later = blocks_of(root, LATER)
    for block, (generation, _) in later.items():
        flip(chunk(root, generation, "momentum", block))
    zero(root / f"step-{LATER:09d}" / "trunk.safetensors")
    assert verify(DiskFiles(root), LATER) == 1
    out = capsys.readouterr().out
    for block, (generation, _) in later.items():
        assert f"block {block} (momentum) of generation {generation} does not match" in out
    assert "trunk.safetensors does not match its checksum" in out


def test_a_damaged_block_that_two_checkpoints_share_is_named_for_both(root, capsys):
    earlier, later = blocks_of(root, EARLIER), blocks_of(root, LATER)
    block = next(block for block in later if earlier.get(block) == later[block])
    flip(chunk(root, later[block][0], "weight", block))
    assert verify(DiskFiles(root), None) == 1
    out = capsys.readouterr().out
    for step in (EARLIER, LATER):
        assert f"step-{step:09d}: block {block} (weight)" in out
    assert "2 of 2 checkpoints are damaged" in out


def test_a_block_that_checkpoints_share_is_read_once(root):
    read = []

    class Counting(DiskFiles):
        def read_into(self, path, parts):
            read.append(path)
            return super().read_into(path, parts)

    assert verify(Counting(root), None) == 0
    assert len(read) == len(set(read)) == len(list((root / ROWS).rglob("c.*")))


@pytest.mark.parametrize("name", ["zarr.json", "weight/zarr.json", "last_step/zarr.json"])
@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda path: path.unlink(), "has no "),
        (truncate, "is no zarr group"),
        (lambda path: path.write_text(""), "is no zarr group"),
    ],
    ids=["missing", "truncated", "empty"],
)
def test_a_generation_that_zarr_cannot_open_is_named_and_mended(root, capsys, name, damage, complaint):
    generation = new_block(root)[2]
    before = contents(root)
    damage(root / ROWS / generation / name)
    assert verify(DiskFiles(root), LATER) == 1
    assert f"generation {generation} {complaint}" in capsys.readouterr().out
    assert scrub(DiskFiles(root)) == 1
    assert repair(DiskFiles(root)) == 0
    assert f"generation {generation} {complaint}" in capsys.readouterr().out
    assert contents(root) == before
    assert verify(DiskFiles(root), None) == 0


def test_metadata_of_other_chunks_is_not_taken_for_the_generation_s_own(root, capsys):
    generation = new_block(root)[2]
    path = root / ROWS / generation / "weight" / "zarr.json"
    content = json.loads(path.read_text())
    content["chunk_grid"]["configuration"]["chunk_shape"][0] += 1
    path.write_text(json.dumps(content))
    assert verify(DiskFiles(root), None) == 1
    assert f"generation {generation} has metadata that is not its own" in capsys.readouterr().out


def test_a_manifest_that_cannot_be_read_is_named_and_leaves_the_others(root, capsys):
    (root / manifest.path_of(2)).write_text("{")
    assert verify(DiskFiles(root), None) == 1
    out = capsys.readouterr().out
    assert "checkpoint number 2: its manifest cannot be read" in out
    assert f"checkpoint step-{EARLIER:09d}" in out
    assert verify(DiskFiles(root), EARLIER) == 0


def test_a_step_that_is_not_there_is_refused_with_those_that_are(root):
    with pytest.raises(ValueError, match=rf"no checkpoint of step 7 \(there are: {EARLIER}, {LATER}\)"):
        verify(DiskFiles(root), 7)
    for job in (lambda files: verify(files, None), scrub, repair):
        with pytest.raises(ValueError, match="there is no checkpoint"):
            job(DiskFiles(root / "nowhere"))


def test_where_a_run_replaces_every_checkpoint_meanwhile_nothing_counts_as_verified(root, capsys, monkeypatch):
    real = manifest.problems_of

    def look_too_late(checkpoint, **how):
        (root / manifest.path_of(checkpoint.number)).unlink()
        shutil.rmtree(root / checkpoint.name)
        return real(checkpoint, **how)

    monkeypatch.setattr(manifest, "problems_of", look_too_late)
    assert verify(DiskFiles(root), None) == 1
    assert capsys.readouterr().out.startswith("nothing was verified: the run replaced every checkpoint meanwhile")


def test_a_step_that_may_be_that_of_a_damaged_manifest_is_not_said_to_be_missing(tmp_path, capsys):
    files = saved(CASES["float64"], tmp_path)
    path = max((tmp_path / "manifests").glob("*.json"))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"there is no checkpoint that can be read of step 7 \(there are: 30\)"):
        verify(files, 7)
    assert f"checkpoint number {int(path.stem)}: " in capsys.readouterr().out
