"""A checkpoint is whole or not there, whatever fails while it is written."""

import errno
import os

import numpy as np
import pytest
import torch

from engine import checkpoint
from engine.snapshots import RowReader, digest
from tests.engine.harness import Case, GivenFeatures, engine_step, make_engine

CASE = Case(active=32, passes=1.5)
STATE = ({"backbone.weight": torch.arange(6.0).view(2, 3)}, {"backbone.weight": torch.zeros(2, 3)})


def train(rows, first, last):
    trunk = GivenFeatures(torch.float64, CASE.views, CASE.dim, CASE.seed)
    for step in range(first, last):
        engine_step(CASE, rows, trunk, step)
    return rows


def window_of(step):
    return CASE.schedule.window_blocks(CASE.schedule.window_of(max(step - 1, 0)))


def test_rows_continue_to_the_same_bits_from_a_checkpoint_at_any_step(tmp_path):
    whole = digest(STATE[0], RowReader(train(make_engine(CASE), 0, CASE.steps)))
    window = CASE.schedule.steps_per_window
    for stop in (1, window - 1, window, window + 1, CASE.steps // 2, CASE.steps - 1):
        rows = train(make_engine(CASE), 0, stop)
        checkpoint.save(tmp_path, STATE, rows, {}, keep=1)
        kept, complaints = checkpoint.newest(tmp_path)
        assert not complaints
        again = make_engine(CASE)
        checkpoint.load_rows(kept, again, window_of(stop))
        assert digest(STATE[0], RowReader(again)) == digest(STATE[0], RowReader(rows))
        assert digest(STATE[0], RowReader(train(again, stop, CASE.steps))) == whole, stop


def test_saving_every_step_changes_nothing(tmp_path):
    rows = make_engine(CASE)
    for step in range(60):
        train(rows, step, step + 1)
        checkpoint.save(tmp_path, STATE, rows, {}, keep=2)
    assert digest(STATE[0], RowReader(rows)) == digest(STATE[0], RowReader(train(make_engine(CASE), 0, 60)))
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-000000059", "step-000000060"]


@pytest.mark.parametrize("failing", ["open", "fsync", "rename"])
def test_a_full_disk_at_any_operation_leaves_the_checkpoint_before_whole(tmp_path, monkeypatch, failing):
    rows = train(make_engine(CASE), 0, 5)
    checkpoint.save(tmp_path, STATE, rows, {}, keep=1)
    train(rows, 5, 10)
    for operation in range(20):
        calls = 0

        def fail_at(real, failing_call=operation):
            def operate(*arguments, **options):
                nonlocal calls
                calls += 1
                if calls == failing_call + 1:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return real(*arguments, **options)

            return operate

        with monkeypatch.context() as patch:
            if failing == "open":
                patch.setattr(checkpoint, "open", fail_at(open), raising=False)
            else:
                patch.setattr(checkpoint.os, failing, fail_at(getattr(os, failing)))
            try:
                checkpoint.save(tmp_path, STATE, rows, {}, keep=1)
                break  # the operation that was to fail is past the last one
            except OSError:
                pass
        kept, complaints = checkpoint.newest(tmp_path)
        # Only a failure after the rename may already have made the new one real.
        assert kept is not None
        assert kept.step in (5, 10)
        assert failing == "fsync" or kept.step == 5
        assert not complaints
        assert not list(tmp_path.glob(".step*"))
    assert operation >= 1
    assert checkpoint.newest(tmp_path)[0].step == 10


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing", "swapped", "no manifest", "other format"])
def test_damage_is_named_and_the_checkpoint_before_is_taken(tmp_path, damage):
    rows = train(make_engine(CASE), 0, 3)
    checkpoint.save(tmp_path, STATE, rows, {}, keep=2)
    train(rows, 3, 6)
    newest = checkpoint.save(tmp_path, STATE, rows, {}, keep=2)
    victim = newest / "blocks.safetensors"
    content = victim.read_bytes()
    if damage == "flipped":
        victim.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "truncated":
        victim.write_bytes(content[: len(content) // 2])
    elif damage == "missing":
        victim.unlink()
    elif damage == "swapped":
        victim.write_bytes((newest / "active.safetensors").read_bytes())
    elif damage == "no manifest":
        (newest / "manifest.json").unlink()
    else:
        text = (newest / "manifest.json").read_text().replace('"format": 1', '"format": 99')
        (newest / "manifest.json").write_text(text)
    kept, complaints = checkpoint.newest(tmp_path)
    assert kept.step == 3
    assert len(complaints) == 1
    assert "step-000000006" in complaints[0]


def test_the_digest_notices_a_single_bit_of_a_single_row():
    rows = train(make_engine(CASE), 0, 20)
    before = digest(STATE[0], RowReader(rows))
    visited = int(rows.host.indices(rows.position_K[:1])[0])
    rows.host.slot[visited] = -1
    value = rows.u_KD[0, 0].item()
    rows.u_KD[0, 0] = np.nextafter(value, np.inf)
    assert digest(STATE[0], RowReader(rows)) != before


def test_a_damaged_later_checkpoint_does_not_push_out_a_whole_one(tmp_path):
    rows = train(make_engine(CASE), 0, 3)
    checkpoint.save(tmp_path, STATE, rows, {}, keep=1)
    (tmp_path / "step-000000099").mkdir()
    train(rows, 3, 6)
    checkpoint.save(tmp_path, STATE, rows, {}, keep=1)
    kept, complaints = checkpoint.newest(tmp_path)
    assert kept.step == 6
    assert not complaints
