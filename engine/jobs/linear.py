"""job=linear: a linear classifier on the features of a saved network, which does not change; all ranks share the images.

linear.protocol says how. "features": the features of all images are computed once (engine/probing/feature_cache.py), and rank 0
trains on them what linear.rates, linear.C and linear.few ask for. "published": views go through the network in every step.
linear.probe: nothing is trained. Either way the images that are tested are asked once, at the end.
"""

import argparse
import hashlib
import json
from collections.abc import Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from configs import schema
from datasets.labelled import Classes, Part, labelled_parts, other_source
from datasets.loader import StepDataset, batches
from datasets.passes import AsTheyAre, InColour, Passes
from engine.jobs import parts
from engine.jobs.data import images_directory, open_data, open_images
from engine.jobs.locked import lock, require_no_sweep
from engine.jobs.pretrain import joined_ranks
from engine.probing.tellers import SAY_SECONDS, Pace
from engine.ranks.agreement import require_same
from engine.ranks.ranks import Ranks
from engine.results.json_files import summary_of
from engine.results.output import Output
from engine.results.output_names import EVENTS, LINEAR, LOCK

if TYPE_CHECKING:
    from collections.abc import Generator

    from datasets.batch import Batch
    from engine.probing.feature_cache import FeatureCache
    from engine.probing.frozen import FrozenTrunk
    from engine.results.listeners import TensorBoard


def run(config: schema.Config, options: argparse.Namespace) -> int:
    """Print the figures, write linear.json and the report's section; returns the exit code."""
    with joined_ranks(config) as (ranks, cleanup):
        from engine.jobs.linear_protocols import PROTOCOLS, test_again

        job = LinearJob(config, ranks, cleanup)
        if options.dry_run:
            job.print_plan()
            return 0
        job.begin()
        result = test_again(job) if config.linear.probe else PROTOCOLS[config.linear.protocol](job)
        job.trunk.require_unchanged()
        if result is not None:
            job.tell_and_write(result)
        return 0


def print_of(ids_n: np.ndarray) -> str:
    """sha256 (hex) of which images these are."""
    return hashlib.sha256(ids_n.tobytes()).hexdigest()


class LinearJob:
    """What every protocol needs: images in two parts, the network, caches of features, and what is told and written.

    own      the output directory; rank 0 alone writes there
    parts    images that are trained on, and images that are tested
    trunk    the network; name: where it is from; steps: of the run that left it, None where that is not known
    """

    def __init__(self, config: schema.Config, ranks: Ranks, cleanup: ExitStack) -> None:
        """Look, and write nothing. Raises ValueError where a key does not fit the ranks, or the directory is somebody else's."""
        self.config, self.ranks, self.cleanup = config, ranks, cleanup
        require_same(ranks, "config", config.model_dump_json())
        if config.linear.batch % ranks.size:
            raise ValueError(
                f"linear.batch is {config.linear.batch}, and {ranks.size} ranks were launched; give each of them as many images"
            )
        require_no_sweep(Path(config.output))
        events = EVENTS if config.evaluate.tensorboard else ()
        self.own = Output(Path(config.output), [*LINEAR, *events], images_directory(config))
        self.trunk: FrozenTrunk
        self.name = ""
        self.steps: int | None = None

    def print_plan(self) -> None:
        """The resolved config, the images, how many steps they make, and what is kept of them. The network need not be trained yet."""
        from engine.planning.probe import ProbeSizes, probe_text
        from engine.probing.frozen import FrozenTrunk
        from engine.trunk.network import check_sides

        config, asked = self.config, self.config.linear
        self._open_images(None, self._classes_before())
        network = parts.network_of(config)
        check_sides(network, {config.data.image_size})
        trunk = FrozenTrunk(network, config.evaluate.features, self.ranks.device)
        by_features = asked.protocol == "features" and not asked.probe
        sizes = ProbeSizes(
            trained=len(self.parts.train) if by_features else 0,
            tested=len(self.parts.test),
            width=trunk.width(self.parts.test.source.channels, config.data.image_size),
            classes=len(self.parts.labels_C),
            rates=len(asked.rates) if by_features else int(not asked.probe),
            strengths=len(asked.C) if by_features else 0,
        )
        print(probe_text(sizes, f"{config.output}/linear"))
        print(config.model_dump_json(indent=2))

    def begin(self) -> None:
        """Everything is looked at; then the directory is this job's."""
        from engine.jobs.saved_network import saved_network
        from engine.probing.frozen import FrozenTrunk
        from engine.trunk.network import check_sides

        config, ranks = self.config, self.ranks
        network, self.name, checkpoint = saved_network(config)
        self.steps = checkpoint.step if checkpoint else None
        if config.evaluate.backbone is None and checkpoint is None:  # which the run left together with its summary
            self.steps = summary_of(self.own.path).get("steps")
        self._open_images(checkpoint, self._classes_before())
        check_sides(network, {config.data.image_size})
        parts.use_threads(config, ranks.node_size)
        self.trunk = FrozenTrunk(network, config.evaluate.features, ranks.device)
        self.network = self._print_of_network()
        require_same(ranks, "network", self.network)
        if ranks.is_first:
            self.own.make()
            self.own.enter(LOCK)
            lock(self.own.path, self.cleanup)
        ranks.wait()

    def _classes_before(self) -> Classes | None:
        """Those of linear.probe, which becomes `probe`; None where it is null."""
        from engine.probing.saved import SavedProbe

        path = self.config.linear.probe
        self.probe = SavedProbe.read(Path(path), self.ranks.device) if path else None
        return self.probe and Classes(self.probe.labels_C, self.probe.names_C, self.probe.trained_M)

    def _print_of_network(self) -> str:
        """sha256 (hex) over all that the features depend on: weights, and what is no weight but part of the network."""
        backbone, statistics = self.config.backbone, self.trunk.network
        mean, std = (tensor.flatten().tolist() for tensor in (statistics.mean, statistics.std))
        shape = [backbone.name, backbone.stem, backbone.layers, backbone.grid if backbone.layers else None]
        return hashlib.sha256(json.dumps([self.trunk.digest, *shape, mean, std]).encode()).hexdigest()

    def _open_images(self, checkpoint: Any, classes: Classes | None) -> None:
        config, asked = self.config, self.config.linear
        if checkpoint:
            source, _, _, self.config = open_data(config, checkpoint, grows=False)
        else:
            source, _ = open_images(config)
        data = self.config.data
        tested = other_source(source, root=data.root, image_size=data.image_size, held_out=data.held_out)
        self.parts = labelled_parts(
            source,
            tested,
            least_images=asked.least_images,
            limit=asked.limit,
            test_share=asked.test_share,
            classes=classes,
        )
        self.prints = [part.source.fingerprint() for part in (self.parts.train, self.parts.test)]
        require_same(self.ranks, "images", self.prints)
        if classes:
            print(f"tested on {self.parts.tested_on}", flush=True)
            return
        steps = asked.epochs * -(-len(self.parts.train) // asked.batch)
        print(f"{self.parts.words}; up to {steps:,} steps of {asked.batch}", flush=True)

    # Features, once

    def cache(self, name: str, part: Part) -> "FeatureCache":
        """The cache of a part's features, as far as it is filled."""
        from engine.probing.feature_cache import FeatureCache

        key = self.key("features", name, print_of(part.instances_M))
        output = self.own if self.ranks.is_first else None
        return FeatureCache(output, name, key, len(part), self.ranks)

    def images(self, part: Part, cache: "FeatureCache") -> "Generator[Batch, None, None]":
        """This rank's batches of what the cache lacks."""
        from engine.probing.feature_cache import BATCH

        passes = Passes(part.instances_M, BATCH * self.ranks.size, self.ranks.size)
        augment = AsTheyAre(self.config.data.image_size, part.source.channels)
        return self._stream(part.source, passes, augment, cache.first_step, cache.steps)

    def views(self, first_step: int, last_step: int) -> "Generator[Batch, None, None]":
        """This rank's batches of random crops, in a new order each epoch."""
        from datasets.photos import PhotoAugment
        from datasets.views.crops import Crop

        asked, part = self.config.linear, self.parts.train
        passes = Passes(part.instances_M, asked.batch, self.ranks.size, self.config.seed)
        augment = PhotoAugment(
            crops=(Crop(self.config.data.image_size, 1, asked.crop),),
            flip=asked.flip,
            jitter_probability=0.0,
            grey=0.0,
            blur_probability=0.0,
        )
        return self._stream(InColour(part.source), passes, augment, first_step, last_step)

    def _stream(
        self, source: Any, passes: Passes, augment: Any, first: int, last: int
    ) -> "Generator[Batch, None, None]":
        """Workers are forked here, before anything is computed."""
        data = self.config.data
        stream = batches(
            StepDataset(source, passes, augment, self.config.seed, self.ranks.rank, self.ranks.size),
            first,
            last,
            data.workers,
            pin=self.ranks.device.type == "cuda",
            patience_seconds=data.patience_seconds,
        )
        self.cleanup.callback(stream.close)
        return stream

    def key(self, *words: object) -> str:
        """A hash over the network, the images, how they are read, and `words`: of all that kept features depend on."""
        of_all = [2, self.network, self.prints, self.config.data.image_size, *words]
        return hashlib.sha256(json.dumps(of_all).encode()).hexdigest()

    def kept(self, name: str, *words: object) -> Any:
        """What goes on after a kill: a file below `linear` at rank 0, nothing at the others. It is of these images with these classes."""
        from engine.probing.kept import Kept

        train, path = self.parts.train, self.own.enter(f"linear/{name}.safetensors") if self.ranks.is_first else None
        labelled = [print_of(train.instances_M), print_of(train.classes_M), len(self.parts.labels_C)]
        return Kept(path, self.key(name, self.config.seed, labelled, *words))

    # What is told

    @cached_property
    def board(self) -> "TensorBoard | None":
        """TensorBoard, where it is asked for; at rank 0."""
        from engine.results.listeners import TensorBoard

        if not self.config.evaluate.tensorboard or not self.ranks.is_first:
            return None
        return self.cleanup.enter_context(TensorBoard(self.own, "linear/"))

    def tell_board(self, step: int, figures: Mapping[str, Any]) -> None:
        """Figures by name; loss, lr and images_per_second among them have their own."""
        if self.board is not None:
            always = dict.fromkeys(("loss", "lr", "images_per_second"))
            own = [name for name in figures if name not in always]
            self.board.update({**always, **figures, "step": step, "figures": own})

    def tell_and_write(self, result: dict[str, Any]) -> None:
        """linear.json, the report's section, and words. What linear.json says of the same network by another protocol stays."""
        from engine.probing.words import describe, shares_by_name
        from engine.results.linear_part import linear_section, with_section
        from engine.results.records import finite, read_records
        from engine.results.report import report_of

        records = read_records(self.own.path)
        same = {
            kind: one
            for kind, one in records.linear.items()
            if isinstance(one, dict)
            and one.get("trunk") == result["trunk"]
            and one.get("network", result["network"]) == result["network"]
        }
        content = {**same, result["kind"]: result}
        section = linear_section(content, finite(records.summary.get("steps")))
        self.own.write_json("linear.json", content)
        path = self.own.path / "report.html"
        if not path.is_file():
            self.own.write_text("report.html", report_of(self.own.path, [], None))
        elif (text := with_section(path.read_text(encoding="utf-8"), section)) is not None:
            self.own.write_text("report.html", text)
        else:
            print(f"{path} has no place for a linear probe; it stays as it is")
        self.tell_board(0, shares_by_name(result))
        print(describe(result))

    def told_by_time(self, total: int) -> Any:
        """Hears of an epoch's losses: all for TensorBoard, every few seconds for the terminal."""
        pace = Pace(SAY_SECONDS)

        def tell(step: int, figures: Mapping[str, float]) -> None:
            self.tell_board(step, figures)
            if pace.is_due() or step == total:
                losses = ", ".join(f"{loss:.3f} {name.removeprefix('loss ')}" for name, loss in figures.items())
                print(f"step {step:,}/{total:,}  loss {losses}", flush=True)

        return tell
