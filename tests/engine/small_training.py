"""A small training that goes on from what is on a disk: to be put on disks that fail, and to be killed."""

import hashlib
from collections.abc import Iterator

import numpy as np
import torch

from engine.disk import manifest
from engine.disk.restored_rows import load_rows
from engine.disk.write_behind import WriteBehind
from engine.disk.zarr_store import ZarrStore
from engine.rows.snapshots import RowReader, block_checks
from engine.training.checkpoint import Checkpoints, load_trunk
from engine.training.summary import digest
from tests.engine.harness import ALONE, engine_step, make_engine, method_of


class SmallTrunk:
    """Features of an instance that turn with one vector, which is trained with momentum."""

    def __init__(self, case):
        self.dtype = torch.float64 if case.dtype is np.float64 else torch.float32
        self.given = torch.from_numpy(np.random.default_rng(case.seed).normal(size=(case.size + 1, case.dim)))
        self.bias = torch.zeros(case.dim, dtype=self.dtype)
        self.momentum, self.gradient = torch.zeros_like(self.bias), torch.zeros_like(self.bias)

    def forward(self, views):
        z = self.given[views[0][:, 0, 0, 0].to(torch.int64)].to(self.dtype) + self.bias
        return torch.nn.functional.normalize(z, dim=1).requires_grad_()

    def backward(self, z_XD, dz_XD):
        self.gradient = self.gradient + dz_XD.sum(0)

    def update(self, lr):
        self.momentum = 0.9 * self.momentum + self.gradient
        self.bias = self.bias - lr * self.momentum
        self.discard()
        return True

    def discard(self):
        self.gradient = torch.zeros_like(self.bias)

    def state(self):
        return {"bias": self.bias.clone()}, {"bias": self.momentum.clone()}

    def load(self, model, momentum):
        self.bias, self.momentum = model["bias"], momentum["bias"]


class Training:
    """A training of `case` that goes on from what is on `files`; `complaints` are recovery's. saves: see `train`."""

    def __init__(self, case, files, keep=2, threaded=False, checkpoints_class=Checkpoints, store_class=ZarrStore):
        self.case, self.files, self.losses = case, files, []
        kept, self.complaints = manifest.recover(files)
        disk = store_class(
            files, block=case.block, dim=case.dim, positions=case.size, dtype=case.dtype, bfloat16=case.bfloat16
        )
        self.disk = WriteBehind(disk, 10**5, threaded)
        self.checkpoints = checkpoints_class(files, self.disk, keep)
        self.rows, self.trunk = make_engine(case, store=self.disk), SmallTrunk(case)
        self.kept = list(kept)
        self.first_step = kept[-1].step if kept else 0
        try:
            self.checkpoints.restore(kept, sweep=not self.complaints)
            if kept:
                schedule = case.schedule
                load_trunk(kept[-1], self.trunk, ALONE)
                window = schedule.window_blocks((self.first_step - 1) // schedule.steps_per_window)
                load_rows(kept[-1], self.rows, window, kept[-1].log()["eta"])
                self.losses = kept[-1].log()["loss"].tolist()
        except BaseException:
            self.close()
            raise

    def train(self, every=0, until=None) -> Iterator[int]:
        """Go on to the end, or to step `until`; yields before and after each save (every so many steps, none after the last).

        Yields ("saving", step), then ("saved", step): the one before is acknowledged then, and in an unthreaded store this one.
        """
        end = self.case.steps if until is None else until
        for step in range(self.rows.log.steps, end):
            self.losses.append(engine_step(self.case, self.rows, self.trunk, step).loss)
            if every and (step + 1) % every == 0 and step + 1 < self.case.steps:
                yield "saving", step + 1
                method = method_of(self.case, self.rows)
                self.checkpoints.save(self.rows.log.steps, method, self.trunk.state(), self.losses, {})
                yield "saved", step + 1

    def finish(self, every=0):
        """Train to the end; returns what `state` is there."""
        for _ in self.train(every):
            pass
        self.checkpoints.finish()
        return self.state()

    def state(self):
        """One hash over all that a run is between two steps: trunk, momentum, rows, slots, log, resident blocks."""
        model, momentum = self.trunk.state()
        total = hashlib.sha256(
            digest(model | {f"momentum of {n}": m for n, m in momentum.items()}, [block_checks(self.reader)]).encode()
        )
        for array in [*self.rows.state().values(), self.rows.log.etas(0), np.array(self.losses)]:
            total.update(np.ascontiguousarray(array).tobytes())
        total.update(repr((self.rows.log.steps, self.rows.host.blocks())).encode())
        return total.hexdigest()

    @property
    def reader(self):
        return RowReader(self.rows)

    def close(self):
        self.checkpoints.close()
        self.rows.host.close()
        self.disk.close()
