"""What the ranks of a run must have in common before one of them writes anything: config, images, and the disk or the order of disks."""

import os
import time
from contextlib import suppress
from pathlib import Path

from engine.ranks.ranks import Ranks


def require_same(ranks: Ranks, what: str, mine: object) -> None:
    """ValueError where the ranks were not all given the same."""
    by_rank = ranks.share(mine)
    different = [str(rank) for rank, theirs in enumerate(by_rank) if theirs != by_rank[0]]
    if different:
        raise ValueError(
            f"rank {', '.join(different)} has another {what} than rank 0; start all with the same words and the same files"
        )


def require_one_disk(output: Path, ranks: Ranks) -> None:
    """ValueError where some rank's `output` is another directory than rank 0's."""
    path = output / f"seen-by-all-{ranks.from_first(os.urandom(8).hex())}"
    if ranks.is_first:
        for left in output.glob("seen-by-all-" + "[0-9a-f]" * 16):  # by a run that was killed just here
            if left.is_file() and not left.is_symlink() and not left.stat().st_size:
                left.unlink()
        path.touch()
    ranks.wait()
    # A network file system may remember for half a minute that a directory was not there.
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline and ranks.size > 1:
        with suppress(OSError):
            os.listdir(output.parent)
        time.sleep(1)
    blind = [str(rank) for rank, seen in enumerate(ranks.share(path.exists())) if not seen]
    if ranks.is_first:
        path.unlink()
    if blind:
        raise ValueError(
            f"rank {', '.join(blind)} does not see rank 0's {output}; let all nodes share it, or set ranks.own_disks to true"
        )
