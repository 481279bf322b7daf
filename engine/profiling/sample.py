"""One look at a run's memory: a line of samples-RANK.jsonl. It is written by a small process, so nothing is imported here."""

from typing import NamedTuple


class Sample(NamedTuple):
    """
    seconds          since the sampler began
    step, stage      of the run at this moment
    own_bytes        resident, of the run's process
    worker_bytes     resident, of its workers together
    shared_bytes     proportional, of both together; None where it was not looked at
    group_bytes      in the memory control group; None: there is none
    allocated_bytes, reserved_bytes   of a GPU's allocator
    """

    seconds: float
    step: int
    stage: str
    own_bytes: int
    worker_bytes: int
    shared_bytes: int | None
    group_bytes: int | None
    allocated_bytes: int
    reserved_bytes: int
