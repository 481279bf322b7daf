"""job=scale: run every cell of scale.grid in a process of its own, and compare what they cost.

The config itself is the base of each cell. All cells are checked before the first one runs: their keys and values by the schema, their
sizes as far as the number of images is known without looking at any. What runs them is in engine/scaling.
"""

import argparse
import json
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch

from configs import schema
from configs.earlier import completed, flat
from datasets.shown import cut_text
from engine.jobs.chosen_sizes import lanes_of
from engine.jobs.data import open_data
from engine.jobs.locked import has_checkpoints, lock
from engine.jobs.peer import check_peer
from engine.jobs.sizes import check_shrink, total_steps
from engine.results.json_files import read_text
from engine.results.output import Output
from engine.results.output_names import LOCK, SCALE
from engine.results.progress import bytes_text
from engine.results.whole_files import write_file
from engine.scaling import results
from engine.scaling.cells import Cell, cells_of, word
from engine.scaling.machine import hardware, versions
from engine.scaling.memory_limit import memory_limit
from engine.scaling.scale_page import scale_page
from engine.scaling.sweep import Sweep, Wanted
from engine.training.stop_signal import StopSignal

_LAUNCH = Path(__file__).parents[2] / "launch.py"
_FREE_SHARE = 0.8  # of the memory that is free when the sweep starts
# What may differ when a sweep goes on. More repeats are more blocks; the blocks that are there stay what they are.
_MAY_DIFFER = ("output", "scale.repeats", "scale.peer_repeats", "scale.keep", "scale.cell_seconds", "scale.cell_gib")
_COUNTED = ("synthetic", "digits")  # sources whose images are counted at once


def run(config: schema.Config, options: argparse.Namespace) -> int:
    """Returns the exit code: 0 too where a cell died, which is a result, or where the sweep was asked to stop."""
    wanted = config.scale
    if not wanted.grid:
        raise ValueError('job=scale has no cells; set scale.grid, for instance to {"data.limit": [100000, 1000000]}')
    cells = cells_of(wanted.grid)
    for cell in cells:
        check_cell(config, cell)
    if options.dry_run:
        print("\n".join([f"{len(cells)} cells, {wanted.repeats} blocks:", *(f"  {cell.name}" for cell in cells)]))
        return 0
    own = Output(Path(config.output), SCALE)
    with ExitStack() as cleanup:
        cell_bytes = _cell_bytes(config)
        _refuse_other_sweep(config, own.path)
        own.make()
        own.enter(LOCK)
        lock(own.path, cleanup)
        own.write_json("config.json", json.loads(config.model_dump_json()))
        limits = Wanted(
            repeats=wanted.repeats,
            peer_repeats=wanted.repeats if wanted.peer_repeats is None else wanted.peer_repeats,
            seed=config.seed,
            skip_steps=wanted.skip_steps,
            cell_seconds=wanted.cell_seconds,
            cell_bytes=cell_bytes,
            keep=wanted.keep,
            turn_seconds=wanted.turn_seconds,
        )
        way = _way_of_limit(cell_bytes)
        print(
            f"{len(cells)} cells, {wanted.repeats} blocks; each cell may take {wanted.cell_seconds:g} s and {bytes_text(cell_bytes)}, {way}"
        )
        stop = cleanup.enter_context(StopSignal())
        sweep = Sweep(own, cells, limits, partial(command_of, config), partial(print, flush=True))
        is_done = sweep.run(lambda: stop.is_asked)
        about = {
            "hardware": hardware(own.path),
            "versions": versions(),
            "limits": {"cell_seconds": wanted.cell_seconds, "cell_bytes": cell_bytes, "memory_limit": way},
            "config": json.loads(config.model_dump_json()),
        }
        whole, grown, bars = results.results(cells, sweep.records, about)
        table = results.csv_text(cells, sweep.records)
        results.write(own, whole, table, scale_page(whole, cells, sweep.records, grown, bars))
        print(
            f"{'all cells have ended' if is_done else 'stopped; the same command goes on'}: {own.path / 'scale.html'}"
        )
    return 0


def cell_config(config: schema.Config, cell: Cell, output: str) -> schema.Config:
    """What the cell is started with. Raises ValueError with the cell, for a key or value that the schema refuses."""
    wanted = config.scale
    words = ["scale={}", "log_every=1"] + ([f"steps={wanted.steps}"] if wanted.steps else [])
    words += [f"{key}={word(value)}" for key, value in cell.changes.items()]
    words += [f"output={json.dumps(output)}", f"job={'peer' if cell.peer else 'pretrain'}"]
    words += [f"scale.peer={json.dumps(cell.peer)}"] if cell.peer is not None else []
    try:
        return schema.with_words(config, words)
    except ValueError as error:
        raise ValueError(f"scale.grid, cell {cut_text(cell.name)}: {error}") from None


def check_cell(config: schema.Config, cell: Cell) -> None:
    """ValueError, with the cell, for what would be refused at its start; sizes too, where the images are counted at once."""
    own = cell_config(config, cell, config.output)
    try:
        if cell.peer:
            check_peer(own)
            if cell.ranks > 1:
                raise ValueError(f"a peer trains on one rank, and ranks is {cell.ranks}; leave ranks out")
        if lanes_of(own) % cell.ranks:
            raise ValueError(f"ranks ({cell.ranks}) does not divide schedule.lanes ({lanes_of(own)})")
        if cell.ranks > 1 and not _launcher().exists():
            raise ValueError(f"several ranks are started with {_launcher()}, which is not there; pip install deepspeed")
        if own.data.source in _COUNTED:
            _, _, schedule, sized = open_data(own, None)
            check_shrink(sized, schedule, total_steps(sized, schedule))
    except ValueError as error:
        raise ValueError(f"scale.grid, cell {cut_text(cell.name)}: {error}") from None


def command_of(config: schema.Config, cell: Cell, directory: Path) -> Sequence[str]:
    """The words that run the cell with its output in `directory`, beside which its config is written."""
    path = directory.with_name(f"{directory.name}.json")
    content = cell_config(config, cell, str(directory.absolute())).model_dump_json(indent=2)
    write_file(path, content.encode())
    launch = [str(_LAUNCH), "--config", str(path.absolute())]
    if cell.ranks == 1:
        return [sys.executable, *launch]
    devices = "--num_gpus" if torch.cuda.is_available() else "--num_accelerators"
    return [str(_launcher()), "--master_port", str(_free_port()), devices, str(cell.ranks), *launch]


def _launcher() -> Path:
    return Path(sys.executable).with_name("deepspeed")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _cell_bytes(config: schema.Config) -> int:
    """What a cell may take. A limit of the user's that is above the machine's memory is refused: it would hold nothing back."""
    memory, asked = psutil.virtual_memory(), config.scale.cell_gib
    if asked is None:
        return int(_FREE_SHARE * memory.available)
    if asked * 2**30 > memory.total:
        raise ValueError(
            f"scale.cell_gib is {asked:g}, and the machine has {memory.total / 2**30:.1f} GiB; set it to less, or to null"
        )
    return int(asked * 2**30)


def _way_of_limit(cell_bytes: int) -> str:
    limit, way = memory_limit(cell_bytes)
    limit.close()
    return way


def _refuse_other_sweep(config: schema.Config, output: Path) -> None:
    """ValueError where `output` has a sweep with another config, or another job's run; a run may have its checkpoints alone."""
    path = output / "config.json"
    if not path.exists():
        if has_checkpoints(output):
            raise ValueError(f"{output} holds the checkpoints of a run; set output to a directory of its own")
        return
    try:
        saved: dict[str, Any] = json.loads(read_text(path))
        then = flat(completed(saved, config))
    except (OSError, ValueError, AttributeError):
        raise ValueError(f"{path} cannot be read; remove {output}, or choose another output") from None
    now = flat(json.loads(config.model_dump_json()))
    for key in sorted(now.keys() | then.keys()):
        if key not in _MAY_DIFFER and now.get(key) != then.get(key):
            before, asked = (cut_text(json.dumps(values.get(key))) for values in (then, now))
            raise ValueError(
                f"{output} holds a sweep with {cut_text(key)} = {before}, now it is {asked}; "
                "set it back, choose another output, or remove that directory"
            )
