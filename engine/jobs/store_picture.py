"""When was each block last active? A picture of the store, a cell a block, and the same in numbers.

What is left out: a picture finer than 16,000 cells; with more blocks several share a cell, coloured by the one that was active last.
"""

import io
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from engine.disk.saved_checkpoint import SavedCheckpoint
from engine.results.whole_files import write_file
from engine.rows.active_rows import EMPTY
from engine.rows.damaged import Damaged
from engine.rows.folding import departure
from engine.rows.store import NEVER_VISITED

_INK, _MUTED, _LINE = "#1f2430", "#667080", "#d9dde4"
_LARGEST_CELLS = 16_000  # some 7 pixels each
_MOST_BLOCKS = 2**28  # that are told apart: 2 GiB of numbers


def ages_of(checkpoint: SavedCheckpoint, blocks: int) -> np.ndarray:
    """Steps since each block last had an active row, int64 [blocks]; 0: it has one; -1: it was never visited.

    Of the stored blocks `last_step` alone is read: the steps that were done when a row left the device.
    """
    if blocks > _MOST_BLOCKS:
        raise Damaged(f"its manifest speaks of {blocks:,} blocks, more than a run can have")
    store = checkpoint.store()
    latest = np.full(blocks, NEVER_VISITED, dtype=np.int64)
    for block, entry in checkpoint.entries(store).items():
        latest[block] = departure(store.read_last_step(block, entry)).max()  # the map was checked: block < blocks
    for active in checkpoint.active():
        visited = active["position"][active["stamp"] != EMPTY]  # full PIC has rows in slots that no step has visited
        latest[visited // store.block] = checkpoint.step
    return np.where(latest == NEVER_VISITED, NEVER_VISITED, checkpoint.step - latest)


def by_decade(ages: np.ndarray) -> list[tuple[str, int]]:
    """(label, blocks): active now, 1 to 9 steps, 10 to 99, ..., never visited."""
    lines = [("active now", int((ages == 0).sum()))]
    first = 1
    while (ages >= first).any():
        lines.append((f"{first:,} to {10 * first - 1:,}", int(((ages >= first) & (ages < 10 * first)).sum())))
        first *= 10
    return [*lines, ("never visited", int((ages == NEVER_VISITED).sum()))]


def draw(ages: np.ndarray, block: int, step: int, picture: Path) -> None:
    """The blocks as cells in the order of positions, from the top left, coloured by age. `picture` is whole, or not there."""
    per_cell = -(-len(ages) // _LARGEST_CELLS)
    cells = -(-len(ages) // per_cell)
    columns = int(np.ceil(np.sqrt(cells * 1.6)))
    # The most recent age in each cell; never visited is the oldest of all, places behind the last cell are none.
    oldest, never = max(int(ages.max()), 1), np.iinfo(np.int64).max
    padded = np.full(cells * per_cell, never)
    padded[: len(ages)] = np.where(ages == NEVER_VISITED, never, ages)
    youngest = padded.reshape(cells, per_cell).min(axis=1)
    grid = np.full(-(-cells // columns) * columns, np.nan)
    grid[:cells] = np.where(youngest == never, -1.0, youngest)
    grid_RC = grid.reshape(-1, columns)
    lines = len(grid_RC)

    figure = Figure(figsize=(10, 6.6), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.1, 0.17, 0.74, 0.75))
    colours = matplotlib.colormaps["viridis_r"].with_extremes(under=_LINE, bad="white")
    drawn = axes.pcolormesh(
        np.ma.masked_invalid(grid_RC),
        cmap=colours,
        vmin=0,
        vmax=oldest,
        edgecolors="white",
        linewidth=0.8 if cells <= 1000 else 0,
    )
    axes.invert_yaxis()
    axes.set_aspect("equal", anchor="NW")
    # A line is named by its first block.
    numbers = [int(line) for line in MaxNLocator(nbins=8, integer=True).tick_values(0, lines - 1) if 0 <= line < lines]
    axes.yaxis.set_major_locator(FixedLocator([number + 0.5 for number in numbers]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda row, _: f"{int(row) * columns * per_cell:,}"))
    axes.set_xticks([])
    axes.tick_params(length=0, labelcolor=_MUTED)
    axes.spines[:].set_visible(False)
    axes.set_ylabel("first block of the line", color=_MUTED)
    axes.set_title(f"When each block was last active, after step {step:,} of the run", loc="left", color=_INK)
    bar = figure.colorbar(drawn, cax=figure.add_axes((0.86, 0.17, 0.018, 0.75)))
    bar.ax.yaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda age, _: f"{int(age):,}"))
    bar.ax.invert_yaxis()
    bar.outline.set_visible(False)
    bar.set_label("steps since a row of it was active; 0: now")
    what = f"one block of {block:,} positions"
    if per_cell > 1:
        what = f"{per_cell:,} blocks of {block:,} positions, coloured by the one that was active last"
    caption = (
        f"One cell is {what}.\n"
        f"Cells follow the order of positions, line by line from the top left, {columns:,} a line.\n"
        f"Light grey: never visited, {(ages == NEVER_VISITED).mean():.1%} of the blocks ({len(ages):,})."
    )
    figure.text(0.1, 0.03, caption, color=_MUTED, linespacing=1.5)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    write_file(picture, content.getvalue())
