"""What a run cost, as parts of its report: the time of its steps by stage, its memory by tier beside the plan, and both over steps."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from engine.results.charts import Chart, Group, Line, bars, curves, series_colour
from engine.results.page import details, figure, panels, paragraph, table
from engine.results.progress import TIERS, bytes_text, duration_text
from engine.results.records import Records, amount, amounts, finite

# The stages of a step in their order, and how the report names them.
_STAGES = {
    "data": "waiting for images",
    "trunk_forward": "backbone forward",
    "admit": "admit and catch up rows",
    "softmax": "softmax over the active rows",
    "trunk_backward": "backbone backward",
    "update": "update rows",
    "slide": "slide the window",
}
# What earlier versions did not time, and runs without a network do not do.
_OTHERS = {
    "keys": "keys of the momentum network",
    "trunk_update": "update backbone",
    "online_probe": "online probe",
    "checkpoint": "begin checkpoints",
    "evaluation": "evaluate",
    "label_free": "evaluate without labels",
}
_BETWEEN_STEPS = ("checkpoint", "evaluation", "label_free")
_STAGES_OF_ROWS = ("admit", "slide")
_SHARES = "Shares of the time by stage: see the table"
_WITHOUT_ROWS = {"softmax": "loss and its gradients", "update": "update what the method keeps"}


def over_steps(records: Records, field: str, title: str, *, height: int = 200) -> tuple[str, Markup]:
    """A figure of all metrics lines as a small chart, with its title."""
    values = [finite(line.get(field)) for line in records.metrics]
    return title, figure(_curves({title: values}, _steps(records), title, height=height))


def _steps(records: Records) -> list[int]:
    return [line["step"] for line in records.metrics]


def _curves(values: dict[str, list[float | None]], steps: list[int], title: str, **how: Any) -> Chart:
    return curves([Line(name, steps, one) for name, one in values.items()], name=f"{title} over steps", **how)


def time_parts(records: Records) -> list[Markup]:
    rowless = () if records.has_rows() else _STAGES_OF_ROWS
    seconds: dict[str, float] = dict.fromkeys((stage for stage in _STAGES if stage not in rowless), 0.0)
    wall_seconds = wait_steps = wait_seconds = 0.0
    for line in records.metrics:
        wall_seconds += amount(line.get("interval_seconds")) or 0.0
        _add(seconds, amounts(line.get("seconds")))
        waits = amounts(line.get("prefetch_waits"))
        wait_steps, wait_seconds = wait_steps + waits.get("steps", 0), wait_seconds + waits.get("seconds", 0.0)
    rest = amounts(records.summary.get("rest_seconds"))  # the evaluation at the end, behind the last line
    _add(seconds, rest)
    wall_seconds += sum(rest.values())
    measured_seconds = sum(seconds.values())
    if not measured_seconds:
        return [paragraph("No times were logged.")]
    names = _STAGES | _OTHERS | ({} if records.has_rows() else _WITHOUT_ROWS)
    named = {stage: names.get(stage, stage) for stage in seconds}
    otherwise = ("everything else", max(0.0, wall_seconds - measured_seconds))
    spent = [*((named[stage], value) for stage, value in seconds.items()), otherwise]
    steps, total_seconds = sum(_steps_of(records)), max(wall_seconds, measured_seconds)
    rows = [
        [
            name,
            f"{100 * value / total_seconds:.1f} %",
            f"{value:,.1f} s" if value < 60 else duration_text(value),
            f"{1000 * value / max(1, steps):,.1f} ms",
        ]
        for name, value in spent
    ]
    stack = [Group(name, [value / total_seconds]) for name, value in spent]
    waited = f"Steps that waited for the disk: {wait_steps:,.0f}, {duration_text(wait_seconds)} in all."
    waited = waited if wait_steps else "No step waited for the disk."
    return [
        figure(bars([""], stack, name=_SHARES, unit="share", is_stacked=True, has_legend=False)),
        table(["stage", "share", "in all", "a step"], rows, keys=[series_colour(index) for index in range(len(rows))]),
        paragraph(f"{_loader_words(records)} {waited}".strip()),
        panels(
            [
                _stages_over_steps(records, named),
                over_steps(records, "images_per_second", "Images per second", height=320),
            ]
        ),
    ]


def _add(seconds: dict[str, float], more: Mapping[str, float]) -> None:
    for stage, value in more.items():
        seconds[stage] = seconds.get(stage, 0.0) + value


def _steps_of(records: Records) -> list[int]:
    """How many steps each line is of. Earlier versions did not say: those since the line before, which a killed process may have taken."""
    before = pairwise([0, *_steps(records)])
    return [
        max(1, int(amount(line.get("interval_steps")) or last - first))
        for line, (first, last) in zip(records.metrics, before, strict=True)
    ]


def _loader_words(records: Records) -> str:
    """What the loader did in all of the steps; nothing where no line says it."""
    images = cpu_seconds = read_bytes = 0.0
    for line in records.metrics:
        loader = amounts(line.get("loader"))
        images, cpu_seconds = images + loader.get("images", 0.0), cpu_seconds + loader.get("cpu_seconds", 0.0)
        read_bytes += loader.get("read_bytes", 0.0)
    if not images or not cpu_seconds:
        return ""
    made = f"The loader made the views of {images / cpu_seconds:,.0f} images a second of one core"
    return made + (f", and read {bytes_text(read_bytes)} of image files." if read_bytes else ".")


def _stages_over_steps(records: Records, names: dict[str, str]) -> tuple[str, Markup]:
    """Seconds a step of each stage; the seconds of a line are those of all steps since the line before."""
    steps = _steps(records)
    lines = [
        (amounts(line.get("seconds")), count) for line, count in zip(records.metrics, _steps_of(records), strict=True)
    ]
    values = {
        name: [seconds[stage] / count if stage in seconds else None for seconds, count in lines]
        for stage, name in names.items()
        if stage not in _BETWEEN_STEPS
    }
    title = "Time of a step by stage"
    return title, figure(
        _curves(values, steps, title, unit="seconds", height=320, has_legend=False), "Colours as in the table above."
    )


def memory_parts(records: Records) -> list[Markup]:
    planned, measured = records.planned_bytes(), records.measured_bytes()
    if (peak := amount(records.summary.get("peak_host_bytes"))) and "process_peak" in measured:
        measured["process_peak"] = max(measured["process_peak"], int(peak))  # of the evaluation at the end
    tiers = [tier for tier in TIERS if tier in planned or tier in measured]
    if not tiers:
        return [paragraph("No memory was planned or measured.")]

    def mebibytes(count_bytes: int | None) -> str:
        return "unknown" if count_bytes is None else f"{count_bytes / 2**20:,.1f} MiB"

    rows = []
    for tier in tiers:
        sizes = planned.get(tier), measured.get(tier)
        ratio = f"{sizes[1] / sizes[0]:.2f}" if sizes[0] and sizes[1] is not None else ""
        rows.append([tier, mebibytes(sizes[0]), mebibytes(sizes[1]), ratio])
    if "process_peak" in measured:
        rows.append(["whole process, libraries included", "", mebibytes(measured["process_peak"]), ""])
    items = [[tier, item, mebibytes(size)] for tier, sizes in records.plan.items() for item, size in sizes.items()]
    caption = "Measured is the largest count at any logged step."
    if not planned:
        caption = "The largest count at any logged step; the run left no plan to compare it with."
    if (ranks := records.figure("ranks") or 1) > 1:
        caption += f" Device and host: of the largest of {ranks:.0f} ranks; disk: of all."
    both = [("planned", planned), ("measured", measured)]
    groups = [Group(name, [sizes.get(tier) for tier in tiers]) for name, sizes in both if sizes]
    return [
        figure(bars(tiers, groups, name="Memory by tier, planned and measured: see the table", unit="bytes"), caption),
        table(["tier", "planned", "measured", "measured / planned"], rows),
        details("The plan by item", table(["tier", "item", "planned"], items)) if items else Markup(),
        _memory_over_steps(records, [name for name in (*tiers, "process_peak") if name in measured]),
    ]


def _memory_over_steps(records: Records, names: list[str]) -> Markup:
    if not names:
        return Markup()
    by_line = [amounts(line.get("bytes")) for line in records.metrics]
    titles = {"process_peak": "whole process, its peak so far"}
    values = {titles.get(name, name): [one.get(name) for one in by_line] for name in names}
    chart = _curves(values, _steps(records), "Memory", x_title="step", is_log_y=True, unit="bytes")
    return figure(chart, "Memory at every logged step, on a scale of powers of 4.")
