"""The only entry: `python launch.py --config configs/pic_sampled.json [section.key=value ...]`.

The same line runs under `deepspeed` and `torchrun`, on any number of processes that divides schedule.lanes. The config is checked
before torch is imported; what depends on the images is checked before anything is written. Mistakes of the user end with exit code 2
and at most three lines. Of many processes rank 0 speaks, and whoever has something to complain of that it alone has.

Here the rooms are wired together and nothing else happens: datasets gives images, schedule and probe, engine trains.
"""

import argparse
import importlib.util
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, cast

# Run in place: `datasets` and `kernels` are also names of public packages, and ours must win.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from configs import schema

if TYPE_CHECKING:
    import torch

    from datasets.batch import Probe
    from datasets.grey import GreyAugment
    from datasets.photos import PhotoAugment
    from datasets.schedule import Schedule
    from datasets.source import Source
    from engine.active_rows import ActiveRows
    from engine.evaluate import Protocol
    from engine.files import Files
    from engine.lanes import Lanes
    from engine.manifest import Kept
    from engine.network import Network
    from engine.ranks import Ranks
    from engine.softmax import Softmax
    from engine.trunk import Trunk
    from engine.write_behind import WriteBehind
    from engine.zero import PartitionedRows


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
    try:
        config = schema.load(options.config, options.overrides)
        check_launch(config, options)
    except ValueError as error:  # every process of this machine finds the same
        if launched("LOCAL_RANK", 0) == 0:
            print(f"error: {error}", file=sys.stderr)
        return 2
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
        rank = launched("RANK", 0)
        print(text if rank == 0 else f"rank {rank}: {text}", file=sys.stderr)
        return code


def launched(name: str, default: int) -> int:
    """A number that the launcher told this process."""
    return int(os.environ.get(name, default))


def check_launch(config: schema.Config, options: argparse.Namespace) -> None:
    """ValueError where the config does not fit the command line, or the number of processes."""
    ranks = launched("WORLD_SIZE", 1)
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
    if isinstance(error, ValueError):
        return 2, f"error: {error}"
    if isinstance(error, OSError):
        whole = "; checkpoints that were written before are whole" if job == "pretrain" else ""
        return 1, f"error: {error}{whole}"
    # engine/store.py, which must not be imported before the config is checked
    if type(error).__name__ == "Damaged":
        return 1, f"error: {error}; job=store store.verb=verify tells what else is, store.verb=repair goes back"
    if isinstance(error, KeyboardInterrupt):
        return 130, "interrupted; nothing was lost but the steps since the last checkpoint"
    return None


def pretrain(config: schema.Config, options: argparse.Namespace) -> int:
    """Train; go on where an earlier run in the same directory stopped. All ranks do it together, and end together."""
    # When a process is lost, torch prints a page of its own stack in each of the others; engine/watch.py says it in a line.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    import torch

    from engine import ranks as processes
    from engine.launcher import stop_with_launcher
    from engine.watch import Watch

    cuda = torch.cuda.is_available()
    device = torch.device("cuda", launched("LOCAL_RANK", 0)) if cuda else torch.device("cpu")
    ranks = processes.start(device, config.ranks.timeout_seconds)
    at: list[ActiveRows] = []  # where the run is, as soon as there are rows
    watch = Watch(
        processes.board,
        ranks.rank,
        ranks.size,
        ranks.node_rank,
        timeout_seconds=ranks.timeout_seconds,
        calls=lambda: ranks.calls,
        where=lambda: f"step {at[0].log.steps}" if at else "the start",
    )
    watch.start()
    stop_with_launcher()
    with ExitStack() as at_end:
        if not ranks.is_first:
            at_end.enter_context(redirect_stdout(at_end.enter_context(open(os.devnull, "w", encoding="utf-8"))))
        try:
            code = _pretrain(config, options, ranks, at, at_end)
        except BaseException as error:
            if ranks.size > 1:
                if processes.of_the_wire(error):
                    watch.diagnose(error)
                # The others leave when they hear of it, and then the launcher ends this process; it is to say its words first.
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                explained = explanation(error, config.job)
                code, text = explained or (1, f"{type(error).__name__}: {error}")
                if not watch.failed(text):
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

    from datasets.catalog import view_sides
    from engine import manifest, memory_plan
    from engine.checkpoint import PART_OF_A_RUN, Checkpoints
    from engine.files import DiskFiles
    from engine.implementations import implementations, names, said
    from engine.lanes import Lanes
    from engine.learning_rate import learning_rate
    from engine.network import check_sides
    from engine.output import is_finished, prepare_output, require_writable, write_json
    from engine.recovery import recover_together
    from engine.row_gradients import why_written

    output = Path(config.output)
    lanes = Lanes(config.schedule.lanes, ranks.rank, ranks.size)
    require_same(ranks, "config", config.model_dump_json())
    require_writable(output)
    # Of the ranks that share a disk one looks after what is nobody's.
    is_keeper = ranks.is_first or (config.ranks.own_disks and ranks.node_rank == 0)
    locked = output.is_dir() and not options.dry_run
    ranks.wait()  # all have looked before one makes it
    if locked and is_keeper:
        lock_disk(output, ranks, at_end)
    files = DiskFiles(output / "checkpoints")
    kept, complaints = ([], []) if options.fresh else recover_together(files, ranks, lanes)
    complaints = ranks.from_first(complaints)
    parts = [str(rank) for rank, there in enumerate(ranks.share((files.root / PART_OF_A_RUN).exists())) if there]
    if parts and not kept and not options.fresh:
        raise ValueError(
            f"on the disk of rank {', '.join(parts)}, {files.root} is one node's part of a run whose manifests are on its first node;\n"
            "start the nodes in the order that the run had, merge their checkpoints directories, or start over with --fresh"
        )
    for complaint in complaints:
        print(complaint)
    if complaints and not kept:
        order = (
            " or, if nodes with disks of their own have changed places, as they were" if config.ranks.own_disks else ""
        )
        raise ValueError(f"no checkpoint in {files.root} is whole; start over with --fresh{order}")
    last = kept[-1] if kept else None
    source, augmentation, schedule = open_data(config, last)
    require_same(ranks, "images", (len(source), source.fingerprint()))
    total = total_steps(config, schedule)
    check_shrink(config, schedule, total)
    network = network_of(config)
    sides = view_sides(config.data.augment.model_dump(), config.data.image_size)
    check_sides(network, {*sides, config.data.image_size})
    active = active_rows_of(config, schedule)
    tiers = memory_plan.plan(
        active=slots_each(config, schedule, ranks.size),
        gathered=active if config.classifier.sharding == "zero3" else 0,
        dim=config.classifier.dim,
        size=-(-len(source) // ranks.size),
        block=schedule.block,
        places=host_places(config, schedule, ranks.size),
        in_memory=config.store.kind == "memory",
        waiting_blocks=waiting_blocks(config, schedule, ranks.size),
        stored_row_bytes=stored_row_bytes(config),
        changed_rows=(config.checkpoint.every_steps * schedule.batch + schedule.window) // ranks.size,
        trunk_weights=sum(parameter.numel() for parameter in network.parameters()),
        views_bytes=sum(4 * source.channels * side * side for side in sides) * schedule.batch // ranks.size,
        batches_ready=1 + 2 * config.data.workers,
        keep=config.checkpoint.keep,
        gradient_written=why_written(config.schedule.micro_batches, config.optimizer.rows_clip) is not None,
    )
    # Device and host are one process's, the disk is all of them, as in metrics.jsonl.
    tiers["disk"] = {item: count * ranks.size for item, count in tiers["disk"].items()}
    print_said(config, source, schedule, active, total, ranks.size)
    if options.dry_run:
        print(config.model_dump_json(indent=2))
        print(memory_plan.text(tiers) + ("\n(device and host: of each process)" if ranks.size > 1 else ""))
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

    from engine import session
    from engine.pretrain import Heard, StopSignal

    def lr(step: int) -> float:
        return learning_rate(
            step,
            total=total,
            warmup=round(config.optimizer.warmup_epochs * schedule.padded_size / schedule.batch),
            highest=config.optimizer.lr,
            lowest=config.optimizer.min_lr,
            warmup_factor=config.optimizer.warmup_factor,
        )

    from datasets.catalog import sample_images
    from datasets.loader import StepDataset, batches

    torch.set_num_threads(config.threads or max(1, (os.cpu_count() or 1) // ranks.node_size))
    device = ranks.device
    images: Source = source
    if config.data.cache:
        from datasets.cached import CachedSource

        images = cached = CachedSource(source)
        cached.fill(lane_instances(schedule, lanes))
        print(f"{cached.bytes / 2**20:,.0f} MiB of decoded images are kept in memory by each process")
    dataset = StepDataset(
        images, schedule, augmentation, config.seed, config.data.on_unreadable, ranks.rank, ranks.size
    )
    # Workers are forked here, before DeepSpeed and the store start threads.
    stream = batches(dataset, last.step if last else 0, end, config.data.workers, pin=device.type == "cuda")
    at_end.callback(stream.close)
    chosen = implementations(device, torch.float32, config.classifier.dim, config.classifier.kernels)
    print("\n".join(said(chosen, last.body.get("kernels") if last else None)))
    probe = open_probe(config, source, augmentation) if ranks.is_first else None
    ranks.wait()  # decoding, compiling and the probe took each its own time, and from here on there are time limits
    trunk = make_trunk(config, network, schedule, ranks)
    at_end.callback(trunk.close)
    if is_keeper:
        prepare_output(output, options.fresh and locked)  # what came since the lock was not there is another job's
        if not locked:
            lock_disk(output, ranks, at_end)
            if manifest.numbers(files):
                raise ValueError(f"another job began in {output} just now; choose another output")
        write_json(output / "config.json", json.loads(config.model_dump_json()))
        write_json(output / "plan.json", tiers)
        source.save_index(output / "images.index")
    ranks.wait()
    if not config.ranks.own_disks:
        require_one_disk(output, ranks)
    disk = make_disk(config, schedule, files, lanes)
    at_end.callback(disk.close)
    checkpoints = Checkpoints(files, disk, config.checkpoint.keep, ranks.another_road())
    checkpoints.restore(kept, sweep=not complaints, is_keeper=is_keeper)
    ranks.wait()  # what a rank writes from here on must not be taken for what nobody names
    held = partitioned_rows(config, schedule, ranks) if config.classifier.sharding == "zero3" else None
    rows = make_rows(config, schedule, device, disk, names(chosen), lanes, held)
    at.append(rows)
    at_end.callback(rows.host.close)
    if held:
        at_end.callback(held.zero.close)
    stop = at_end.enter_context(StopSignal())
    at_end.enter_context(redirect_stdout(cast("TextIO", Heard(sys.stdout, stop))))
    return session.run(
        trunk=trunk,
        rows=rows,
        softmax=make_softmax(config, rows, held, ranks),
        ranks=ranks,
        batches=stream,
        schedule=schedule,
        learning_rate=lr,
        end=end,
        total=total,
        checkpoints=checkpoints,
        output=output,
        state={
            "config": json.loads(config.model_dump_json()),
            "source": source.fingerprint(),
            "segments": schedule.history,
            "kernels": names(chosen),
        },
        planned=tiers,
        probe=probe,
        sample=sample_images(source, config.data.image_size, min(2000, config.evaluate.limit)),
        rows_grad_V=list(augmentation.rows_grad_V),
        stop=stop,
        settings=session.Settings(
            job=config.job,
            method=config.classifier.method,
            instances=len(source),
            seed=config.seed,
            log_every=config.log_every,
            checkpoint_every=config.checkpoint.every_steps,
            read_ahead=config.store.read_ahead,
            evaluate_every=config.evaluate.every_steps,
            protocol=protocol_of(config),
            tensorboard=config.evaluate.tensorboard,
            micro_batches=config.schedule.micro_batches,
            rows_lr_scale=config.optimizer.rows_lr_scale,
            backbone=config.backbone.name,
        ),
    )


def require_same(ranks: "Ranks", what: str, mine: object) -> None:
    """ValueError where the ranks were not all given the same."""
    told = ranks.share(mine)
    different = [str(rank) for rank, theirs in enumerate(told) if theirs != told[0]]
    if different:
        raise ValueError(
            f"rank {', '.join(different)} has another {what} than rank 0; start all with the same words and the same files"
        )


def require_one_disk(output: Path, ranks: "Ranks") -> None:
    """ValueError where some rank's `output` is another directory than rank 0's."""
    path = output / f"seen-by-all-{ranks.from_first(os.urandom(8).hex())}"
    if ranks.is_first:
        for left in output.glob("seen-by-all-*"):  # by a run that was killed just here
            left.unlink()
        path.touch()
    ranks.wait()
    # A network file system may remember for half a minute that a directory was not there.
    patience_seconds = time.monotonic() + 60
    while not path.exists() and time.monotonic() < patience_seconds and ranks.size > 1:
        with suppress(OSError):
            os.listdir(output.parent)
        time.sleep(1)
    blind = [str(rank) for rank, seen in enumerate(ranks.share(path.exists())) if not seen]
    if ranks.is_first:
        path.unlink()
    if blind:
        raise ValueError(
            f"rank {', '.join(blind)} does not see rank 0's {output}; let all nodes share it, or set ranks.own_disks to true"
        )


def lock_disk(output: Path, ranks: "Ranks", at_end: ExitStack) -> None:
    """As `lock`, for one of several ranks that each have a disk of their own."""
    try:
        lock(output, at_end)
    except ValueError as error:
        if ranks.is_first:
            raise
        raise ValueError(f"{error}. If the nodes share this disk, leave ranks.own_disks at false") from None


def lane_instances(schedule: "Schedule", lanes: "Lanes") -> "Iterator[int]":
    """The instances of a rank's lanes, block by block."""
    import numpy as np

    for block in lanes.chosen(range(-(-schedule.positions_end // schedule.block))).tolist():
        ids = schedule.instances(np.arange(block * schedule.block, (block + 1) * schedule.block))
        yield from ids[ids >= 0].tolist()


@contextmanager
def while_it_is_there(kept: "Kept") -> Iterator[None]:
    """Tell a checkpoint that a running job replaced from a damaged one."""
    from engine import manifest
    from engine.store import Damaged

    try:
        yield
    except Damaged:
        if kept.number in manifest.numbers(kept.files):
            raise
        raise ValueError(f"the run that goes on meanwhile has replaced checkpoint {kept.name}; try again") from None


def lock(output: Path, at_end: ExitStack) -> None:
    """Keep other jobs out of the output directory until this one ends."""
    from engine.lock import Lock

    held = Lock(output)
    at_end.callback(held.release)
    if held.left_by:
        print(f"the lock of {held.left_by}, which ended without giving it back, was taken over")


def knn(config: schema.Config, options: argparse.Namespace) -> int:
    """Evaluate a saved backbone: the one in the output directory, or evaluate.backbone."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from datasets.catalog import sample_images
    from engine.evaluate import evaluate, raw_pixels, record
    from engine.network import embed
    from engine.output import prepare_output, write_json
    from engine.session import describe

    path = Path(config.evaluate.backbone or Path(config.output) / "backbone.safetensors")
    if not path.is_file():
        raise ValueError(f"there is no backbone at {path}; train one with job=pretrain, or set evaluate.backbone")
    if config.evaluate.features != "backbone":
        raise ValueError("a saved backbone has no head; set evaluate.features to backbone")
    source, augmentation, _ = open_data(config, None)
    network = network_of(config)
    try:
        network.backbone.load_state_dict(load_file(path))
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"{path} is not a {config.backbone.name}: {str(error).splitlines()[0]}; set backbone.name"
        ) from None
    wanted = config.evaluate
    probe = open_probe(config, source, augmentation)
    sample = sample_images(source, config.data.image_size, min(2000, wanted.limit))
    gallery, queries = (probe.gallery, probe.queries) if probe else (sample, [])

    protocol = protocol_of(config)
    raw = evaluate(raw_pixels, gallery, queries, protocol).figures
    result = evaluate(lambda images: embed(network, images, "backbone"), gallery, queries, protocol)
    line = record(result, probe, raw, protocol)
    print(describe(str(path), line))
    write_json(prepare_output(Path(config.output), fresh=False) / "knn.json", {"backbone": str(path), **line})
    return 0


def export(config: schema.Config, options: argparse.Namespace) -> int:
    """Write the backbone, the embeddings and the rows of a run's newest checkpoint, in instance order."""
    kept, complaints = chosen_checkpoint(config, None)
    source, _, schedule = open_data(config, kept, grows=False)
    with while_it_is_there(kept):
        return export_checkpoint(config, kept, complaints, source, schedule)


def export_checkpoint(
    config: schema.Config, kept: "Kept", complaints: list[str], source: "Source", schedule: "Schedule"
) -> int:
    from datasets.catalog import every_image
    from engine import checkpoint, exports
    from engine.network import backbone_of, embed
    from engine.output import prepare_output
    from engine.snapshots import RowReader

    network = network_of(config)
    model = checkpoint.read_trunk(kept)
    network.load_state_dict(model)
    rows = rows_of(config, kept, schedule)
    directory = prepare_output(Path(config.output), fresh=False) / "exports"
    directory.mkdir(exist_ok=True)
    exports.export_backbone(directory / "backbone.safetensors", backbone_of(model), config.backbone.name)
    shapes = {
        "rows": exports.export_rows(directory / "rows.npy", RowReader(rows), schedule.size, schedule.instances),
        "embeddings": exports.export_embeddings(
            directory / "embeddings.npy",
            lambda images: embed(network, images, "backbone"),
            every_image(source, config.data.image_size, schedule.size),
            schedule.size,
        ),
    }
    exports.write_manifest(directory / "manifest.json", {"step": kept.step, "source": source.name, "shapes": shapes})
    print("\n".join([*complaints, f"exported step {kept.step} to {directory}: " + json.dumps(shapes)]))
    return 0


def store(config: schema.Config, options: argparse.Namespace) -> int:
    """Look after the stored rows of a run: what store.verb says."""
    from engine import store_jobs
    from engine.files import DiskFiles

    output, wanted = Path(config.output), config.store
    files = DiskFiles(output / "checkpoints")
    if wanted.verb == "verify":
        return store_jobs.verify(files, wanted.step)
    if wanted.verb in ("scrub", "repair"):
        if wanted.step is not None:
            raise ValueError(f"store.verb={wanted.verb} is for all checkpoints; leave store.step out")
        if not files.listing(""):
            raise ValueError(f"there are no checkpoints in {files.root}; train with job=pretrain")
        with ExitStack() as at_end:
            lock(output, at_end)
            return store_jobs.scrub(files) if wanted.verb == "scrub" else store_jobs.repair(files)
    kept, complaints = chosen_checkpoint(config, wanted.step)
    print("\n".join(complaints), end="\n" if complaints else "")
    with while_it_is_there(kept):
        if wanted.verb == "inspect":
            return store_jobs.inspect(kept, output / "store.png")
        _, _, schedule = open_data(config, kept, grows=False)
        rows = rows_of(config, kept, schedule)
        return store_jobs.export(output / "exports", rows, schedule.size, schedule.instances, kept.step, wanted.format)


def chosen_checkpoint(config: schema.Config, step: int | None) -> "tuple[Kept, list[str]]":
    """The newest whole checkpoint, or that of a step; and what was wrong with others. ValueError where there is none."""
    from engine import manifest
    from engine.files import DiskFiles

    files = DiskFiles(Path(config.output) / "checkpoints")
    kept, complaints = manifest.recover(files, step)
    if not kept:
        there = ", ".join(str(number) for number in sorted(manifest.steps(files))) or "none"
        wanted = "" if step is None else f" of step {step} (there are: {there})"
        raise ValueError(
            "\n".join(
                [*complaints[:1], f"there is no whole checkpoint{wanted} in {files.root}; train one with job=pretrain"]
            )
        )
    return kept[-1], complaints


def rows_of(config: schema.Config, kept: "Kept", schedule: "Schedule") -> "ActiveRows":
    """The rows of a checkpoint, for reading."""
    import torch

    from engine import checkpoint
    from engine.implementations import implementations, names
    from engine.lanes import Lanes
    from engine.session import last_window

    lanes = Lanes(config.schedule.lanes)
    disk = make_disk(config, schedule, kept.files, lanes, threaded=False)
    disk.disk.restore([(kept.number, kept.entries(disk.disk))], kept.body["next_generation"])
    cpu = torch.device("cpu")
    # Looking at a checkpoint is not worth compiling for.
    kernels = names(implementations(cpu, torch.float32, config.classifier.dim, "aten"))
    rows = make_rows(config, schedule, cpu, disk, kernels, lanes, reads_only=True)
    checkpoint.load_rows(kept, rows, last_window(schedule, kept.step), kept.log()["eta"])
    return rows


def open_data(
    config: schema.Config, last: "Kept | None", grows: bool = True
) -> "tuple[Source, GreyAugment | PhotoAugment, Schedule]":
    """Source, augmentation and schedule, checked against each other and against the run that they go on with.

    last    the checkpoint of that run. Images that were appended since then join the order from the next pass on
    grows   False: they are left out
    """
    from datasets.catalog import make_augmentation, open_source
    from datasets.schedule import Schedule
    from engine.lanes import Lanes

    data, wanted = config.data, config.schedule
    if last:
        schema.refuse_other_run(config, last.body["config"])
    history = last.body["segments"] if last else None
    size = sum(segment[0] for segment in history) if history else None
    index = Path(config.output) / "images.index"
    source = open_source(
        data.source,
        root=data.root,
        image_size=data.image_size,
        limit=data.limit,
        held_out=data.held_out,
        labels=data.labels,
        known=index if last and index.exists() else None,
        known_count=size,
    )
    augmentation = make_augmentation(data.augment.model_dump(), data.image_size, source.channels)
    if len(source) < wanted.batch:
        raise ValueError(
            f"{len(source)} images do not fill one batch; set schedule.batch (with lanes and window) to at most that"
        )
    history, size = history or [[len(source), 0]], size or len(source)
    if last and (len(source) < size or source.fingerprint(size) != last.body["source"]):
        raise ValueError(
            f"the images changed since {config.output} was started; restore them, or start over with --fresh. "
            "New images may be added, old ones must stay as they were"
        )
    stripe = wanted.block * wanted.lanes
    window = wanted.window or -(-history[0][0] // stripe) * stripe  # a window does not grow with the images
    schedule = Schedule.from_history(
        history,
        seed=config.seed,
        window=window,
        stride=wanted.stride or window,
        batch=wanted.batch,
        block=wanted.block,
        lanes=wanted.lanes,
        reshuffle=wanted.reshuffle,
    )
    active = config.classifier.active
    if active is not None and window < active < size:
        raise ValueError(
            f"classifier.active ({active}) is above schedule.window ({window}): rows would be kept that no window visits; "
            f"set classifier.active to at most {window}, or to null for all rows"
        )
    added = len(source) - size
    if last and grows and added:
        lanes = Lanes(schedule.lanes)
        before, schedule = capacities(config, schedule, lanes), schedule.grown(added, last.step)
        if is_full(config, schedule) or capacities(config, schedule, lanes) != before:
            raise ValueError(
                f"{added} images were added, but this run keeps all rows active, and their number cannot change; "
                "restore the images, or start over with --fresh and classifier.active below the number of images"
            )
        print(f"{added:,} images were added; they are visited from the next pass on")
    return source, augmentation, schedule


def open_probe(config: schema.Config, source: "Source", augmentation: "GreyAugment | PhotoAugment") -> "Probe | None":
    """How this run is evaluated; None where nothing is labelled."""
    from datasets.catalog import make_probe

    data = config.data
    return make_probe(
        source,
        augmentation,
        root=data.root,
        image_size=data.image_size,
        held_out=data.held_out,
        gallery=config.evaluate.gallery,
    )


def protocol_of(config: schema.Config) -> "Protocol":
    from engine.evaluate import Protocol

    asked = config.evaluate
    return Protocol(asked.k, asked.temperature, asked.features, asked.limit, asked.query_limit)


def active_rows_of(config: schema.Config, schedule: "Schedule") -> int:
    """K, clamped to N."""
    return min(config.classifier.active or schedule.size, schedule.size)


def is_full(config: schema.Config, schedule: "Schedule") -> bool:
    return active_rows_of(config, schedule) == schedule.size


def total_steps(config: schema.Config, schedule: "Schedule") -> int:
    """Steps in which `epochs` times N images are seen (empty places of a ragged end are not images)."""
    return max(1, round(config.epochs * schedule.padded_size / schedule.batch))


def host_places(config: schema.Config, schedule: "Schedule", ranks: int) -> int:
    """Blocks that the host tier of each rank is planned for."""
    from engine.folding import steps_to_fold
    from engine.memory_plan import host_places as planned

    optimizer = config.optimizer
    places = planned(
        window=schedule.window,
        stride=schedule.stride,
        batch=schedule.batch,
        block=schedule.block,
        size=schedule.positions_end,
        full=is_full(config, schedule),
        read_ahead=config.store.read_ahead if config.store.kind == "zarr" else 0,
        fold_steps=steps_to_fold(optimizer.momentum, optimizer.decay_of_rows) if config.store.fold else 0,
    )
    return -(-places // ranks)


def waiting_blocks(config: schema.Config, schedule: "Schedule", ranks: int) -> int:
    """Blocks of each rank that may wait to be written."""
    return max(1, (config.store.write_behind or 2 * schedule.stride // schedule.block) // ranks)


def stored_row_bytes(config: schema.Config) -> int:
    """Of a row on the disk that has left the window."""
    float_bytes = 2 if config.store.dtype == "bfloat16" else 4
    return (1 if config.store.fold else 2) * config.classifier.dim * float_bytes + 8


def capacities(config: schema.Config, schedule: "Schedule", lanes: "Lanes") -> list[int]:
    """Active rows of each of a rank's lanes."""
    share = schedule.size if is_full(config, schedule) else active_rows_of(config, schedule) // schedule.lanes
    return [min(share, schedule.lane_size(lane)) for lane in lanes.numbers]


def slots_each(config: schema.Config, schedule: "Schedule", ranks: int) -> int:
    """Active rows of the rank that has most of them; lanes of a ragged order differ."""
    from engine.lanes import Lanes

    return max(sum(capacities(config, schedule, Lanes(schedule.lanes, rank, ranks))) for rank in range(ranks))


def check_shrink(config: schema.Config, schedule: "Schedule", total: int) -> None:
    """Refuse a config in which rows would come back from a gap with nothing left of them."""
    from engine.memory_plan import predicted_shrink, refuse_underflow

    optimizer = config.optimizer
    decay = optimizer.decay_of_rows
    if config.classifier.norm_floor == 0 and not is_full(config, schedule):
        # Stripes change places within half a pass.
        gap_passes = 1.5 if schedule.reshuffle else 1.0
        refuse_underflow(
            predicted_shrink(
                gap_steps=min(gap_passes * schedule.steps_per_pass, total),
                eta=optimizer.lr * optimizer.rows_lr_scale,
                weight_decay=decay,
                momentum=optimizer.momentum,
            )
        )


def network_of(config: schema.Config) -> "Network":
    from engine.network import make_network

    backbone = config.backbone
    return make_network(
        backbone.name, backbone.layers, backbone.grid, backbone.hidden, config.classifier.dim, config.seed
    )


def make_trunk(config: schema.Config, network: "torch.nn.Module", schedule: "Schedule", ranks: "Ranks") -> "Trunk":
    from engine.trunk import Trunk

    return Trunk(
        network,
        ranks=ranks,
        places=schedule.batch // ranks.size,
        micro_batches=config.schedule.micro_batches,
        momentum=config.optimizer.momentum,
        weight_decay=config.optimizer.weight_decay,
        nesterov=config.optimizer.nesterov,
        clip=config.optimizer.clip,
        config=config.deepspeed,
    )


def partitioned_rows(config: schema.Config, schedule: "Schedule", ranks: "Ranks") -> "PartitionedRows":
    """The memory of the active rows where DeepSpeed holds it."""
    from engine.zero import PartitionedRows

    optimizer = config.optimizer
    return PartitionedRows(
        slots_each(config, schedule, ranks.size),
        config.classifier.dim,
        ranks=ranks.size,
        places=schedule.batch // ranks.size,
        micro_batches=config.schedule.micro_batches,
        momentum=optimizer.momentum,
        weight_decay=optimizer.decay_of_rows,
        nesterov=optimizer.nesterov,
        clip=optimizer.rows_clip,
        device=ranks.device,
    )


def make_softmax(
    config: schema.Config, rows: "ActiveRows", held: "PartitionedRows | None", ranks: "Ranks"
) -> "Softmax":
    from engine.lane_softmax import LaneSoftmax
    from engine.row_gradients import row_gradient
    from engine.zero3_softmax import Zero3Softmax

    temperature = config.classifier.temperature
    if held:
        return Zero3Softmax(rows, held, ranks, temperature=temperature)
    gradient = row_gradient(rows, ranks, micro_batches=config.schedule.micro_batches, clip=config.optimizer.rows_clip)
    return LaneSoftmax(rows, ranks, gradient, temperature=temperature)


def make_disk(
    config: schema.Config, schedule: "Schedule", files: "Files", lanes: "Lanes", threaded: bool = True
) -> "WriteBehind":
    """The store on disk, and the thread that writes to it."""
    import numpy as np

    from engine.write_behind import WriteBehind
    from engine.zarr_store import ZarrStore

    store = ZarrStore(
        files,
        block=schedule.block,
        dim=config.classifier.dim,
        positions=schedule.positions_end,
        dtype=np.float32,
        bfloat16=config.store.dtype == "bfloat16",
        lanes=lanes,
    )
    block_bytes = schedule.block * (8 * config.classifier.dim + 8)
    return WriteBehind(store, waiting_blocks(config, schedule, lanes.ranks) * block_bytes, threaded)


def make_rows(
    config: schema.Config,
    schedule: "Schedule",
    device: "torch.device",
    disk: "WriteBehind",
    kernels: dict[str, str],
    lanes: "Lanes",
    held: "PartitionedRows | None" = None,
    reads_only: bool = False,
) -> "ActiveRows":
    """Rows of some lanes, without content. reads_only: for looking at a checkpoint, without a thread that reads ahead.

    kernels   the implementation of each op; engine.implementations.names
    held      who keeps the active rows, where it is not they themselves
    """
    import numpy as np

    from engine.active_rows import ActiveRows, Start
    from engine.folding import Folding
    from engine.host_tier import HostTier
    from engine.store import MemoryStore
    from engine.transitions import TransitionLog

    optimizer, classifier = config.optimizer, config.classifier
    on_disk = reads_only or config.store.kind == "zarr"
    log = TransitionLog(optimizer.momentum, optimizer.decay_of_rows, optimizer.nesterov)
    host = HostTier(
        disk if on_disk else MemoryStore(),
        block=schedule.block,
        size=schedule.positions_end,
        dim=classifier.dim,
        dtype=np.float32,
        places=host_places(config, schedule, lanes.ranks),
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
        start=Start(config.seed, classifier.init_norm, classifier.init == "feature"),
        full=is_full(config, schedule) and classifier.init == "random",
        norm_floor=classifier.norm_floor,
        device=device,
        kernels=kernels,
        held_by=(held.w_SD, held.u_SD) if held else None,
    )


def print_said(
    config: schema.Config, source: "Source", schedule: "Schedule", active: int, total: int, ranks: int
) -> None:
    """What was decided on the user's behalf."""
    print(
        f"{len(source):,} images of {source.name}; {active:,} active rows, window {schedule.window:,}, stride {schedule.stride:,}; "
        f"{total:,} steps of {schedule.batch}" + (f"; {ranks} processes" if ranks > 1 else "")
    )
    if config.classifier.active is not None and config.classifier.active > schedule.size:
        print(
            f"classifier.active {config.classifier.active:,} is above the number of images: all {schedule.size:,} rows are active"
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
