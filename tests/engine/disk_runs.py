"""Runs of a harness case with a store on disk and checkpoints: what the tests of checkpoints, folding and power cuts share."""

import numpy as np
import torch

from engine.disk.files import DiskFiles
from engine.disk.recovery import recover_together
from engine.disk.restored_rows import load_rows
from engine.disk.write_behind import WriteBehind
from engine.disk.zarr_store import ZarrStore
from engine.ranks.lanes import Lanes
from engine.rows.snapshots import RowReader, block_checks
from engine.rows.store import MemoryStore
from engine.training.checkpoint import Checkpoints, read_trunk
from engine.training.summary import digest
from tests.engine.harness import ALONE, GivenFeatures, engine_step, make_engine, make_oracle, method_of, oracle_step


class UnsyncedFiles(DiskFiles):
    """The real files without waiting for the disk: durability is what test_power_cuts.py is for."""

    def _create(self, path, parts):
        with open(self.root / path, "xb") as file:
            for part in parts:
                file.write(part)

    def sync_directory(self, path):
        assert (self.root / path).is_dir()


def trunk_state(step):
    """A trunk that is a function of the step, so that a wrong one is noticed."""
    return {"backbone.weight": torch.full((2, 3), float(step))}, {"backbone.weight": torch.full((2, 3), -float(step))}


def trunk_of(case):
    dtype = torch.float64 if case.dtype is np.float64 else torch.float32
    return GivenFeatures(dtype, case.views, case.dim, case.seed)


class DiskRun:
    """A run that goes on from whatever is in `root`.

    in_memory   rows live in a MemoryStore, and the disk sees them in checkpoints only
    ranks       the processes that run it together
    own_disk    `root` is this rank's alone
    """

    def __init__(
        self,
        case,
        root,
        *,
        keep=2,
        threaded=True,
        in_memory=False,
        limit_bytes=10**6,
        files=None,
        ranks=ALONE,
        own_disk=False,
    ):
        self.case, self.files, self.ranks = case, files or UnsyncedFiles(root), ranks
        lanes = Lanes(case.lanes, ranks.rank, ranks.size)
        kept, complaints = recover_together(self.files, ranks, lanes)
        self.complaints = ranks.from_first(complaints)
        disk = ZarrStore(
            self.files,
            block=case.block,
            dim=case.dim,
            positions=case.size,
            dtype=case.dtype,
            bfloat16=case.bfloat16,
            lanes=lanes,
        )
        self.disk = WriteBehind(disk, limit_bytes, threaded)
        self.checkpoints = Checkpoints(self.files, self.disk, keep, ranks.new_channel())
        self.checkpoints.restore(kept, sweep=not self.complaints, is_keeper=ranks.is_first or own_disk)
        ranks.wait()
        store = MemoryStore() if in_memory else self.disk
        self.rows = make_engine(case, store=store, resumes=bool(kept), ranks=ranks)
        self.trunk = trunk_of(case)
        if kept:
            last = kept[-1]
            window = case.schedule.window_blocks(case.schedule.window_of(max(last.step - 1, 0)))
            eta_T = ranks.from_first(last.log()["eta"] if ranks.is_first else None)
            load_rows(last, self.rows, window, eta_T)
            if ranks.is_first:
                assert read_trunk(last)["backbone.weight"][0, 0] == last.step

    @property
    def step(self):
        return self.rows.log.steps

    def train(self, until, save_every=None):
        for step in range(self.step, until):
            engine_step(self.case, self.rows, self.trunk, step, self.ranks)
            self.trunk.dz.clear()
            if save_every and (step + 1) % save_every == 0:
                self.save()
        return self

    def save(self):
        method, losses = method_of(self.case, self.rows, self.ranks), [float(s) for s in range(self.step)]
        self.checkpoints.save(self.step, method, trunk_state(self.step), losses, {"config": {}})

    def finish(self):
        """To the end of what was handed over; the run can go on."""
        self.checkpoints.finish()
        return self

    def looked(self):
        """When all that was on the disk at the start has been looked at, and what nobody names is gone."""
        self.checkpoints.look_to_the_end(lambda: False)
        return self

    def close(self):
        self.checkpoints.close()
        self.rows.host.close()
        self.disk.close()

    def live_bytes(self):
        """Of the versions of blocks that count now, on the disk."""
        store = self.disk.disk
        return sum(store._block_bytes(store.generations[entry.generation]) for entry in store._map.values())

    def digest(self):
        return digest(trunk_state(self.step)[0], self.ranks.share(block_checks(RowReader(self.rows))))


def memory_digest(case):
    """Of the run that never saw a disk or a checkpoint."""
    rows, trunk = make_engine(case), trunk_of(case)
    for step in range(case.steps):
        engine_step(case, rows, trunk, step)
    return digest(trunk_state(case.steps)[0], [block_checks(RowReader(rows))])


def trained_oracle(case):
    """Dense SGD on the features of the case, at the end."""
    oracle, trunk = make_oracle(case), trunk_of(case)
    for step in range(case.steps):
        oracle_step(case, oracle, trunk, step)
    return oracle
