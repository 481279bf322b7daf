"""What start, stop and checkpoint cost when a thousand times more blocks were visited: 10^6 of them in 20,000 generations beside 10^3 in 2.

    python -m tests.bench_visited [--rounds 5] [--directory .] [--keep]

Two runs of launch.py with "given" features and small blocks (C = 64, D = 8) go on in turn, each from its own directory. The directories
begin as the same short run. Then blocks are added to them, at the end of the order, far from the windows to come, and a manifest that
names them. All of them have the same rows, so that their files can be hard links to a few: 3 x 10^6 names and next to no bytes.

    first step    from the start of the process to the end of its first step, imports included
    pause         for how long a checkpoint stops the training: the time between two lines of metrics.jsonl that no step has
    stop          from SIGTERM to the end of the process; a checkpoint and the digest are made in between
    host bytes    what a process grows by while it takes up the block map, for each block; in a process of its own

In the large run the look at all block files goes on meanwhile (engine/disk/patrol.py); `look` is how long that takes without rests.
"""

import argparse
import hashlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from engine.disk import manifest
from engine.disk.block_map import BlockMap
from engine.disk.files import DiskFiles, checkpoint_files
from engine.disk.generations import Generations, name_of
from engine.disk.patrol import look
from engine.disk.saved_checkpoint import SavedCheckpoint
from engine.disk.zarr_store import ROWS, ZarrStore
from engine.rows.store import Block
from tests.bench_support import given_line, machine, metrics, running, scratch, spread

ROOT = Path(__file__).parents[1]
SIZES = {"few": (10**3, 2), "many": (10**6, 20_000)}  # blocks, generations
SHORT = 200  # steps of the run that both directories begin as
EVERY, STEPS = (
    300,
    900,
)  # steps between checkpoints, and of each turn: so that every turn ends as long after a checkpoint
MOST_LINKS = 60_000  # of a file
OVERRIDES = [
    "data.limit=100000000", "schedule.batch=64", "schedule.block=64", "schedule.lanes=4", "schedule.window=16384", "schedule.stride=8192",
    "method.active=4096", "method.dim=8", f"checkpoint.every_steps={EVERY}", "log_every=1", "method.kernels=aten",
]  # fmt: skip
START_BAR_SECONDS, STOP_BAR_SECONDS, PAUSE_BAR, HOST_BAR_BYTES = 1.0, 1.0, 1.10, 24


def make(output: Path, blocks: int, generations_more: int) -> None:
    """A run of SHORT steps, and then `blocks` more, at the end of the order, in so many generations more."""
    subprocess.run(given_line(output, *OVERRIDES, f"steps={SHORT}"), check=True, stdout=subprocess.DEVNULL)
    last = manifest.recover(checkpoint_files(output))[0][-1]
    generations, entries = last.tables()
    template, added = template_of(last), range(last.body.next_generation, last.body.next_generation + generations_more)
    each, end = blocks // generations_more, last.row_sizes().blocks - 1
    tables = {
        "block": np.arange(end - blocks, end), "generation": np.repeat(np.array(added, np.uint32), each),
        "checks": np.tile(np.array(template.checks, np.uint32), (blocks, 1)),
    }  # fmt: skip
    for place, number in enumerate(added):
        link_generation(
            template, output / "checkpoints" / ROWS / name_of(number, 0), tables["block"][each * place :][:each]
        )
    rows = last.row_sizes()
    more = {
        "number": np.array(added),
        "suffix": 0 * np.array(added),
        "kind": 0 * np.array(added),
        "shared": 0 * np.array(added),
    }
    publish(last, entries.overlaid(BlockMap(tables)), generations.joined(Generations(rows.dtype, rows.dim, more)))


@dataclass
class Template:
    """A block in a generation of its own, whose files others are links to. checks: as in the block map."""

    generation: Path
    files: dict[str, Path]  # column -> the chunk
    checks: tuple[int, ...]
    links: int = 0

    def linked(self, column: str, path: Path) -> None:
        self.links += 1
        if self.links % MOST_LINKS == 0:  # no file has more names than that
            for chunk in self.files.values():
                fresh = chunk.with_suffix(".fresh")
                fresh.write_bytes(chunk.read_bytes())
                fresh.rename(chunk)
        os.link(self.files[column], path)


def template_of(last: SavedCheckpoint) -> Template:
    rows, root = last.row_sizes(), last.files.root.parent / "template"
    store = ZarrStore(
        DiskFiles(root), block=rows.block, dim=rows.dim, positions=rows.positions, dtype=np.dtype(rows.dtype)
    )
    weight, momentum = np.random.default_rng(0).standard_normal((2, rows.block, rows.dim), np.float32)
    store.write_block(0, Block(weight, momentum, np.ones(rows.block, np.int64)))
    (generation,) = store.generations.values()
    where = root / ROWS / generation.name
    files = {column.name: where / column.file(0) for column in generation.columns}
    return Template(where, files, tuple(store.checks()["checks"][0].tolist()))


def link_generation(template: Template, where: Path, blocks: np.ndarray) -> None:
    """A generation like the template's, with these blocks."""
    where.mkdir()
    (where / "zarr.json").write_bytes((template.generation / "zarr.json").read_bytes())
    for column, chunk in template.files.items():
        (where / column).mkdir()
        (where / column / "zarr.json").write_bytes((template.generation / column / "zarr.json").read_bytes())
        for block in blocks.tolist():
            template.linked(column, where / column / chunk.name.replace("c.0", f"c.{block}", 1))


def publish(last: SavedCheckpoint, entries: BlockMap, generations: Generations) -> None:
    """The last checkpoint anew, with these tables."""
    body, root = last.body.json(), last.files.root
    part = body["parts"][0]
    path, count = part["blocks"]["full"], len(entries)
    if delta := part["blocks"]["delta"]:
        del body["files"][delta], body["sizes"][delta]
    content = save({**entries.arrays(), **generations.arrays()})
    (root / path).write_bytes(content)
    body["files"][path], body["sizes"][path] = hashlib.sha256(content).hexdigest(), len(content)
    part["blocks"] |= {"delta": None, "rows": count, "since": 0}
    part["stored_blocks"] = count
    body["next_generation"] = max(generations) + 1
    whole = {"sha256": manifest._digest(body), "body": body}
    (root / manifest.path_of(last.number)).write_text(json.dumps(whole))


def go_on(output: Path) -> dict[str, list[float]]:
    """Some steps from where the run stands, then SIGTERM: seconds to the first step, of each pause, from the signal to the end."""
    lines, before = output / "metrics.jsonl", count_lines(output / "metrics.jsonl")
    start = time.perf_counter()
    with running(given_line(output, *OVERRIDES)) as run:
        while count_lines(lines) == before:
            time.sleep(0.005)
            assert run.poll() is None, "the run ended before its first step"
        first = time.perf_counter() - start
        while count_lines(lines) < before + STEPS:
            time.sleep(0.02)
        start = time.perf_counter()
        run.send_signal(signal.SIGTERM)
        assert run.wait() == 0
        return {"first step": [first], "pause": pauses(output, before), "stop": [time.perf_counter() - start]}


def pauses(output: Path, first: int) -> list[float]:
    """What is between two lines beside the step, where there was a checkpoint; seconds."""
    told = metrics(output)[first:]
    return [
        line["interval_seconds"] - (line["elapsed_seconds"] - before["elapsed_seconds"])
        for before, line in pairwise(told)
        if before["step"] % EVERY == 0
    ]


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")


def memory_of_the_map(output: Path) -> int:
    """Bytes that a process grows by while it takes up the newest checkpoint's map and generations."""
    code = f"""
import ctypes, gc, re
from pathlib import Path
from engine.disk import manifest
from engine.disk.files import checkpoint_files
def resident():
    gc.collect(); ctypes.CDLL(None).malloc_trim(0)
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
last = manifest.recover(checkpoint_files(Path({str(output)!r})))[0][-1]
store, tables = last.store(), None
last.tables()  # whatever is imported and kept at the first use
last.forget()
before = resident()
generations, entries = last.tables()
store.restore([(last.number, entries)], generations, last.body.next_generation)
last.forget()
del generations, entries
print(resident() - before)
"""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT, env=environment)
    return int(found.stdout)


def look_seconds(output: Path) -> float:
    """How long the look at all block files takes without rests."""
    last = manifest.recover(checkpoint_files(output))[0][-1]
    store = last.store()
    generations, entries = last.tables()
    versions = store.restore([(last.number, entries)], generations, last.body.next_generation)
    start = time.perf_counter()
    assert not any(found.missing for found in look(store, versions, lambda _: True))
    return time.perf_counter() - start


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--blocks", type=int, default=SIZES["many"][0])
    parser.add_argument("--generations", type=int, default=SIZES["many"][1])
    parser.add_argument("--directory", type=Path, default=Path())
    options = parser.parse_args(arguments)
    sizes = {"few": SIZES["few"], "many": (options.blocks, options.generations)}
    print(machine())
    with scratch(options.directory) as directory:
        for name, (blocks, generations) in sizes.items():
            start = time.perf_counter()
            make(directory / name, blocks, generations)
            print(
                f"{name}: {blocks:,} blocks in {generations:,} generations, made in {time.perf_counter() - start:.0f} s",
                flush=True,
            )
        os.sync()  # millions of names are on their way, and every fsync would wait for them
        figures: dict[str, dict[str, list[float]]] = {name: {} for name in sizes}
        for turn in range(options.rounds + 1):
            for name in sizes if turn % 2 else reversed(sizes):
                for what, values in go_on(directory / name).items():
                    if turn:  # the first turn finds nothing in the page cache
                        figures[name].setdefault(what, []).extend(values)
        sizes_bytes = {name: memory_of_the_map(directory / name) for name in sizes}
        looks = {name: look_seconds(directory / name) for name in sizes}
    return tell(figures, sizes, sizes_bytes, looks)


def tell(
    figures: dict[str, dict[str, list[float]]],
    sizes: dict[str, tuple[int, int]],
    sizes_bytes: dict[str, int],
    looks: dict[str, float],
) -> int:
    """Print the table; 1 where a bar does not hold."""
    medians = {
        name: {what: statistics.median(values) for what, values in each.items()} for name, each in figures.items()
    }
    print("\nmedian (min - max)")
    print("| | few | many | many - few | bar |\n|---|---|---|---|---|")
    held = True
    bars = {"first step": START_BAR_SECONDS, "stop": STOP_BAR_SECONDS}
    for what, values in figures["few"].items():
        more = medians["many"][what] - medians["few"][what]
        if what == "pause":
            ratio = medians["many"][what] / medians["few"][what]
            held &= ratio < PAUSE_BAR
            more_text, bar = f"x {ratio:.3f}", f"under x {PAUSE_BAR}"
        else:
            held &= more < bars[what]
            more_text, bar = f"{more:+.2f} s", f"under {bars[what]:.0f} s"
        print(f"| {what} (s) | {spread(values, 3)} | {spread(figures['many'][what], 3)} | {more_text} | {bar} |")
    blocks, generations = sizes["many"]
    each = (sizes_bytes["many"] - 14 * generations) / blocks
    held &= each <= HOST_BAR_BYTES * 1.05
    print(
        f"host bytes: {sizes_bytes['many']:,} for {blocks:,} blocks and {generations:,} generations of 14 bytes: {each:.1f} a block "
        f"(bar {HOST_BAR_BYTES}, + 5 % for what the allocator rounds); {sizes_bytes['few']:,} for {sizes['few'][0]:,} blocks"
    )
    print(
        "the look at all block files, without rests: "
        + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in looks.items())
    )
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
