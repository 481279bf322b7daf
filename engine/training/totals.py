"""What a run has added up so far, and when that says that it is no use to go on."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from engine.training.series import Series
from engine.training.step import StepResult

_SKIPS_THAT_STOP = 3
_REFUSED_THAT_STOP = 50  # a loss scaler halves its scale each time


class NonFiniteLoss(Exception):
    """The loss was not finite several steps in a row."""


@dataclass
class Totals:
    """What a run has added up so far; kept in checkpoints, so that a resumed run tells the whole."""

    images: int = 0
    skipped_steps: int = 0
    skips_in_a_row: int = 0
    refused_in_a_row: int = 0
    step_seconds: float = 0.0  # in steps, waiting for images included; evaluations and checkpoints are not
    trunk_seconds: float = 0.0
    peak_host_bytes: int = 0
    peak_device_bytes: int = 0
    losses: Series = field(default_factory=Series)  # of every step, nan where it was skipped; kept with the log

    def add(self, result: StepResult) -> None:
        """Take up a step, but for its seconds."""
        self.images += result.filled
        self.skipped_steps += not result.applied
        self.skips_in_a_row = 0 if result.finite else self.skips_in_a_row + 1
        refused = result.finite and result.filled > 0
        self.refused_in_a_row = 0 if result.applied else self.refused_in_a_row + refused
        self.losses.append(result.loss)

    def hopeless(self) -> str | None:
        """Why it is no use to go on; None where it is."""
        if self.skips_in_a_row >= _SKIPS_THAT_STOP:
            return f"the loss was not finite in {_SKIPS_THAT_STOP} steps in a row"
        if self.refused_in_a_row >= _REFUSED_THAT_STOP:
            return f"the gradient was not finite: DeepSpeed refused {_REFUSED_THAT_STOP} steps in a row"
        return None

    @classmethod
    def restored(cls, state: dict[str, Any], losses: Sequence[float] | np.ndarray) -> "Totals":
        """What `state` gave, also in an earlier version, which counted visits to images that could not be read."""
        names = {one.name for one in fields(cls)} - {"losses"}
        return cls(**{name: state[name] for name in names & state.keys()}, losses=Series(np.asarray(losses)))

    def state(self) -> dict[str, Any]:
        """What a checkpoint's manifest keeps of it."""
        return {name: value for name, value in vars(self).items() if name != "losses"}


def mean_of_finite(losses: Sequence[float] | np.ndarray) -> float | None:
    """The mean of the losses that are finite; None where none is."""
    values = np.asarray(losses, dtype=np.float64)
    finite = values[np.isfinite(values)]
    return float(np.mean(finite)) if len(finite) else None
