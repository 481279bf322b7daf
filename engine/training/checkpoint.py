"""Checkpoints: all that a run needs to go on to the bit, made while it goes on.

    checkpoints/
        manifests/000000012.json      names everything else (engine/disk/manifest.py); with it the checkpoint is there, without it not
        step-000001200/
            trunk.safetensors         parameters and buffers, as torch names them
            momentum.safetensors      what the trunk's optimizer keeps, by the same names (engine/trunk/optimizers.py)
            shared-*.safetensors      components of the method that are the same on every rank
            active.safetensors        what the method keeps by lane; of the row table the active rows in their slots: w, u, position,
                                      stamp, and which blocks were resident
            log-*.safetensors         loss (and what the method needs: learning rate) of every step, or of those since the last full log
            blocks-*.safetensors      where each stored block is, or those that changed since the last full map
        rows/*/                       the blocks (engine/disk/zarr_store.py)

A method that keeps nothing by lane has no active, no blocks and no rows. With R ranks there is an active-r and a blocks-r of each;
rank 0 writes the rest, and the manifest when all others have said that what they wrote is durable. Any number of ranks that divides L
goes on from it. A disk may be everybody's or each node's own: a rank reads what belongs to its lanes and nothing else, and rank 0
tells the others what the manifest says.

What is written where, and when:

    1. between two steps, on the training thread: copies of the method's blocks that the disk does not have in this version,
       of the rest that it keeps by lane, of the trunk. That is all that a step can wait for; O(W), whatever N is
    2. on the writer's thread of each rank, after the blocks that left earlier: these blocks, then the files; then rank 0's manifest
    3. then the oldest checkpoints beyond `keep` go, and the blocks that only they named

A checkpoint may still be on its way when the next is due; that one then waits for it, and the wait is counted. No file
is unpickled when a checkpoint is read.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save as torch_save

from engine.disk import manifest
from engine.disk.array_file import parts_of
from engine.disk.body import FORMAT, Body, Part, RowSizes, RunState, Table, Written
from engine.disk.files import TEMPORARY, Buffer, Files, remove_any, remove_if_empty
from engine.disk.patrol import Found, Patrol, all_found, look, naming
from engine.disk.recovery import named_by_all
from engine.disk.saved_checkpoint import SavedCheckpoint
from engine.disk.shapes import PART_OF_A_RUN, shown
from engine.disk.sweep import foreign, foreign_line
from engine.disk.write_behind import WriteBehind
from engine.methods.method import Components, Method
from engine.ranks.lanes import Lanes
from engine.ranks.ranks import Channel, Ranks
from engine.rows.damaged import Damaged
from engine.training.series import Series
from engine.trunk.optimizers import misfit

if TYPE_CHECKING:
    from engine.trunk.given import GivenTrunk
    from engine.trunk.trunk import Trunk

_PATIENCE_SECONDS = 0.1  # between two questions whether a stop was asked for


@dataclass
class _Chain:
    """A table that grows: the file with its last full copy, how many rows that has, and how many its deltas had since."""

    full: str | None = None
    rows: int = 0
    since: int = 0

    def take_up(self, table: Table) -> None:
        """Go on with the table of which a manifest says this."""
        self.full, self.rows, self.since = table.full, table.rows, table.since

    def full_is_due(self, changed: int) -> bool:
        return self.full is None or self.since + changed > self.rows


class Checkpoints:
    """The checkpoints of one run.

    files    where they lie
    disk     the store on disk; where rows live in memory it is used by checkpoints alone
    keep     how many are kept
    channel  between the writer's threads of all ranks
    """

    def __init__(self, files: Files, disk: WriteBehind, keep: int, channel: Channel | None = None) -> None:
        assert keep >= 1
        self.files, self.disk, self.keep, self.channel = files, disk, keep, channel or Channel()
        self.lanes: Lanes = disk.disk.lanes
        self.newest: SavedCheckpoint | None = None  # committed, or recovered
        self.waited_seconds = 0.0  # for an earlier checkpoint; whoever reports it sets it back
        self._saved: list[SavedCheckpoint] = []
        self._garbage: list[str] = []  # of a damaged checkpoint or a killed run; goes with the next commit
        self._patrol: Patrol | None = None
        self._map = _Chain()
        self._log = _Chain()
        self._changed = np.empty(0, np.int64)  # blocks whose entry is not that of the last full map, ascending
        self._on_way = False
        self._is_keeper = True

    def restore(self, checkpoints: list[SavedCheckpoint], sweep: bool, is_keeper: bool = True) -> None:
        """Go on after the last of `checkpoints` (engine/disk/recovery.py). No rank may write before all have come back from here.

        sweep       remove what none of them names as soon as it is found; else, where a newer checkpoint was damaged, with the next commit
        is_keeper   of the ranks on this disk, the one that looks after what is no lane's

        Of blocks that are not resident no file is looked at here: a thread does that from now on, and where one is missing, the next
        call raises Damaged.
        """
        self._is_keeper = is_keeper
        store = self.disk.disk
        generations, versions = store.generations, []
        for one in checkpoints:
            of_one, entries = one.tables(self.lanes)
            generations = generations.joined(of_one)
            versions.append((one.number, entries))
            one.forget()
        last = checkpoints[-1] if checkpoints else None
        next_generation = last.body.next_generation if last else 1
        on_disk = store.restore(versions, generations, next_generation)
        self._saved, self.newest = list(checkpoints), last
        if last:
            self._log.take_up(last.body.log)
            parts = last.parts(self.lanes)
            is_ours = [(part.rank, part.ranks) for part in parts] == [(self.lanes.rank, self.lanes.ranks)]
            if is_ours and parts[0].blocks and last.body.format == FORMAT:
                self._map.take_up(parts[0].blocks)
                if delta := parts[0].blocks.delta:
                    self._changed = np.sort(last.arrays(delta)["block"])
        if is_keeper:
            named = {manifest.path_of(one.number) for one in checkpoints} | {
                path for one in checkpoints for path in one.body.files
            }
            self._garbage = manifest.unnamed(self.files, named)
            if line := foreign_line(foreign(self.files, rows=False)):
                print(line)
        if sweep:
            self._remove_garbage()
        known = named_by_all(checkpoints, generations, self.lanes) if is_keeper else None
        self._begin_patrol(look(store, on_disk, naming(store, next_generation, known)), sweep)

    def _begin_patrol(self, looks: Iterator[Found], sweep: bool) -> None:
        """Look at what is on the disk; where the store writes without a thread, at once and here."""

        def done(found: Found) -> None:
            if line := foreign_line(sorted(found.foreign)):
                print(line)
            self.disk.submit(lambda: take_up(found.garbage))

        def take_up(garbage: list[str]) -> None:  # on the writer's thread, like all that removes
            self._garbage += garbage
            if sweep:
                self._remove_garbage()

        if self.disk.is_threaded:
            patrol = Patrol(looks, done, self.disk.fail)
            patrol.start()  # which the machine may refuse
            self._patrol = patrol
        else:
            done(all_found(looks))

    def close(self) -> None:
        """End the thread that looks at what is on the disk."""
        if self._patrol:
            self._patrol.stop()

    def save(
        self,
        step: int,
        method: Method,
        trunk_state: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]],
        losses: Series | Sequence[float],
        state: dict[str, Any],
        beside: Components | None = None,
    ) -> None:
        """Begin a checkpoint of the state after `step` steps; it is there when `finish`, or the next save, returns.

        All ranks call it after the same step; of those below, rank 0's count.
        trunk_state   what Trunk.state() gives    losses   of every step so far    state   what else to keep, as JSON
        beside        components that are kept beside those of the method
        Raises OSError or Damaged where an earlier write failed; what was committed before is whole.
        """
        self.disk.check()
        if self._on_way:
            start = time.perf_counter()
            self.disk.drain()
            self.waited_seconds += time.perf_counter() - start
        by_lane, is_first = method.by_lane(), self.channel.is_first
        for block, rows in by_lane.blocks if by_lane else ():
            self.disk.write_for_checkpoint(block, rows)
        first = 0 if self._log.full_is_due(step - self._log.rows) else self._log.rows
        log = {**method.log(first), "loss": np.asarray(losses[first:step], dtype=np.float64)} if is_first else {}
        assert not (is_first and by_lane) or log.keys() == {"eta", "loss"}, (
            "state by lane is a row table's: it logs eta"
        )
        components = {"trunk": trunk_state[0], "momentum": trunk_state[1]}
        shared = method.shared() | (beside or {}) if is_first else {}
        snapshot = _Snapshot(
            step=step,
            arrays=by_lane.arrays if by_lane else None,
            sizes=by_lane.sizes if by_lane else None,
            components=components | {f"shared-{name}": tensors for name, tensors in shared.items()},
            shared=tuple(shared),
            first_logged=first,
            log=log,
            state=state,
        )
        self._on_way = True
        self.disk.submit(lambda: self._commit(snapshot))

    def finish(self) -> None:
        """Return when everything is on the disk. Raises what went wrong."""
        self.disk.drain()

    def look_to_the_end(self, asked_to_stop: Callable[[], bool]) -> None:
        """Return when all that was on the disk at the start has been looked at, or a stop is asked for.

        Raises Damaged where a block is missing.
        """
        if self._patrol:
            self._patrol.hurry()
        while self._patrol and self._patrol.is_alive() and not asked_to_stop():
            self._patrol.join(_PATIENCE_SECONDS)
        self.disk.drain()

    @property
    def bytes(self) -> int:
        """On the disk: rows, and the files of the checkpoints that are kept, as far as they are these lanes'."""
        sizes = {
            path: checkpoint.body.sizes[path] for checkpoint in self._saved for path in checkpoint.files_of(self.lanes)
        }
        return self.disk.bytes + sum(sizes.values())

    def _commit(self, snapshot: "_Snapshot") -> None:
        store, channel = self.disk.disk, self.channel
        store.sync()
        there = channel.to_first(list(self.files.listing("")))  # every rank's disk may have other left-overs
        directory = channel.from_first(new_directory(snapshot.step, {name for names in there for name in names}))
        self.files.make_directory(directory)
        part, contents = self._part(snapshot, directory)
        log: Table | None = None
        if channel.is_first:
            log, content = _table(self._log, snapshot.first_logged == 0, snapshot.log, f"{directory}/log")
            contents |= content
            for name, tensors in snapshot.components.items():
                contents[f"{directory}/{name}.safetensors"] = [torch_save(tensors)]

        files, sizes = {}, {}
        for path, parts in contents.items():
            self.files.put_whole(path, parts)
            digest = hashlib.sha256()
            for one in parts:
                digest.update(one)
            files[path] = digest.hexdigest()
            sizes[path] = sum(map(len, parts))
        for table in (part.blocks, log):  # the full table may be an earlier checkpoint's
            if table and table.full not in files:
                assert self.newest
                path, earlier = table.full, self.newest.body
                files[path], sizes[path] = earlier.files[path], earlier.sizes[path]
        self.files.sync_directory(directory)
        if channel.is_first:
            self.files.make_directory(manifest.MANIFESTS)
        elif self._is_keeper and PART_OF_A_RUN not in self.files.listing(""):
            remove_any(self.files, PART_OF_A_RUN + TEMPORARY)  # of a run that was killed just here
            self.files.put_whole(PART_OF_A_RUN, [b""])
        self.files.sync_directory("")
        written = channel.to_first(Written(part, files, sizes, store.next_generation))
        body: Body | None = None
        if log:
            number = max([manifest.next_number(self.files), *(checkpoint.number + 1 for checkpoint in self._saved)])
            state = RunState.of(snapshot.state)
            body = Body.of_ranks(written, number, snapshot.step, directory, snapshot.sizes, log, state, snapshot.shared)
            manifest.publish(self.files, body)
            self._drop_old_manifests()
        body = channel.from_first(body)
        assert body
        store.committed(body.number)
        self.newest = SavedCheckpoint(self.files, body)
        self._saved.append(self.newest)
        self._drop_old()
        self._remove_garbage()
        self._on_way = False

    def _part(self, snapshot: "_Snapshot", directory: str) -> tuple[Part, dict[str, list[Buffer]]]:
        """What the manifest says of this rank's lanes, and the files to write for it."""
        store, lanes = self.disk.disk, self.lanes
        if snapshot.arrays is None:
            return Part(lanes.rank, lanes.ranks), {}
        number = f"-{lanes.rank}" if lanes.ranks > 1 else ""
        active = f"{directory}/active{number}.safetensors"
        self._changed = np.union1d(self._changed, store.changed())
        full = self._map.full_is_due(len(self._changed))
        table = store.entries(None if full else self._changed)
        blocks, contents = _table(self._map, full, table, f"{directory}/blocks{number}")
        if full:
            self._changed = self._changed[:0]
        part = Part(lanes.rank, lanes.ranks, active, blocks, store.entry_count())
        return part, {active: parts_of(snapshot.arrays), **contents}

    def _drop_old_manifests(self) -> None:
        """Those that the checkpoint just published is to replace; rank 0's work."""
        dropped = self._saved[: max(0, len(self._saved) + 1 - self.keep)]
        if dropped:
            # For good, before any file that they name goes: a checkpoint never comes back without its blocks.
            for checkpoint in dropped:
                remove_any(self.files, manifest.path_of(checkpoint.number))
            self.files.sync_directory(manifest.MANIFESTS)

    def _drop_old(self) -> None:
        """The files that only dropped checkpoints name; each rank removes its own, and what nobody wrote but one rank alone."""
        dropped, self._saved = self._saved[: -self.keep], self._saved[-self.keep :]
        if not dropped:
            return
        named = {path for checkpoint in self._saved for path in checkpoint.body.files}
        gone = {path for checkpoint in dropped for path in checkpoint.files_of(self.lanes)} - named
        for path in sorted(gone):
            remove_any(self.files, path)
        for directory in sorted({path.rpartition("/")[0] for path in gone}):
            remove_if_empty(self.files, directory)
        self.disk.disk.drop_before(self._saved[0].number)

    def _remove_garbage(self) -> None:
        if not self._garbage:
            return
        # Manifests first here too; and what the last process did to them is for good before anything is built on it.
        first = [path for path in self._garbage if path.startswith(manifest.MANIFESTS)]
        for path in first:
            remove_any(self.files, path)
        self.files.sync_directory(manifest.MANIFESTS if manifest.MANIFESTS in self.files.listing("") else "")
        for path in self._garbage:
            remove_any(self.files, path)
        self._garbage.clear()


def new_directory(step: int, there: set[str]) -> str:
    """A name that no checkpoint has, damaged ones included."""
    names = [f"step-{step:09d}", *(f"step-{step:09d}-{again}" for again in range(2, len(there) + 3))]
    return next(name for name in names if name not in there)


@dataclass
class _Snapshot:
    """What the writer's thread needs: copies, or things that are never changed."""

    step: int
    arrays: dict[str, np.ndarray] | None  # of this rank's lanes; None: the method keeps nothing by lane
    sizes: RowSizes | None
    components: dict[str, dict[str, torch.Tensor]]  # files of rank 0
    shared: tuple[str, ...]  # the names of those that are the method's
    first_logged: int
    log: dict[str, np.ndarray]
    state: dict[str, Any]


def _table(
    chain: _Chain, full: bool, arrays: dict[str, np.ndarray], path: str
) -> tuple[Table, dict[str, list[Buffer]]]:
    """(what the manifest says of a table, the file to write): a full copy, or what changed since the last."""
    count = len(next(iter(arrays.values())))
    name = f"{path}-{'full' if full else 'delta'}.safetensors"
    if full:
        chain.full, chain.rows, chain.since = name, count, 0
    else:
        chain.since += count
    assert chain.full
    table = Table(full=chain.full, delta=None if full else name, rows=chain.rows, since=chain.since)
    return table, {name: parts_of(arrays)}


def load_trunk(checkpoint: SavedCheckpoint, trunk: "Trunk | GivenTrunk", ranks: Ranks) -> None:
    """Put a fresh trunk where the checkpoint left it; rank 0 reads it and tells the others, whose disk may be another.

    Raises Damaged at rank 0.
    """
    state = (read_trunk(checkpoint), checkpoint.tensors("momentum")) if ranks.is_first else None
    if state and (odd := misfit(*state)):
        raise Damaged(f"{shown(odd)} of momentum.safetensors does not fit the weights of trunk.safetensors")
    trunk.load(*ranks.from_first(state))


def read_trunk(checkpoint: SavedCheckpoint) -> dict[str, torch.Tensor]:
    """Parameters and buffers of the network. Raises Damaged."""
    return checkpoint.tensors("trunk")


def read_shared(checkpoint: SavedCheckpoint, ranks: Ranks) -> Components:
    """The components of the method and those beside them; rank 0 reads them and tells the others. Raises Damaged at rank 0."""
    shared = checkpoint.body.shared
    if not shared:
        return {}
    return ranks.from_first({one: checkpoint.tensors(f"shared-{one}") for one in shared} if ranks.is_first else None)
