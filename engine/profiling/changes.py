"""What would make a run smaller: changes of its config, each with what it saves and what it costs, the cheapest first.

They are planned before the run begins, because a process that the kernel has killed can plan nothing any more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

_ROOM = 1.05  # a run that needs all there is will be killed by the next page


@dataclass(frozen=True)
class Change:
    """
    words    for the command line
    cost     what it costs the user, in words
    saved    tier -> bytes: "device", "host" (of one machine)
    """

    words: str
    cost: str
    saved: Mapping[str, int]

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> Self:
        return cls(content["words"], content["cost"], content["saved"])


def enough(changes: Sequence[Change], tier: str, needed_bytes: int, limit_bytes: int, most: int = 3) -> list[Change]:
    """The cheapest changes of which each alone brings `needed_bytes` of a tier below `limit_bytes`, with some room.

    Where none does, those that save something are put together, the cheapest first, until they do: then they are one entry.
    changes   the cheapest first
    """
    too_much = needed_bytes * _ROOM - limit_bytes
    saving = [change for change in changes if change.saved.get(tier, 0) > 0]
    alone = [change for change in saving if change.saved[tier] >= too_much]
    if alone:
        return alone[:most]
    together: list[Change] = []
    for change in saving:
        together.append(change)
        if sum(one.saved[tier] for one in together) >= too_much:
            saved = {tier: sum(one.saved[tier] for one in together)}
            words, costs = (
                " ".join(one.words for one in together),
                "; ".join(dict.fromkeys(one.cost for one in together)),
            )
            return [Change(words, costs, saved)]
    return []
