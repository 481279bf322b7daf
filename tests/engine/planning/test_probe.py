import os
import platform
import subprocess
import sys
from dataclasses import replace

import pytest

from engine.planning.probe import ProbeSizes, features_bytes, logistic_bytes, probe_text, sgd_bytes
from tests.conftest import REPOSITORY

SIZES = ProbeSizes(trained=400, tested=100, width=1023, classes=1000, rates=3, strengths=2)
# Prints the bytes that a search adds to a process whose libraries are warm.
SEARCH = """
import threading, time
import numpy as np, psutil, torch
from engine.probing.logistic import fit_logistic
from engine.probing.rows import Rows, Standard

def search(trained, width, classes):
    features_MD = np.random.default_rng(0).standard_normal((trained, width)).astype(np.float32)
    rows, labels_M = Rows(features_MD, Standard.none(width, torch.device("cpu")), torch.device("cpu")), np.arange(trained) % classes
    return fit_logistic(rows, labels_M, np.arange(trained), 1.0, classes).iterations

torch.set_num_threads(1)
search(100, 8, 100)
process = psutil.Process()
before = most = process.memory_info().rss

def watch():
    global most
    while True:
        most = max(most, process.memory_info().rss)
        time.sleep(0.001)

threading.Thread(target=watch, daemon=True).start()
assert search(400, 1023, 1000) > 3
print(most - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to give back each vector at once")
def test_a_logistic_regression_asks_for_what_is_planned():
    # Without the threshold malloc keeps what was freed in its heap, and how much differs from run to run.
    at_once = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    asked = [sys.executable, "-c", SEARCH]
    added = int(subprocess.run(asked, cwd=REPOSITORY, env=at_once, capture_output=True, text=True, check=True).stdout)
    assert 0.9 * logistic_bytes(SIZES) <= added <= logistic_bytes(SIZES)


def test_rows_that_do_not_fit_at_once_are_not_held():
    many = replace(SIZES, trained=10**7)
    assert logistic_bytes(many) < logistic_bytes(SIZES) + 2 * 8192 * 8 * (1023 + 2 * 1000)


def test_what_is_told():
    assert features_bytes(500, 1023) == 4 * 500 * 1023
    assert sgd_bytes(SIZES) == 3 * 4 * 4 * 1024 * 1000
    assert probe_text(SIZES, "runs/x/linear") == (
        "features of 1,023 numbers: 2.0 MiB on the disk, in runs/x/linear; "
        f"1,000 classes: 46.9 MiB for SGD and {logistic_bytes(SIZES) / 2**20:.1f} MiB for logistic regression, one after the other"
    )


@pytest.mark.parametrize(("rates", "strengths", "expect"), [(0, 0, "linear"), (1, 0, "for SGD"), (0, 1, "regression")])
def test_what_is_not_asked_for_is_not_told(rates, strengths, expect):
    assert probe_text(ProbeSizes(1000, 1000, 64, 10, rates, strengths), "linear").endswith(expect)
