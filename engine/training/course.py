"""How long a run goes, how fast it learns, and when things happen on the way."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Course:
    """In steps, counted from step 0.

    end, total       where this run stops; the length of its schedules
    steps_per_pass   in which every image is visited once
    learning_rate    step -> the trunk's
    log_every, checkpoint_every, evaluate_every   evaluate_every None: at the end alone
    seed             of torch's generator, together with the step
    """

    end: int
    total: int
    steps_per_pass: float
    learning_rate: Callable[[int], float]
    log_every: int
    checkpoint_every: int
    evaluate_every: int | None
    seed: int
