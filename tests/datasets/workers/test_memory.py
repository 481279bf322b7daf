"""What a worker frees stays with it, so that the next image costs no page faults; unless the user has settings of his own."""

import os
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

# Page faults of 8 MiB that are made and freed for a third time.
_FAULTS = """
import resource
import numpy as np
from datasets.workers import _keep_freed_memory

_keep_freed_memory()
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [np.ones(2**19) for _ in range(2)]
    held.clear()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
_FEW = 64  # of 2,048 pages


def faults(**own: str) -> int:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | own
    line = [sys.executable, "-c", _FAULTS]
    return int(subprocess.run(line, cwd=REPOSITORY, env=environment, check=True, capture_output=True, text=True).stdout)


def test_memory_that_was_freed_is_used_again_without_faults():
    assert faults() <= _FEW


def test_the_users_own_setting_of_malloc_holds():
    found = faults(MALLOC_MMAP_THRESHOLD_="65536")
    if found <= _FEW:
        pytest.skip("with huge pages 8 MiB are few faults anyway")
    assert found > 10 * _FEW
