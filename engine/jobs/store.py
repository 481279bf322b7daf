"""job=store: look after the stored rows of a run, as store.verb says (engine/jobs/store_jobs.py)."""

import argparse
from contextlib import ExitStack
from pathlib import Path

from configs import schema
from engine.disk.chosen import chosen_checkpoint, while_it_is_there
from engine.disk.files import checkpoint_files
from engine.jobs import store_jobs
from engine.jobs.data import images_directory, open_data
from engine.jobs.locked import lock
from engine.jobs.row_table import rows_of
from engine.jobs.store_export import export
from engine.results.json_files import summary_of
from engine.results.output import Output
from engine.results.output_names import LOCK, PICTURE, rows_of_step


def run(config: schema.Config, options: argparse.Namespace) -> int:
    """Do what the verb says; returns the exit code."""
    output, wanted = Path(config.output), config.store
    files = checkpoint_files(output)
    if wanted.verb == "verify":
        return store_jobs.verify(files, wanted.step)
    if wanted.verb in ("scrub", "repair"):
        if wanted.step is not None:
            raise ValueError(f"store.verb={wanted.verb} is for all checkpoints; leave store.step out")
        if not files.listing(""):
            raise ValueError(f"there are no checkpoints in {files.root}; train with job=pretrain")
        own = Output(output, [LOCK])
        own.make()
        own.enter(LOCK)
        with ExitStack() as cleanup:
            lock(output, cleanup)
            return store_jobs.scrub(files) if wanted.verb == "scrub" else store_jobs.repair(files)
    checkpoint, complaints = chosen_checkpoint(output, wanted.step)
    print("\n".join(complaints), end="\n" if complaints else "")
    with while_it_is_there(checkpoint):
        if wanted.verb == "inspect":
            own = Output(output, PICTURE)
            own.make()
            return store_jobs.inspect(checkpoint, own.enter(*PICTURE))
        if wanted.verb == "digest":
            _, _, schedule, config = open_data(config, checkpoint, grows=False)
            has_rows = checkpoint.body.rows is not None
            rows = rows_of(config, checkpoint, schedule) if has_rows else None
            return store_jobs.print_digest(checkpoint, rows, summary_of(output))
        names = rows_of_step(checkpoint.step, wanted.format)
        own = Output(output, names, images_directory(config))
        _, _, schedule, config = open_data(config, checkpoint, grows=False)
        rows = rows_of(config, checkpoint, schedule)
        own.make()
        for name in names:
            own.enter(name)
        return export(output / "exports", rows, schedule.size, schedule.instances, checkpoint.step, wanted.format)
