"""What the benches share: a directory that goes away, the machine in a line, spreads, and a page cache that is really empty."""

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import json
import mmap
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[1]


@contextlib.contextmanager
def scratch(directory: Path) -> Iterator[Path]:
    """A new directory below `directory`, removed at the end."""
    path = Path(tempfile.mkdtemp(prefix="bench-", dir=directory))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def machine() -> str:
    """Versions, processor and kernel, in a line."""
    names = ("numpy", "torch", "zarr", "lmdb", "tensorstore")
    versions = [f"{name} {importlib.metadata.version(name)}" for name in names if importlib.util.find_spec(name)]
    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.machine(),
    )
    kernel = f"Linux {platform.release()}"
    return ", ".join([f"Python {platform.python_version()}", *versions, f"{os.cpu_count()} CPUs ({model})", kernel])


def spread(values: Sequence[float], digits: int) -> str:
    """median (min - max)."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} - {max(values):.{digits}f})"


def given_line(output: Path, *overrides: str) -> list[str]:
    """The command line of a run of configs/given.json."""
    config = str(_ROOT / "configs" / "given.json")
    return [sys.executable, str(_ROOT / "launch.py"), "--config", config, f"output={output}", *overrides]


@contextlib.contextmanager
def running(line: Sequence[str], environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A command without its output; what of it still runs at the end is killed."""
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def metrics(output: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def status_kib(pid: int, field: str) -> int:
    """VmRSS or VmHWM of a process; 0 where it has ended."""
    try:
        found = re.search(rf"{field}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) if found else 0


def files_below(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def drop_from_cache(paths: Iterable[Path]) -> None:
    """Make the files durable and take them out of the page cache."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def share_in_cache(paths: Iterable[Path]) -> float:
    """The share of the files' pages that is in the page cache."""
    libc = ctypes.CDLL(None, use_errno=True)
    there = pages = 0
    for path in paths:
        if not path.stat().st_size:
            continue
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
            count = -(-len(mapped) // mmap.PAGESIZE)
            state = (ctypes.c_ubyte * count)()
            first = ctypes.c_char.from_buffer(mapped)
            failed = libc.mincore(ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(len(mapped)), state)
            del first  # a map that is pointed into cannot be closed
            assert not failed, os.strerror(ctypes.get_errno())
            there += sum(byte & 1 for byte in bytes(state))
            pages += count
    return there / max(pages, 1)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
