"""Checkpoints: all that a run needs to go on to the bit, in one directory that is either whole or not there.

    checkpoints/step-000001200/
        manifest.json         step, config, the source's fingerprint, counters, and the sha256 of every file below
        trunk.safetensors     parameters and buffers, as torch names them
        momentum.safetensors  the trunk's momentum, by the same names
        active.safetensors    the active rows in their slots: w, u, position, stamp
        blocks.safetensors    the blocks of the host tier and of the memory store
        log.safetensors       the learning rate of every step, NaN where it was skipped

The directory is written under a temporary name, every file is synced to the disk, and one rename makes it real. Nothing is
unpickled when it is read. What it costs: every visited row is written each time; a store on disk will write what changed.
"""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.numpy import load as numpy_load
from safetensors.numpy import save as numpy_save
from safetensors.torch import load as torch_load
from safetensors.torch import save as torch_save

from engine.active_rows import ActiveRows
from engine.store import Block

if TYPE_CHECKING:
    from engine.trunk import Trunk

FORMAT = 1


@dataclass
class Kept:
    """A checkpoint that was found whole."""

    path: Path
    step: int
    manifest: dict[str, Any]


def save(
    directory: Path,
    trunk_state: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]],
    rows: ActiveRows,
    manifest: dict[str, Any],
    keep: int,
) -> Path:
    """Write the state after `rows.log.steps` steps and drop all but the newest `keep`. OSError leaves the older ones whole.

    trunk_state   what Trunk.state() gives    manifest   what else to keep, as JSON
    """
    step = rows.log.steps
    model, momentum = trunk_state
    files = {
        "trunk.safetensors": torch_save(model),
        "momentum.safetensors": torch_save(momentum),
        "active.safetensors": numpy_save(rows.state()),
        "blocks.safetensors": numpy_save(_blocks(rows)),
        "log.safetensors": numpy_save({"eta": rows.log.etas()}),
    }
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    text = json.dumps({"format": FORMAT, "step": step, "files": hashes, **manifest}, indent=1)
    final = directory / f"step-{step:09d}"
    partial = directory / f".step-{step:09d}.part"
    for left in (partial, final):
        if left.exists():
            shutil.rmtree(left)
    partial.mkdir(parents=True)
    try:
        for name, content in {**files, "manifest.json": text.encode()}.items():
            _write_durably(partial / name, content)
        _sync_directory(partial)
        os.rename(partial, final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _sync_directory(directory)
    # A later one that is still there was damaged, or this run would have started from it.
    later = [path for path in _candidates(directory) if path.name > final.name]
    for old in (*later, *[path for path in _candidates(directory) if path not in later][keep:]):
        shutil.rmtree(old)
    return final


def newest(directory: Path) -> tuple[Kept | None, list[str]]:
    """The newest checkpoint that verifies, and a line for each newer one that does not."""
    complaints = []
    for path in _candidates(directory):
        try:
            manifest = json.loads((path / "manifest.json").read_text())
            if manifest["format"] != FORMAT:
                raise ValueError(f"format {manifest['format']} instead of {FORMAT}")
            for name, expected in manifest["files"].items():
                if hashlib.sha256((path / name).read_bytes()).hexdigest() != expected:
                    raise ValueError(f"{name} does not match its checksum")
        except (OSError, ValueError, KeyError) as error:
            complaints.append(f"checkpoint {path.name} is damaged ({error}); trying the one before")
            continue
        return Kept(path, manifest["step"], manifest), complaints
    return None, complaints


def load_trunk(kept: Kept, trunk: "Trunk") -> None:
    """Put a fresh trunk where the checkpoint left it."""
    trunk.load(read_trunk(kept), torch_load((kept.path / "momentum.safetensors").read_bytes()))


def load_rows(kept: Kept, rows: ActiveRows, window: np.ndarray) -> None:
    """Put fresh rows where the checkpoint left them. window: the blocks of the window that the last step was in."""
    rows.log.extend(_read(kept, "log")["eta"])
    blocks = _read(kept, "blocks")
    resident = {}
    for number, is_resident, weight, momentum, last_step in zip(
        blocks["number"], blocks["resident"], blocks["weight"], blocks["momentum"], blocks["last_step"], strict=True
    ):
        block = Block(weight, momentum, last_step)
        if is_resident:
            resident[int(number)] = block
        else:
            rows.host.store.write_block(int(number), block)
    rows.host.load(resident, window)
    rows.load(_read(kept, "active"))


def read_trunk(kept: Kept) -> dict[str, torch.Tensor]:
    """Parameters and buffers of the network."""
    return torch_load((kept.path / "trunk.safetensors").read_bytes())


def bytes_on_disk(directory: Path) -> int:
    """The size of every file of every checkpoint."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def _read(kept: Kept, name: str) -> dict[str, np.ndarray]:
    return numpy_load((kept.path / f"{name}.safetensors").read_bytes())


def _blocks(rows: ActiveRows) -> dict[str, np.ndarray]:
    """Every block once: what is resident, and what is in the store and not resident."""
    host = rows.host
    resident = host.blocks()
    numbers = resident + [number for number in host.store.blocks() if number not in host]
    contents = [block for n in numbers if (block := host.resident(n) if n in host else host.store.read_block(n))]
    assert len(contents) == len(numbers)
    dim = host.weight.shape[1]
    return {
        "number": np.array(numbers, dtype=np.int64),
        "resident": np.arange(len(numbers)) < len(resident),
        "weight": np.stack([b.weight for b in contents])
        if contents
        else np.zeros((0, host.block, dim), host.weight.dtype),
        "momentum": np.stack([b.momentum for b in contents])
        if contents
        else np.zeros((0, host.block, dim), host.weight.dtype),
        "last_step": np.stack([b.last_step for b in contents]) if contents else np.zeros((0, host.block), np.int64),
    }


def _candidates(directory: Path) -> list[Path]:
    """Checkpoints, newest first."""
    return sorted(directory.glob("step-*"), reverse=True)


def _write_durably(path: Path, content: bytes) -> None:
    with open(path, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
