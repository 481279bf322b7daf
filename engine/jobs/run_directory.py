"""The output directory of a training run, as its ranks share it: looked at, locked, searched for checkpoints, and made ready.

Nothing is written before everything about the run was found to be right; then `make_ready` writes what comes before the first step.
Of the ranks that share a disk one, the keeper, looks after what is nobody's.
"""

import json
from contextlib import ExitStack
from pathlib import Path

from configs import schema
from datasets.schedule import Schedule
from datasets.source import Source
from engine.disk import manifest
from engine.disk.files import CHECKPOINTS, checkpoint_files
from engine.disk.recovery import recover_together
from engine.disk.saved_checkpoint import SavedCheckpoint
from engine.disk.shapes import PART_OF_A_RUN
from engine.jobs.data import images_directory
from engine.jobs.locked import lock, require_no_sweep
from engine.ranks.agreement import require_one_disk
from engine.ranks.lanes import Lanes
from engine.ranks.ranks import Ranks
from engine.results.json_files import is_finished
from engine.results.output import Output
from engine.results.output_names import EVENTS, INDEX, LOCK, PRETRAIN


class RunDirectory:
    """
    own         what may be written for people
    files       the checkpoints
    is_keeper   of the ranks on this disk, the one that looks after what is nobody's
    """

    def __init__(self, config: schema.Config, ranks: Ranks, cleanup: ExitStack, will_write: bool) -> None:
        """Look, and lock what is there. Raises ValueError where the directory is somebody else's, or another job has it."""
        self.config, self.ranks, self.path = config, ranks, Path(config.output)
        require_no_sweep(self.path)
        events = EVENTS if config.evaluate.tensorboard else ()
        self.own = Output(self.path, [*PRETRAIN, *events], images_directory(config))
        self.is_keeper = ranks.is_first or (config.ranks.own_disks and ranks.node_rank == 0)
        self.files = checkpoint_files(self.path)
        self._cleanup = cleanup
        self._is_locked = self.path.is_dir() and will_write
        ranks.wait()  # all have looked before one makes it
        if self._is_locked and self.is_keeper:
            self.own.make()
            self._lock()

    def checkpoints(self, lanes: Lanes) -> tuple[list[SavedCheckpoint], list[str]]:
        """What the run goes on from, the newest last, and what is wrong with others, which is said.

        Raises ValueError where there are checkpoints and none is whole.
        """
        checkpoints, complaints = recover_together(self.files, self.ranks, lanes)
        complaints = self.ranks.from_first(complaints)
        there = self.ranks.share((self.files.root / PART_OF_A_RUN).exists())
        parts = [str(rank) for rank, is_there in enumerate(there) if is_there]
        if parts and not checkpoints:
            raise ValueError(
                f"on the disk of rank {', '.join(parts)}, {self.files.root} is one node's part of a run whose manifests are on its "
                "first node;\nstart the nodes in the order that the run had, merge their checkpoints directories, "
                "or start over with --fresh"
            )
        for complaint in complaints:
            print(complaint)
        if complaints and not checkpoints:
            own_disks = self.config.ranks.own_disks
            order = " or, if nodes with disks of their own have changed places, as they were" if own_disks else ""
            is_link = any("is a link" in line for line in complaints)
            way = "do what the line above says" if is_link else "start over with --fresh"
            raise ValueError(f"no checkpoint in {self.files.root} is whole; {way}{order}")
        return checkpoints, complaints

    def is_done(self, last: SavedCheckpoint, end: int) -> bool:
        """Whether the run that left `last` has nothing to do up to step `end`; says so, or where it goes on."""
        finished = self.ranks.from_first(is_finished(self.path, end))
        if last.step > end:
            print(
                f"nothing to do: {last.step} steps are done, and steps={end} asks for fewer; to go on, raise steps or make it null"
            )
            return True
        if last.step == end and finished:
            summary = self.path / "summary.json"
            print(f"this run is finished: {last.step} steps are done; see {summary}")
            return True
        print(f"going on after step {last.step} from {self.files.root / last.name}")
        return False

    def make_ready(
        self,
        config: schema.Config,
        planned: dict[str, dict[str, int]],
        source: Source,
        schedule: Schedule,
        fresh: bool,
    ) -> None:
        """Write what comes before the first step; all ranks call it together.

        config  with a number for each size that was chosen
        fresh   remove what an earlier run left. Raises ValueError where another job began meanwhile
        """
        if self.is_keeper:
            self.own.make()
            if fresh and self._is_locked:  # what came since the lock was not there is another job's
                for path in self.own.remove_run():
                    print(f"{self.path / path} was not written by this engine and stays")
            if not self._is_locked:
                self._lock()
                if manifest.numbers(self.files):
                    raise ValueError(f"another job began in {self.path} just now; choose another output")
            self.own.write_json("config.json", json.loads(config.model_dump_json()))
            self.own.write_json("plan.json", planned)
            self.own.enter(CHECKPOINTS)
            self.files.root.mkdir(exist_ok=True)
            source.save_index(self.path / CHECKPOINTS / INDEX)
            if len(schedule.history) > 1:  # now nothing else knows the order: a second copy
                source.save_index(self.own.enter(INDEX))
        self.ranks.wait()
        if not config.ranks.own_disks:
            require_one_disk(self.path, self.ranks)

    def _lock(self) -> None:
        self.own.enter(LOCK)
        try:
            lock(self.path, self._cleanup)
        except ValueError as error:
            if self.ranks.is_first:
                raise
            raise ValueError(f"{error}. If the nodes share this disk, leave ranks.own_disks at false") from None
