"""The only entry: `python launch.py --config configs/pic_sampled.json [section.key=value ...]`.

The same line runs under `deepspeed` and `torchrun`, on any number of processes that divides schedule.lanes. The config is checked
before torch is imported; what depends on the images is checked before anything is written. Mistakes of the user end with exit code 2
and at most three lines. Of many processes rank 0 speaks, and whoever has something to complain of that it alone has.

Here the jobs are put together and nothing else happens: engine/jobs/parts.py makes what a config describes, engine trains.
"""

import argparse
import importlib.util
import json
import os
import signal
import sys
import time
import traceback
from contextlib import ExitStack, redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, cast

# Run in place: `datasets` and `kernels` are also names of public packages, and ours must win.
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
if strangers := [
    f"{room} from {origin}"
    for room in ("configs", "datasets", "engine", "kernels")
    if room in sys.modules
    and HERE not in Path(origin := getattr(sys.modules[room], "__file__", None) or "elsewhere").resolve().parents
]:
    print(
        f"error: {', '.join(strangers)} was imported before this engine's own could be, by a sitecustomize or a .pth file;\n"
        "take it out of there, or off PYTHONPATH",
        file=sys.stderr,
    )
    sys.exit(2)

from configs import schema
from datasets.shown import shown_lines
from engine.ranks.environment import check_environment, environment_number, number_or_zero
from engine.ranks.machine import machine_error
from engine.results.streams import let_standard_streams_escape

if TYPE_CHECKING:
    from datasets.batch import ImageSet
    from datasets.schedule import Schedule
    from datasets.source import Source
    from engine.disk.files import DiskFiles
    from engine.disk.manifest import Kept
    from engine.ranks.lanes import Lanes
    from engine.ranks.ranks import Ranks
    from engine.rows.active_rows import ActiveRows


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Train and use parametric instance classifiers.", allow_abbrev=False)
    parser.add_argument("--config", required=True, help="a JSON file; configs/README.md explains every key")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the resolved config and the memory plan, train nothing"
    )
    parser.add_argument("--fresh", action="store_true", help="remove what an earlier run left in the output directory")
    parser.add_argument("--local_rank", type=int, default=0, help="set by the deepspeed launcher; not used")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values that replace the file's")
    options = parser.parse_intermixed_args(arguments)
    let_standard_streams_escape()
    if not os.environ.get("HOME", "unset").strip():
        del os.environ["HOME"]  # which is no home; without it the system's list of users says where that is
    try:
        check_environment()
        config = schema.load(options.config, options.overrides)
        check_launch(config, options)
    except (ValueError, MemoryError) as error:  # every process of this machine finds the same
        code, text = explanation(error, "") or (1, "error: ")
        if number_or_zero("LOCAL_RANK") == 0:
            print(shown_lines(text), file=sys.stderr)
        else:
            time.sleep(20)  # the launcher ends the others when one ends; the one that speaks is to be it
        return code
    job = {"pretrain": pretrain, "knn": knn, "export": export, "store": store}[config.job]
    try:
        return job(config, options)
    except BrokenPipeError:  # whoever read our output has gone
        return 1
    except (Exception, KeyboardInterrupt) as error:
        explained = explanation(error, config.job)
        if explained is None:
            raise
        code, text = explained
        print_error(text)
        return code


def print_error(text: str) -> None:
    """On stderr, with the rank where it is not the one that speaks for all."""
    rank = number_or_zero("RANK")
    print(shown_lines(text if rank == 0 else f"rank {rank}: {text}"), file=sys.stderr, flush=True)


def check_launch(config: schema.Config, options: argparse.Namespace) -> None:
    """ValueError where the config does not fit the command line, or the number of processes."""
    ranks = environment_number("WORLD_SIZE", 1)
    if config.job != "pretrain" and (options.dry_run or options.fresh):
        raise ValueError(f"--dry-run and --fresh are for job=pretrain, not for job={config.job}; leave them out")
    if config.job != "pretrain" and ranks > 1:
        raise ValueError(f"job={config.job} runs in one process, and {ranks} were launched; start it with plain python")
    if config.schedule.lanes % ranks:
        raise ValueError(
            f"{ranks} processes were launched, which do not divide schedule.lanes ({config.schedule.lanes}); "
            "launch a number that does, or start a new run with other lanes"
        )
    if config.evaluate.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ValueError(
            "evaluate.tensorboard needs the tensorboard package; pip install tensorboard, or set it to false"
        )


def explanation(error: BaseException, job: str) -> tuple[int, str] | None:
    """(exit code, what to print) for an error that is not our own bug; None for one that is."""
    if isinstance(error, ValueError) and not isinstance(error, UnicodeError):  # which nobody but us can make
        return 2, f"error: {error}"
    # engine/rows/store.py, which must not be imported before the config is checked
    if type(error).__name__ == "Damaged":
        way = "; job=store store.verb=verify tells what else is, store.verb=repair goes back"
        return 1, f"error: {error}" + ("" if "is a link" in str(error) else way)
    if (limit := machine_error(error)) is not None:
        whole = "; checkpoints that were written before are whole" if job == "pretrain" else ""
        return 1, f"error: {limit}{whole}"
    if isinstance(error, KeyboardInterrupt):
        return 130, "interrupted; nothing was lost but the steps since the last checkpoint"
    return None


def pretrain(config: schema.Config, options: argparse.Namespace) -> int:
    """Train; go on where an earlier run in the same directory stopped. All ranks do it together, and end together."""
    # When a process is lost, torch prints a page of its own stack in each of the others; engine/ranks/watch.py says it in a line.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    import torch

    from engine.ranks import ranks as processes
    from engine.ranks.launcher import stop_with_launcher
    from engine.ranks.watch import Watch

    cuda = torch.cuda.is_available()
    device = torch.device("cuda", environment_number("LOCAL_RANK", 0)) if cuda else torch.device("cpu")
    ranks = processes.start(device, config.ranks.timeout_seconds, config.ranks.patience_seconds)
    at: list[ActiveRows] = []  # where the run is, as soon as there are rows
    watch = Watch(
        processes.board,
        ranks.rank,
        ranks.size,
        ranks.node_rank,
        timeout_seconds=ranks.timeout_seconds,
        calls=lambda: (ranks.calls, ranks.tensor_calls),
        where=lambda: f"step {at[0].log.steps}" if at else "the start",
    )
    watch.start()
    stop_with_launcher()
    with ExitStack() as at_end:
        if not ranks.is_first:
            at_end.enter_context(redirect_stdout(at_end.enter_context(open(os.devnull, "w", encoding="utf-8"))))
        try:
            code = _pretrain(config, options, ranks, at, at_end)
            ranks.wait()  # rank 0 has written the report, and all leave together
        except BaseException as error:
            if ranks.size > 1:
                if processes.of_the_wire(error):
                    watch.diagnose(error)
                # The others leave when they hear of it, and then the launcher ends this process; it is to say its words first.
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                explained = explanation(error, config.job)
                code, text = explained or (1, f"{type(error).__name__}: {error}")
                if watch.failed(text):  # and at once: what is open takes its time to close, and a launcher may not wait
                    if explained is None:
                        traceback.print_exception(error)
                    else:
                        print_error(text)
                raise SystemExit(code) from error
            raise
    watch.ended()
    if ranks.size > 1:
        processes.stop()
    return code


def _pretrain(
    config: schema.Config, options: argparse.Namespace, ranks: "Ranks", at: "list[ActiveRows]", at_end: ExitStack
) -> int:
    import torch

    from datasets.catalog import sample_images, view_sides
    from datasets.loader import StepDataset, batches
    from engine.disk import manifest
    from engine.disk.files import DiskFiles
    from engine.jobs import memory_plan, parts, sizes
    from engine.ranks.agreement import require_one_disk, require_same
    from engine.ranks.lanes import Lanes
    from engine.results.output import CHECKPOINTS, EVENTS, INDEX, LOCK, PRETRAIN, UNREADABLE, Output, is_finished
    from engine.rows.implementations import implementations, names, said
    from engine.training.reading import Reading, listed
    from engine.training.stop_signal import Heard, StopSignal
    from engine.trunk.network import check_sides

    output = Path(config.output)
    lanes = Lanes(config.schedule.lanes, ranks.rank, ranks.size)
    require_same(ranks, "config", config.model_dump_json())
    events = EVENTS if config.evaluate.tensorboard else ()
    own = Output(output, [*PRETRAIN, *events], parts.images_directory(config))
    # Of the ranks that share a disk one looks after what is nobody's.
    is_keeper = ranks.is_first or (config.ranks.own_disks and ranks.node_rank == 0)
    locked = output.is_dir() and not options.dry_run
    ranks.wait()  # all have looked before one makes it
    if locked and is_keeper:
        own.make()
        own.enter(LOCK)
        lock_disk(output, ranks, at_end)
    files = DiskFiles(output / "checkpoints")
    kept, complaints = ([], []) if options.fresh else whole_checkpoints(files, ranks, lanes, config.ranks.own_disks)
    last = kept[-1] if kept else None
    source, augmentation, schedule = parts.open_data(config, last)
    require_same(ranks, "images", (len(source), source.fingerprint()))
    total = sizes.total_steps(config, schedule)
    sizes.check_shrink(config, schedule, total)
    network = parts.network_of(config)
    sides = view_sides(config.data.augment.model_dump(), config.data.image_size)
    check_sides(network, {*sides, config.data.image_size})
    probe = parts.open_probe(config, source, augmentation)
    on_gpu = ranks.device.type == "cuda"
    planned = sizes.planned_bytes(config, schedule, source, network, sides, ranks.size, probe, on_gpu)
    print_said(config, source, schedule, sizes.active_rows_of(config, schedule), total, ranks.size)
    for note in source.notes:
        print(note)
    if options.dry_run:
        print(config.model_dump_json(indent=2))
        print(memory_plan.text(planned) + ("\n(device and host: of each process)" if ranks.size > 1 else ""))
        return 0

    end = min(config.steps or total, total)
    if last:
        finished = ranks.from_first(is_finished(output, end))
        if last.step > end or (last.step == end and finished):
            print(
                f"this run is finished: {last.step} steps are done; see {output / 'summary.json'}, or start over with --fresh"
            )
            return 0
        print(f"going on after step {last.step} from {files.root / last.name}")

    torch.set_num_threads(config.threads or max(1, (os.cpu_count() or 1) // ranks.node_size))
    device = ranks.device
    dataset = StepDataset(
        parts.cached(source, schedule, lanes) if config.data.cache else source,
        schedule,
        augmentation,
        config.seed,
        ranks.rank,
        ranks.size,
    )
    stop = StopSignal()
    # Workers are forked here, before DeepSpeed and the store start threads.
    stream = batches(
        dataset,
        last.step if last else 0,
        end,
        config.data.workers,
        pin=device.type == "cuda",
        patience_seconds=config.data.patience_seconds,
        asked_to_stop=lambda: stop.is_asked,
    )
    at_end.callback(stream.close)
    chosen = implementations(device, torch.float32, config.method.dim, config.rows.kernels)
    print("\n".join(said(chosen, last.body.get("kernels") if last else None)))
    require_same(ranks, "set of evaluation images", probe and probe.fingerprint())
    sample = sample_images(source, config.data.image_size, min(2000, config.evaluate.limit))
    if ranks.is_first:
        print_unreadable_sets([probe.gallery, *probe.queries] if probe else [sample], config.evaluate.limit)

    from engine.training import session
    from engine.training.checkpoint import Checkpoints

    ranks.wait()  # decoding, compiling and the probe took each its own time, and from here on there are time limits
    trunk = parts.make_trunk(config, network, schedule, ranks)
    at_end.callback(trunk.close)
    if is_keeper:
        own.make()
        if options.fresh and locked:  # what came since the lock was not there is another job's
            for path in own.remove_run():
                print(f"{output / path} was not written by this engine and stays")
        if not locked:
            own.enter(LOCK)
            lock_disk(output, ranks, at_end)
            if manifest.numbers(files):
                raise ValueError(f"another job began in {output} just now; choose another output")
        own.write_json("config.json", json.loads(config.model_dump_json()))
        own.write_json("plan.json", planned)
        own.enter(CHECKPOINTS)
        files.root.mkdir(exist_ok=True)
        source.save_index(output / CHECKPOINTS / INDEX)
        if len(schedule.history) > 1:  # now nothing else knows the order: a second copy
            source.save_index(own.enter(INDEX))
    ranks.wait()
    if not config.ranks.own_disks:
        require_one_disk(output, ranks)
    disk = parts.make_disk(config, schedule, files, lanes)
    at_end.callback(disk.close)
    checkpoints = Checkpoints(files, disk, config.checkpoint.keep, ranks.another_road())
    checkpoints.restore(kept, sweep=not complaints, is_keeper=is_keeper)
    ranks.wait()  # what a rank writes from here on must not be taken for what nobody names
    held = parts.partitioned_rows(config, schedule, ranks) if config.rows.sharding == "zero3" else None
    rows = parts.make_rows(config, schedule, device, disk, names(chosen), lanes, held)
    at.append(rows)
    at_end.callback(rows.host.close)
    if held:
        at_end.callback(held.zero.close)
    at_end.enter_context(stop)
    at_end.enter_context(redirect_stdout(cast("TextIO", Heard(sys.stdout, stop))))
    lines = partial(own.lines, UNREADABLE) if ranks.is_first else None
    reading = Reading(
        schedule.batch // ranks.size,
        config.data.max_unreadable,
        schedule.steps_per_window,
        end,
        source.file_bytes,
        lines,
    )
    earlier = ranks.from_first(list(listed(output / UNREADABLE)) if last else [])
    reading.know(instance for instance in earlier if instance < len(source))
    return session.run(
        trunk=trunk,
        rows=rows,
        softmax=parts.make_softmax(config, rows, held, ranks),
        ranks=ranks,
        batches=stream,
        schedule=schedule,
        learning_rate=partial(parts.learning_rate_at, config, schedule, total),
        end=end,
        total=total,
        checkpoints=checkpoints,
        output=own,
        state={
            "config": json.loads(config.model_dump_json()),
            "source": source.fingerprint(),
            "segments": schedule.history,
            "kernels": names(chosen),
        },
        planned=planned,
        probe=probe,
        sample=sample,
        rows_grad_V=list(augmentation.rows_grad_V),
        stop=stop,
        reading=reading,
        settings=session.Settings(
            job=config.job,
            method=config.method.kind,
            instances=len(source),
            seed=config.seed,
            log_every=config.log_every,
            checkpoint_every=config.checkpoint.every_steps,
            on_unreadable=config.data.on_unreadable,
            read_ahead=config.store.read_ahead,
            evaluate_every=config.evaluate.every_steps,
            protocol=parts.protocol_of(config),
            tensorboard=config.evaluate.tensorboard,
            micro_batches=config.schedule.micro_batches,
            rows_lr_scale=config.optimizer.rows_lr_scale,
            backbone=config.backbone.name,
        ),
    )


def whole_checkpoints(
    files: "DiskFiles", ranks: "Ranks", lanes: "Lanes", own_disks: bool
) -> "tuple[list[Kept], list[str]]":
    """What the run goes on from, the newest last, and what is wrong with others, which is said.

    Raises ValueError where there are checkpoints and none is whole.
    """
    from engine.disk.recovery import recover_together
    from engine.disk.shapes import PART_OF_A_RUN

    kept, complaints = recover_together(files, ranks, lanes)
    complaints = ranks.from_first(complaints)
    parts = [str(rank) for rank, there in enumerate(ranks.share((files.root / PART_OF_A_RUN).exists())) if there]
    if parts and not kept:
        raise ValueError(
            f"on the disk of rank {', '.join(parts)}, {files.root} is one node's part of a run whose manifests are on its first node;\n"
            "start the nodes in the order that the run had, merge their checkpoints directories, or start over with --fresh"
        )
    for complaint in complaints:
        print(complaint)
    if complaints and not kept:
        order = " or, if nodes with disks of their own have changed places, as they were" if own_disks else ""
        way = (
            "do what the line above says"
            if any("is a link" in line for line in complaints)
            else "start over with --fresh"
        )
        raise ValueError(f"no checkpoint in {files.root} is whole; {way}{order}")
    return kept, complaints


def lock_disk(output: Path, ranks: "Ranks", at_end: ExitStack) -> None:
    """As `lock`, for one of several ranks that each have a disk of their own."""
    try:
        lock(output, at_end)
    except ValueError as error:
        if ranks.is_first:
            raise
        raise ValueError(f"{error}. If the nodes share this disk, leave ranks.own_disks at false") from None


def lock(output: Path, at_end: ExitStack) -> None:
    """Keep other jobs out of the output directory until this one ends, and out of where its checkpoints really lie."""
    from engine.disk.lock import Lock
    from engine.results.output import places_to_lock

    for place in places_to_lock(output):
        held = Lock(*place)
        at_end.callback(held.release)
        if held.left_by:
            print(f"the lock of {held.left_by}, which ended without giving it back, was taken over")


def knn(config: schema.Config, options: argparse.Namespace) -> int:
    """Evaluate a saved backbone: the one in the output directory, or evaluate.backbone."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from datasets.catalog import sample_images
    from engine.evaluation.evaluate import evaluate, raw_pixels, record
    from engine.jobs import parts
    from engine.ranks.ranks import Road
    from engine.results.output import KNN, Output
    from engine.training.session import describe
    from engine.trunk.network import embed

    path = Path(config.evaluate.backbone or Path(config.output) / "backbone.safetensors")
    if not path.is_file():
        raise ValueError(f"there is no backbone at {path}; train one with job=pretrain, or set evaluate.backbone")
    if config.evaluate.features != "backbone":
        raise ValueError("a saved backbone has no head; set evaluate.features to backbone")
    output = Output(Path(config.output), KNN, parts.images_directory(config))
    source, augmentation, _ = parts.open_data(config, None)
    network = parts.network_of(config)
    try:
        network.backbone.load_state_dict(load_file(path))
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"{path} is not a {config.backbone.name}: {str(error).splitlines()[0]}; set backbone.name"
        ) from None
    wanted = config.evaluate
    probe = parts.open_probe(config, source, augmentation)
    sample = sample_images(source, config.data.image_size, min(2000, wanted.limit))
    gallery, queries = (probe.gallery, probe.queries) if probe else (sample, [])

    protocol = parts.protocol_of(config)
    raw = evaluate(raw_pixels, gallery, queries, protocol, Road())
    result = evaluate(lambda images: embed(network, images, "backbone"), gallery, queries, protocol, Road())
    assert raw and result
    line = record(result, probe, raw.figures, protocol)
    print(describe(str(path), line))
    output.make()
    output.write_json("knn.json", {"backbone": str(path), **line})
    return 0


def export(config: schema.Config, options: argparse.Namespace) -> int:
    """Write the backbone, the embeddings and the rows of a run's newest checkpoint, in instance order."""
    from datasets.catalog import every_image
    from engine.disk.chosen import chosen_checkpoint, while_it_is_there
    from engine.jobs import parts
    from engine.results import exports
    from engine.results.output import EXPORT, Output
    from engine.rows.snapshots import RowReader
    from engine.training import checkpoint
    from engine.trunk.network import backbone_of, embed

    output = Output(Path(config.output), EXPORT, parts.images_directory(config))
    kept, complaints = chosen_checkpoint(Path(config.output), None)
    source, _, schedule = parts.open_data(config, kept, grows=False)
    output.make()
    for name in EXPORT:
        output.enter(name)
    directory = output.path / "exports"
    network = parts.network_of(config)
    with while_it_is_there(kept):
        model = checkpoint.read_trunk(kept)
        network.load_state_dict(model)
        shapes = exports.export_run(
            directory,
            reader=RowReader(parts.rows_of(config, kept, schedule)),
            size=schedule.size,
            instances=schedule.instances,
            backbone=backbone_of(model),
            model_name=config.backbone.name,
            embed=lambda images: embed(network, images, "backbone"),
            images=every_image(source, config.data.image_size, schedule.size),
            about={"step": kept.step, "source": source.name},
        )
    print("\n".join([*complaints, f"exported step {kept.step} to {directory}: " + json.dumps(shapes)]))
    return 0


def store(config: schema.Config, options: argparse.Namespace) -> int:
    """Look after the stored rows of a run: what store.verb says."""
    from engine.disk.chosen import chosen_checkpoint, while_it_is_there
    from engine.disk.files import DiskFiles
    from engine.jobs import store_jobs
    from engine.results.output import LOCK, PICTURE, Output, rows_of_step

    output, wanted = Path(config.output), config.store
    files = DiskFiles(output / "checkpoints")
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
        with ExitStack() as at_end:
            lock(output, at_end)
            return store_jobs.scrub(files) if wanted.verb == "scrub" else store_jobs.repair(files)
    kept, complaints = chosen_checkpoint(output, wanted.step)
    print("\n".join(complaints), end="\n" if complaints else "")
    with while_it_is_there(kept):
        if wanted.verb == "inspect":
            own = Output(output, PICTURE)
            own.make()
            return store_jobs.inspect(kept, own.enter(*PICTURE))
        from engine.jobs import parts

        names = rows_of_step(kept.step, wanted.format)
        own = Output(output, names, parts.images_directory(config))
        _, _, schedule = parts.open_data(config, kept, grows=False)
        rows = parts.rows_of(config, kept, schedule)
        own.make()
        for name in names:
            own.enter(name)
        return store_jobs.export(output / "exports", rows, schedule.size, schedule.instances, kept.step, wanted.format)


def print_said(
    config: schema.Config, source: "Source", schedule: "Schedule", active: int, total: int, ranks: int
) -> None:
    """What was decided on the user's behalf."""
    print(
        f"{len(source):,} images of {source.name}; {active:,} active rows, window {schedule.window:,}, stride {schedule.stride:,}; "
        f"{total:,} steps of {schedule.batch}" + (f"; {ranks} processes" if ranks > 1 else "")
    )
    if config.rows.active is not None and config.rows.active > schedule.size:
        print(
            f"method.active {config.rows.active:,} is above the number of images: all {schedule.size:,} rows are active"
        )


def print_unreadable_sets(sets: "list[ImageSet]", limit: int) -> None:
    """Say of which sets of the evaluation nothing can be read: they will have no figure."""
    from datasets.clean import first_readable

    for images in sets:
        if first_readable(images, limit) is None:
            print(
                f"none of the images of {images.name} that the evaluation asks for can be read; it will have no figure"
            )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
