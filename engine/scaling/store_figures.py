"""What the store took in a cell, for each row that it read and wrote: seconds of a row, and bytes a second.

    rows read or written      blocks x C
    microseconds a row        seconds inside of the reading or writing calls / rows
    GiB a second              rows x (8D + 8) bytes, or (4D + 8) for a bank of vectors / the same seconds
    rows on the disk (E)      blocks x C, each block once, whichever versions of it checkpoints keep

Seconds are added up over threads and ranks. So these are the figures of one thread, and two that read at once move twice the bytes.
A block that still waits to be written is read from memory, and counts as read. Bytes of a row are known where all rows are
float32 and whole: where they are rounded (`store.dtype`) or folded (`store.fold`), GiB a second is left out.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.planning.rows import row_bytes


def config_of(directory: Path) -> dict[str, Any]:
    """The config that a cell wrote, with a number for each size that was chosen; empty where it wrote none."""
    try:
        content = json.loads((directory / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def store_figures(line: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, float]:
    """Of the last line of metrics.jsonl; what is not known is left out, and all of it for rows in memory or no rows."""
    if "block_read_seconds" not in line or config.get("store", {}).get("kind") != "zarr":
        return {}
    block, dim = config["schedule"]["block"], config["method"]["dim"]
    found: dict[str, float] = {"dim": dim, "rows_on_disk": line["blocks_stored"] * block}
    are_whole = config["store"]["dtype"] == "float32" and not config["store"]["fold"]
    # Only a bank has this key, and a bank keeps no momentum (configs/methods.py).
    row = row_bytes(dim, has_momentum="bank_momentum" not in config["method"])
    for word, blocks, seconds in (
        ("read", line["blocks_read"], line["block_read_seconds"]),
        ("write", line["blocks_written"], line["block_write_seconds"]),
    ):
        if blocks and seconds:
            found[f"{word}_row_microseconds"] = 1e6 * seconds / (blocks * block)
            if are_whole:
                found[f"{word}_gib_per_second"] = blocks * block * row / seconds / 2**30
    return found
