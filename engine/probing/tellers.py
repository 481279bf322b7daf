"""Who hears of a probe while it is trained."""

from collections.abc import Callable, Mapping

Say = Callable[[str], None]  # a line for people
Tell = Callable[[int, Mapping[str, float]], None]  # a step, and figures of it by name


def nobody(step: int, figures: Mapping[str, float]) -> None:
    """Hears nothing."""
