"""What the loop, the step and the checkpoints ask of a method; they know a trunk and a method, and nothing else.

A step, in order; z are the features of the trunk:

    prepare(step)           before the batch is used: slide a window, begin to read
    begin(batch, ...)       once an optimizer step, with every view, before the trunk: keys of a momentum network
    add(micro)              a micro-batch: the loss of this rank's samples and its gradient at z
    apply(lr) | discard()   after the trunk's decision. discard undoes begin and add: a skipped step leaves no trace

State is of two kinds. `shared` is the same on every rank: rank 0 writes it, all load it. `by_lane` is by lane, with blocks on the
disk: each rank writes that of its lanes. A method that has neither leaves the defaults as they are. The number of the step, the
losses and the totals are the run's.

A method is one file here with a function `make(settings, given)`, one settings class in configs/methods.py, and one line of the
registry there. What it says before it exists (which views go through the trunk, which sizes it refuses) its settings say.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch

from datasets.batch import Batch
from engine.disk.body import RowSizes
from engine.disk.restored_rows import Windows
from engine.disk.saved_checkpoint import SavedCheckpoint
from engine.methods.stages import Stages
from engine.ranks.lanes import Lanes
from engine.ranks.ranks import Ranks
from engine.rows.checks import CHECKED
from engine.rows.row_table import RowTable

if TYPE_CHECKING:  # torchvision and deepspeed come with them, and not every run needs those
    from engine.trunk.given import GivenTrunk
    from engine.trunk.network import Network
    from engine.trunk.trunk import Trunk

Components = dict[str, dict[str, torch.Tensor]]  # component -> its tensors by name


@dataclass
class MicroBatch:
    """The samples of one micro-batch, as its rank sees them. B: this rank's places that go through the network.

    z_XD        the features of these places, [V B, D], the trunk's views one after the other, detached
    places_B    int64, which of this rank's places they are
    forward_RP  bool [R, P], of each rank's places in this micro-batch those that go through its network; the same on every rank
    weight_RP   float64 [R, P], what the loss of a view of this place weighs; 0 = empty
    """

    z_XD: torch.Tensor
    places_B: np.ndarray
    forward_RP: np.ndarray
    weight_RP: np.ndarray


class Figure(NamedTuple):
    """A number for metrics.jsonl and summary.json. combine: how those of ranks become one: "sum", "largest" or "same"."""

    value: float
    combine: str = "sum"


@dataclass
class LaneState:
    """What a rank's lanes have at a moment between two steps.

    sizes    of all blocks: what the manifest says of rows
    blocks   (number, rows) of blocks that the disk lacks in this version; taken at once, since a step may change what it gives
    arrays   copies of the rest, for one file of this rank
    """

    sizes: RowSizes
    blocks: Iterable[tuple[int, Any]]
    arrays: dict[str, np.ndarray]


class ActiveVectors(NamedTuple):
    """The vectors that a method compares features with, as far as this rank has them.

    kind          what one is called: "row", "key"
    ids_K         int64, the image that a vector is of; -1: of none, or of one that was never visited
    vectors_KD    of any length, on the device; the method's own, not to be changed
    there_K       bool, on the device, where there is a vector at all; None: everywhere
    """

    kind: str
    ids_K: np.ndarray
    vectors_KD: torch.Tensor
    there_K: torch.Tensor | None


class Schedule(Windows, Protocol):
    """What a method may ask of the order in which images are visited (datasets/schedule.py)."""

    @property
    def size(self) -> int: ...
    @property
    def batch(self) -> int: ...
    def instances(self, positions_B: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class Given:
    """What a run has for its method, whichever that is.

    seed           of the run
    ranks, lanes   the ranks; the lanes of this one
    schedule       which image is visited when
    trunk          the network that is trained
    network        makes that network anew, as it was before any training, on the host
    micro_batches  A
    rows_grad_V    of each of the trunk's views, False: its loss is to send no gradient into rows
    table          makes the row table that the config describes, for methods that have rows, and closes it at the end
    """

    seed: int
    ranks: Ranks
    lanes: Lanes
    schedule: Schedule
    trunk: "Trunk | GivenTrunk"
    network: "Callable[[], Network]"
    micro_batches: int
    rows_grad_V: list[bool]
    table: Callable[[], RowTable]


class Method(ABC):
    """The defaults are those of a method that keeps nothing.

    words      lines for people, at the start
    backends   op -> what runs it, for metrics.jsonl
    about      what else summary.json is to say of the method
    stages     takes the seconds of what is to be told apart; the run's, from its start on
    """

    def __init__(self) -> None:
        self.words: list[str] = []
        self.backends: dict[str, str] = {}
        self.about: dict[str, Any] = {}
        self.stages = Stages()

    @abstractmethod
    def chance_loss(self) -> float:
        """The loss, in nats, of a method that knows nothing. All ranks call it together."""

    def active_now(self) -> int | None:
        """This rank's part of the classes of the last step's softmax, a count. None: their number never changes."""
        return None

    def start(self) -> None:
        """Take the state of step 0; called where no checkpoint is loaded."""

    def prepare(self, step: int) -> None:
        """Before each step, also one of which nothing can be read. The first call after a start may be of any step."""

    def begin(self, batch: Batch, filled_RP: np.ndarray) -> None:
        """Once an optimizer step, before the trunk, which gets micro-batches of it.

        batch        this rank's, whole, every view, on the host; the instance of a micro-batch's sample is batch.ids_G[micro.places_B]
        filled_RP    bool, which places of all ranks have an image
        """

    @abstractmethod
    def add(self, micro: MicroBatch) -> tuple[float, torch.Tensor, bool]:
        """(weighted loss of this rank's samples, d(loss of all ranks)/dz [V B, D], whether all was finite).

        All ranks call it together; they agree on the last before they go on.
        """

    @abstractmethod
    def apply(self, lr: float) -> None:
        """The step is applied to the trunk, at this learning rate: do the method's part of it."""

    @abstractmethod
    def discard(self) -> None:
        """The step is not applied: forget what began and was added. For a step of which nothing could be read, neither was called."""

    def shared(self) -> Components:
        """State that is the same on every rank, on the host, copied. Names of components: a-z, 0-9, _.

        Rank 0 alone calls it, at each checkpoint and at the end, so it may not ask other ranks.
        """
        return {}

    def load_shared(self, components: Components) -> None:
        """Take up what `shared` gave."""

    def by_lane(self) -> LaneState | None:
        """State by lane, with its blocks: that of a row table, whose files have checks of their own. None: there is none."""
        return None

    def load_by_lane(self, checkpoint: SavedCheckpoint, log: dict[str, np.ndarray]) -> None:
        """Take up what a checkpoint has of this rank's lanes. log: what `log` gave for the steps so far, and the loss."""

    def log(self, first: int) -> dict[str, np.ndarray]:
        """What a resume needs of every step since `first`, beside the loss: float64, a number a step. By lane: eta alone."""
        return {}

    def block_checks(self) -> np.ndarray:
        """The checksums of each block of this rank's lanes that was visited, for the digest: CHECKED [n] (engine/rows/checks.py)."""
        return np.empty(0, CHECKED)

    def figures(self, at_end: bool = False) -> dict[str, Figure]:
        """This rank's, for a line of metrics.jsonl, or at_end for summary.json."""
        return {}

    def active_vectors(self) -> ActiveVectors | None:
        """What this rank has, between two steps, of the vectors that an image's feature is to find its own among. None: there are none.

        What is the same on every rank, rank 0 alone gives; the others give none of it.
        """
        return None

    def bytes(self) -> dict[str, int]:
        """What this rank holds beside trunk and row table: "device" (on a CPU; a GPU's allocator knows better) and "host"."""
        return {"device": 0, "host": 0}

    def take_waited_seconds(self) -> float:
        """For how long steps waited for the disk since the last call."""
        return 0.0


def combined(by_rank: list[dict[str, Figure]]) -> dict[str, float]:
    """The figures of all ranks as one number each."""
    result = {}
    for name, (first, combine) in by_rank[0].items():
        values = [figures[name].value for figures in by_rank]
        assert combine in ("sum", "largest", "same"), (name, combine)
        assert combine != "same" or all(value == first or value != value for value in values), (name, values)
        result[name] = sum(values) if combine == "sum" else first if combine == "same" else max(values)
    return result


def forward_places(filled_RP: np.ndarray) -> np.ndarray:
    """The places that go through the trunk: the filled ones, since blank images would bend batch statistics.

    Fewer than two on all ranks cannot be normalised over a batch; then all go, and the empty ones weigh nothing in the loss.
    """
    return filled_RP if filled_RP.sum() >= 2 else np.ones_like(filled_RP)
