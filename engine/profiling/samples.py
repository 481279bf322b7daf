"""What a sampler wrote about one rank (engine/profiling/sampler.py)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.profiling.now import END, START
from engine.profiling.sample import Sample
from engine.profiling.slope import slope_of
from engine.scaling.figures import lines_of

_SETTLED = 1 / 3  # of the steps: memory is taken for the first time, and slides of the window begin


@dataclass(frozen=True)
class Samples:
    """
    limit_bytes, limit   of host memory, and whose it is
    """

    rank: int
    limit_bytes: int
    limit: str
    looks: Sequence[Sample]

    @property
    def last_step(self) -> int:
        return max((look.step for look in self.looks), default=0)

    @property
    def last_stage(self) -> str:
        return self.looks[-1].stage if self.looks else START

    def by_stage(self, name: str) -> dict[str, int]:
        """The most of a field of Sample in each stage."""
        most: dict[str, int] = {}
        for look in self.looks:
            most[look.stage] = max(most.get(look.stage, 0), getattr(look, name))
        return most

    def growth(self) -> tuple[float, float] | None:
        """Bytes a step by which the process grew after the first third of its steps, and half of the 95 % interval."""
        first = self.last_step * _SETTLED
        settled = [look for look in self.looks if look.step > first and look.stage not in (START, END)]
        return slope_of([look.step for look in settled], [look.own_bytes for look in settled])


def read_samples(directory: Path) -> list[Samples]:
    """Of every rank that has some; a line that was cut short by a kill is left out."""
    found = []
    for path in sorted(directory.glob("samples-*.jsonl"), key=lambda path: int(path.stem.partition("-")[2])):
        if lines := lines_of(path):
            head, *rest = lines
            looks = [Sample(*line) for line in rest]
            found.append(Samples(int(path.stem.partition("-")[2]), head["limit_bytes"], head["limit"], looks))
    return found
