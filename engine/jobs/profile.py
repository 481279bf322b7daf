"""job=profile: some hundred steps of the run that the config describes, and what memory they took beside what was planned.

The run is one like any other, in a directory of its own, and always begins anew. Beside each rank a small process samples memory from
outside (engine/profiling/sampler.py), so that there is a profile though the kernel kills the run.
"""

import argparse
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from configs import schema
from engine.disk.saved_checkpoint import SavedCheckpoint
from engine.jobs.locked import has_checkpoints, job_of
from engine.jobs.pretrain import joined_ranks
from engine.jobs.smaller import smaller
from engine.jobs.start import Start
from engine.profiling.lost import DEVICE, HOST, write_profile
from engine.profiling.now import START, Now
from engine.profiling.result import DIRECTORY
from engine.profiling.watched_stages import WatchedStages
from engine.ranks.machine import is_memory_error
from engine.ranks.process_table import peak_resident_bytes
from engine.ranks.ranks import Ranks
from engine.results.json_files import summary_of
from engine.results.output import Output
from engine.results.output_names import PROFILE, profile_names
from engine.scaling.machine import hardware, versions

if TYPE_CHECKING:
    from engine.training.run import Run
    from engine.training.summary import About

_REPOSITORY = Path(__file__).resolve().parent.parent.parent


def run(config: schema.Config, options: argparse.Namespace) -> int:
    """Train profile.steps steps and write profile.json and profile.html; returns the exit code."""
    require_no_run(Path(config.output))
    Output(Path(config.output), PROFILE)  # refuses what is somebody else's
    config = config.model_copy(update={"steps": config.profile.steps})
    with joined_ranks(config) as (ranks, cleanup):
        profiled = ProfiledStart(config, ranks, cleanup)
        try:
            code = profiled.train_or_plan(options.dry_run, fresh=True)
        except BaseException as error:
            profiled.end_profile(ended_by(error))
            raise
        if options.dry_run:
            return code
        profiled.end_profile("finished" if code == 0 else "stopped")
        ranks.wait()  # every rank's samples are there
        if ranks.is_first:
            write_profile(Path(config.output), str(summary_of(Path(config.output)).get("status", "stopped")))
            print(f"profile: {Path(config.output) / 'profile.html'}")
        return code


def require_no_run(output: Path) -> None:
    """ValueError where the directory holds a training that job=profile would remove."""
    if has_checkpoints(output) and job_of(output) != "profile":
        raise ValueError(
            f"{output} holds the checkpoints of a run, and a profile begins anew; set output to a directory of its own"
        )


def ended_by(error: BaseException) -> str:
    """The tier whose memory has ended, or "failed"."""
    if isinstance(error, torch.OutOfMemoryError):
        return DEVICE
    return HOST if is_memory_error(error) else "failed"


class ProfiledStart(Start):
    """A run that is put together and watched. `end_profile` is to be called when it is over, whatever came of it."""

    def __init__(self, config: schema.Config, ranks: Ranks, cleanup: ExitStack) -> None:
        super().__init__(config, ranks, cleanup)
        self._sampler: subprocess.Popen[bytes] | None = None
        self._counted: dict[str, int] = {}
        self._stages: WatchedStages | None = None

    def check_memory(self) -> None:
        """What does not fit is what a profile may be about."""

    def open_checkpoints(self, checkpoints: list[SavedCheckpoint], sweep: bool) -> None:
        """Before rows are made, which may need more memory than there is: the sampler starts."""
        self._begin()
        super().open_checkpoints(checkpoints, sweep)

    def make_run(self) -> "Run":
        run = super().make_run()
        assert self._stages
        run.stages = self._stages
        if self.ranks.device.type == "cuda":
            torch.cuda.memory._record_memory_history(max_entries=100_000)
        return run

    def _about(self) -> "About":
        """What is held is counted at every logged step."""
        about = super()._about()

        def counting(run: "Run") -> dict[str, int]:
            self._count(run)
            return about.held(run)

        return replace(about, held=counting)

    def end_profile(self, how: str) -> None:
        """Tell the sampler that the run is over: "finished", "stopped", "failed", or the tier whose memory has ended."""
        if self._sampler is None or self._stages is None:
            return
        if self.ranks.device.type == "cuda":
            torch.cuda.memory._dump_snapshot(str(self._path("memory-{}.pickle")))
        self._write_counts()
        self._path("ended-{}").write_text(how)
        self._sampler.wait(timeout=60)
        if how in (DEVICE, HOST):
            advice = write_profile(Path(self.config.output), f"{how} memory has ended", how)
            print(
                "\n".join([*advice, f"profile: {Path(self.config.output) / 'profile.html'}"]),
                file=sys.stderr,
                flush=True,
            )

    def _begin(self) -> None:
        ranks = self.ranks
        self._own = Output(Path(self.config.output))  # every rank's own, now that rank 0 has made the directory
        for name in profile_names(ranks.rank):
            self._own.enter(f"{DIRECTORY}/{name}").unlink(missing_ok=True)
        if ranks.is_first:
            self._own.write_json(f"{DIRECTORY}/facts.json", self._facts())
        ranks.wait()
        now = Now(self._path("now-{}"), is_new=True)
        now.write(START, 0)
        self._stages = WatchedStages(now, ranks.device.type == "cuda")
        words = [str(self._path("")), str(ranks.rank), str(os.getpid()), str(self.config.profile.every_seconds)]
        self._sampler = subprocess.Popen(
            [sys.executable, "-m", "engine.profiling.sampler", *words],
            cwd=_REPOSITORY,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # it goes on where the run is interrupted or killed
        )

    def _facts(self) -> dict[str, Any]:
        """What is known before the first step; a profile is made of it, whatever becomes of the run."""
        plan, device = self.planned, self.ranks.device
        return {
            "plan": {
                "components": [{"tier": one.tier, "name": one.name, "bytes": one.bytes} for one in plan.components],
                "process_peak": plan.process_peak(),
                "machine_peak": plan.machine_peak(),
                "device_peak": plan.device_peak(),
                "device_limit": torch.cuda.get_device_properties(device).total_memory
                if device.type == "cuda"
                else None,
                "device_is_host": plan.device_is_host,
                "libraries": plan.libraries_bytes,
            },
            "hardware": hardware(Path(self.config.output)),
            "versions": versions(),
            "config": json.loads(self.config.model_dump_json()),
            "changes": [vars(change) for change in smaller(self.config, self.schedule, self.facts)],
        }

    def _count(self, run: "Run") -> None:
        """The most that objects held at any logged step."""
        from engine.planning.measured import measured_components

        for one in measured_components(run):
            self._counted[one.name] = max(self._counted.get(one.name, 0), one.bytes)
        self._write_counts()

    def _write_counts(self) -> None:
        stages = self._stages
        assert stages
        content = {
            "components": self._counted,
            "made_bytes": stages.made_bytes,
            "resident_bytes": stages.resident_bytes,
            "device_bytes": stages.device_bytes,
            "peak_bytes": peak_resident_bytes(),
        }
        self._own.write_json(f"{DIRECTORY}/components-{self.ranks.rank}.json", content)

    def _path(self, name: str) -> Path:
        """In the profile's directory, {}: the rank."""
        return Path(self.config.output) / DIRECTORY / name.format(self.ranks.rank)
