"""What start, stop and checkpoint cost when a thousand times more blocks were visited: 10^6 of them in 20,000 generations beside 10^3 in 2.

    python -m tests.bench_visited [--rounds 5] [--directory .] [--keep]

Two runs of launch.py with "given" features and small blocks (C = 16, D = 8) go on in turn, each from its own directory. The directories begin
as the same short run; then blocks are added to them as the store writes them, far from the windows to come, without waiting for the disk,
and a manifest that names them. Making the large one takes some minutes, 3 x 10^6 files and 12 GB.

    first step    from the start of the process to the end of its first step, imports included
    pause         for how long a checkpoint stops the training: the time between two lines of metrics.jsonl that no step has
    stop          from SIGTERM to the end of the process; a checkpoint and the digest are made in between
    host bytes    what a process grows by while it takes up the block map, for each block; in a process of its own

In the large run the look at all block files goes on meanwhile (engine/disk/patrol.py); `look` is how long that takes without rests.
"""

import argparse
import functools
import hashlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from engine.disk import manifest, zarr_store
from engine.disk.files import DiskFiles, checkpoint_files
from engine.disk.patrol import look
from engine.disk.zarr_store import ZarrStore
from engine.rows.store import Block
from tests.bench_support import machine, scratch, spread

ROOT = Path(__file__).parents[1]
SIZES = {"few": (10**3, 2), "many": (10**6, 20_000)}  # blocks, generations
SHORT = 200  # steps of the run that both directories begin as
STEPS = 330  # of each turn; every 100 are followed by a checkpoint
OVERRIDES = [
    "data.limit=40000000", "schedule.batch=64", "schedule.block=16", "schedule.lanes=4", "schedule.window=8192", "schedule.stride=4096",
    "method.active=4096", "method.dim=8", "checkpoint.every_steps=100", "log_every=1", "method.kernels=aten",
]  # fmt: skip
START_BAR_SECONDS, STOP_BAR_SECONDS, PAUSE_BAR, HOST_BAR_BYTES = 1.0, 1.0, 1.10, 24


class Unsynced(DiskFiles):
    """Without waiting for the disk, which is not what is measured here."""

    def _create(self, path, parts):  # type: ignore[no-untyped-def]
        with open(self._prefix + path, "xb") as file:
            for part in parts:
                file.write(part)

    def sync_directory(self, path: str) -> None:
        pass


def command(output: Path, *overrides: str) -> list[str]:
    config = str(ROOT / "configs" / "given.json")
    return [sys.executable, str(ROOT / "launch.py"), "--config", config, f"output={output}", *OVERRIDES, *overrides]


def make(output: Path, blocks: int, generations: int) -> None:
    """A run of SHORT steps, and then `blocks` more, at the end of the order, in so many generations more."""
    subprocess.run(command(output, f"steps={SHORT}"), check=True, stdout=subprocess.DEVNULL)
    files = Unsynced(output / "checkpoints")
    last = manifest.recover(files)[0][-1]
    sizes, store = last.row_sizes(), last.store()
    of_last, entries = last.tables()
    store.restore([(last.number, entries)], of_last, last.body.next_generation)
    rng = np.random.default_rng(0)
    each, first = blocks // generations, sizes.blocks - 1 - blocks
    with_cache = functools.cache(zarr_store.group_metadata)  # zarr takes longer for these than all else here
    zarr_store.group_metadata = lambda *arguments: dict(with_cache(*arguments))
    for start in range(first, first + blocks, each):
        for block in range(start, start + each):
            weight, momentum = rng.standard_normal((2, sizes.block, sizes.dim), np.float32)
            store.write_block(block, Block(weight, momentum, np.full(sizes.block, 1)))
        store.sync()
    publish(last, store)


def publish(last: manifest.SavedCheckpoint, store: ZarrStore) -> None:
    """The last checkpoint anew, with all that the store has."""
    body = last.body.json()
    part = body["parts"][0]
    table, path = store.entries(), part["blocks"]["full"]
    if delta := part["blocks"]["delta"]:
        del body["files"][delta], body["sizes"][delta]
    content = save(table)
    (store.files.root / path).write_bytes(content)  # type: ignore[attr-defined]
    body["files"][path], body["sizes"][path] = hashlib.sha256(content).hexdigest(), len(content)
    part["blocks"] |= {"delta": None, "rows": len(table["block"]), "since": 0}
    part["stored_blocks"] = len(table["block"])
    body["next_generation"] = store.next_generation
    whole = {"sha256": manifest._digest(body), "body": body}
    (store.files.root / manifest.path_of(last.number)).write_text(json.dumps(whole))  # type: ignore[attr-defined]


def go_on(output: Path) -> dict[str, list[float]]:
    """Some steps from where the run stands, then SIGTERM: seconds to the first step, of each pause, from the signal to the end."""
    lines, before = output / "metrics.jsonl", count_lines(output / "metrics.jsonl")
    start = time.perf_counter()
    run = subprocess.Popen(command(output), stdout=subprocess.DEVNULL)
    try:
        while count_lines(lines) == before:
            time.sleep(0.005)
            assert run.poll() is None, "the run ended before its first step"
        first = time.perf_counter() - start
        while count_lines(lines) < before + STEPS:
            time.sleep(0.02)
        start = time.perf_counter()
        run.send_signal(signal.SIGTERM)
        assert run.wait() == 0
        return {"first step": [first], "pause": pauses(lines, before), "stop": [time.perf_counter() - start]}
    finally:
        run.kill()
        run.wait()


def pauses(lines: Path, first: int) -> list[float]:
    """What is between two lines beside the step, where there was a checkpoint; seconds."""
    told = [json.loads(line) for line in lines.read_text().splitlines()[first:]]
    return [
        line["interval_seconds"] - (line["elapsed_seconds"] - before["elapsed_seconds"])
        for before, line in pairwise(told)
        if before["step"] % 100 == 0
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
before = resident()
generations, entries = last.tables()
store.restore([(last.number, entries)], generations, last.body.next_generation)
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
