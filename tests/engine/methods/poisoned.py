"""Not a test: steps of a run that change nothing, for whichever method."""

import numpy as np

from engine.training import run as run_module
from engine.training.reading import UNREADABLE


def poisoned_steps(monkeypatch, state_of):
    """Step 3 of a run through launch.py has views that are not numbers, and of step 9 nothing can be read.

    Returns a list that gets (state before, state after) of both; state_of: of the run's method.
    """
    real, kept = run_module.train_step, []

    def poisoned(batch, trunk, method, *arguments, **options):
        if batch.step not in (3, 9):
            return real(batch, trunk, method, *arguments, **options)
        if batch.step == 3:
            batch.views = [view * float("nan") for view in batch.views]
        else:  # nothing of it could be read, so nothing began
            options["places_RP"] = np.full_like(options["places_RP"], UNREADABLE)
        before = state_of(method)
        result = real(batch, trunk, method, *arguments, **options)
        kept.append((before, state_of(method)))
        return result

    monkeypatch.setattr(run_module, "train_step", poisoned)
    return kept
