"""The body of a manifest as Python has it: every word that is in its JSON has a field with a type.

    json = {"format": 4, "number": 12, ..., "parts": [...], "config": ..., "totals": ...}      flat, as it lies on the disk
    Body.of(json).json() == json                                                            whatever check_body accepts

`Body.of` takes what engine/disk/manifest_body.py has checked, and checks nothing itself. Keys that nobody here knows are kept in `extra`,
of the object that had them, so that a body has the same checksum after a round trip. Two things that the JSON has flat are grouped:
what a run keeps beside its rows is the `state`, and a part without rows has no field of rows filled.

Left out: nothing in a body is copied deeply. Whoever has one reads it and changes nothing in it.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

FORMAT = 4

Json = dict[str, Any]
# What the JSON of a part has where the run has rows, and lacks where it has none.
OF_ROWS = ("active", "blocks", "stored_blocks")


@dataclass(frozen=True)
class Table:
    """A table that grows: the file with its last full copy, perhaps an earlier checkpoint's, and the one with what changed since.

    delta        None: nothing changed, or the full copy is this checkpoint's
    rows, since  how many rows the full copy has, and how many the deltas had together since
    """

    full: str
    delta: str | None
    rows: int
    since: int
    extra: Json = field(default_factory=dict)

    @classmethod
    def of(cls, content: Json) -> "Table":
        return cls(**_known(cls, content), extra=_others(cls, content))

    def json(self) -> Json:
        return _fields_of(self) | self.extra

    @property
    def paths(self) -> list[str]:
        return [path for path in (self.full, self.delta) if path]


@dataclass(frozen=True)
class RowSizes:
    """Of the rows on the disk: `positions` rows of `dim` numbers of `dtype` (float32 or float64), in blocks of `block` rows.

    momentum   whether a row has one beside its weight; the JSON says so where it has none
    """

    block: int
    dim: int
    positions: int
    dtype: str
    momentum: bool = True
    extra: Json = field(default_factory=dict)

    @classmethod
    def of(cls, content: Json) -> "RowSizes":
        return cls(**_known(cls, content), extra=_others(cls, content))

    def json(self) -> Json:
        said = _fields_of(self)
        return (_without(said, ["momentum"]) if self.momentum else said) | self.extra

    @property
    def blocks(self) -> int:
        return -(-self.positions // self.block)


@dataclass(frozen=True)
class Part:
    """What one rank wrote of its lanes. In a run without rows these are `rank` and `ranks` alone, and `active` and `blocks` are None.

    active    the path of its active rows
    blocks    its block map with the generations that it speaks of; stored_blocks: how many blocks it has
    """

    rank: int
    ranks: int
    active: str | None = None
    blocks: Table | None = None
    stored_blocks: int = 0
    extra: Json = field(default_factory=dict)

    @classmethod
    def of(cls, content: Json) -> "Part":
        rest = _others(cls, content)
        if "active" not in content:
            return cls(content["rank"], content["ranks"], extra=rest)
        blocks = Table.of(content["blocks"])
        return cls(content["rank"], content["ranks"], content["active"], blocks, content["stored_blocks"], rest)

    def json(self) -> Json:
        content: Json = {"rank": self.rank, "ranks": self.ranks}
        if self.blocks:
            content |= {"active": self.active, "blocks": self.blocks.json(), "stored_blocks": self.stored_blocks}
        return content | self.extra

    @property
    def paths(self) -> list[str]:
        """The files that it names."""
        return ([self.active] if self.active else []) + (self.blocks.paths if self.blocks else [])


@dataclass(frozen=True)
class RunState:
    """What a run keeps beside its rows, as JSON has it; None: the manifest does not say. The types are those that check_run_state asks for.

    config        of the run, as configs/schema.py dumps it
    source        the images' fingerprint
    segments      [images, place in the order] of each lot that was added
    kernels       op -> the implementation that ran
    totals        counts of the run so far, by name
    loss_scale    [scale, steps since it last changed], of float16
    unreadable    [instance, size of its file] of each image that could not be read
    window_reads  images of this window that were visited, and those of them that could not be read
    extra         all other keys, and those above that are null
    """

    config: Json | None = None
    source: str | None = None
    segments: list[list[int]] | None = None
    kernels: dict[str, str] | None = None
    totals: dict[str, float] | None = None
    loss_scale: Sequence[Any] | None = None
    unreadable: list[tuple[int, int]] | None = None  # pairs: lists, where they come from JSON
    window_reads: Sequence[int] | None = None
    extra: Json = field(default_factory=dict)

    @classmethod
    def of(cls, content: Json) -> "RunState":
        known = {name: value for name, value in _known(cls, content).items() if value is not None}
        return cls(**known, extra=_without(content, known))

    def json(self) -> Json:
        content = {name: value for name, value in _fields_of(self).items() if value is not None} | self.extra
        return _known(type(self), content) | content  # in the order of the fields, null or not


@dataclass(frozen=True)
class Written:
    """What a rank says of a checkpoint once all that it wrote is durable; files and sizes are by path."""

    part: Part
    files: dict[str, str]
    sizes: dict[str, int]
    next_generation: int


@dataclass(frozen=True)
class Body:
    """All that a manifest says.

    directory        that of the checkpoint's own files
    rows             None: a run without rows
    parts            one of each rank, in their order
    next_generation  a number that no generation has
    log              what is known of every step
    files, sizes     path -> sha256, and bytes: of every file that belongs to the checkpoint, blocks left out
    state            what the run keeps beside the rows, and the keys that nobody knows
    shared           the names of components that are the same on every rank; engine/disk/shapes.py has their files
    """

    number: int
    step: int
    directory: str
    rows: RowSizes | None
    parts: tuple[Part, ...]
    next_generation: int
    log: Table
    files: dict[str, str]
    sizes: dict[str, int]
    state: RunState = field(default_factory=RunState)
    shared: tuple[str, ...] = ()
    format: int = FORMAT

    @classmethod
    def of(cls, content: Json) -> "Body":
        """From JSON that check_body has accepted."""
        own = _known(cls, content)
        own["rows"] = None if own["rows"] is None else RowSizes.of(own["rows"])
        own["parts"] = tuple(Part.of(part) for part in own["parts"])
        own["log"] = Table.of(own["log"])
        own["shared"] = tuple(own.get("shared", ()))
        own.pop("state", None)  # a key of this name is one that nobody knows
        return cls(**own, state=RunState.of(_without(content, own)))

    @classmethod
    def of_ranks(
        cls,
        written: Sequence[Written],
        number: int,
        step: int,
        directory: str,
        rows: RowSizes | None,
        log: Table,
        state: RunState,
        shared: tuple[str, ...] = (),
    ) -> "Body":
        """What all ranks wrote together, `written` in the order of ranks."""
        together: Json = {
            "parts": tuple(word.part for word in written),
            "next_generation": max(word.next_generation for word in written),
            "files": {path: digest for word in written for path, digest in word.files.items()},
            "sizes": {path: size for word in written for path, size in word.sizes.items()},
        }
        return cls(
            number=number, step=step, directory=directory, rows=rows, log=log, state=state, shared=shared, **together
        )

    def json(self) -> Json:
        """Flat, as it lies on the disk, always in the same order."""
        content = {
            "format": self.format,
            "number": self.number,
            "step": self.step,
            "directory": self.directory,
            "rows": self.rows.json() if self.rows else None,
            "parts": [part.json() for part in self.parts],
            "next_generation": self.next_generation,
            "log": self.log.json(),
            "files": self.files,
            "sizes": self.sizes,
        }
        return content | ({"shared": list(self.shared)} if self.shared else {}) | self.state.json()


def _names(kind: Any) -> list[str]:
    return [one.name for one in fields(kind) if one.name != "extra"]


def _known(kind: Any, content: Json) -> Json:
    """What a class has a field for, in the order of its fields."""
    return {name: content[name] for name in _names(kind) if name in content}


def _others(kind: Any, content: Json) -> Json:
    return _without(content, _names(kind))


def _without(content: Json, names: Collection[str]) -> Json:
    return {name: value for name, value in content.items() if name not in names}


def _fields_of(one: Any) -> Json:
    return {name: getattr(one, name) for name in _names(type(one))}
