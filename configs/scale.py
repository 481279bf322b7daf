"""What a sweep is told (job=scale), and which rival a run is of (job=peer)."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from configs.fields import AboveZero, Few, Positive, Section, Text

Values = Annotated[list[Any], Field(min_length=1)]
Grid = Annotated[dict[Text, Values], Field(min_length=1)]
Steps = Annotated[int, Field(ge=0, le=2**53)]


def _as_list(grids: Any) -> Any:
    """One grid is a list of one."""
    return [grids] if isinstance(grids, dict) else grids


class Scale(Section):
    """Keys of a cell: those of the schema, "ranks" (how many), and "peer" (a rival, or null for this engine)."""

    # Each: key -> values; its cells are all combinations.
    grid: Annotated[list[Grid], BeforeValidator(_as_list)] = Field(default=[])
    repeats: Few = 3  # blocks; each has every cell once, in an order of its own
    peer_repeats: Few | None = None  # blocks in which rivals run, the first ones; null: all
    steps: Positive | None = None  # of each cell; null: the config's own steps
    skip_steps: Steps = 10  # first steps of a cell that no figure counts; at most half of them
    cell_seconds: AboveZero = 1800.0  # a cell that takes longer is ended
    cell_gib: AboveZero | None = None  # a cell that takes more memory is ended; null: 80 % of what is free
    turn_seconds: AboveZero | None = None  # cells of a line take turns of this length; null: one after the other
    keep: bool = False  # keep the checkpoints of the cells
    # job peer: what is trained in the place of this engine (engine/scaling/peers)
    peer: Literal["pic_dense", "partial_fc", "embedding_sgd", "embedding_sparse_adam", "fbgemm"] | None = None
