"""Small runs to be disturbed: one of 23 steps on a disk that keeps a journal, one of 21 steps, and the files that they need."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from engine.disk import manifest
from engine.disk.zarr_store import ROWS
from tests.engine.disk_runs import UnsyncedFiles
from tests.engine.faulty_files import VolatileFiles
from tests.engine.harness import Case
from tests.engine.small_training import Training

EVERY, KEEP = 6, 2
# 12 blocks, 23 steps, checkpoints after 6, 12 and 18; blocks leave, come back, and are read by a later window.
SMALL = {
    "size": 72, "active": 16, "window": 24, "stride": 12, "batch": 12, "block": 6, "lanes": 2, "dim": 4, "passes": 1.95,
    "dtype": np.float32,
}  # fmt: skip


class SmallCase(Case):
    schedule = cached_property(Case.schedule.fget)


@dataclass
class Recording:
    """A run to its end, on a disk that kept a journal. begun, acknowledged: (step, operations before)."""

    case: Case
    files: VolatileFiles
    states: dict = field(default_factory=dict)  # step -> state there; 0 and the end are in it
    begun: list = field(default_factory=list)
    acknowledged: list = field(default_factory=list)
    columns: set = field(default_factory=set)

    def acknowledged_before(self, k):
        return [step for step, operations in self.acknowledged if operations <= k]

    def begun_before(self, k):
        return [step for step, operations in self.begun if operations < k]


def record(case, files, **kinds):
    """Train on `files` from what is there."""
    training, recorded = Training(case, files, keep=KEEP, **kinds), Recording(case, files)
    recorded.states[training.first_step] = training.state()
    for what, step in training.train(EVERY):
        if what == "saving":
            recorded.states[step] = training.state()
        (recorded.begun if what == "saving" else recorded.acknowledged).append((step, len(files.journal)))
        recorded.columns |= {len(generation.columns) for generation in training.disk.disk.generations.values()}
    recorded.states[case.steps] = training.state()
    return recorded


def files_below(tree, path=""):
    """The paths of all files of nested dicts, which have bytes at their ends."""
    for name, below in tree.items():
        if isinstance(below, dict):
            yield from files_below(below, f"{path}{name}/")
        else:
            yield f"{path}{name}"


def named_files(kept):
    """Every file that a checkpoint needs, its own manifest included."""
    store = kept.store()
    entries = kept.entries(store)
    generations = [(entry.generation, block) for block, entry in entries.items()]
    columns = [
        (store.generations[n], column, block) for n, block in generations for column in store.generations[n].columns
    ]
    yield manifest.path_of(kept.number)
    yield from kept.body.files
    for generation, column, block in columns:
        root = f"{ROWS}/{generation.name}"
        yield from (f"{root}/zarr.json", f"{root}/{column.name}/zarr.json", f"{root}/{column.file(block)}")


SHORT_SIZES = {**SMALL, "batch": 8, "passes": 1.2}
SHORT = SmallCase(**SHORT_SIZES)  # 21 steps
SHORT_EVERY = 7


def train(files, until, every=SHORT_EVERY):
    """The training of 21 steps, up to step `until`."""
    training = Training(SHORT, files, keep=2)
    for _ in training.train(every, until=until):
        pass
    training.checkpoints.finish()
    return training


def go_on(root):
    """Go on to the end with checkpoints on the way, so that all that were there are dropped."""
    train(UnsyncedFiles(root), SHORT.steps, every=2)
