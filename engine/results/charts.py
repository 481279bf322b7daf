"""Charts as inline SVG: numbers in, one `<svg>` string out, drawn by matplotlib without a window system.

A chart carries text as text, not as outlines (small files, the page's own typeface), and colours as the page's
CSS variables, so that it follows light and dark. A level that a curve is compared with (chance, raw pixels) is a
dashed line whose name stands in the right margin, outside the curve; names that would touch are moved apart, and
the margin is the same for all charts, so that charts below one another share their steps. A value that is missing
or not finite is a gap in the curve, never a zero. Left out: interaction and tooltips; the tables have the figures.
"""

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from datasets.shown import shown as shown_text
from engine.results.progress import bytes_text

# Each colour as matplotlib draws it, and the CSS variable that takes its place; `page.STYLE` gives both sets of values.
COLOURS = {
    "ink": "#1f2430",
    "muted": "#667080",
    "line": "#d9dde4",
    "accent": "#2f6fb2",
    "accent-soft": "#b5cfe9",
    "warm": "#b8602a",
    "surface": "#ffffff",
}
_INCH = 72.0
_FONT_SIZE = 13
_MARGIN = 150  # CSS pixels at the right of a curve, for the names of levels


@dataclass(frozen=True)
class Level:
    """A horizontal line to compare a curve with; `name` is what the margin says, with its value."""

    value: float
    name: str
    colour: str = "muted"


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Places nearest to `wanted` that keep the order and lie at least `gap` apart (any unit)."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    groups: list[tuple[float, int]] = []  # mean place, members: neighbours that touch share one centre
    for index in order:
        centre, members = wanted[index], 1
        while groups and centre - groups[-1][0] < gap * (members + groups[-1][1]) / 2:
            other_centre, other_members = groups.pop()
            centre = (centre * members + other_centre * other_members) / (members + other_members)
            members += other_members
        groups.append((centre, members))
    sorted_places = [centre + gap * (i - (members - 1) / 2) for centre, members in groups for i in range(members)]
    places = [0.0] * len(wanted)
    for index, place in zip(order, sorted_places, strict=True):
        places[index] = place
    return places


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


def curve_svg(
    steps: Sequence[int],
    values: Sequence[float | None],
    *,
    name: str,
    levels: Sequence[Level] = (),
    is_noisy: bool = False,
    is_share: bool = False,
    width: int = 1120,
    height: int = 300,
) -> str:
    """One curve over steps.

    is_noisy        draws the values light and their running mean bold
    is_share        the values are shares and are shown in per cent, from zero
    width, height   in CSS pixels
    name            what readers are told who do not see the picture
    """
    curve = np.array([math.nan if value is None else value for value in values], dtype=np.float64)
    curve[~np.isfinite(curve)] = math.nan
    figure, axes = _axes(width, height, left=58, right=_MARGIN, bottom=26, top=12)
    # Few values are marked one by one: a line through one or two of them shows little or nothing.
    marker = "o" if len(curve) <= 40 else ""
    if is_noisy:
        axes.plot(steps, curve, color=COLOURS["accent-soft"], linewidth=1.2, marker=marker, markersize=3, clip_on=False)
        axes.plot(
            steps, smoothed(curve), color=COLOURS["accent"], linewidth=2.2, marker=marker, markersize=3, clip_on=False
        )
    else:
        axes.plot(steps, curve, color=COLOURS["accent"], linewidth=2.2, marker=marker, markersize=4, clip_on=False)
    for level in levels:
        axes.axhline(level.value, color=COLOURS[level.colour], linewidth=1.3, linestyle=(0, (5, 4)))
    _limits(axes, steps, curve, levels, from_zero=is_share)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=max(3, width // 140), integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=max(3, height // 50), steps=[1, 2, 2.5, 5, 10]))
    if is_share:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.4g} %"))
    _name_levels(figure, axes, levels, height)
    return _svg(figure, name)


def memory_svg(tiers: Sequence[str], planned_bytes: Mapping[str, int], measured_bytes: Mapping[str, int]) -> str:
    """Two bars a tier on one scale, planned over measured, each with its size; what is unknown has no bar."""
    figure, axes = _axes(1120, 62 * len(tiers), left=58, right=_MARGIN, bottom=2, top=2)
    largest = float(max(sizes.get(tier, 0) for sizes in (planned_bytes, measured_bytes) for tier in tiers) or 1)
    for place, tier in enumerate(tiers):
        for offset, colour, sizes in ((-0.19, "accent-soft", planned_bytes), (0.19, "accent", measured_bytes)):
            if tier not in sizes:
                continue
            axes.barh(place + offset, float(sizes[tier]), height=0.34, color=COLOURS[colour])
            axes.text(
                float(sizes[tier]) + 0.006 * largest,
                place + offset,
                bytes_text(sizes[tier]),
                va="center",
                fontsize=_FONT_SIZE,
                color=COLOURS["ink"],
            )
    axes.set_yticks(range(len(tiers)), tiers)
    axes.tick_params(axis="y", labelcolor=COLOURS["ink"])
    axes.spines["bottom"].set_visible(False)
    axes.set_ylim(len(tiers) - 0.45, -0.55)
    axes.set_xlim(0, largest)
    # Every bar carries its size, so a scale below would only repeat it.
    axes.set_xticks([])
    axes.grid(visible=False)
    return _svg(figure, "Memory by tier, planned and measured: see the table")


def _axes(width: int, height: int, *, left: float, right: float, bottom: float, top: float) -> tuple[Figure, Axes]:
    """A figure of width x height CSS pixels with one frameless axes inside the margins (pixels)."""
    figure = Figure(figsize=(width / _INCH, height / _INCH), dpi=_INCH, facecolor="none")
    axes = figure.add_axes(
        (left / width, bottom / height, (width - left - right) / width, (height - bottom - top) / height)
    )
    axes.set_facecolor("none")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(COLOURS["line"])
    axes.grid(visible=True, axis="y", color=COLOURS["line"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelcolor=COLOURS["muted"], labelsize=_FONT_SIZE, pad=6)
    return figure, axes


def _limits(axes: Axes, steps: Sequence[int], curve: np.ndarray, levels: Sequence[Level], *, from_zero: bool) -> None:
    shown = [*curve[np.isfinite(curve)].tolist(), *(level.value for level in levels)]
    low, high = (min(shown), max(shown)) if shown else (0.0, 1.0)
    pad = 0.06 * (high - low) or max(abs(high), 1e-12) * 0.1
    axes.set_ylim(0.0 if from_zero else low - pad, high + pad)
    if len(steps) == 1:
        axes.set_xlim(steps[0] - 1, steps[0] + 1)
    else:
        axes.set_xlim(steps[0], steps[-1] + 0.006 * (steps[-1] - steps[0]))


def _name_levels(figure: Figure, axes: Axes, levels: Sequence[Level], height: int) -> None:
    low, high = axes.get_ylim()
    box = axes.get_position()
    wanted = [height * (box.y0 + box.height * (level.value - low) / (high - low)) for level in levels]
    for level, place in zip(levels, spread(wanted, _FONT_SIZE + 4.0), strict=True):
        figure.text(
            box.x1 + 8 / (figure.get_figwidth() * _INCH),
            place / height,
            level.name,
            va="center",
            ha="left",
            fontsize=_FONT_SIZE,
            color=COLOURS["muted" if level.colour == "muted" else level.colour],
        )


def _svg(figure: Figure, name: str) -> str:
    text, name = io.StringIO(), shown_text(name)
    # The salt makes the ids inside the SVG a function of the chart, unlike those of the page's other charts.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(text, format="svg", transparent=True)
    svg = text.getvalue()[text.getvalue().index("<svg") :]
    # In a page: no style that would reach beyond the chart, no typeface, no ids of groups, no namespaces, no own size.
    for unwanted in (
        r"<metadata>.*?</metadata>",
        r"<style.*?</style>",
        r'\sxmlns(:xlink)?="[^"]*"',
        r'(?<=<g)\sid="[^"]*"',
        r" font-family: [^;]*;",
        r'\stransform="rotate\(-0 [^"]*"',
    ):
        svg = re.sub(unwanted, "", svg, flags=re.DOTALL)
    for size in ("width", "height"):
        svg = re.sub(rf'(<svg [^>]*?)\s{size}="[^"]*"', r"\1", svg, count=1)
    for variable, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(name)}" ', 1)
