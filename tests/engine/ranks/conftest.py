"""Watches in this process, which are stopped when a test ends."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.engine.ranks.watched import Clock, Run


@pytest.fixture
def make_run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Run]]:
    """Run(...) that has started, or is left to be started by the test."""
    runs: list[Run] = []
    clock = Clock()
    monkeypatch.setattr("engine.ranks.watch.time", clock)

    def make(*arguments: Any, starts: bool = True, **options: Any) -> Run:
        runs.append(Run(clock, *arguments, **options))
        if starts:
            runs[-1].start()
        return runs[-1]

    yield make
    for run in runs:
        run.table.answers.set()
        for watch in run.watches:
            watch.stop()
