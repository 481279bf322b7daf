"""One run from wherever it stands to its end: resume, train, evaluate, and leave the output directory as promised.

    restore    the state of the newest checkpoint, or that of step 0
    train      ask for a batch, take a step, and now and then log, evaluate, keep
    finish     what people read: summary.json, report.html, the backbone

All ranks go through it together. What they decide, they decide alike; rank 0 writes what people read, while the others wait for it. A
signal to stop that any of them got is obeyed by all between two steps. The run knows the number of the step, the losses and the
totals; all other state is in the trunk and the method.
"""

import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch

from datasets.batch import Batch
from engine.evaluation.evaluator import Evaluator, Stopped
from engine.methods.method import Method, combined
from engine.methods.stages import Stages
from engine.ranks.process_table import peak_resident_bytes
from engine.ranks.ranks import Ranks
from engine.results.exports import backbone_of, export_backbone
from engine.results.json_files import json_text
from engine.results.listeners import Listener, MetricsFile, TensorBoard
from engine.results.output import Output
from engine.results.output_names import UNREADABLE
from engine.results.progress import progress
from engine.results.records import evaluated_steps
from engine.results.report import report_of
from engine.training.checkpoint import Checkpoints, load_trunk, read_shared
from engine.training.course import Course
from engine.training.images import Images
from engine.training.interval import Interval
from engine.training.online_probe import COMPONENT, OnlineProbe
from engine.training.reading import FILLED, TooMuchUnread
from engine.training.step import seed_generators, train_step
from engine.training.stop_signal import StopSignal
from engine.training.summary import About, digest, merged
from engine.training.totals import NonFiniteLoss, Totals, mean_of_finite

if TYPE_CHECKING:
    from engine.trunk.given import GivenTrunk
    from engine.trunk.trunk import Trunk

_LAST_SHARE = 0.05  # of the steps: what the summary's loss is the mean of
_OF_TRUNK = ("trunk_forward", "trunk_backward")  # stages
_FROM_THE_START = ("metrics.jsonl", "evaluations.jsonl", UNREADABLE)


@dataclass
class Run:
    """
    checkpoints  restored: the run goes on after the newest of them
    about        what else the results say, and what each checkpoint is to keep
    probe        looks at the features while they are trained; None: nothing does
    step         done so far
    """

    ranks: Ranks
    trunk: "Trunk | GivenTrunk"
    method: Method
    images: Images
    course: Course
    checkpoints: Checkpoints
    output: Output
    stop: StopSignal
    evaluators: list[Evaluator]
    about: About
    probe: OnlineProbe | None = None
    step: int = 0
    stages: Stages = field(default_factory=Stages)
    totals: Totals = field(default_factory=Totals)
    listeners: list[Listener] = field(default_factory=list)
    _images_at_checkpoint: int = 0
    _probed: dict[str, float | None] = field(default_factory=dict)  # the probe's last figures

    def run(self) -> int:
        """Restore, train, finish; returns the exit code: 0 done or stopped on request, 1 the loss was lost, or too many images."""
        started = time.time()
        self.method.stages = self.stages
        self.restore()
        chance_loss = self.method.chance_loss()
        for line in self.method.words:
            print(line)
        with ExitStack() as open_listeners:
            if self.ranks.is_first:
                self._open_listeners(open_listeners, chance_loss)
            status = self._train_to_the_end()
        return self.finish(status, chance_loss, started)

    def restore(self) -> None:
        """Go on after the newest checkpoint, or begin."""
        checkpoint, ranks = self.checkpoints.newest, self.ranks
        if checkpoint is None:
            if ranks.is_first:  # of a run that was killed before its first checkpoint
                for name in _FROM_THE_START:
                    self.output.remove(name)
            self.method.start()
            ranks.at_step = 0
            return
        load_trunk(checkpoint, self.trunk, ranks)
        was = checkpoint.body.state
        if was.loss_scale:
            self.trunk.loss_scale = was.loss_scale[0], was.loss_scale[1]
        log = ranks.from_first(checkpoint.log() if ranks.is_first else None)
        shared = read_shared(checkpoint, ranks)
        probed = shared.pop(COMPONENT, None)
        if shared:
            self.method.load_shared(shared)
        if self.probe and probed:
            self.probe.load(probed)
        self.method.load_by_lane(checkpoint, log)
        self.totals = Totals.restored(was.totals or {}, log["loss"])
        self.images.reading.take_up(was, self.totals.images)
        self.step = ranks.at_step = checkpoint.step

    def train(self) -> None:
        """Steps up to the end, or until a stop is asked for, or until the loss stays non-finite.

        Raises NonFiniteLoss after three skipped steps in a row, and TooMuchUnread; no checkpoint is written then. Raises ValueError
        where an image that cannot be read ends the run; then there is a checkpoint of the steps before.
        """
        course, first_step = self.course, self.step
        held = partial(self.about.held, self)
        interval = Interval(self.ranks, self.method, self.checkpoints, self.stages, self.totals, held)
        self._images_at_checkpoint = self.totals.images
        if self._owes_evaluation():
            self.evaluate()
            if self.stop.agreed(self.ranks):
                return
        while self.step < course.end:
            start = time.perf_counter()
            taken = self.images.take(self.step, self.ranks, self.stages)
            if taken is None:
                break
            self._check_unreadable(*taken)
            lr = self._take_step(*taken, start)
            interval.count(taken[0])
            stopped_by = self.stop.agreed(self.ranks)
            if self._is_due(course.log_every) or self.step == course.end or stopped_by:
                self._report_unreadable()
                line = interval.line(self.step, self.totals, lr)
                if self.probe:
                    self._probed = self.probe.take_figures()
                    line |= self._probed
                for listener in self.listeners:
                    listener.update(line)
            self._require_hope()
            sound = self.step != course.end and self.totals.skips_in_a_row == 0
            # Where nothing was read since the last one, another would only push a good one out.
            has_read = self.totals.images > self._images_at_checkpoint
            if stopped_by:
                self.checkpoints.close()  # the look at all block files; the end does not wait for it
            if stopped_by or (sound and self._is_due(course.checkpoint_every) and has_read):
                self.save()
            if stopped_by:
                return
            if sound and course.evaluate_every and self._is_due(course.evaluate_every):
                self.evaluate()
                if self.stop.agreed(self.ranks):
                    break
        has_read = self.totals.images > self._images_at_checkpoint
        if first_step < self.step and (self.step == course.end or has_read):
            self.save()

    def _owes_evaluation(self) -> bool:
        """Whether a stop or a kill came between the checkpoint that the run goes on from and its evaluation."""
        every = self.course.evaluate_every
        if (
            not every
            or not self.step
            or self.step == self.course.end
            or not self._is_due(every)
            or self.totals.skips_in_a_row
        ):
            return False
        return not self.ranks.from_first(self.ranks.is_first and self.step in evaluated_steps(self.output.path))

    def evaluate(self) -> None:
        """Look at the network, if there is anything to ask; ends early where a stop is asked for."""
        if not self.evaluators:
            return
        self._note(f"evaluating after step {self.step}")  # which may take as long as many steps
        with suppress(Stopped), self.stages("evaluation"):
            network, stopped = cache(self.trunk.for_evaluation), partial(self.stop.agreed_in_words, self.ranks)
            lines = []
            for evaluator in self.evaluators:
                with self.stages(evaluator.stage):
                    lines.append(evaluator.evaluate(network, stopped) or {})
            if self.ranks.is_first:
                head = {"step": self.step, "elapsed_seconds": self.totals.step_seconds}
                whole = merged(head, *lines)
                with self.output.lines("evaluations.jsonl") as file:
                    file.write(json_text(whole) + "\n")
                for listener in self.listeners:
                    listener.evaluated(whole)
                for evaluator, line in zip(self.evaluators, lines, strict=True):
                    self._note(evaluator.text(f"after step {self.step}", line))
            self.ranks.wait()

    def save(self) -> None:
        """Begin a checkpoint of the state as it is."""
        self._report_unreadable()
        state = {
            **self.about.state,
            "totals": self.totals.state(),
            "loss_scale": self.trunk.loss_scale,
            **self.images.reading.state(),
        }
        with self.stages("checkpoint"):
            beside = {COMPONENT: self.probe.state()} if self.probe else {}
            self.checkpoints.save(self.step, self.method, self.trunk.state(), self.totals.losses, state, beside)
        self._images_at_checkpoint = self.totals.images

    def finish(self, status: str, chance_loss: float, started: float) -> int:
        """Leave backbone, summary and report; returns the exit code. started: when, in seconds of the clock."""
        backbone = backbone_of(self.trunk.weights())
        checks = self.ranks.share(self.method.block_checks())
        figures = combined(self.ranks.share(self.method.figures(at_end=True)))
        self.totals.peak_host_bytes = max(self.totals.peak_host_bytes, *self.ranks.share(peak_resident_bytes()))
        failed = status.startswith("stopped: ")
        if not self.ranks.is_first:
            return 1 if failed else 0
        if backbone:
            export_backbone(self.output.enter("backbone.safetensors"), backbone, self.about.backbone)
        facts = {
            "figures": list(figures),
            "backends": self.method.backends,
            "session_seconds": time.time() - started,
            "rest_seconds": self.stages.take(),
            "versions": {"torch": torch.__version__, "numpy": np.__version__},
            "digest": digest(backbone, checks, self.method.shared()),
        }
        headlines = [evaluator.headline() for evaluator in self.evaluators]
        summary = merged(
            self._counted(status, chance_loss), *headlines, self._probed, figures, self.method.about, facts
        )
        neighbours = next((found for one in self.evaluators if (found := one.neighbours())), [])
        embeddings = next((sample for one in self.evaluators if (sample := one.embeddings())), None)
        report = self.output.write_text("report.html", report_of(self.output.path, neighbours, embeddings, summary))
        self.output.write_json("summary.json", summary)  # the last: it says that the run is finished
        if unread := self.images.reading.count:
            print(f"{unread:,} images could not be read; they are listed in {self.output.path / UNREADABLE}")
        print(f"{status.splitlines()[0]} after {self.step:,} of {self.course.total:,} steps; report: {report}")
        if failed:
            print(status)
        return 1 if failed else 0

    def _counted(self, status: str, chance_loss: float) -> dict[str, Any]:
        """What the summary says of the run itself."""
        totals, steps = self.totals, self.step
        return {
            "job": self.about.job,
            "method": self.about.method,
            "status": status,
            "instances": self.about.instances,
            "ranks": self.ranks.size,
            "passes": steps / self.course.steps_per_pass,
            "steps": steps,
            "steps_of_schedule": self.course.total,
            "skipped_steps": totals.skipped_steps,
            "unreadable_images": self.images.reading.count,
            "loss": mean_of_finite(totals.losses[-max(1, round(_LAST_SHARE * steps)) :]),
            "chance_loss": chance_loss,
            "images_per_second": totals.images / max(totals.step_seconds, 1e-9),
            "step_seconds": totals.step_seconds / max(steps, 1),
            "trunk_seconds": totals.trunk_seconds / max(steps, 1),
            "peak_host_bytes": totals.peak_host_bytes,
            "peak_device_bytes": totals.peak_device_bytes,
        }

    def _open_listeners(self, open_listeners: ExitStack, chance_loss: float) -> None:
        terminal = progress(
            total_steps=self.course.end,
            first_step=self.step,
            chance_loss=chance_loss,
            planned_bytes={tier: sum(items.values()) for tier, items in self.about.planned.items()},
        )
        self.listeners = [MetricsFile(self.output), terminal]
        if self.about.tensorboard:
            self.listeners.append(TensorBoard(self.output, first_step=self.step + 1))
        for listener in self.listeners:
            open_listeners.enter_context(listener)

    def _train_to_the_end(self) -> str:
        """Train, then evaluate; what became of the run, in words."""
        try:
            self.train()
            self.checkpoints.finish()
            if not self.stop.agreed(self.ranks):
                self.checkpoints.look_to_the_end(lambda: self.stop.is_asked)
        except (NonFiniteLoss, TooMuchUnread) as error:
            self.stop.agreed(self.ranks)
            return f"stopped: {error}"
        stopped_by = self.stop.agreed_in_words(self.ranks)
        if not stopped_by:
            self.evaluate()
            stopped_by = self.stop.agreed(self.ranks)
        if not stopped_by:
            return "finished"
        newest = self.checkpoints.newest
        there = f"checkpoint written after step {newest.step}" if newest else "no checkpoint"
        on = "begins anew" if self.about.job == "profile" else "goes on from there"
        self._note(f"{stopped_by}: {there}; the same command {on}")
        return f"stopped by {stopped_by}"

    def _take_step(self, batch: Batch, places_RP: np.ndarray, start: float) -> float:
        """One step, and its part of the totals; returns its learning rate. start: when the run began to wait for the batch."""
        step, ranks = self.step, self.ranks
        ranks.at_step = step
        self.method.prepare(step)
        # Backbones with dropout draw from torch's generators; a resumed run must draw the same, another rank something else.
        seed_generators((self.course.seed * 1_000_003 + step + ranks.rank * 998_244_353) % 2**63, ranks.device)
        lr, trunk_seconds = self.course.learning_rate(step), self.stages.sum(*_OF_TRUNK)
        result = train_step(
            batch,
            self.trunk,
            self.method,
            ranks,
            lr=lr,
            dealing=self.images.dealing,
            stages=self.stages,
            places_RP=places_RP,
        )
        if self.probe:
            with self.stages("online_probe"):
                self.probe.step(batch, places_RP == FILLED, self.images.dealing, result.applied)
        self.totals.add(result)
        self.totals.step_seconds += time.perf_counter() - start
        self.totals.trunk_seconds += self.stages.sum(*_OF_TRUNK) - trunk_seconds
        self.step = step + 1
        ranks.at_step = self.step
        return lr

    def _check_unreadable(self, batch: Batch, places_RP: np.ndarray) -> None:
        """Count what cannot be read in this step, which was not taken yet; raises where that ends the run."""
        reason = self.images.reading.add(self.step, places_RP, batch.unreadable)
        if self.images.must_stop(places_RP):
            self._end_at_unreadable()
        if reason:
            self._report_unreadable()
            first = self.images.reading.first_names()
            raise TooMuchUnread(f"{reason}; the first: {first}, up to step {self.step}; {self._last_good()}")

    def _end_at_unreadable(self) -> NoReturn:
        reading = self.images.reading
        known = len(reading.known)
        reading.report(self.ranks)
        has_read = self.totals.images > self._images_at_checkpoint
        if self.step and (has_read or len(reading.known) > known):
            self.save()
        raise ValueError(
            f"cannot read {reading.first_names()}; the run stops before step {self.step}, {self._last_good()}.\n"
            "Repair the file, or set data.on_unreadable to skip, and start the same command again"
        )

    def _require_hope(self) -> None:
        if reason := self.totals.hopeless():
            raise NonFiniteLoss(
                f"{reason}, up to step {self.step - 1}; {self._last_good()}.\n"
                "Lower optimizer.lr, set optimizer.clip, or use bfloat16 in deepspeed.torch_autocast"
            )

    def _last_good(self) -> str:
        self.checkpoints.finish()
        newest = self.checkpoints.newest
        return f"the last good checkpoint is {newest.name}" if newest else "there is no checkpoint yet"

    def _report_unreadable(self) -> None:
        for line in self.images.reading.report(self.ranks):
            self._note(line)

    def _note(self, text: str) -> None:
        for listener in self.listeners:
            listener.note(text)

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0
