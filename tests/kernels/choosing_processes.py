"""Processes of their own that choose an implementation, and what came of them."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kernels import compiled
from kernels.compiled import choose
from kernels.row_update import row_update_
from tests.pooled_start import Running, Start

CPU = torch.device("cpu")
OP = "row_update"  # compiles in seconds
needs_compiler = pytest.mark.skipif(compiled.missing("cpu") is not None, reason="needs a C++ compiler and ninja")


def choose_and_compare(words: list[str]) -> int:
    """Print which implementation is chosen, and why; its step must be that of ATen. words: where libraries are that were built ahead."""
    if words:
        compiled.BUILT = Path(words[0])
    choice = choose(OP, CPU)
    arrays = [torch.linspace(-1, 1, 70).view(10, 7) + i for i in range(3)]
    results = []
    for backend in ("aten", choice.name):
        w, u, gradient = (array.clone() for array in arrays)
        row_update_(w, u, gradient, eta=0.1, momentum=0.9, weight_decay=1e-3, nesterov=True, backend=backend)
        results.append((w, u))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
    print(json.dumps([choice.name, choice.why]))
    return 0


def start(
    cache: Path, *words: str, program: Callable[[list[str]], int] = choose_and_compare, **environment: str
) -> Running:
    """A process of its own, whose streams go to a new directory above the cache."""
    streams = Path(tempfile.mkdtemp(dir=next(path for path in cache.parents if path.is_dir()), prefix="streams-"))
    return Running([*words], streams, program=program, env={"PIC_KERNELS_CACHE": str(cache), **environment})


def ended(running: Running) -> Start:
    """What came of it; it must have been well."""
    with running:
        done = running.wait()
    assert done.code == 0, done.err
    return done


def answer(running: Running) -> Any:
    return json.loads(ended(running).out.splitlines()[-1])


def libraries(cache: Path) -> list[Path]:
    return sorted(cache.glob("*.so"))
