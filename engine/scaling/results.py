"""What a sweep leaves for people and programs: scale.json has everything, scale.csv a row for each cell and block.

scale.json:  hardware, versions, limits, config, cells (each with its runs), growth (engine/scaling/growth.py), bars

Where a cell's rows lie on the disk, its figures have what a row took there (engine/scaling/store_figures.py).

The bars are what the engine claims of N, for each line of its own cells along data.limit:

    bytes of device and host, and of the whole process at its peak    within 1 % of those at the smallest N
    step                        the 95 % interval of the ratio to the smallest N contains 1, and reaches at most 5 % to either side
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from engine.results.output import Output
from engine.scaling.cells import PEER, Cell
from engine.scaling.growth import Estimate, Growth, growth
from engine.scaling.records import Record

AXIS_OF_BARS = "data.limit"
BYTES_BAR, STEP_BAR = 0.01, 0.05
_BYTES = ("device_bytes", "host_bytes", "process_peak_bytes")
# Figures whose growth is worked out.
GROWING = (
    "step_seconds", "first_step_seconds", "images_per_second", "device_bytes", "host_bytes", "process_peak_bytes",
    "tree_peak_bytes", "pss_bytes", "disk_bytes", "sent_bytes", "waits",
)  # fmt: skip


@dataclass(frozen=True)
class Bar:
    """claim, of which cells, the number, what it has to keep, and whether it does."""

    claim: str
    cells: dict[str, Any]
    cell: int
    value: Estimate
    bar: float
    holds: bool


def results(
    cells: Sequence[Cell], records: Sequence[Record], about: dict[str, Any]
) -> tuple[dict[str, Any], list[Growth], list[Bar]]:
    """(what scale.json holds, growth, bars). about: hardware, versions, limits, config."""
    grown = growth(cells, records, GROWING)
    kept = bars(grown)
    whole = {
        **about,
        "cells": [
            {
                "number": cell.number,
                "name": cell.name,
                "values": dict(cell.values),
                "runs": [_run(record) for record in records if record.cell == cell.number],
            }
            for cell in cells
        ],
        "growth": [asdict(one) for one in grown],
        "bars": [asdict(one) for one in kept],
    }
    return whole, grown, kept


def bars(grown: Sequence[Growth]) -> list[Bar]:
    found = []
    for one in grown:
        if one.axis != AXIS_OF_BARS or one.others.get(PEER):
            continue
        for number, value in one.ratios.items():
            if one.figure in _BYTES:
                holds = abs(value.middle - 1) <= BYTES_BAR
                found.append(Bar(f"{one.figure} flat", one.others, number, value, BYTES_BAR, holds))
            elif one.figure == "step_seconds":
                found.append(Bar("step_seconds flat", one.others, number, value, STEP_BAR, _is_flat(value)))
    return found


def csv_text(cells: Sequence[Cell], records: Sequence[Record]) -> str:
    """A row for each cell and block that has ended: its values, how it ended, its figures; empty where there is none."""
    keys = list(dict.fromkeys(key for cell in cells for key in cell.values))
    names = list(dict.fromkeys(name for record in records for name in record.figures))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["cell", *keys, "block", "place", "status", "why", *names])
    for record in records:
        values = [record.values.get(key, "") for key in keys]
        figures = [record.figures.get(name, "") for name in names]
        writer.writerow([record.cell, *values, record.repeat, record.place, record.status, record.why, *figures])
    return text.getvalue()


def write(output: Output, whole: dict[str, Any], table: str, page_html: str) -> None:
    """scale.json, scale.csv, scale.html: each whole or as it was."""
    output.write_json("scale.json", whole)
    output.write_text("scale.csv", table)
    output.write_text("scale.html", page_html)


def _run(record: Record) -> dict[str, Any]:
    return {name: value for name, value in asdict(record).items() if name not in ("cell", "values")}


def _is_flat(value: Estimate) -> bool:
    if value.low is None or value.high is None:
        return False
    reach = max(value.middle - value.low, value.high - value.middle)
    return value.low <= 1 <= value.high and reach <= STEP_BAR
