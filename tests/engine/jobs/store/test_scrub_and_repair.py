"""Nothing that counts is removed, and a run goes on from what is whole."""

import errno

import pytest

from engine.disk import manifest
from engine.disk.files import DiskFiles
from engine.disk.zarr_store import ROWS
from engine.jobs.store_jobs import repair, scrub, verify
from tests.engine.disk_runs import DiskRun
from tests.engine.jobs.store.stores import (
    CASE,
    EARLIER,
    LATER,
    blocks_of,
    chunk,
    flip,
    new_block,
    saved,
)
from tests.trees import contents


def test_scrub_removes_what_no_checkpoint_names_and_nothing_else(root, capsys):
    before = contents(root)
    _, _, generation = new_block(root)
    strays = {
        f"rows/{generation}/weight/c.0.0.part": 5,
        f"rows/{generation}/last_step/c.999": 6,
        f"rows/{generation}/zarr.json.part": 7,
        "rows/000099-abcdef/weight/c.1.0": 8,
        f"step-{LATER:09d}/active.safetensors.part": 9,
        "step-000000060/trunk.safetensors": 10,
        "manifests/000000003.json.part": 11,
    }
    for path, size in strays.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(bytes(size))
    (root / "notes.txt").write_text("not ours")
    assert scrub(DiskFiles(root)) == 0
    out = capsys.readouterr().out
    assert contents(root) == before | {"notes.txt": b"not ours"}
    assert not (root / "rows" / "000099-abcdef").exists()
    assert not (root / "step-000000060").exists()
    assert f"removed rows/{generation}/weight/c.0.0.part: 5 bytes" in out
    assert "removed rows/000099-abcdef: 8 bytes" in out
    assert "removed step-000000060: 10 bytes" in out
    assert f"removed {sum(strays.values())} bytes in all" in out


def test_scrub_removes_nothing_where_something_is_damaged(root, capsys):
    block, _, generation = new_block(root)
    flip(chunk(root, generation, "weight", block))
    (root / "step-000000060").mkdir()
    (root / "step-000000060" / "trunk.safetensors.part").write_bytes(b"half")
    before = contents(root)
    assert scrub(DiskFiles(root)) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "nothing was removed"
    assert contents(root) == before


def test_repair_goes_back_and_the_run_continues_as_if_nothing_had_happened(root, capsys):
    whole = DiskRun(CASE, root.parent / "whole").train(CASE.steps).finish()
    block, _, generation = new_block(root)
    flip(chunk(root, generation, "weight", block))
    assert repair(DiskFiles(root)) == 0
    out = capsys.readouterr().out
    assert f"checkpoint step-{LATER:09d} is set aside as manifests/000000002.damaged: block {block} (weight)" in out
    assert f"goes on after step {EARLIER}" in out
    assert verify(DiskFiles(root), None) == 0  # a manifest that was set aside is none
    assert repair(DiskFiles(root)) == 0
    before = contents(root)
    assert scrub(DiskFiles(root)) == 0
    assert "manifests/000000002.damaged stays" in capsys.readouterr().out
    assert contents(root) == before

    again = DiskRun(CASE, root).looked()
    assert not again.complaints
    assert again.step == EARLIER
    assert not list(root.glob("manifests/*.damaged"))
    assert not (root / ROWS / generation).exists()
    again.train(LATER)
    again.save()
    assert again.finish().train(CASE.steps).digest() == whole.digest()
    again.close()
    whole.close()
    assert verify(DiskFiles(root), None) == 0


@pytest.mark.parametrize("is_readable", [True, False], ids=["damaged", "not read"])
def test_scrub_removes_nothing_while_it_is_not_known_what_was_set_aside(root, capsys, monkeypatch, is_readable):
    aside = "manifests/000000002.damaged"
    flip(root / manifest.path_of(2))
    assert repair(DiskFiles(root)) == 0
    before = contents(root)
    if not is_readable:
        flip(root / aside)
        real = DiskFiles.read

        def refuse(files, path):
            if path == aside:
                raise OSError(errno.EMFILE, "Too many open files")
            return real(files, path)

        monkeypatch.setattr(DiskFiles, "read", refuse)
        before = contents(root)
    assert scrub(DiskFiles(root)) == 1
    out = capsys.readouterr().out
    assert f"{aside} was set aside, and what it names is not known" in out
    assert out.splitlines()[-1] == "nothing was removed" and contents(root) == before
    (root / aside).unlink()
    assert scrub(DiskFiles(root)) == 0
    assert not (root / f"step-{LATER:09d}").exists()


def test_where_only_an_older_checkpoint_is_damaged_nothing_has_to_be_repaired(root, capsys):
    block, generation, _ = new_block(root)
    flip(chunk(root, generation, "weight", block))
    assert verify(DiskFiles(root), None) == 1
    assert "1 of 2 checkpoints is damaged; the newest is whole" in capsys.readouterr().out
    before = contents(root)
    assert repair(DiskFiles(root)) == 0
    assert f"nothing is to be repaired: the newest checkpoint, step-{LATER:09d}, is whole" in capsys.readouterr().out
    assert contents(root) == before


def test_what_repair_did_can_be_undone_until_the_run_goes_on(root):
    before = contents(root)
    path = root / f"step-{LATER:09d}" / "trunk.safetensors"
    flip(path)
    assert repair(DiskFiles(root)) == 0
    flip(path)
    (root / "manifests" / "000000002.damaged").rename(root / "manifests" / "000000002.json")
    assert contents(root) == before


def test_repair_passes_over_every_checkpoint_that_is_not_whole(tmp_path, capsys):
    files = saved(CASE, tmp_path, keep=4, stops=(20, 30, 40, 50))
    flip(tmp_path / manifest.path_of(4))
    flip(tmp_path / "step-000000040" / "momentum.safetensors")
    assert repair(files) == 0
    out = capsys.readouterr().out
    assert "checkpoint number 4 is set aside as manifests/000000004.damaged: its manifest" in out
    assert "checkpoint step-000000040 is set aside as manifests/000000003.damaged: momentum.safetensors" in out
    assert manifest.numbers(files) == [2, 1]
    run = DiskRun(CASE, tmp_path, keep=4)
    assert run.step == 30
    run.close()


def test_where_no_checkpoint_is_whole_repair_says_so_and_changes_nothing(root, capsys):
    earlier, later = blocks_of(root, EARLIER), blocks_of(root, LATER)
    shared = [block for block in later if earlier.get(block) == later[block]][:2]
    for block in shared:
        flip(chunk(root, later[block][0], "weight", block))
    before = contents(root)
    assert repair(DiskFiles(root)) == 1
    out = capsys.readouterr().out
    for block in shared:
        assert f"checkpoint step-{LATER:09d}: block {block} (weight) of generation {later[block][0]}" in out
    assert "no checkpoint is whole" in out
    assert contents(root) == before


@pytest.mark.parametrize("path", ["manifests/000000002.json", f"step-{LATER:09d}/active.safetensors"])
def test_an_error_that_may_pass_is_no_damage_to_repair(root, capsys, monkeypatch, path):
    before, real = contents(root), DiskFiles.read

    def refuse(files, asked):
        if asked == path:
            raise PermissionError(errno.EACCES, "Permission denied", asked)
        return real(files, asked)

    monkeypatch.setattr(DiskFiles, "read", refuse)
    assert repair(DiskFiles(root)) == 1
    out = capsys.readouterr().out
    assert "checkpoint number 2 may be whole, and cannot be read: [Errno 13] Permission denied" in out
    assert "nothing was changed" in out and contents(root) == before
    assert verify(DiskFiles(root), None) == 1
    out = capsys.readouterr().out
    assert "1 of 2 checkpoints is damaged, or cannot be read" in out and f"step-{EARLIER:09d}: " in out
