"""What a run asks of an evaluation. A run has a list of evaluators, and each of them evaluates the network in its turn."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch

from engine.results.pictures import EmbeddingSample, NeighbourRow


class Stopped(Exception):
    """The run was asked to end while it evaluated."""


class Evaluator(ABC):
    """Evaluates the network as it is; nothing of the run changes.

    stage   of the run, that its seconds are counted in
    """

    stage = "evaluation"

    @abstractmethod
    def evaluate(self, network: Callable[[], torch.nn.Module], stopped: Callable[[], object]) -> dict[str, Any] | None:
        """Its part of a line of evaluations.jsonl, at rank 0; None at the others. All ranks call it together.

        network   gives the network as it is now; where ranks have parts of its weights, this gathers them
        stopped   asked now and then, by all ranks together. Raises Stopped where it says yes
        """

    @abstractmethod
    def text(self, what: str, line: dict[str, Any]) -> str:
        """A line for people about what `evaluate` gave; what: of which network it is."""

    def headline(self) -> dict[str, float | None]:
        """Figures of the last evaluation, for summary.json."""
        return {}

    @property
    def bytes(self) -> int:
        """Host memory of the features that are kept of the last evaluation."""
        return 0

    def neighbours(self) -> list[NeighbourRow]:
        """Pictures for the report, of the last evaluation; the first evaluator that has some shows them."""
        return []

    def embeddings(self) -> EmbeddingSample | None:
        """The report's map, in the same way."""
        return None
