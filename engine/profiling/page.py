"""profile.html: the plan beside what was measured, memory over time, and by stage of a step."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from engine.profiling.samples import Samples
from engine.results.charts import Group, Level, Line, bars, curves, value_text
from engine.results.page import figure, header, json_details, page, paragraph, section, table, tiles

_MOST_SAMPLES = 2000


def profile_page(whole: Mapping[str, Any], samples: Sequence[Samples], advice: Sequence[str] = ()) -> str:
    """The document. whole: what profile.json says; advice: what to change, where memory has ended."""
    name = str(whole["config"]["output"]).rstrip("/").rpartition("/")[2]
    hardware, process = whole["hardware"], whole["process"]
    about = f"{hardware['processor']}, {hardware['cores']} cores, {value_text(hardware['memory_bytes'], 'bytes')}"
    parts = [
        header(f"{name}: memory", about, whole["status"], is_good=whole["status"] == "finished"),
        *map(paragraph, advice),
        tiles(_headline(whole)),
        section("Plan and measurement", _comparison(whole)),
        section("Memory over time", _over_time(samples, process)),
        section("By stage of a step", _by_stage(whole["ranks"])),
        section("Time of a step", _times(whole["step"])),
        section(
            "Configuration",
            [
                json_details("The resolved config", whole["config"]),
                json_details("The machine and the versions", {"hardware": hardware, "versions": whole["versions"]}),
            ],
        ),
    ]
    return page(f"{name}: memory", parts)


def growth_text(growth: Sequence[float] | None) -> str:
    """`1.2 +- 0.4 KiB a step`, in words where there is nothing to say."""
    if growth is None:
        return "too few steps to tell"
    slope, error = (value / 1024 for value in growth)
    return f"{slope:,.2f} ± {error:,.2f} KiB a step"


def _headline(whole: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    process, step = whole["process"], whole["step"]
    ranks = len(whole["ranks"])
    spread = (
        f"of the largest of {ranks} ranks; of the smallest {value_text(process['least'], 'bytes')}" if ranks > 1 else ""
    )
    residual = (
        "above" if process["residual"] > 0 else "under"
    ) + f" the plan by {value_text(abs(process['residual']), 'bytes')}"
    growth = process["growth"]
    leak = "" if growth is None else "grows" if growth[0] - growth[1] > 0 else "no growth beyond its error"
    overhead = step["overhead"]
    return [
        ("peak of the process", value_text(process["peak"], "bytes"), spread or residual),
        (
            "planned",
            value_text(process["planned_peak"], "bytes"),
            f"libraries {value_text(process['libraries'], 'bytes')}",
        ),
        ("growth after the first third", growth_text(growth), leak),
        (
            "the engine beside the trunk",
            "no trunk" if overhead is None else f"{100 * overhead:.1f} %",
            "(step - trunk - waiting for images) / trunk",
        ),
    ]


def _comparison(whole: Mapping[str, Any]) -> list[Markup]:
    rows = sorted(whole["components"], key=lambda row: -max(row["planned"], row["counted"] or 0))
    process = whole["process"]

    def size(count: int | None) -> str:
        return "" if count is None else value_text(count, "bytes")

    cells = [
        [
            row["name"],
            row["tier"],
            size(row["planned"]),
            size(row["counted"]),
            size(row["least"]) if row["least"] != row["counted"] else "",
            f"{row['ratio']:.2f}" if row["ratio"] else "",
        ]
        for row in rows
    ]
    cells.append(["libraries", "host", size(process["libraries"]), "", "", ""])
    ratio = f"{process['ratio']:.2f}" if process["ratio"] else ""
    cells.append(
        [
            "the process, at its peak",
            "host",
            size(process["planned_peak"]),
            size(process["peak"]),
            size(process["least"]),
            ratio,
        ]
    )
    known = [row for row in rows if row["tier"] != "disk"]
    chart = bars(
        [row["name"] for row in known],
        [Group("planned", [row["planned"] for row in known]), Group("counted", [row["counted"] for row in known])],
        name="Planned and counted bytes of each component over 1 MB",
        unit="bytes",
    )
    residual = process["residual"]
    words = (
        f"Not explained by the plan: {value_text(abs(residual), 'bytes')} {'more' if residual > 0 else 'less'} than planned. It is what "
        "allocators keep of what was freed, scratch memory inside of operators, stacks of threads, and pages of libraries that are "
        "first used while it trains."
    )
    return [
        figure(
            chart,
            "Components over 1 MB, on the device and the host. A component that was not counted lives for a moment only.",
        ),
        table(["component", "tier", "planned", "counted, at most", "of the smallest rank", "planned / counted"], cells),
        paragraph(words),
    ]


def _over_time(samples: Sequence[Samples], process: Mapping[str, Any]) -> list[Markup]:
    lines = []
    for one in samples:
        of = f", rank {one.rank}" if len(samples) > 1 else ""
        looks = one.looks[:: max(1, len(one.looks) // _MOST_SAMPLES)]
        seconds = [look.seconds for look in looks]
        lines.append(Line(f"process, resident{of}", seconds, [look.own_bytes for look in looks]))
        if any(look.worker_bytes for look in one.looks):
            lines.append(Line(f"workers, resident{of}", seconds, [look.worker_bytes for look in looks]))
        looked = [(look.seconds, look.shared_bytes) for look in one.looks if look.shared_bytes]
        if looked:
            lines.append(
                Line(
                    f"both, proportional{of}", [at for at, _ in looked], [count for _, count in looked], style="points"
                )
            )
        if any(look.reserved_bytes for look in one.looks):
            lines.append(Line(f"GPU, allocated{of}", seconds, [look.allocated_bytes for look in looks]))
            lines.append(Line(f"GPU, reserved{of}", seconds, [look.reserved_bytes for look in looks], style="dashed"))
    levels = [Level(process["planned_peak"], f"planned peak {value_text(process['planned_peak'], 'bytes')}", "warm")]
    peak = process["peak"]
    if process["limit"] and process["limit"] < 2 * peak:
        levels.append(
            Level(process["limit"], f"{process['limit_words']}: {value_text(process['limit'], 'bytes')}", "wrong")
        )
    chart = curves(
        lines,
        name="Memory over time",
        x_title="seconds since the sampler began",
        levels=levels,
        unit="bytes",
        height=380,
    )
    caption = "Resident: every page that a process has in memory. Proportional: a page that n processes share counts 1/n in each."
    return [figure(chart, caption)]


def _by_stage(ranks: Sequence[Mapping[str, Any]]) -> list[Markup]:
    stages = list(dict.fromkeys(stage for rank in ranks for stage in rank["by_stage"]))
    groups = [Group(f"rank {rank['rank']}", [rank["by_stage"].get(stage) for stage in stages]) for rank in ranks]
    drawn = [
        figure(
            bars(stages, groups, name="The most that was resident in each stage", unit="bytes"),
            "The most that was resident in each stage.",
        )
    ]
    if any(any(rank["device_by_stage"].values()) for rank in ranks):
        groups = [
            Group(f"rank {rank['rank']}", [rank["device_by_stage"].get(stage) for stage in stages]) for rank in ranks
        ]
        drawn.append(
            figure(
                bars(stages, groups, name="Peak of the GPU's allocator in each stage", unit="bytes"),
                "Peak of the GPU's allocator in each stage.",
            )
        )
    return drawn


def _times(step: Mapping[str, Any]) -> list[Markup]:
    if step["step_seconds"] is None:
        return [paragraph("Too few steps were logged.")]
    rows = [
        [stage, value_text(seconds, "seconds"), f"{100 * seconds / step['step_seconds']:.1f} %"]
        for stage, seconds in step["seconds"].items()
    ]
    return [
        table(
            ["stage", "a step", "share"], [*rows, ["a step, in all", value_text(step["step_seconds"], "seconds"), ""]]
        )
    ]
