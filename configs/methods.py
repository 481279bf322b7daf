"""What a method of training may be told: a class of settings for each kind, and the registry that finds it.

`method.kind` of a config names an entry of REGISTRY; the rest of the section is checked by the class that stands there. A class also
says what the other sections must be for it: which sizes it refuses, which views it sends through the trunk, what it holds in memory.
What makes the method of it is in the engine, in the module that the registry names beside the class; nothing here imports that.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from pydantic import BaseModel

from configs.fields import AboveZero, Fraction, NonNegative, Positive, Section, Width
from datasets.shown import cut_text

if TYPE_CHECKING:
    from configs.schema import Config

# Keys of other sections that are about rows alone.
_OF_ROWS = {
    "optimizer": ("rows_lr_scale", "rows_weight_decay", "rows_clip"),
    "store": ("kind", "dtype", "fold", "read_ahead", "write_behind"),
}


class MethodSettings(Section):
    """Settings of any method. What is here fits one that keeps no rows; `refused` and `why_refused` are for one that keeps other rows."""

    has_rows: ClassVar[bool] = False
    may_differ: ClassVar[tuple[str, ...]] = ()  # keys of the section that may differ when a run is continued
    # Keys of other sections that have to be at their defaults, and why, after "but method <kind>".
    refused: ClassVar[dict[str, tuple[str, ...]]] = _OF_ROWS
    why_refused: ClassVar[str] = "has no rows"

    kind: str
    dim: Width = 128  # D

    def trunk_views(self, sides: Sequence[int]) -> tuple[int, ...]:
        """Which of the V views of an image go through the trunk, by their numbers, ascending. sides: of the views, in pixels."""
        return tuple(range(len(sides)))

    def check(self, config: "Config") -> None:
        """ValueError for what the method cannot take of the other sections: here every key of `refused` that is not at its default.

        The sides of the views are config.data.sides; what depends on the number of images is not known yet.
        """
        for section, settings in (("optimizer", config.optimizer), ("store", config.store)):
            for name in self.refused[section]:
                value = getattr(settings, name)
                if value != type(settings).model_fields[name].default:
                    raise ValueError(
                        f"{section}.{name} is {json.dumps(value)}, but method {self.kind} {self.why_refused}; "
                        f"leave {section}.{name} out"
                    )

    def planned_bytes(self, batch: int, places: int, trunk_weights: int) -> dict[str, dict[str, int]]:
        """Bytes by tier and item, beyond those of trunk, loader and row table: "device" and "host" of one rank, "disk" of all together.

        batch             G, instances of a step over all ranks         places     of a batch on one rank, G/R
        trunk_weights     numbers in the network, backbone and head
        """
        return {}

    def shared_bytes(self, trunk_weights: int) -> int:
        """Bytes that every checkpoint has beyond trunk and row table. trunk_weights: as for `planned_bytes`."""
        return 0


class RowTableSettings(Protocol):
    """What a row table is told, whichever of it a method leaves to its user; see RowsSettings for what the names mean.

    rows_have_momentum   SGD trains the rows; False: the method itself sets them, and nothing else moves them
    """

    @property
    def rows_have_momentum(self) -> bool: ...
    @property
    def active(self) -> int | None: ...
    @property
    def dim(self) -> int: ...
    @property
    def init(self) -> str: ...
    @property
    def init_norm(self) -> float: ...
    @property
    def norm_floor(self) -> float: ...
    @property
    def sharding(self) -> str: ...
    @property
    def kernels(self) -> str: ...


class RowsSettings(MethodSettings):
    """Settings of a method that keeps a row for each image, trained by SGD: those of the row table."""

    has_rows: ClassVar[bool] = True
    rows_have_momentum: ClassVar[bool] = True
    may_differ: ClassVar[tuple[str, ...]] = ("kernels", "sharding")

    active: Positive | None = None  # K; more than N: all N rows; null: all of up to 131,072, half a window of more
    init: Literal["random", "feature"] = "random"  # a row starts at random, or at the feature of its first view
    init_norm: AboveZero = 0.11  # length of a row when it starts
    norm_floor: NonNegative = 0.0  # (w, u) is rescaled to this length when an admitted row is shorter; 0: never
    # rows stay with the ranks of their lanes, or are a parameter that DeepSpeed's ZeRO-3 partitions and gathers
    sharding: Literal["lanes", "zero3"] = "lanes"
    # what computes the softmax, the step of rows and their catch-up; auto: compiled for this machine, or ATen where that cannot be
    kernels: Literal["auto", "compiled", "aten"] = "auto"

    def check(self, config: "Config") -> None:
        """ValueError for rows that start at features where the batch is split."""
        _whole_batch_for_features(self.init, config)


class Pic(RowsSettings):
    """Parametric instance classification: a cosine softmax over the active rows."""

    kind: Literal["pic"] = "pic"
    temperature: AboveZero = 0.2
    loss: Literal["cross_entropy", "dcl"] = "cross_entropy"  # "dcl": an image's own row is left out of the sum


class InstDisc(MethodSettings):
    """Instance discrimination: a bank with a vector for each image, which follows the image's feature."""

    has_rows: ClassVar[bool] = True
    may_differ: ClassVar[tuple[str, ...]] = ("kernels",)
    refused: ClassVar[dict[str, tuple[str, ...]]] = {"optimizer": _OF_ROWS["optimizer"], "store": ("fold",)}
    why_refused: ClassVar[str] = "has rows that no optimizer moves"
    # Of the row table: what follows from the method.
    rows_have_momentum: ClassVar[bool] = False
    init_norm: ClassVar[float] = 1.0
    norm_floor: ClassVar[float] = 0.0
    sharding: ClassVar[str] = "lanes"

    kind: Literal["instdisc"] = "instdisc"
    active: Positive | None = None  # K, as of "pic"
    init: Literal["random", "feature"] = "random"  # a vector starts at random, or at the feature of its first visit
    temperature: AboveZero = 0.07
    bank_momentum: Fraction = 0.5  # share of a vector that stays at a visit; the rest is the feature's
    kernels: Literal["auto", "compiled", "aten"] = "auto"  # what computes the softmax, as of "pic"

    def check(self, config: "Config") -> None:
        """ValueError for keys about rows that SGD trains, for more than one view, and for a start at features where the batch is split."""
        super().check(config)
        _whole_batch_for_features(self.init, config)
        views = len(config.data.sides)
        if views != 1:
            key = "views" if config.data.augment.kind == "grey" else "crops"
            raise ValueError(
                f"method instdisc takes one view of each image, and data.augment makes {views}; set data.augment.{key} to one"
            )


class MoCo(MethodSettings):
    """Momentum contrast: two views, the second through a momentum network, and a queue of its keys. v1 and v2 by values."""

    may_differ: ClassVar[tuple[str, ...]] = ("kernels",)

    kind: Literal["moco"] = "moco"
    temperature: AboveZero = 0.2
    queue: Positive = 65536  # K, keys of the queue; a multiple of the batch, and not more than the window
    key_momentum: Fraction = 0.999  # m, by which the momentum network follows the trunk
    # what computes the softmax over the queue; auto: compiled for this machine, or ATen where that cannot be
    kernels: Literal["auto", "compiled", "aten"] = "auto"

    def trunk_views(self, sides: Sequence[int]) -> tuple[int, ...]:
        """The first: the second is for the momentum network."""
        return (0,)

    def check(self, config: "Config") -> None:
        """ValueError for other than two views, a queue that does not fit the order of visits, and weights that are shared out."""
        super().check(config)
        _two_views(self.kind, config)
        batch, window = config.schedule.batch, config.schedule.window
        if self.queue % batch:
            near = " or ".join(str(parts * batch) for parts in (self.queue // batch, self.queue // batch + 1) if parts)
            raise ValueError(
                f"method.queue is {self.queue}, which schedule.batch {batch} does not divide; a step's keys would not lie together. "
                f"Set method.queue to {near}"
            )
        if window and self.queue > window:
            raise ValueError(
                f"method.queue is {self.queue}, more than schedule.window {window}: an image would have several older keys of its own "
                f"among its negatives; set method.queue to at most {window // batch * batch}"
            )
        zero = config.deepspeed.get("zero_optimization")
        if isinstance(zero, dict) and zero.get("stage") == 3:
            raise ValueError(
                f"method {self.kind} follows the whole network on every rank, which stage 3 of deepspeed.zero_optimization shares out; "
                "set the stage to 0, 1 or 2"
            )
        if config.backbone.is_given:
            raise ValueError(
                f'method {self.kind} has a copy of the network, and backbone.name "given" has none; set backbone.name to a network'
            )

    def planned_bytes(self, batch: int, places: int, trunk_weights: int) -> dict[str, dict[str, int]]:
        device = 4 * (trunk_weights + self.queue * self.dim + places * self.dim)
        # The numbers of the keys, and where the keys of each number are.
        return {"device": {f"method {self.kind}": device}, "host": {f"method {self.kind}": 200 * self.queue}}

    def shared_bytes(self, trunk_weights: int) -> int:
        return 4 * (trunk_weights + self.queue * self.dim) + 8 * self.queue


class SimClr(MethodSettings):
    """SimCLR: two views, and each is told from all other views of the batch."""

    kind: Literal["simclr"] = "simclr"
    temperature: AboveZero = 0.1
    # "dcl": the other view of the image is left out of the sum that it is told from
    loss: Literal["cross_entropy", "dcl"] = "cross_entropy"

    def check(self, config: "Config") -> None:
        """ValueError for other than two views, and for a batch that is split, which has other negatives."""
        super().check(config)
        _two_views(self.kind, config)
        if config.schedule.micro_batches > 1:
            raise ValueError(
                f"method {self.kind} takes its negatives from the whole batch, and schedule.micro_batches is "
                f"{config.schedule.micro_batches}; set it to 1"
            )

    def planned_bytes(self, batch: int, places: int, trunk_weights: int) -> dict[str, dict[str, int]]:
        logits = 8 * 2 * places * 2 * batch
        # The logits, their shares and one temporary; the features of all ranks, and what becomes of them.
        return {"device": {f"method {self.kind}": 3 * logits + 3 * 4 * 2 * batch * self.dim}}


def _whole_batch_for_features(init: str, config: "Config") -> None:
    if init == "feature" and config.schedule.micro_batches > 1:
        raise ValueError(
            "method.init feature needs the features of the whole batch at once; set schedule.micro_batches to 1"
        )


def _two_views(kind: str, config: "Config") -> None:
    count = len(config.data.sides)
    if count != 2:
        where = "views" if config.data.augment.kind == "grey" else "crops"
        raise ValueError(
            f"method {kind} wants two views of each image, and there are {count}; set data.augment.{where} for two"
        )


# kind -> its settings, and the module of the engine whose function `make` makes it. A new method is one line here.
REGISTRY: dict[str, tuple[type[MethodSettings], str]] = {
    "pic": (Pic, "engine.methods.pic"),
    "instdisc": (InstDisc, "engine.methods.instdisc"),
    "moco": (MoCo, "engine.methods.moco"),
    "simclr": (SimClr, "engine.methods.simclr"),
}
DEFAULT_KIND = "pic"  # of a section that names none


def validated(section: Any) -> Any:
    """The settings that a section `method` of JSON values describes, by the class of its kind.

    Raises pydantic's ValidationError, with places below the section, or ValueError where no class is found. An object passes as it is.
    """
    if isinstance(section, BaseModel):
        return section
    kinds = ", ".join(map(json.dumps, REGISTRY))
    if not isinstance(section, dict):
        raise ValueError(f"method is {_shown(section)}, and must be a section; method.kind may be {kinds}")
    kind = section.get("kind", DEFAULT_KIND)
    if not isinstance(kind, str) or kind not in REGISTRY:
        raise ValueError(f"method.kind is {_shown(kind)}, which is no known method; set it to one of {kinds}")
    # As JSON, in which a list may be a tuple: the values come from there, and the types are strict.
    return REGISTRY[kind][0].model_validate_json(json.dumps(section))


def _shown(value: Any) -> str:
    return cut_text(json.dumps(value, ensure_ascii=False, default=str))
