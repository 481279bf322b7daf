"""For each test of the workers: no process, thread, descriptor or blocked signal is left."""

import gc
import multiprocessing
import signal
import threading
from collections.abc import Iterator

import pytest
import torch

from tests.datasets.workers.made_batches import open_files


@pytest.fixture(autouse=True, scope="module")
def _short_collections() -> None:
    """What earlier tests imported is left alone when each test here collects: a tenth of a second, twice a test."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    gc.collect()
    before = open_files()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    yield
    assert multiprocessing.active_children() == []
    assert not [thread for thread in threading.enumerate() if thread.name == "pin"]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask
    gc.collect()  # tracebacks hold batches
    assert open_files() <= before


@pytest.fixture
def fake_pin(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """As if memory could be page-locked here: the thread and the content of each tensor that was asked to be."""
    pinned: list[tuple[str, float]] = []

    def pin_memory(view: torch.Tensor) -> torch.Tensor:
        pinned.append((threading.current_thread().name, float(view.flatten()[0])))
        return view.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    return pinned
