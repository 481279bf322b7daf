"""Charts that any job can use: numbers in, a figure of plotly out, as the plain JSON that plotly.js draws in the reader's browser.

A reader can zoom, and hover over a point to see its value. Colours are the CSS variables of templates/page.css, so that a chart
follows light and dark. A level that a curve is compared with (chance, raw pixels) is a dashed line over the whole width, with its
name in the legend. A value that is missing or not finite is a gap, never a zero; on a logarithmic axis so is zero, and what is
below. plotly understands some HTML in names: it is escaped here. Of a line of more than MOST_POINTS points, the lowest, the highest
and the first missing value of each of many short stretches are drawn: a long run's page stays small, and a zoom shows less.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

import numpy as np

from datasets.shown import shown

Unit = Literal["", "bytes", "seconds", "share"]
MOST_POINTS = 3000  # of one line
_FEW_POINTS = 40  # are marked one by one: a line through one or two of them shows little or nothing
_UNITS: dict[Unit, list[tuple[float, str]]] = {
    "": [(1.0, "")],
    "share": [(0.01, " %")],
    "bytes": [(2.0 ** (10 * power), f" {name}") for power, name in enumerate(["B", "KiB", "MiB", "GiB", "TiB", "PiB"])],
    "seconds": [(1e-6, " µs"), (1e-3, " ms"), (1.0, " s"), (60.0, " min"), (3600.0, " h")],
}


@dataclass(frozen=True)
class Chart:
    """What plotly.js draws, as JSON; `name` is what readers are told who do not see it."""

    name: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]


@dataclass(frozen=True)
class Level:
    """A horizontal line to compare curves with; `name` says its value too. colour: a variable of page.css."""

    value: float
    name: str
    colour: str = "muted"


@dataclass(frozen=True)
class Line:
    """
    x, y        equally many; y in bytes, seconds or shares of 1 where the chart has that unit
    low, high   ends of the error bars around y, quartiles say
    style       noisy: the values light, their running mean bold
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    style: Literal["line", "points", "dashed", "noisy"] = "line"


@dataclass(frozen=True)
class Group:
    """Bars of one colour: a value for each name of the chart; None: no bar."""

    name: str
    values: Sequence[float | None]


def series_colour(index: int) -> str:
    """The colour of the line or group of that number, for CSS; eight differ."""
    return f"var(--c{index % 8})"


def value_text(value: float, unit: Unit = "") -> str:
    """`12.5 MiB`, `179 ms`, `52.1 %`, `57,697`: the largest unit that is not above the value, four digits that count (three of a share)."""
    factor, suffix = _scale([value], unit)
    number, digits = value / factor, 3 if unit == "share" else 4
    return (f"{number:,.0f}" if 1000 <= abs(number) < 1e15 else f"{number:.{digits}g}") + suffix


def curves(
    lines: Sequence[Line],
    *,
    name: str,
    x_title: str = "",
    y_title: str = "",
    levels: Sequence[Level] = (),
    is_log_x: bool = False,
    is_log_y: bool = False,
    unit: Unit = "",
    height: int = 320,
    has_legend: bool = True,
) -> Chart:
    """Lines over one axis.

    unit         of y: what axis and hover say. With a unit, an axis that is not logarithmic begins at zero
    height       in CSS pixels
    has_legend   False where the names and colours of several lines stand beside the chart
    """
    ys = [_numbers(values) for line in lines for values in (line.y, line.low or [], line.high or [])]
    shown_y = np.concatenate([*ys, [level.value for level in levels], []])
    shown_y = shown_y[np.isfinite(shown_y) & ((shown_y > 0) | (not is_log_y))]
    factor, suffix = _scale(shown_y, unit)
    data = [trace for number, line in enumerate(lines) for trace in _traces(line, number, unit, factor, is_log_y)]
    y_axis: dict[str, Any] = {"ticksuffix": suffix, "rangemode": "tozero" if unit or len({*shown_y}) == 1 else "normal"}
    if is_log_y:
        y_axis = {"type": "log", "ticksuffix": suffix}
        y_axis |= _powers(shown_y / factor, factor) if unit == "bytes" and len(shown_y) else {}
    x_axis: dict[str, Any] = {"type": "log", "dtick": 1, "exponentformat": "power"} if is_log_x else {"type": "linear"}
    different_x = {x for line in lines for x in line.x}
    x_axis |= {"tickvals": [*different_x]} if len(different_x) == 1 else {}
    layout = {
        "height": height,
        "xaxis": {**x_axis, "title": {"text": _plain(x_title)}},
        "yaxis": {**y_axis, "title": {"text": _plain(y_title)}},
        "shapes": [_level(level, factor) for level in levels],
        "showlegend": has_legend and len(data) + len(levels) > 1,
    }
    return Chart(name, data, layout)


def bars(
    names: Sequence[str],
    groups: Sequence[Group],
    *,
    name: str,
    unit: Unit = "",
    is_stacked: bool = False,
    has_legend: bool = True,
) -> Chart:
    """Horizontal bars on one scale: for each name one of each group, below one another or stacked. Each bar has its value in words."""
    known = [value for group in groups for value in _numbers(group.values).tolist() if math.isfinite(value)]
    largest = max(known, default=0.0) or 1.0
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": _plain(group.name),
            "y": [*range(len(names))],
            "x": _json(_numbers(group.values)),
            "text": _texts(_numbers(group.values), unit),
            "hovertemplate": "%{text}",
            "textposition": "inside" if is_stacked else "outside",
            "insidetextanchor": "start",
            "textangle": 0,
            "cliponaxis": False,
            "marker": {"color": series_colour(number)},
        }
        for number, group in enumerate(groups)
    ]
    rows = len(names) * (1.6 if is_stacked else len(groups) + 0.6)
    x_axis = {"visible": False} if is_stacked else {"visible": False, "range": [0, 1.25 * largest]}
    places = {"tickvals": [*range(len(names))], "ticktext": [_plain(one) for one in names], "type": "linear"}
    layout = {
        "height": round(26 * rows + 16 + has_legend * 22 * math.ceil(len(groups) / 3)),
        "barmode": "stack" if is_stacked else "group",
        "bargap": 0.3,
        "margin": {"l": 4, "b": 4},
        "hovermode": "closest",
        "uniformtext": {"mode": "hide", "minsize": 11},
        "legend": {"traceorder": "normal"},
        "showlegend": has_legend and len(groups) > 1,
        "xaxis": x_axis,
        "yaxis": {**places, "autorange": "reversed", "showgrid": False, "zeroline": False},
    }
    return Chart(name, data, layout)


def dots(places_M2: np.ndarray, names: Sequence[str], colours: Sequence[str], *, name: str, height: int = 780) -> Chart:
    """A dot at each place, its name where the reader hovers; colours are CSS colours."""
    trace = {
        "type": "scatter",
        "mode": "markers",
        "x": _json(places_M2[:, 0]),
        "y": _json(places_M2[:, 1]),
        "text": [_plain(one) for one in names],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {"color": [*colours], "size": 8, "opacity": 0.75},
    }
    unseen = {"visible": False}
    return Chart(name, [trace], {"height": height, "hovermode": "closest", "xaxis": unseen, "yaxis": unseen})


def smoothed(values: np.ndarray) -> np.ndarray:
    """Centred running mean over a twenty-fifth of the curve, float64; a NaN is left out of the means and stays NaN."""
    half = len(values) // 50
    is_number = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(is_number, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(is_number)])
    index = np.arange(len(values))
    first, stop = np.maximum(0, index - half), np.minimum(len(values), index + half + 1)
    means = np.full(len(values), np.nan)
    np.divide(sums[stop] - sums[first], counts[stop] - counts[first], out=means, where=is_number)
    return means


def drawn_points(values: np.ndarray) -> np.ndarray:
    """Which points of a line are drawn: all of a short one; else the lowest, the highest and the first missing one of each stretch."""
    if len(values) <= MOST_POINTS:
        return np.arange(len(values))
    chosen = {0, len(values) - 1}
    for stretch in np.array_split(np.arange(len(values)), MOST_POINTS // 3):
        is_number = np.isfinite(values[stretch])
        chosen.update(stretch[~is_number][:1].tolist())
        if is_number.any():
            numbers = stretch[is_number]
            chosen.update((int(numbers[values[numbers].argmin()]), int(numbers[values[numbers].argmax()])))
    return np.array(sorted(chosen))


def _traces(line: Line, number: int, unit: Unit, factor: float, is_log: bool) -> list[dict[str, Any]]:
    y, colour, x = _numbers(line.y), series_colour(number), np.asarray(line.x, dtype=np.float64)
    assert len(x) == len(y), f"{line.name}: {len(x)} places and {len(y)} values"
    y[is_log & (y <= 0)] = math.nan  # a logarithmic axis has no place for it
    is_few = len(y) <= _FEW_POINTS

    def trace(values: np.ndarray, **changes: Any) -> dict[str, Any]:
        at = drawn_points(values)
        return {
            "type": "scatter",
            "mode": "markers" if line.style == "points" else "lines+markers" if is_few else "lines",
            "name": _plain(line.name),
            "x": _json(x[at]),
            "y": _json(values[at] / factor),
            "text": _texts(values[at], unit),
            "hovertemplate": "%{text}",
            "marker": {"size": 6, "color": colour},
            "line": {"color": colour, "width": 2.2, "dash": "dash" if line.style == "dashed" else "solid"},
            **changes,
        }

    if line.style == "noisy":
        light = {"opacity": 0.35, "line": {"color": colour, "width": 1.2}, "marker": {"size": 4, "color": colour}}
        return [trace(y, **light), trace(smoothed(y), name=f"{_plain(line.name)}, running mean")]
    if line.low is None or line.high is None:
        return [trace(y)]
    above, below = _numbers(line.high) - y, y - _numbers(line.low)
    around = {"symmetric": False, "array": _json(above / factor), "arrayminus": _json(below / factor)}
    return [trace(y, error_y={"type": "data", "color": colour, "thickness": 1.2, "width": 4, **around})]


def _level(level: Level, factor: float) -> dict[str, Any]:
    return {
        "type": "line",
        "xref": "x domain",
        "x0": 0,
        "x1": 1,
        "y0": level.value / factor,
        "y1": level.value / factor,
        "name": _plain(level.name),
        "showlegend": True,
        "layer": "below",
        "line": {"color": f"var(--{level.colour})", "width": 1.4, "dash": "dash"},
    }


def _powers(scaled: np.ndarray, factor: float) -> dict[str, Any]:
    """Ticks of a logarithmic axis of bytes: powers of 4, at most nine of them, which hold all values between them."""
    low, high = (math.log(value * factor, 4) for value in (scaled.min(), scaled.max()))
    apart = max(1, math.ceil((high - low) / 8))
    ticks = [4.0**power for power in range(math.floor(low), math.floor(high) + apart + 1, apart)]
    return {
        "tickvals": [tick / factor for tick in ticks],
        "ticktext": [value_text(tick, "bytes") for tick in ticks],
        "ticksuffix": "",
        "range": [math.log10(tick / factor) for tick in (ticks[0], ticks[-1])],
    }


def _scale(values: Iterable[float], unit: Unit) -> tuple[float, str]:
    largest = max(map(abs, values), default=0.0)
    return next(((factor, suffix) for factor, suffix in reversed(_UNITS[unit]) if factor <= largest), _UNITS[unit][0])


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    return np.array(
        [math.nan if value is None or not math.isfinite(value) else value for value in values], dtype=np.float64
    )


def _json(values: np.ndarray) -> list[float | None]:
    """With null for what is missing; seven digits are more than a screen shows, and whole numbers are kept whole."""
    return [None if not math.isfinite(v) else v if v.is_integer() else float(f"{v:.7g}") for v in values.tolist()]


def _texts(values: np.ndarray, unit: Unit) -> list[str]:
    return [value_text(value, unit) if math.isfinite(value) else "" for value in values.tolist()]


def _plain(text: str) -> str:
    """A text for plotly.js, which obeys some HTML: all of it is escaped."""
    return escape(shown(text, most=80), quote=False)
