"""Who hears of a probe while it is trained, and how often."""

import time
from collections.abc import Callable, Mapping

SAY_SECONDS = 5.0  # between lines about a classifier

Say = Callable[[str], None]  # a line for people
Tell = Callable[[int, Mapping[str, float]], None]  # a step, and figures of it by name


def nobody(step: int, figures: Mapping[str, float]) -> None:
    """Hears nothing."""


class Pace:
    """Says every few seconds that it is time for a line."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._said = seconds, time.monotonic()

    def is_due(self) -> bool:
        """Whether so many seconds have passed since it was made or last said so."""
        if time.monotonic() - self._said <= self._seconds:
            return False
        self._said = time.monotonic()
        return True
