"""The only entry: `python launch.py --config configs/pic_sampled.json [section.key=value ...]`.

The same line runs under `deepspeed` and `torchrun`. The config is checked before torch is imported; what depends on the
images is checked before anything is written. Mistakes of the user end with exit code 2 and at most three lines.

Here the rooms are wired together and nothing else happens: datasets gives images, schedule and probe, engine trains.
"""

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

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
    from engine.manifest import Kept
    from engine.network import Network
    from engine.trunk import Trunk
    from engine.write_behind import WriteBehind


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
        if os.environ.get("WORLD_SIZE", "1") != "1":
            raise ValueError(
                f"{os.environ['WORLD_SIZE']} processes were launched, but this version trains on one; "
                "use --num_gpus 1 or --num_accelerators 1 (deepspeed), --nproc-per-node 1 (torchrun) or plain python"
            )
        if config.job != "pretrain" and (options.dry_run or options.fresh):
            raise ValueError(f"--dry-run and --fresh are for job=pretrain, not for job={config.job}; leave them out")
        if config.evaluate.tensorboard and importlib.util.find_spec("tensorboard") is None:
            raise ValueError(
                "evaluate.tensorboard needs the tensorboard package; pip install tensorboard, or set it to false"
            )
        job = {"pretrain": pretrain, "knn": knn, "export": export, "store": store}[config.job]
        return job(config, options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read our output has gone
        return 1
    except OSError as error:
        whole = "; checkpoints that were written before are whole" if config.job == "pretrain" else ""
        print(f"error: {error}{whole}", file=sys.stderr)
        return 1
    except Exception as error:
        if (
            type(error).__name__ != "Damaged"
        ):  # engine/store.py, which must not be imported before the config is checked
            raise
        print(
            f"error: {error}; job=store store.verb=verify tells what else is, store.verb=repair goes back",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("interrupted; nothing was lost but the steps since the last checkpoint", file=sys.stderr)
        return 130


def pretrain(config: schema.Config, options: argparse.Namespace) -> int:
    """Train; go on where an earlier run in the same directory stopped."""
    with ExitStack() as at_end:
        return _pretrain(config, options, at_end)


def _pretrain(config: schema.Config, options: argparse.Namespace, at_end: ExitStack) -> int:
    import torch

    from datasets.catalog import view_sides
    from engine import manifest, memory_plan
    from engine.checkpoint import Checkpoints
    from engine.files import DiskFiles
    from engine.implementations import implementations, names, said
    from engine.learning_rate import learning_rate
    from engine.network import check_sides
    from engine.output import is_finished, prepare_output, require_writable, write_json
    from engine.row_gradients import why_written

    output = Path(config.output)
    require_writable(output)
    locked = output.is_dir() and not options.dry_run
    if locked:
        lock(output, at_end)
    files = DiskFiles(output / "checkpoints")
    kept, complaints = ([], []) if options.fresh else manifest.recover(files)
    for complaint in complaints:
        print(complaint)
    if complaints and not kept:
        raise ValueError(f"no checkpoint in {files.root} is whole; start over with --fresh")
    last = kept[-1] if kept else None
    source, augmentation, schedule = open_data(config, last)
    total = total_steps(config, schedule)
    check_shrink(config, schedule, total)
    network = network_of(config)
    sides = view_sides(config.data.augment.model_dump(), config.data.image_size)
    check_sides(network, {*sides, config.data.image_size})
    active = active_rows_of(config, schedule)
    tiers = memory_plan.plan(
        active=active,
        dim=config.classifier.dim,
        size=len(source),
        block=schedule.block,
        places=host_places(config, schedule),
        in_memory=config.store.kind == "memory",
        waiting_blocks=waiting_blocks(config, schedule),
        stored_row_bytes=stored_row_bytes(config),
        changed_rows=config.checkpoint.every_steps * schedule.batch + schedule.window,
        trunk_weights=sum(parameter.numel() for parameter in network.parameters()),
        views_bytes=sum(4 * source.channels * side * side for side in sides) * schedule.batch,
        batches_ready=1 + 2 * config.data.workers,
        keep=config.checkpoint.keep,
        gradient_written=why_written(config.schedule.micro_batches, config.optimizer.rows_clip) is not None,
    )
    print_said(config, source, schedule, active, total)
    if options.dry_run:
        print(config.model_dump_json(indent=2))
        print(memory_plan.text(tiers))
        return 0

    end = min(config.steps or total, total)
    if last:
        if last.step > end or (last.step == end and is_finished(output, end)):
            print(
                f"this run is finished: {last.step} steps are done; see {output / 'summary.json'}, or start over with --fresh"
            )
            return 0
        print(f"going on after step {last.step} from {files.root / last.name}")

    from engine import session

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

    torch.set_num_threads(config.threads or os.cpu_count() or 1)
    dataset = StepDataset(source, schedule, augmentation, config.seed, config.data.on_unreadable)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # Workers are forked here, before DeepSpeed and the store start threads.
    stream = batches(dataset, last.step if last else 0, end, config.data.workers, pin=device.type == "cuda")
    at_end.callback(stream.close)
    chosen = implementations(device, torch.float32, config.classifier.dim, config.classifier.kernels)
    print("\n".join(said(chosen, last.body.get("kernels") if last else None)))
    probe = open_probe(config, source, augmentation)
    trunk = make_trunk(config, network, schedule, device)
    at_end.callback(trunk.close)
    prepare_output(output, options.fresh and locked)  # what came since the lock was not there is another job's
    if not locked:
        lock(output, at_end)
        if manifest.numbers(files):
            raise ValueError(f"another job began in {output} just now; choose another output")
    write_json(output / "config.json", json.loads(config.model_dump_json()))
    write_json(output / "plan.json", tiers)
    source.save_index(output / "images.index")
    disk = make_disk(config, schedule, files)
    at_end.callback(disk.close)
    checkpoints = Checkpoints(files, disk, config.checkpoint.keep)
    checkpoints.restore(kept, sweep=not complaints)
    rows = make_rows(config, schedule, device, disk, names(chosen))
    at_end.callback(rows.host.close)
    return session.run(
        trunk=trunk,
        rows=rows,
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
            temperature=config.classifier.temperature,
            micro_batches=config.schedule.micro_batches,
            rows_lr_scale=config.optimizer.rows_lr_scale,
            rows_clip=config.optimizer.rows_clip,
            backbone=config.backbone.name,
        ),
    )


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
    from engine.session import last_window

    disk = make_disk(config, schedule, kept.files, threaded=False)
    disk.disk.restore([(kept.number, kept.entries(disk.disk))], kept.body["next_generation"])
    cpu = torch.device("cpu")
    # Looking at a checkpoint is not worth compiling for.
    kernels = names(implementations(cpu, torch.float32, config.classifier.dim, "aten"))
    rows = make_rows(config, schedule, cpu, disk, kernels, reads_only=True)
    checkpoint.load_rows(kept, rows, last_window(schedule, kept.step))
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
        before, schedule = capacities(config, schedule), schedule.grown(added, last.step)
        if is_full(config, schedule) or capacities(config, schedule) != before:
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


def host_places(config: schema.Config, schedule: "Schedule") -> int:
    from engine.folding import steps_to_fold
    from engine.memory_plan import host_places as planned

    optimizer = config.optimizer
    return planned(
        window=schedule.window,
        stride=schedule.stride,
        batch=schedule.batch,
        block=schedule.block,
        size=schedule.positions_end,
        full=is_full(config, schedule),
        read_ahead=config.store.read_ahead if config.store.kind == "zarr" else 0,
        fold_steps=steps_to_fold(optimizer.momentum, optimizer.decay_of_rows) if config.store.fold else 0,
    )


def waiting_blocks(config: schema.Config, schedule: "Schedule") -> int:
    """Blocks that may wait to be written."""
    return config.store.write_behind or 2 * schedule.stride // schedule.block


def stored_row_bytes(config: schema.Config) -> int:
    """Of a row on the disk that has left the window."""
    float_bytes = 2 if config.store.dtype == "bfloat16" else 4
    return (1 if config.store.fold else 2) * config.classifier.dim * float_bytes + 8


def capacities(config: schema.Config, schedule: "Schedule") -> list[int]:
    """Active rows of each lane."""
    share = schedule.size if is_full(config, schedule) else active_rows_of(config, schedule) // schedule.lanes
    return [min(share, schedule.lane_size(lane)) for lane in range(schedule.lanes)]


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


def make_trunk(
    config: schema.Config, network: "torch.nn.Module", schedule: "Schedule", device: "torch.device"
) -> "Trunk":
    from engine.trunk import Trunk

    return Trunk(
        network,
        places=schedule.batch,
        micro_batches=config.schedule.micro_batches,
        momentum=config.optimizer.momentum,
        weight_decay=config.optimizer.weight_decay,
        nesterov=config.optimizer.nesterov,
        clip=config.optimizer.clip,
        config=config.deepspeed,
        device=device,
    )


def make_disk(config: schema.Config, schedule: "Schedule", files: "Files", threaded: bool = True) -> "WriteBehind":
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
    )
    block_bytes = schedule.block * (8 * config.classifier.dim + 8)
    return WriteBehind(store, waiting_blocks(config, schedule) * block_bytes, threaded)


def make_rows(
    config: schema.Config,
    schedule: "Schedule",
    device: "torch.device",
    disk: "WriteBehind",
    kernels: dict[str, str],
    reads_only: bool = False,
) -> "ActiveRows":
    """Rows without content. reads_only: for looking at a checkpoint, without a thread that reads ahead.

    kernels   the implementation of each op; engine.implementations.names
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
        places=host_places(config, schedule),
        readers=2 if on_disk and not reads_only else 0,
        folding=Folding(log) if config.store.fold else None,
        rewrite=config.store.dtype == "bfloat16",
        pinned=device.type == "cuda",
    )
    return ActiveRows(
        host,
        log,
        lanes=schedule.lanes,
        capacities=capacities(config, schedule),
        start=Start(config.seed, classifier.init_norm, classifier.init == "feature"),
        full=is_full(config, schedule) and classifier.init == "random",
        norm_floor=classifier.norm_floor,
        device=device,
        kernels=kernels,
    )


def print_said(config: schema.Config, source: "Source", schedule: "Schedule", active: int, total: int) -> None:
    """What was decided on the user's behalf."""
    print(
        f"{len(source):,} images of {source.name}; {active:,} active rows, window {schedule.window:,}, stride {schedule.stride:,}; "
        f"{total:,} steps of {schedule.batch}"
    )
    if config.classifier.active is not None and config.classifier.active > schedule.size:
        print(
            f"classifier.active {config.classifier.active:,} is above the number of images: all {schedule.size:,} rows are active"
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
