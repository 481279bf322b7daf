"""All ranks find the checkpoint that they go on from.

Rank 0 reads the manifests, newest first, and tells the others what each says; every rank looks at what belongs to its lanes, on its own
disk, and says what is wrong with it. A checkpoint that one rank complains of is whole for nobody.
"""

from engine.disk import manifest
from engine.disk.files import Files
from engine.disk.generations import Generations
from engine.disk.saved_checkpoint import SavedCheckpoint
from engine.ranks.lanes import Lanes
from engine.ranks.ranks import Ranks
from engine.rows.damaged import Damaged


def recover_together(files: Files, ranks: Ranks, lanes: Lanes) -> tuple[list[SavedCheckpoint], list[str]]:
    """What manifest.recover gives, the same on every rank; lines of complaint at rank 0 alone.

    Raises OSError where something cannot be read that may be whole; ValueError where another rank's disk has checkpoints that rank 0's
    has not, which would otherwise be taken for what nobody needs.
    """
    newest = ranks.share(max(manifest.numbers(files), default=0))
    later = [str(rank) for rank, number in enumerate(newest) if number > newest[0]]
    if later:
        raise ValueError(
            f"the disk of rank {', '.join(later)} holds checkpoints that rank 0's does not; start the nodes in the order that the run "
            "had, or merge their checkpoints directories"
        )
    if not ranks.is_first:
        while (asked := ranks.from_first(None)) is not None:
            body, is_newest = asked
            ranks.share(_complaint(SavedCheckpoint(files, body), is_newest, lanes))
        return [SavedCheckpoint(files, body) for body in ranks.from_first(None)], []

    def inspect(checkpoint: SavedCheckpoint, is_newest: bool) -> None:
        ranks.from_first((checkpoint.body, is_newest))
        complaints = ranks.share(_complaint(checkpoint, is_newest, lanes))
        for rank, complaint in enumerate(complaints):
            if complaint:
                raise Damaged(complaint if ranks.size == 1 else f"rank {rank}: {complaint}")

    checkpoints, complaints = manifest.recover(files, inspect=inspect)
    ranks.from_first(None)
    ranks.from_first([one.body for one in checkpoints])
    return checkpoints, complaints


def _complaint(checkpoint: SavedCheckpoint, is_newest: bool, lanes: Lanes) -> str | None:
    try:
        manifest.inspect_checkpoint(checkpoint, is_newest, lanes)
    except Damaged as error:
        return str(error)
    return None


def named_by_all(checkpoints: list[SavedCheckpoint], own: Generations, lanes: Lanes) -> Generations:
    """The generations that the parts of all ranks name, as far as these are on this disk.

    own   those of these lanes, which belong to a rank that looks after what is nobody's
    """
    if lanes.ranks == 1:
        return own
    for one in checkpoints:
        there = one.files.listing(one.name)
        for part in one.body.parts:
            if part.active and part.active.rpartition("/")[2] in there:
                own = own.joined(one.tables_of(part)[0])
    return own
