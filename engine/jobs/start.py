"""A run that is put together, in order: the output directory, the images, the plan, the loader, the trunk, the store, the method, the run.

The loader forks its workers before DeepSpeed and the store start threads; so these are imported where they are used.
"""

import json
import sys
from contextlib import ExitStack, redirect_stdout
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, TextIO, cast

import torch

from configs import schema
from configs.methods import REGISTRY
from datasets.catalog import sample_images
from datasets.clean import first_readable
from datasets.loader import StepDataset, batches
from engine.disk.saved_checkpoint import SavedCheckpoint
from engine.jobs import parts, sizes
from engine.jobs.chosen_sizes import choice_in_words, lanes_of
from engine.jobs.data import cached, open_data, open_probe
from engine.jobs.imports import import_early, import_late
from engine.jobs.planned import disk_traffic, facts_of, planned
from engine.jobs.room import lack_of_memory
from engine.jobs.run_directory import RunDirectory
from engine.planning.resident import Libraries
from engine.planning.text import plan_text, traffic_text
from engine.ranks.agreement import require_same
from engine.ranks.lanes import Lanes
from engine.ranks.ranks import Ranks
from engine.results.output_names import UNREADABLE
from engine.rows.implementations import implementations, kernel_lines, names
from engine.training.course import Course
from engine.training.reading import Reading, listed
from engine.training.stop_signal import StopSignal, WatchedOutput

if TYPE_CHECKING:
    from engine.evaluation.evaluator import Evaluator
    from engine.rows.row_table import RowTable
    from engine.training.run import Run
    from engine.training.summary import About
    from engine.trunk.network import Network


class Start:
    """A run that is put together. `train_or_plan` calls the other methods, each of which makes one part out of those before it.

    cleanup  closes what is opened here
    """

    def __init__(self, config: schema.Config, ranks: Ranks, cleanup: ExitStack) -> None:
        self.config, self.ranks, self.cleanup = config, ranks, cleanup
        self.lanes = Lanes(lanes_of(config), ranks.rank, ranks.size)
        self.stop = StopSignal()
        self.libraries = Libraries()

    def train_or_plan(self, is_dry: bool, fresh: bool) -> int:
        """Look at everything, then train; is_dry: print the plan instead. Returns the exit code."""
        config, ranks = self.config, self.ranks
        require_same(ranks, "config", config.model_dump_json())
        self.directory = RunDirectory(config, ranks, self.cleanup, will_write=not is_dry)
        checkpoints, complaints = ([], []) if fresh else self.directory.checkpoints(self.lanes)
        self.last = checkpoints[-1] if checkpoints else None
        self.check_images()
        self.say_order()
        if is_dry:
            self.print_plan()
            return 0
        if self.last and self.directory.is_done(self.last, self.course.end):
            return 0
        parts.use_threads(config, ranks.node_size)
        self.start_loading()
        self.choose_kernels()
        self.check_evaluation()
        self.plan()
        self.check_memory()
        ranks.wait()  # decoding, compiling and the probe took each its own time, and from here on there are time limits
        self.make_trunk()
        self.directory.make_ready(self.config, self.planned.tiers(), self.source, self.schedule, fresh)
        self.open_checkpoints(checkpoints, sweep=not complaints)
        self.make_method()
        self.cleanup.enter_context(self.stop)
        self.cleanup.enter_context(redirect_stdout(cast("TextIO", WatchedOutput(sys.stdout, self.stop))))
        return self.make_run().run()

    def check_images(self) -> None:
        """Source, views and order; the network that is to see them; what the evaluation asks."""
        with self.libraries.importing():
            import_early(self.config)
        self.source, self.augmentation, self.schedule, config = open_data(self.config, self.last)
        self.choice, self.config = choice_in_words(self.config, config), config
        require_same(self.ranks, "images", (len(self.source), self.source.fingerprint()))
        self.total = sizes.total_steps(config, self.schedule)
        sizes.check_shrink(config, self.schedule, self.total)
        self.sides = list(config.data.sides)
        self.views = config.method.trunk_views(self.sides)
        self.network: Network | None = None
        if not config.backbone.is_given:
            from engine.trunk.network import check_sides

            self.network = parts.network_of(config)
            check_sides(self.network, {*self.sides, config.data.image_size})
        self.probe = open_probe(config, self.source, self.augmentation)
        self.labels = parts.probe_labels(config, self.source)

    def plan(self) -> None:
        """What the run will take, when all libraries are there."""
        with self.libraries.importing():
            import_late(self.config)
        ranks = self.ranks
        self.facts = facts_of(
            self.config,
            self.source,
            self.probe,
            ranks=ranks.size,
            ranks_here=ranks.node_size,
            device=ranks.device.type,
            libraries_bytes=self.libraries.bytes,
        )
        self.planned = planned(self.config, self.schedule, self.facts)

    def check_memory(self) -> None:
        """ValueError on every rank where a machine has too little memory for a run that begins; a run that goes on is warned."""
        for lack in filter(None, self.ranks.share(self._lack_of_memory())):
            if self.config.plan.refuse and not self.last:
                raise ValueError(f"{lack}\nTo try it all the same: plan.refuse=false")
            print(f"{lack}\nThe run is tried all the same")
            return

    def _lack_of_memory(self) -> str | None:
        return lack_of_memory(self.config, self.schedule, self.facts, self.planned, self.ranks.device)

    def print_plan(self) -> None:
        """The resolved config and the plan."""
        self.plan()
        print(self.config.model_dump_json(indent=2))
        print(plan_text(self.planned))
        work = disk_traffic(self.config, self.schedule, self.facts)
        print(traffic_text(work, self.course.end, self.config.plan.step_seconds))
        if lack := self._lack_of_memory():
            print(lack)

    def say_order(self) -> None:
        """Images and steps, and what was decided on the user's behalf."""
        config, schedule, ranks = self.config, self.schedule, self.ranks
        self.course = Course(
            end=sizes.end_of(config, schedule),
            total=self.total,
            steps_per_pass=schedule.steps_per_pass,
            learning_rate=partial(parts.learning_rate_at, config, schedule, self.total),
            log_every=config.log_every,
            checkpoint_every=config.checkpoint.every_steps,
            evaluate_every=config.evaluate.every_steps,
            seed=config.seed,
        )
        rows_text = ""
        if config.method.has_rows:
            rows_text = f"{sizes.active_rows_of(config, schedule):,} active rows, "
        print(
            f"{len(self.source):,} images of {self.source.name}; {rows_text}window {schedule.window:,}, stride {schedule.stride:,}; "
            f"{self.total:,} steps of {schedule.batch}"
            + (f", of which steps={config.steps} asks for the first" if self.course.end < self.total else "")
            + (f"; {ranks.size} ranks" if ranks.size > 1 else "")
        )
        if config.method.has_rows and (config.rows.active or 0) > schedule.size:
            print(
                f"method.active {config.rows.active:,} is above the number of images: all {schedule.size:,} rows are active"
            )
        for note in [self.choice, *self.source.notes]:
            if note:
                print(note)

    def start_loading(self) -> None:
        """Workers are forked here, before DeepSpeed and the store start threads."""
        config, schedule, ranks = self.config, self.schedule, self.ranks
        source = cached(config, self.source, schedule, self.lanes)
        dataset = StepDataset(source, schedule, self.augmentation, config.seed, ranks.rank, ranks.size)
        self.stream = batches(
            dataset,
            self.last.step if self.last else 0,
            self.course.end,
            config.data.workers,
            pin=ranks.device.type == "cuda",
            patience_seconds=config.data.patience_seconds,
            asked_to_stop=lambda: self.stop.is_asked,
        )
        self.cleanup.callback(self.stream.close)

    def choose_kernels(self) -> None:
        """Compiled or ATen, for the ops of the row table; said."""
        self.kernels: dict[str, str] = {}
        if self.config.method.has_rows:
            wanted = self.config.rows
            chosen = implementations(
                self.ranks.device, torch.float32, wanted.dim, wanted.kernels, wanted.rows_have_momentum
            )
            print("\n".join(kernel_lines(chosen, self.last.body.state.kernels if self.last else None)))
            self.kernels = names(chosen)

    def check_evaluation(self) -> None:
        """Say of which sets of the evaluation nothing can be read: they will have no figure. Without a network there is no evaluation."""
        if self.network is None:
            return
        config, probe = self.config, self.probe
        require_same(self.ranks, "set of evaluation images", probe and probe.fingerprint())
        limit = config.evaluate.limit
        self.sample = sample_images(self.source, config.data.image_size, min(2000, limit))
        if not self.ranks.is_first:
            return
        for images in [probe.gallery, *probe.queries] if probe else [self.sample]:
            if first_readable(images, limit) is None:
                print(
                    f"none of the images of {images.name} that the evaluation asks for can be read; it will have no figure"
                )

    def make_trunk(self) -> None:
        self.trunk = parts.make_trunk(self.config, self.network, self.schedule, self.ranks)
        self.cleanup.callback(self.trunk.close)

    def open_checkpoints(self, checkpoints: list[SavedCheckpoint], sweep: bool) -> None:
        """The store on the disk, and the checkpoints over it, restored to the last of `checkpoints`."""
        from engine.jobs.row_table import make_disk
        from engine.training.checkpoint import Checkpoints

        self.disk = make_disk(self.config, self.schedule, self.directory.files, self.lanes)
        self.cleanup.callback(self.disk.close)
        keep, channel = self.config.checkpoint.keep, self.ranks.new_channel()
        self.checkpoints = Checkpoints(self.directory.files, self.disk, keep, channel)
        self.cleanup.callback(self.checkpoints.close)
        self.checkpoints.restore(checkpoints, sweep=sweep, is_keeper=self.directory.is_keeper)
        self.ranks.wait()  # what a rank writes from here on must not be taken for what nobody names

    def make_method(self) -> None:
        """The method that the registry has under `method.kind`."""
        from engine.methods.method import Given

        config = self.config
        given = Given(
            seed=config.seed,
            ranks=self.ranks,
            lanes=self.lanes,
            schedule=self.schedule,
            trunk=self.trunk,
            network=partial(parts.network_of, config),
            micro_batches=config.schedule.micro_batches,
            rows_grad_V=[self.augmentation.rows_grad_V[view] for view in self.views],
            table=self._table,
        )
        _, module = REGISTRY[config.method.kind]
        self.method = import_module(module).make(config.method, given)

    def _table(self) -> "RowTable":
        from engine.jobs.row_table import make_table

        table = make_table(self.config, self.schedule, self.ranks, self.disk, self.kernels, self.lanes)
        self.cleanup.callback(table.close)
        return table

    def evaluators(self) -> "list[Evaluator]":
        if self.network is None:
            return []
        from engine.evaluation.nearest import KnnEvaluator

        found: list[Evaluator] = [KnnEvaluator(self.probe, self.sample, parts.protocol_of(self.config), self.ranks)]
        if looks := parts.view_evaluator(
            self.config, self.source, self.augmentation, self.ranks, self.method.active_vectors
        ):
            found.append(looks)
        return found

    def make_run(self) -> "Run":
        from engine.training.images import Images
        from engine.training.run import Run
        from engine.training.step import Dealing

        config = self.config
        dealing = Dealing(len(self.lanes), config.schedule.micro_batches, self.views)
        run = Run(
            self.ranks,
            self.trunk,
            self.method,
            Images(self.stream, self._reading(), config.data.on_unreadable == "stop", dealing),
            self.course,
            self.checkpoints,
            self.directory.own,
            self.stop,
            self.evaluators(),
            self._about(),
        )
        run.probe = parts.online_probe(self.labels, self.trunk, self.ranks)
        return run

    def _reading(self) -> Reading:
        path = self.directory.path / UNREADABLE
        reading = Reading(
            self.schedule.batch // self.ranks.size,
            self.config.data.max_unreadable,
            self.schedule.steps_per_window,
            self.course.end,
            self.source.file_bytes,
            partial(self.directory.own.lines, UNREADABLE) if self.ranks.is_first else None,
        )
        earlier = self.ranks.from_first(list(listed(path)) if self.last else [])
        reading.know(instance for instance in earlier if instance < len(self.source))
        return reading

    def _about(self) -> "About":
        from engine.planning.measured import held_bytes
        from engine.training.summary import About

        config = self.config
        return About(
            job=config.job,
            method=config.method.kind,
            instances=len(self.source),
            backbone=parts.backbone_in_words(config),
            state={
                "config": json.loads(config.model_dump_json()),
                "source": self.source.fingerprint(),
                "segments": self.schedule.history,
                "kernels": self.kernels,
            },
            planned=self.planned.tiers(),
            held=held_bytes,
            tensorboard=config.evaluate.tensorboard,
        )
