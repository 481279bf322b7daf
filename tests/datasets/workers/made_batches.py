"""Batches for tests of the loader's workers, and what can be done to the worker that makes one."""

import faulthandler
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from datasets.batch import Batch, Unreadable
from datasets.parts import places_of_part

LONG_SECONDS = 1000.0
WITHIN_SECONDS = 60.0  # for what takes well under a second on an idle machine


def nothing() -> None: ...


@dataclass
class Made:
    """Batches of two views that know their step; what `at` says is done before that step's is made, in the worker."""

    at: dict[int, Callable[[], object]] = field(default_factory=dict)
    always: Callable[[], object] = nothing

    def __getitem__(self, step: int) -> Batch:
        self.at.get(step, self.always)()
        ids = np.array([step, -1])
        views = [torch.full((2, 3, 5, 5), float(step)), torch.full((2, 1, 4, 4), -float(step))]
        return Batch(step, views, ids.copy(), ids, ids >= 0, [Unreadable(1, 7, "a/b.jpg", "truncated")])

    def part(self, step: int, part: int, parts: int) -> Batch:
        whole = self[step]
        here = places_of_part(len(whole.ids_G), part, parts)
        there = [
            replace(one, place=one.place - here.start)
            for one in whole.unreadable
            if here.start <= one.place < here.stop
        ]
        views = whole.views if parts == 1 else [view[here] for view in whole.views]
        return Batch(step, views, whole.positions_G[here], whole.ids_G[here], whole.filled_G[here], there)


def hang() -> None:
    time.sleep(LONG_SECONDS)


def kill(number: int) -> Callable[[], object]:
    def do() -> None:
        faulthandler.disable()  # pytest's, which prints
        os.kill(os.getpid(), number)

    return do


def fail(error: BaseException) -> Callable[..., Any]:
    def do(*_: object, **__: object) -> None:
        raise error

    return do


def open_files(pid: int | str = "self") -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def soon(true: Callable[[], object]) -> bool:
    deadline = time.monotonic() + WITHIN_SECONDS
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def one_line(error: BaseException) -> str:
    assert "\n" not in str(error)
    return str(error)
