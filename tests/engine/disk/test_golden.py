"""A checkpoint that an earlier version wrote can still be read: one small directory per format, kept as it was written.

When the format changes, engine/disk/body.py's FORMAT grows, a new directory joins, and this says what becomes of the old one.
"""

import hashlib
import shutil

import numpy as np
import pytest
import zarr

from engine.disk import manifest
from engine.disk.body import FORMAT
from engine.disk.files import DiskFiles
from engine.rows.snapshots import RowReader
from engine.rows.store import NEVER_VISITED
from tests.engine.disk.manifests import GOLDEN
from tests.engine.disk_runs import DiskRun, trunk_state
from tests.engine.harness import Case

GOLDEN_CASE = Case(
    size=26,
    active=8,
    window=12,
    stride=12,
    batch=4,
    block=3,
    lanes=2,
    dim=2,
    passes=3.0,
    reshuffle=False,
    dtype=np.float32,
)


FORMATS = ["format-3", "format-4"]  # two ranks wrote each


def hash_of_every_byte(rows, backbone):
    """What digest.txt has: sha256 over the backbone and over the sha256 of each block's bytes, all of them read."""
    reader, total = RowReader(rows), hashlib.sha256()
    for name in sorted(backbone):
        total.update(name.encode() + backbone[name].contiguous().numpy().tobytes())
    for number in reader.blocks():
        block = reader.block(number)
        if (block.last_step != NEVER_VISITED).any():
            content = b"".join(part.tobytes() for part in (block.weight, block.momentum, block.last_step))
            total.update(number.to_bytes(8, "little") + hashlib.sha256(content).digest())
    return total.hexdigest()


@pytest.mark.parametrize("name", FORMATS)
def test_a_checkpoint_of_an_earlier_version_is_read_to_the_bit(tmp_path, name):
    shutil.copytree(GOLDEN / name, tmp_path / "run")
    kept, complaints = manifest.recover(DiskFiles(tmp_path / "run"))
    assert not complaints
    assert len(kept) == 2
    for one in kept:
        assert not manifest.problems_of(one, every_block=True)
    run = DiskRun(GOLDEN_CASE, tmp_path / "run")
    found = hash_of_every_byte(run.rows, trunk_state(run.step)[0])
    assert found == (GOLDEN / name / "digest.txt").read_text().strip()
    assert run.train(GOLDEN_CASE.steps).step == GOLDEN_CASE.steps


@pytest.mark.parametrize("name", FORMATS)
def test_its_generations_open_with_plain_zarr(name):
    kept, _ = manifest.recover(DiskFiles(GOLDEN / name))
    for generation in kept[-1].generations().values():
        group = zarr.open_group(str(GOLDEN / name / "rows" / generation.name), mode="r")
        assert group["weight"].shape == (26, 2)
        assert group["last_step"].dtype == np.int64


def test_a_run_that_goes_on_from_an_earlier_format_writes_this_one_and_ends_the_same(tmp_path):
    digests = []
    for name in FORMATS:
        root = shutil.copytree(GOLDEN / name, tmp_path / name)
        run = DiskRun(GOLDEN_CASE, root).train(GOLDEN_CASE.steps - 4)
        run.save()
        run.finish().looked().close()
        newest, before = manifest.recover(DiskFiles(root))[0][::-1]
        assert newest.body.format == FORMAT and newest.body.parts[0].blocks.delta is None
        assert before.body.format == int(name[-1])
        assert not any(manifest.problems_of(one, every_block=True) for one in (newest, before))
        again = DiskRun(GOLDEN_CASE, root).train(GOLDEN_CASE.steps)
        digests.append(again.digest())
        again.close()
    assert len(set(digests)) == 1
