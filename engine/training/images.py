"""The batches of a run, as all ranks take them together, and what of them cannot be read."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from datasets.batch import Batch, NoBatch
from engine.methods.stages import Stages
from engine.ranks.ranks import Ranks
from engine.training.reading import NO_BATCH, UNREADABLE, Reading
from engine.training.step import Dealing, places_of, places_of_all


@dataclass
class Images:
    """
    batches            of the steps from the run's first on, in order: this rank's part of them
    reading            counts what cannot be read
    stop_at_unreadable the first image that cannot be read ends the run, before its step
    dealing            how the places of a batch become micro-batches
    """

    batches: Iterator[Batch]
    reading: Reading
    stop_at_unreadable: bool
    dealing: Dealing

    def take(self, step: int, ranks: Ranks, stages: Stages) -> tuple[Batch, np.ndarray] | None:
        """(the batch of a step, what each place of each rank is); None where a rank was asked to stop and waits no longer."""
        with stages("data"):
            try:
                batch: Batch | None = next(self.batches)
            except NoBatch:  # which the others hear from its places
                batch = None
        places_P = np.full(self.reading.places, NO_BATCH, np.uint8) if batch is None else places_of(batch)
        places_RP = places_of_all(places_P, ranks)
        if batch is None or (places_RP == NO_BATCH).any():
            return None
        assert batch.step == step, (batch.step, step)
        return batch, places_RP

    def must_stop(self, places_RP: np.ndarray) -> bool:
        """Whether an image of this step could not be read, and that ends the run."""
        return self.stop_at_unreadable and bool((places_RP == UNREADABLE).any())
