"""A C++ compiler for tests that remembers: in a run of pytest the same source is compiled once, by whichever worker asks first.

    compiler = remembering_compiler(shared_directory(tmp_path_factory))
    subprocess.run([compiler, "-c", "cpu.cpp", "-o", "cpu.o", "-O3"])

The real compiler is `c++`, and it links. What is remembered is found by a hash over the words and over all sources under kernels/, so it
is for objects whose names in the words are the same each time: ninja gives names relative to the directory of the build.
"""

import fcntl
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

_COMPILER = """#!{python} -IS
import fcntl, glob, hashlib, os, shutil, subprocess, sys
words = sys.argv[1:]
if "-c" not in words:
    os.execvp("c++", ["c++", *words])
product = words[words.index("-o") + 1]
asked = hashlib.sha256(repr(words).encode())
for path in sorted(glob.glob({sources!r} + "/*/*.*")):
    asked.update(open(path, "rb").read())
remembered = os.path.join({directory!r}, asked.hexdigest())
with open(remembered + ".lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not os.path.exists(remembered):
        code = subprocess.run(["c++", *words]).returncode
        if code:
            sys.exit(code)
        shutil.copy(product, remembered + ".new")
        os.replace(remembered + ".new", remembered)
shutil.copy(remembered, product)
if "-MF" in words:
    open(words[words.index("-MF") + 1], "w").write(product + ":\\n")
"""


def shared_directory(factory: pytest.TempPathFactory) -> Path:
    """One for all workers of this run of pytest, which goes with their temporary directories."""
    base = factory.getbasetemp()
    directory = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "compiled-once"
    directory.mkdir(exist_ok=True)
    return directory


def remembering_compiler(directory: Path) -> str:
    """The path of a command that compiles like c++."""
    text = _COMPILER.format(python=sys.executable, sources=str(REPOSITORY / "kernels"), directory=str(directory))
    return str(made_once(directory / "remembering-c++", lambda path: _write_program(path, text)))


def made_once(product: Path, make: Callable[[Path], None]) -> Path:
    """`product`, which `make` has written by the worker that asks first; the others wait. make: is given the path to write to."""
    with open(product.with_name(f"{product.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not product.exists():
            new = product.with_name(f"{product.name}.new")
            make(new)
            os.replace(new, product)
    return product


def _write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)
