"""scale.html: what the cells of a sweep cost, along every axis, on one page that opens anywhere.

A point is the median over the blocks in which the cell ended by itself; for times of steps the marks around it are the quartiles of the
steps (medians over blocks), for all other figures those of the blocks. A cell that died is on the page with why, and never a zero in a
chart.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from engine.results.charts import Group, Line, Unit, bars, curves, value_text
from engine.results.page import details, figure, header, json_details, page, panels, paragraph, section, table, tiles
from engine.scaling.cells import Cell, word
from engine.scaling.figures import STAGE
from engine.scaling.growth import Estimate, Growth, lines_of_cells
from engine.scaling.records import Record
from engine.scaling.results import Bar

# figure -> (title, unit, whether its axis is logarithmic).
_CHARTS: dict[str, tuple[str, Unit, bool]] = {
    "step_seconds": ("Time of a step, median", "seconds", True),
    "images_per_second": ("Images per second", "", True),
    "device_bytes": ("Device, peak", "bytes", True),
    "host_bytes": ("Host tiers, peak", "bytes", True),
    "process_peak_bytes": ("Largest process of the cell, peak", "bytes", True),
    "pss_bytes": ("All processes, proportional set size, peak", "bytes", True),
    "disk_bytes": ("Disk, at the end", "bytes", True),
    "sent_bytes": ("Sent by a rank in a step", "bytes", False),
    "waits": ("Share of steps that waited for the disk", "share", False),
    "first_step_seconds": ("From the start to the first step", "seconds", False),
}
# Stages in the order of a step; others come behind them.
_STAGES = ("data", "trunk_forward", "admit", "softmax", "trunk_backward", "update", "rows", "slide")
_UNEVEN = "rounded or folded rows have not all the same bytes"
_QUARTILES_OF_STEPS = {"step_seconds": ("step_seconds_q1", "step_seconds_q3")}


def scale_page(
    whole: Mapping[str, Any],
    cells: Sequence[Cell],
    records: Sequence[Record],
    grown: Sequence[Growth],
    kept: Sequence[Bar],
) -> str:
    """The whole document. whole: what scale.json holds (engine/scaling/results.py)."""
    dead = [record for record in records if record.status != "ended"]
    name = str(whole["config"]["output"]).rstrip("/").rpartition("/")[2]
    held = sum(bar.holds for bar in kept)
    status = f"{held} of {len(kept)} bars hold" if kept else ""
    hardware = whole["hardware"]
    about = f"{hardware['processor']}, {hardware['cores']} cores, {value_text(hardware['memory_bytes'], 'bytes')}"
    blocks = len({record.repeat for record in records})
    headline = [
        ("cells", f"{len(cells)}", f"{blocks} blocks"),
        ("runs that ended by themselves", f"{len(records) - len(dead)}", f"of {len(records)}"),
        ("died", f"{len(dead)}", "see below" if dead else ""),
    ]
    return page(
        f"{name}: scale",
        [
            header(name, f"scale · {about}", status, is_good=held == len(kept)),
            tiles(headline),
            *([section("Bars", _bars(kept, cells))] if kept else []),
            *(section(f"Along {axis}", _along(axis, cells, records)) for axis in _axes(cells)),
            section("Where the time of a step goes", _parts(cells, records)),
            *([section("What the store took", took)] if (took := _store(cells, records)) else []),
            *([section("Growth", _growth(grown, cells))] if grown else []),
            section("Cells that died", _dead(dead)),
            section("All cells", [_all(cells, records)]),
            section("Hardware, versions, config", _about(whole)),
        ],
    )


def _axes(cells: Sequence[Cell]) -> list[str]:
    return [*dict.fromkeys(axis for axis, _, _ in lines_of_cells(cells))]


def _along(axis: str, cells: Sequence[Cell], records: Sequence[Record]) -> list[Markup]:
    """A chart for each figure that some cell has; a line for each set of other values."""
    small = []
    for name, (title, unit, is_log) in _CHARTS.items():
        lines = []
        for key, others, line in lines_of_cells(cells):
            points = [(cell.values[axis], *_spread(records, cell, name)) for cell in line] if key == axis else []
            known = [point for point in points if point[2] is not None]
            if known:
                x, low, middle, high = zip(*known, strict=True)
                lines.append(Line(_words(others), x, middle, low, high))
        is_seen = any(value for line in lines for value in line.y)
        if is_seen:
            drawn = curves(
                lines, name=f"{title} along {axis}", x_title=axis, is_log_x=True, is_log_y=is_log, unit=unit, height=300
            )
            small.append((title, figure(drawn)))
    caption = "Points: medians over the blocks. Marks: quartiles of the steps for their time, else of the blocks."
    return [panels(small), paragraph(caption, is_muted=True)] if small else [paragraph("No cell of it has a figure.")]


def _spread(records: Sequence[Record], cell: Cell, name: str) -> tuple[float | None, float | None, float | None]:
    """(lower quartile, median, upper quartile) of a figure of a cell; None where it has none."""
    low_name, high_name = _QUARTILES_OF_STEPS.get(name, (name, name))
    middle = _values(records, cell, name)
    if not middle:
        return None, None, None
    if low_name != name:
        low, high = (statistics.median(_values(records, cell, one)) for one in (low_name, high_name))
        return low, statistics.median(middle), high
    if len(middle) < 2:
        return middle[0], middle[0], middle[0]
    low, _, high = statistics.quantiles(middle, n=4, method="inclusive")
    return low, statistics.median(middle), high


def _values(records: Sequence[Record], cell: Cell, name: str) -> list[float]:
    ended = [record for record in records if record.cell == cell.number and record.status == "ended"]
    return [record.figures[name] for record in ended if name in record.figures]


def _parts(cells: Sequence[Cell], records: Sequence[Record]) -> list[Markup]:
    """Mean seconds of a step by stage, a bar a cell."""
    timed = [cell for cell in cells if _values(records, cell, "step_seconds_mean")]
    if not timed:
        return [paragraph("No cell made enough steps.")]
    there = [*dict.fromkeys(name for one in records for name in one.figures if name.startswith(STAGE))]
    first = [STAGE + stage for stage in _STAGES if STAGE + stage in there]
    stages = first + [name for name in there if name not in first]
    seconds = {name: [statistics.median(_values(records, cell, name) or [0.0]) for cell in timed] for name in stages}
    whole = [statistics.median(_values(records, cell, "step_seconds_mean")) for cell in timed]
    rest = [max(0.0, total - sum(seconds[name][place] for name in stages)) for place, total in enumerate(whole)]
    groups = [Group(name.removeprefix(STAGE), seconds[name]) for name in stages] + [Group("everything else", rest)]
    names = [cell.name for cell in timed]
    chart = bars(names, groups, name="Time of a step by stage, a bar a cell", unit="seconds", is_stacked=True)
    return [figure(chart, "Means over the steps that count, and medians of these over the blocks.")]


def _store(cells: Sequence[Cell], records: Sequence[Record]) -> list[Markup]:
    """A line for each cell with rows on the disk; nothing where there is none."""
    rows = [
        [
            cell.name,
            *(f"{statistics.median(_values(records, cell, name)):,.0f}" for name in ("rows_on_disk", "dim")),
            *(text for word in ("read", "write") for text in _moved(records, cell, word)),
        ]
        for cell in cells
        if _values(records, cell, "dim")
    ]
    told = (
        "Time inside of the calls that read and write blocks, for each row of a block, and GiB a second in that time. Times are "
        "added up over threads and ranks, so these are figures of one thread. E: rows on the disk at the last step. "
        "Medians over the blocks of the sweep."
    )
    heads = [
        "cell",
        "E, rows on the disk",
        "D",
        "read, microseconds a row",
        "read, GiB/s",
        "written, microseconds a row",
        "written, GiB/s",
    ]
    return [table(heads, rows), paragraph(told, is_muted=True)] if rows else []


def _moved(records: Sequence[Record], cell: Cell, word: str) -> list[str]:
    """[microseconds a row, GiB a second] of what was read or written, or why there is none."""
    seconds, rates = (_values(records, cell, f"{word}_{unit}") for unit in ("row_microseconds", "gib_per_second"))
    if not seconds:
        return [f"no block was {'read' if word == 'read' else 'written'}", ""]
    rate = f"{statistics.median(rates):.3g}" if rates else f"not known: {_UNEVEN}"
    return [f"{statistics.median(seconds):.3g}", rate]


def _bars(kept: Sequence[Bar], cells: Sequence[Cell]) -> list[Markup]:
    rows = [
        [
            "holds" if bar.holds else "does not hold",
            bar.claim,
            cells[bar.cell].name,
            _estimate(bar.value),
            f"within {100 * bar.bar:g} %",
        ]
        for bar in kept
    ]
    told = (
        "Bytes: the mean ratio to the cell with the fewest images is within 1 % of 1. Steps: the 95 % interval of the ratio contains 1 and "
        "reaches at most 5 % to either side; each ratio is that of two cells of the same block."
    )
    return [paragraph(told), table(["", "claim", "cell", "ratio (95 % interval)", "bar"], rows)]


def _growth(grown: Sequence[Growth], cells: Sequence[Cell]) -> list[Markup]:
    rows = []
    for one in grown:
        last = max((number for number in one.ratios), key=lambda number: one.points[number], default=None)
        reach = "" if last is None else f"{_estimate(one.ratios[last])} at {word(cells[last].values[one.axis])}"
        slope = "" if one.slope is None else _estimate(one.slope)
        rows.append([one.figure, one.axis, _words(one.others), reach, slope])
    told = (
        "Ratio of the last cell of a line to its first one, and the slope of log(figure) over log(axis): 1 is growth in proportion, "
        "0 is none. Beside them 95 % intervals by Student's t over the blocks, each for itself."
    )
    return [paragraph(told), table(["figure", "along", "cells", "last / first", "slope"], rows)]


def _dead(dead: Sequence[Record]) -> list[Markup]:
    if not dead:
        return [paragraph("None.")]
    rows = [[_words(record.values), str(record.repeat + 1), record.status, record.why] for record in dead]
    words = [
        details(f"Last words of {_words(record.values)}, block {record.repeat + 1}", paragraph(record.last_words))
        for record in dead
        if record.last_words
    ]
    told = "A cell that took too much memory or time is not tried again in later blocks."
    return [table(["cell", "block", "", "why"], rows), paragraph(told), *words]


def _all(cells: Sequence[Cell], records: Sequence[Record]) -> Markup:
    names = [name for name in _CHARTS if any(name in record.figures for record in records)]
    rows = []
    for cell in cells:
        ends = [record.status for record in records if record.cell == cell.number]
        told = ", ".join(f"{ends.count(status)} {status}" for status in dict.fromkeys(ends)) or "not run yet"
        figures = []
        for name in names:
            values = _values(records, cell, name)
            figures.append(value_text(statistics.median(values), _CHARTS[name][1]) if values else "")
        rows.append([cell.name, told, *figures])
    return table(["cell", "runs", *(_CHARTS[name][0] for name in names)], rows)


def _about(whole: Mapping[str, Any]) -> list[Markup]:
    hardware, limits = whole["hardware"], whole["limits"]
    rows = [[name.replace("_", " "), _plain(name, value)] for name, value in hardware.items()]
    rows += [[name, value] for name, value in whole["versions"].items()]
    rows += [
        [
            "limits of a cell",
            f"{limits['cell_seconds']:g} s, {value_text(limits['cell_bytes'], 'bytes')}, {limits['memory_limit']}",
        ]
    ]
    return [table(["", ""], rows), json_details("The config", whole["config"])]


def _plain(name: str, value: Any) -> str:
    if name.endswith("_bytes"):
        return value_text(value, "bytes")
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def _estimate(value: Estimate) -> str:
    middle, low, high = (
        "" if end is None else f"{round(end, 4) + 0.0:.4f}" for end in (value.middle, value.low, value.high)
    )
    return f"{middle} ({low} to {high})" if low and high else middle


def _words(values: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={word(value)}" for key, value in values.items()) or "the config as it is"
