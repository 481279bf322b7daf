"""What a manifest may say. Its checksum tells that nobody changed it by accident; a path or a number in it is used only after this.

Whoever can write a manifest can write its checksum too: a checkpoint may come from a mail, a mount, or a script that mended one. So every
path must be one that the engine writes (engine/disk/shapes.py), every number of a size that a run can have, and the parts of the body must
agree with each other: the files are exactly those that the tables speak of. The same for the arrays of a checkpoint's files, whose
numbers become indices. What has passed becomes an object with types (engine/disk/body.py).
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from engine.disk import format_3, shapes
from engine.disk.block_map import MOST_GENERATION
from engine.disk.body import FORMAT, OF_ROWS, Body, Part, RowSizes
from engine.disk.generations import KINDS, MOST_SUFFIX, TYPES, kinds_with_momentum
from engine.rows.damaged import Damaged

_MOST_STEPS = 10**12 - 1
_MOST_POSITIONS = 2**50
_MOST_ROWS = 2**31  # of a block, and numbers of a row
_MOST_BYTES = 2**60
_MOST_RANKS = 10**6
Wanted = dict[str, tuple[np.dtype, tuple[int, ...]]]  # the arrays of a file: name -> (type, shape)

_HASH = re.compile(r"[0-9a-f]{64}")


def check_body(body: Any, number: int) -> None:
    """Raises Damaged unless `body` is one that a checkpoint with this number can have."""
    _object(body, "body")
    _whole(body, "format", format_3.NUMBER, FORMAT)
    if _whole(body, "number", 1, 10**9 - 1) != number:
        raise Damaged(f"its manifest has the number {body['number']} and the name of number {number}")
    step = _whole(body, "step", 0, _MOST_STEPS)
    directory = _text(body, "directory")
    if not shapes.is_step_directory(directory) or directory.split("-")[1] != f"{step:09d}":
        _refuse("directory", directory)
    _whole(body, "next_generation", 1, 10**12 - 1)
    rows = _value(body, "rows")
    if rows is not None:
        _check_rows(_object(rows, "rows"), body["format"])

    parts = _list(_value(body, "parts"), "parts")
    if not 1 <= len(parts) <= _MOST_RANKS:
        _refuse("parts", len(parts))
    named = {f"{directory}/trunk.safetensors", f"{directory}/momentum.safetensors"} | _check_shared(body, directory)
    for rank, part in enumerate(parts):
        _check_rank(_object(part, "part"), rank, len(parts))
        if rows is None:
            _require_no_rows(part)
            continue
        named |= _check_part(part, rank, len(parts), directory)
        if body["format"] == format_3.NUMBER:
            format_3.generations_of(part, rows["dtype"], rows["dim"])
    named |= _check_table(_object(_value(body, "log"), "log"), directory, "log")
    _check_files(body, named)
    _check_state(body)


def check_active(arrays: Mapping[str, np.ndarray], rows: RowSizes, part: Part) -> None:
    """Raises Damaged unless these are active rows of `part`: positions below rows.positions, in blocks that are resident."""
    assert part.active
    where = part.active.rpartition("/")[2]
    slots, found = (arrays[name].size if name in arrays else 0 for name in ("position", "resident"))
    number, whole = np.dtype(rows.dtype), np.dtype(np.int64)
    wanted: Wanted = dict.fromkeys(("w", "u") if rows.momentum else ("w",), (number, (slots, rows.dim)))
    wanted |= {"position": (whole, (slots,)), "stamp": (whole, (slots,)), "counters": (whole, (2,))}
    require_arrays(arrays, wanted | {"resident": (whole, (found,))}, where)
    occupied, resident = arrays["position"][arrays["position"] != -1], arrays["resident"]
    for name, numbers, end in (("position", occupied, rows.positions), ("resident", resident, rows.blocks)):
        if len(numbers) and (numbers.min() < 0 or numbers.max() >= end or len(np.unique(numbers)) < len(numbers)):
            raise Damaged(f"{where} has a {name} that is not below {end:,}, or one twice")
    if not np.isin(occupied // rows.block, resident).all():
        raise Damaged(f"{where} has active rows of blocks that are not resident")
    if (resident % part.ranks != part.rank).any():
        raise Damaged(f"{where} has blocks of another rank")
    if arrays["counters"].min() < 0:
        raise Damaged(f"{where} has a counter below 0")


def check_map(arrays: Mapping[str, np.ndarray], rows: RowSizes, part: Part, path: str, format: int = FORMAT) -> None:
    """Raises Damaged unless this is a block map of `part`: blocks that the run has, each once, and the part's own; and the generations."""
    where, found = path.rpartition("/")[2], arrays.get("block", np.empty(0)).size
    number = np.dtype(np.int64 if format == format_3.NUMBER else np.uint32)
    wanted: Wanted = {
        "block": (np.dtype(np.int64), (found,)),
        "generation": (number, (found,)),
        "checks": (np.dtype(np.uint32), (found, 3)),
    }
    if format != format_3.NUMBER:
        count = (arrays.get("number", np.empty(0)).size,)
        wanted |= {name: (np.dtype(kind), count) for name, kind in TYPES.items()}
    require_arrays(arrays, wanted, where)
    blocks, end = np.sort(arrays["block"], kind="stable"), rows.blocks  # there may be millions, and they are ascending
    if len(blocks) and (blocks[0] < 0 or blocks[-1] >= end or (np.diff(blocks) == 0).any()):
        raise Damaged(f"{where} has a block that is not below {end:,}, or one twice")
    if (blocks % part.ranks != part.rank).any():
        raise Damaged(f"{where} has blocks of another rank")
    generations = arrays["generation"]
    if len(generations) and (generations.min() < 1 or generations.max() > MOST_GENERATION):
        raise Damaged(f"{where} has a generation that is not from 1 to {MOST_GENERATION:,}")
    if format != format_3.NUMBER:
        _check_generations(arrays, rows, where)


def _check_generations(arrays: Mapping[str, np.ndarray], rows: RowSizes, where: str) -> None:
    numbers = arrays["number"]
    if len(numbers) and (numbers.min() < 1 or len(np.unique(numbers)) < len(numbers)):
        raise Damaged(f"{where} has the number 0 for a generation, or one twice")
    if arrays["suffix"].max(initial=0) > MOST_SUFFIX or arrays["kind"].max(initial=0) >= KINDS:
        raise Damaged(f"{where} has a suffix or a kind that no generation has")
    if not rows.momentum and kinds_with_momentum(arrays["kind"]).any():
        raise Damaged(f"{where} has a generation with momentum, and the rows have none")
    if not np.isin(arrays["generation"], numbers).all():
        raise Damaged(f"{where} has blocks of a generation that it says nothing of")


def require_arrays(arrays: Mapping[str, np.ndarray], wanted: Wanted, where: str) -> None:
    """Raises Damaged unless `arrays` has the arrays of `wanted`, and no others."""
    if arrays.keys() != wanted.keys():
        odd = ", ".join(sorted(arrays.keys() ^ wanted.keys()))
        raise Damaged(f"{where} lacks arrays or has others: {shapes.shown(odd)}")
    for name, (dtype, shape) in wanted.items():
        if arrays[name].dtype != dtype or arrays[name].shape != shape:
            raise Damaged(f"{where} has {name} as {arrays[name].dtype} {arrays[name].shape} instead of {dtype} {shape}")


def _check_rows(rows: dict[str, Any], format: int) -> None:
    block = _whole(rows, "block", 1, _MOST_ROWS)
    dim = _whole(rows, "dim", 1, _MOST_ROWS)
    _whole(rows, "positions", 1, _MOST_POSITIONS)
    if _text(rows, "dtype") not in ("float32", "float64"):
        _refuse("dtype", rows["dtype"])
    if block * dim > _MOST_BYTES // 8:
        _refuse("block", block)
    if "momentum" in rows and (rows["momentum"] is not False or format == format_3.NUMBER):
        _refuse("momentum", rows["momentum"])


def _check_shared(body: dict[str, Any], directory: str) -> set[str]:
    """The files of components that are the same on every rank. Where there are none, their key is not there either."""
    if "shared" not in body:
        return set()
    names = _list(body["shared"], "shared")
    for name in names:
        if not isinstance(name, str) or not shapes.is_shared_name(name):
            _refuse("shared", name)
    if not names or len(set(names)) < len(names):
        _refuse("shared", names)
    return {shapes.shared_path(directory, name) for name in names}


def _check_rank(part: dict[str, Any], rank: int, ranks: int) -> None:
    if _whole(part, "rank", 0, _MOST_RANKS) != rank or _whole(part, "ranks", 1, _MOST_RANKS) != ranks:
        _refuse("rank", f"{part['rank']} of {part['ranks']}")


def _require_no_rows(part: dict[str, Any]) -> None:
    for key in OF_ROWS:
        if key in part:
            _refuse(key, part[key])


def _check_part(part: dict[str, Any], rank: int, ranks: int, directory: str) -> set[str]:
    """The files that a part with rows names."""
    number = f"-{rank}" if ranks > 1 else ""
    active = f"{directory}/active{number}.safetensors"
    if _text(part, "active") != active:
        _refuse("active", part["active"])
    _whole(part, "stored_blocks", 0, _MOST_POSITIONS)
    return {active} | _check_table(_object(_value(part, "blocks"), "blocks"), directory, f"blocks{number}")


def _check_table(table: dict[str, Any], directory: str, name: str) -> set[str]:
    """The files of a table that grows: a full copy, perhaps an earlier checkpoint's, and what changed since."""
    full, delta = _text(table, "full"), _value(table, "delta")
    if not shapes.is_step_file(full) or not full.endswith(f"/{name}-full.safetensors"):
        _refuse("full", full)
    if delta is not None and delta != f"{directory}/{name}-delta.safetensors":
        _refuse("delta", delta)
    _whole(table, "rows", 0, _MOST_POSITIONS)
    _whole(table, "since", 0, _MOST_POSITIONS)
    return {full} if delta is None else {full, delta}


def _check_files(body: dict[str, Any], named: set[str]) -> None:
    files, sizes = (_object(_value(body, key), key) for key in ("files", "sizes"))
    for path in sorted(files.keys() | sizes.keys() | named):
        if path not in named:
            _refuse("files", path)
        if path not in files or path not in sizes:
            raise Damaged(f"its manifest says nothing of {shapes.shown(path)}")
        if not _HASH.fullmatch(_text(files, path)):
            _refuse(path, files[path])
        _whole(sizes, path, 0, _MOST_BYTES)


def _check_state(body: dict[str, Any]) -> None:
    """What a run keeps beside the rows, as far as it is there: that it has the types by which it is used."""
    for key in ("config", "kernels", "totals"):
        _object(body.get(key, {}), key)
    for name, value in body.get("totals", {}).items():
        if isinstance(value, int | float) and not abs(value) < 2**62:
            _refuse(f"totals.{name}", value)
    before = 0
    for segment in _list(body.get("segments", []), "segments"):
        if not isinstance(segment, list) or len(segment) != 2 or any(type(n) is not int for n in segment):
            _refuse("segments", segment)
        if not 1 <= segment[0] <= _MOST_POSITIONS or not before <= segment[1] <= 2**60:
            _refuse("segments", segment)
        before = segment[1]
    scale = body.get("loss_scale")
    if scale is None:
        return
    if not isinstance(scale, list) or any(type(n) not in (int, float) for n in scale) or len(scale) not in (0, 2):
        _refuse("loss_scale", scale)


def check_run_state(body: Body) -> None:
    """What a run needs of a checkpoint that it goes on from, beside the rows. Raises Damaged."""
    state = body.state.json()
    for key in ("config", "kernels", "totals"):
        _object(_value(state, key), key)
    _text(state, "source")
    if not _list(_value(state, "segments"), "segments"):
        _refuse("segments", [])
    for name, value in state["totals"].items():
        if type(value) not in (int, float):
            _refuse(f"totals.{name}", value)
    for name, value in state["kernels"].items():
        if not isinstance(value, str):
            _refuse(f"kernels.{name}", value)
    for pair in _list(state.get("unreadable", []), "unreadable"):
        _require_numbers(pair, "unreadable")
    _require_numbers(state.get("window_reads", [0, 0]), "window_reads")


def _require_numbers(pair: Any, what: str) -> None:
    """Two whole numbers; a size may be -1, that of a link to nothing."""
    if not isinstance(pair, list) or len(pair) != 2 or any(type(n) is not int or not -1 <= n < 2**62 for n in pair):
        _refuse(what, pair)


def _value(where: dict[str, Any], key: str) -> Any:
    if key not in where:
        raise Damaged(f"its manifest says nothing of {shapes.shown(key)}")
    return where[key]


def _whole(where: dict[str, Any], key: str, least: int, most: int) -> int:
    value = _value(where, key)
    if type(value) is not int or not least <= value <= most:
        _refuse(key, value)
    return value


def _text(where: dict[str, Any], key: str) -> str:
    value = _value(where, key)
    if not isinstance(value, str):
        _refuse(key, value)
    return value


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        _refuse(what, value)
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        _refuse(what, value)
    return value


def _refuse(what: str, value: Any) -> None:
    value_text = f"{value.bit_length()} bits" if type(value) is int and abs(value) > 2**64 else repr(value)
    raise Damaged(f"its manifest has {shapes.shown(value_text, 60)} for {shapes.shown(what)}")
