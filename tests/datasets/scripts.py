"""Python on a script in a process group of its own, for tests that send signals to a whole program."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import REPOSITORY

_NAMES = """
import contextlib, multiprocessing, os, signal
import numpy as np
import torch
from datasets.loader import StepDataset, batches
from tests.datasets.fake_images import GREY, FakeSchedule, FakeSource, grey_dataset
"""


@contextlib.contextmanager
def running(body: str) -> Iterator[subprocess.Popen]:
    """Python on a script that has the names of _NAMES, in a process group of its own; warnings are errors there too."""
    script = f"{_NAMES}{body}"
    process = subprocess.Popen(
        [sys.executable, "-u", "-W", "error", "-c", script],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        # Where the test failed, the script or its workers may hang.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for_line(process: subprocess.Popen, line: str) -> None:
    assert process.stdout is not None
    while (read := process.stdout.readline()) != f"{line}\n":
        assert read, f"the script ended before it printed {line}"


def runs(pid: int) -> bool:
    """Whether a process exists and is not a zombie that nobody has collected yet."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False
