"""Looks at a run's memory from outside, twenty times a second, and tells what became of it should the run be killed.

    python -m engine.profiling.sampler DIRECTORY RANK PROCESS SECONDS

A process of its own, small, so that the kernel takes the run first where memory ends. It samples until the run says that it has ended
(a file ended-RANK), or until PROCESS is gone. Where the run has said nothing, the sampler of rank 0 writes profile.json and profile.html
from what there is, and says what it was that grew. The first line of samples-RANK.jsonl has the limit of host memory, each other one is
a Sample (engine/profiling/sample.py) as a list.
"""

import json
import os
import sys
import time
from pathlib import Path

from engine.profiling.limits import group_bytes, host_limit, killed_for_memory
from engine.profiling.now import Now
from engine.profiling.sample import Sample
from engine.ranks.process_table import is_there
from engine.scaling.tree import proportional_bytes, resident_bytes, tree_of

# Between two looks at which processes there are, and at what they share: both take milliseconds.
_TREE_SECONDS, _PSS_SECONDS = 0.5, 1.0


def main(words: list[str]) -> int:
    directory, rank, process, seconds = Path(words[0]), int(words[1]), int(words[2]), float(words[3])
    kills_before = killed_for_memory()
    sample(directory, rank, process, seconds)
    killed = killed_for_memory() - kills_before
    if rank == 0 and not (directory / f"ended-{rank}").exists():
        from engine.profiling.lost import tell_of_a_lost_run

        tell_of_a_lost_run(directory.parent, killed > 0)
    return 0


def sample(directory: Path, rank: int, process: int, seconds: float) -> None:
    """Until the run has ended, or is gone."""
    now, start = Now(directory / f"now-{rank}", is_new=False), time.monotonic()
    tree, tree_at, shared_at = [process], 0.0, 0.0
    limit = host_limit()
    with open(directory / f"samples-{rank}.jsonl", "w", encoding="ascii") as file:
        file.write(json.dumps({"limit_bytes": limit.bytes, "limit": limit.words}) + "\n")
        own = workers = 0
        is_last = False
        while not is_last:
            at = time.monotonic()
            is_last = not is_there(process) or (directory / f"ended-{rank}").exists()
            if at >= tree_at:
                # This process is one of the run's, and is not counted.
                tree, tree_at = [one for one in tree_of(process) if one != os.getpid()], at + _TREE_SECONDS
            shared = None
            if at >= shared_at and not is_last:
                shared, shared_at = proportional_bytes(tree), at + _PSS_SECONDS
            moment = now.read()
            if found := resident_bytes([process]):  # else it is gone, and the last line has where it was
                own, workers = found, resident_bytes(tree[1:])
            look = Sample(
                seconds=round(at - start, 3),
                step=moment.step,
                stage=moment.stage,
                own_bytes=own,
                worker_bytes=workers,
                shared_bytes=shared,
                group_bytes=group_bytes(),
                allocated_bytes=moment.allocated,
                reserved_bytes=moment.reserved,
            )
            file.write(json.dumps(look) + "\n")
            file.flush()
            time.sleep(seconds)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
