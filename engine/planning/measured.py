"""What a running process holds, counted over the tensors and arrays of its objects, under the names of the plan.

It is asked between two steps. So what lives inside a step alone is not in it: activations, which StorageCount counts around a step
(activations.py), the softmax's work space, and what an evaluation or a checkpoint holds for the moment.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch

from engine.methods.row_method import RowMethod
from engine.planning import components as names
from engine.planning.components import DEVICE, DISK, HOST
from engine.rows.store import MemoryStore
from engine.training.run import Run

_TRUNK = {
    "weights": (DEVICE, names.TRUNK_WEIGHTS),
    "gradients": (DEVICE, names.TRUNK_GRADIENTS),
    "optimizer": (DEVICE, names.TRUNK_OPTIMIZER),
    "bucket": (DEVICE, names.TRUNK_BUCKETS),
    "copy": (HOST, names.NETWORK_COPY),
}


class Held(NamedTuple):
    """One component of a running process."""

    tier: str
    name: str
    bytes: int


def measured_components(run: Run) -> list[Held]:
    """Of this rank, between two steps; the disk as far as it is this rank's."""
    found = [Held(*_TRUNK[what], shared_bytes(tensors)) for what, tensors in run.trunk.held().items()]
    if run.probe:
        found.append(Held(DEVICE, names.ONLINE_PROBE, run.probe.bytes))
    method, store = run.method, run.checkpoints.disk.disk
    log_bytes = run.totals.losses.bytes
    if isinstance(method, RowMethod):
        found += _rows(method)
        log_bytes += method.rows.log.bytes
    else:
        found += [Held(tier, f"method {run.about.method}", count) for tier, count in method.bytes().items()]
    found += [
        Held(HOST, names.WAITING, run.checkpoints.disk.host_bytes),
        Held(HOST, names.BLOCK_MAP, store.map_bytes),
        Held(HOST, names.LOG, log_bytes),
        Held(HOST, names.FEATURES, sum(one.bytes for one in run.evaluators)),
        Held(DISK, names.STORED_ROWS, run.checkpoints.disk.bytes),
        Held(DISK, names.CHECKPOINT_FILES, run.checkpoints.bytes - run.checkpoints.disk.bytes),
    ]
    return [one for one in found if one.bytes]


def held_bytes(run: Run) -> dict[str, int]:
    """By tier, of what is there always: not the blocks that wait to be written at this moment."""
    tiers = {DEVICE: 0, HOST: 0, DISK: 0}
    for one in measured_components(run):
        if one.name != names.WAITING:
            tiers[one.tier] += one.bytes
    return tiers


def _rows(method: RowMethod) -> list[Held]:
    rows, host = method.rows, method.rows.host
    gathered = method.table.partitioned.zero.held() if method.table.partitioned else {}
    written = getattr(getattr(getattr(method, "softmax", None), "gradient", None), "_sum_KD", None)
    return [
        Held(DEVICE, names.ACTIVE_ROWS, rows.w_KD.nbytes),
        Held(DEVICE, names.ROWS_MOMENTUM, 0 if rows.u_KD is None else rows.u_KD.nbytes),
        Held(DEVICE, names.ROWS_GRADIENT, 0 if written is None else written.nbytes),
        Held(DEVICE, names.ROWS_GATHERED, shared_bytes(gathered.get("bucket", []))),
        Held(HOST, names.SLOTS, rows.slot_bytes),
        Held(HOST, names.WINDOW, host.bytes),
        Held(HOST, names.STORE_IN_MEMORY, host.store.bytes if isinstance(host.store, MemoryStore) else 0),
    ]


def shared_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Of the memory that the tensors lie in, each piece of it once."""
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors if one.numel()}
    return sum(storages.values())
