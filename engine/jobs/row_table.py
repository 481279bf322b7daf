"""The row table that a config describes: active rows, the tiers below them, and the store on disk.

deepspeed is imported where it is used: it takes long, and starts threads, and the loader forks its workers before.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch

from configs import schema
from datasets.schedule import Schedule
from engine.disk.files import Files
from engine.disk.restored_rows import last_window, load_rows
from engine.disk.write_behind import WriteBehind
from engine.disk.zarr_store import ZarrStore
from engine.jobs.parts import engine_settings
from engine.jobs.sizes import capacities, host_places, is_full, row_bytes, slots_each, waiting_blocks
from engine.ranks.lanes import Lanes
from engine.ranks.ranks import Ranks
from engine.rows.active_rows import ActiveRows, Start
from engine.rows.folding import Folding
from engine.rows.host_tier import HostTier
from engine.rows.implementations import implementations, names
from engine.rows.row_table import RowTable
from engine.rows.store import MemoryStore
from engine.rows.transitions import TransitionLog, still_log

if TYPE_CHECKING:
    from engine.disk.saved_checkpoint import SavedCheckpoint
    from engine.trunk.zero import PartitionedRows


def make_table(
    config: schema.Config, schedule: Schedule, ranks: Ranks, disk: WriteBehind, kernels: dict[str, str], lanes: Lanes
) -> RowTable:
    """The rows of a rank's lanes, without content, and what goes with them. kernels: as for make_rows."""
    partitioned = partitioned_rows(config, schedule, ranks) if config.rows.sharding == "zero3" else None
    return RowTable(
        make_rows(config, schedule, ranks.device, disk, kernels, lanes, partitioned),
        partitioned,
        lr_scale=config.optimizer.rows_lr_scale,
        clip=config.optimizer.rows_clip,
        read_ahead=config.store.read_ahead,
    )


def partitioned_rows(config: schema.Config, schedule: Schedule, ranks: Ranks) -> "PartitionedRows":
    """The memory of the active rows where DeepSpeed holds it."""
    from engine.trunk.optimizers import Sgd
    from engine.trunk.zero import PartitionedRows

    optimizer = config.optimizer
    return PartitionedRows(
        slots_each(config, schedule, ranks.size),
        config.method.dim,
        rule=Sgd(optimizer.momentum, optimizer.decay_of_rows, optimizer.nesterov),
        clip=optimizer.rows_clip,
        **engine_settings(config, schedule, ranks),
    )


def make_disk(
    config: schema.Config, schedule: Schedule, files: Files, lanes: Lanes, threaded: bool = True
) -> WriteBehind:
    """The store on disk, and the thread that writes to it."""
    store = ZarrStore(
        files,
        block=schedule.block,
        dim=config.method.dim,
        positions=schedule.positions_end,
        dtype=np.float32,
        bfloat16=config.store.dtype == "bfloat16",
        lanes=lanes,
    )
    block_bytes = schedule.block * row_bytes(config) if config.method.has_rows else 0
    return WriteBehind(store, waiting_blocks(config, schedule, lanes.ranks) * block_bytes, threaded)


def make_rows(
    config: schema.Config,
    schedule: Schedule,
    device: torch.device,
    disk: WriteBehind,
    kernels: dict[str, str],
    lanes: Lanes,
    partitioned: "PartitionedRows | None" = None,
    reads_only: bool = False,
) -> ActiveRows:
    """Rows of some lanes, without content. reads_only: for looking at a checkpoint, without a thread that reads ahead.

    kernels   the implementation of each op; engine.rows.implementations.names
    partitioned  DeepSpeed's parts of the active rows (rows.sharding "zero3"); None: the rows keep themselves
    """
    optimizer, settings = config.optimizer, config.rows
    on_disk = reads_only or config.store.kind == "zarr"
    trained = settings.rows_have_momentum
    # What SGD does not train stands still while it is away: a transition without momentum and decay is the identity.
    log = TransitionLog(optimizer.momentum, optimizer.decay_of_rows, optimizer.nesterov) if trained else still_log()
    host = HostTier(
        disk if on_disk else MemoryStore(),
        block=schedule.block,
        size=schedule.positions_end,
        dim=settings.dim,
        places=host_places(config, schedule, lanes.ranks),
        has_momentum=trained,
        readers=2 if on_disk and not reads_only else 0,
        folding=Folding(log) if config.store.fold else None,
        rewrite=config.store.dtype == "bfloat16",
        pinned=device.type == "cuda",
    )
    return ActiveRows(
        host,
        log,
        lanes=lanes,
        capacities=capacities(config, schedule, lanes),
        start=Start(config.seed, settings.init_norm, settings.init == "feature"),
        full=is_full(config, schedule) and settings.init == "random",
        norm_floor=settings.norm_floor,
        device=device,
        kernels=kernels,
        row_storage=(partitioned.w_SD, partitioned.u_SD) if partitioned else None,
    )


def rows_of(config: schema.Config, checkpoint: "SavedCheckpoint", schedule: Schedule) -> ActiveRows:
    """The rows of a checkpoint, for reading. Raises ValueError where the run has none."""
    checkpoint.row_sizes()  # raises where there are none

    lanes = Lanes(schedule.lanes)
    disk = make_disk(config, schedule, checkpoint.files, lanes, threaded=False)
    generations, entries = checkpoint.tables()
    disk.disk.restore([(checkpoint.number, entries)], generations, checkpoint.body.next_generation)
    cpu = torch.device("cpu")
    # Looking at a checkpoint is not worth compiling for.
    kernels = names(implementations(cpu, torch.float32, config.rows.dim, "aten", config.rows.rows_have_momentum))
    rows = make_rows(config, schedule, cpu, disk, kernels, lanes, reads_only=True)
    load_rows(checkpoint, rows, last_window(schedule, checkpoint.step), checkpoint.log()["eta"])
    return rows
