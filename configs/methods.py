"""What a method of training may be told: a class of settings for each kind, and the registry that finds it.

`method.kind` of a config names an entry of REGISTRY; the rest of the section is checked by the class that stands there. A class also
says what the other sections must be for it: which sizes it refuses, which views it sends through the trunk, what it holds in memory.
What makes the method of it is in the engine, in the module that the registry names beside the class; nothing here imports that.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel

from configs.fields import AboveZero, NonNegative, Positive, Section, Width
from datasets.shown import cut_text

if TYPE_CHECKING:
    from configs.schema import Config

# Keys of other sections that are about rows alone.
_OF_ROWS = {
    "optimizer": ("rows_lr_scale", "rows_weight_decay", "rows_clip"),
    "store": ("kind", "dtype", "fold", "read_ahead", "write_behind"),
}


class MethodSettings(Section):
    """Settings of any method. What is here fits one that keeps no rows."""

    has_rows: ClassVar[bool] = False
    may_differ: ClassVar[tuple[str, ...]] = ()  # keys of the section that may differ when a run is continued

    kind: str
    dim: Width = 128  # D

    def trunk_views(self, sides: Sequence[int]) -> tuple[int, ...]:
        """Which of the V views of an image go through the trunk, by their numbers, ascending. sides: of the views, in pixels."""
        return tuple(range(len(sides)))

    def check(self, config: "Config") -> None:
        """ValueError for what the method cannot take of the other sections: here every key about rows that is not at its default.

        The sides of the views are config.data.sides; what depends on the number of images is not known yet.
        """
        for section, settings in (("optimizer", config.optimizer), ("store", config.store)):
            for name in _OF_ROWS[section]:
                value = getattr(settings, name)
                if value != type(settings).model_fields[name].default:
                    raise ValueError(
                        f"{section}.{name} is {json.dumps(value)}, but method {self.kind} has no rows; "
                        f"leave {section}.{name} out"
                    )

    def planned_bytes(self, batch: int, places: int, trunk_weights: int) -> dict[str, dict[str, int]]:
        """Bytes by tier and item, beyond those of trunk, loader and row table: "device" and "host" of one rank, "disk" of all together.

        batch             G, instances of a step over all ranks         places     of a batch on one rank, G/R
        trunk_weights     numbers in the network, backbone and head
        """
        return {}


class RowsSettings(MethodSettings):
    """Settings of a method that keeps a row for each image: those of the row table."""

    has_rows: ClassVar[bool] = True
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
        if self.init == "feature" and config.schedule.micro_batches > 1:
            raise ValueError(
                "method.init feature needs the features of the whole batch at once; set schedule.micro_batches to 1"
            )


class Pic(RowsSettings):
    """Parametric instance classification: a cosine softmax over the active rows."""

    kind: Literal["pic"] = "pic"
    temperature: AboveZero = 0.2


# kind -> its settings, and the module of the engine whose function `make` makes it. A new method is one line here.
REGISTRY: dict[str, tuple[type[MethodSettings], str]] = {"pic": (Pic, "engine.methods.pic")}
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
