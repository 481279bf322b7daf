"""Two checkpoints on a disk, what they are made of, and ways to damage them."""

import numpy as np

from engine.disk import manifest
from engine.disk.files import DiskFiles
from engine.disk.zarr_store import ROWS
from tests.engine.disk_runs import DiskRun
from tests.engine.harness import Case

CASE = Case(active=32, passes=1.5)
CASES = {
    "float64": CASE,
    "bfloat16": Case(active=32, passes=1.5, dtype=np.float32, bfloat16=True),
    "folded": Case(active=32, passes=3.0, dtype=np.float32, momentum=0.1, weight_decay=1e-2, fold=True),
}
EARLIER, LATER = 30, 45


def saved(case, root, keep=2, stops=(EARLIER, LATER)):
    run = DiskRun(case, root, keep=keep)
    for stop in stops:
        run.train(stop)
        run.save()
    run.finish().close()
    return run.files


def checkpoint_of(root, step):
    files = DiskFiles(root)
    return next(kept for n in manifest.numbers(files) if (kept := manifest.read(files, n)).step == step)


def blocks_of(root, step):
    """block -> (the name of its generation, entry)."""
    kept = checkpoint_of(root, step)
    store = kept.store()
    return {block: (store.generations[entry.generation].name, entry) for block, entry in kept.entries(store).items()}


def chunk(root, generation, column, block):
    return root / ROWS / generation / column / (f"c.{block}" + ("" if column == "last_step" else ".0"))


def flip(path, at=5):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def zero(path):
    path.write_bytes(bytes(path.stat().st_size))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def new_block(root):
    """A block that both checkpoints have, each its own version, and both generations."""
    earlier, later = blocks_of(root, EARLIER), blocks_of(root, LATER)
    block = next(block for block in sorted(later) if block in earlier and earlier[block] != later[block])
    return block, earlier[block][0], later[block][0]
