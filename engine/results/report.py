"""The report of a run: what a reader wants to judge it by, in one file that opens anywhere.

It is made from the run's own records and from two samples that only the engine can draw (nearest neighbours,
features for the map). Every figure stands beside what it has to beat: the loss beside ln K, the loss of a softmax
over K rows that knows nothing; kNN beside raw pixels and beside chance; measured memory beside the plan. A part whose
source is missing becomes one sentence that says so. Left out: comparisons with other runs, and whatever would have to
be fetched to be seen.
"""

import json
from collections.abc import Callable
from pathlib import Path

from engine.results.charts import Level, curve_svg, memory_svg
from engine.results.page import escaped, figure, page, paragraph, section, table, tiles
from engine.results.pictures import EmbeddingSample, NeighbourRow, map_html, neighbours_html
from engine.results.progress import TIERS, duration_text
from engine.results.records import FIGURES_OF_ROWS, Records, amount, amounts, finite, finite_items, read_records

__all__ = ["EmbeddingSample", "NeighbourRow", "report_html", "report_of"]

_HEADLINE = "knn_top1"
_MAX_PANELS = 8
# The stages of a step in their order, and how the report names them.
_STAGES = {
    "data": "waiting for images",
    "trunk_forward": "backbone forward",
    "admit": "admit and catch up rows",
    "softmax": "softmax over the active rows",
    "trunk_backward": "backbone backward",
    "update": "update rows and backbone",
    "slide": "slide the window",
}
_STAGES_OF_ROWS = ("admit", "slide")
_WITHOUT_ROWS = {"softmax": "loss and its gradients", "update": "update the backbone and what the method keeps"}


def report_of(output: Path, neighbours: list[NeighbourRow], embeddings: EmbeddingSample | None) -> str:
    """The text of report.html, from the run's files in `output`.

    neighbours may be empty and embeddings None; the report then says so.
    """
    return report_html(output.resolve().name, read_records(output), neighbours, embeddings)


def report_html(name: str, records: Records, neighbours: list[NeighbourRow], embeddings: EmbeddingSample | None) -> str:
    """The whole document; `name` is what the run is called in its title."""
    no_neighbours = paragraph("No nearest neighbours were computed for this run.")
    no_map = paragraph("No sample of features was drawn for this run.")
    parts = [
        _head(name, records),
        section("Loss", *_loss(records)),
        section("Nearest neighbours by the learned features", *_knn(records)),
        section("Where the time goes", *_time(records)),
        section("Memory by tier", *_memory(records)),
        section("Pictures of nearest neighbours", neighbours_html(neighbours) if neighbours else no_neighbours),
        section("Map of the features", map_html(embeddings) if embeddings else no_map),
        section("Configuration", *_configuration(records)),
    ]
    return page(f"{name}: report", "\n".join(parts))


def per_cent(share: float | None) -> str:
    """`52.1 %`, and two digits that count where a share is small: `0.066 %`."""
    if share is None:
        return "unknown"
    return f"{100 * share:.2g} %" if 0 < share < 0.01 else f"{100 * share:.1f} %"


def _show(value: float | None, how: Callable[[float], str]) -> str:
    return "unknown" if value is None else how(value)


def _head(name: str, records: Records) -> str:
    loss, chance_loss = records.figure("loss"), records.chance_loss()
    evaluation = records.evaluations[-1] if records.evaluations else {}
    knn = finite(records.summary.get(_HEADLINE))
    knn = finite_items(evaluation.get("figures")).get(_HEADLINE) if knn is None else knn
    raw, chance_knn = finite_items(evaluation.get("raw_pixels")).get(_HEADLINE), finite(evaluation.get("chance"))
    baselines = "" if knn is None else f"raw pixels {per_cent(raw)}, chance {per_cent(chance_knn)}"
    instances, passes, steps = (records.figure(field) for field in ("instances", "passes", "steps"))
    step_seconds = records.figure("step_seconds")
    if steps is None:
        steps = records.figure("step")

    whole = "{:,.0f}".format
    chance = f"chance: {'ln K = ' * records.has_rows()}{_show(chance_loss, '{:.2f}'.format)}"
    rates = _show(records.figure("images_per_second"), whole)
    seconds = _show(records.figure("elapsed_seconds"), duration_text)
    skipped = _show(records.figure("skipped_steps"), whole)
    headline = [
        ("loss", _show(loss, "{:.2f}".format), chance),
        ("kNN, top-1", "not measured" if knn is None else per_cent(knn), baselines),
        ("instances", _show(instances, whole), "" if passes is None else f"passes: {passes:.3g}"),
        *_method_tiles(records, instances),
        ("images per second", rates, "" if step_seconds is None else f"{1000 * step_seconds:,.0f} ms a step"),
        ("time of the steps", seconds, f"steps: {_show(steps, whole)}, skipped: {skipped}"),
    ]
    status = _words(records.summary.get("status")) or "no summary: still running, or killed"
    is_short = status == "finished" and records.config.get("steps") is not None
    status_text = f"finished, as far as steps={records.config['steps']} asks" if is_short else status
    about = [words for field in ("job", "method") if (words := _words(records.summary.get(field)))]
    if (ranks := records.figure("ranks") or 1) > 1:
        about.append(f"{ranks:.0f} ranks")
    unreadable = records.unreadable_lines
    return "\n".join(
        [
            f'<header><h1>{escaped(name)}</h1><span class="muted">{escaped(" · ".join(about))}</span>',
            f'<span class="status {"good" if status == "finished" else "other"}">{escaped(status_text)}</span></header>',
            paragraph(_filling(records) or _verdict(loss, chance_loss, knn, raw, records.has_rows())),
            paragraph(f"Lines of the logs that could not be read and are left out: {unreadable:,}." * bool(unreadable)),
            paragraph(f"Left out: {'; '.join(records.left_out)}." * bool(records.left_out)),
            tiles(headline),
        ]
    )


def _method_tiles(records: Records, instances: float | None) -> list[tuple[str, str, str]]:
    """What the method counts: the rows of a row table, and the figures of any other method by their names."""

    def of_all(count: float | None) -> str:
        share = None if count is None or not instances or instances < 1 else 100 * count / instances
        return "" if share is None else f"{share:.3g} % of the instances"

    whole = "{:,.0f}".format
    tiles_of_rows = []
    if records.has_rows():
        visited, active_rows = records.figure("visited"), records.active_rows()
        tiles_of_rows = [
            ("visited", _show(visited, whole), of_all(visited)),
            ("active rows K", _show(active_rows, whole), of_all(active_rows)),
            ("readmitted rows", _show(records.figure("readmitted"), whole), "left the device, returned, caught up"),
        ]
    names = [name for name in records.figure_names() if name not in FIGURES_OF_ROWS]
    return tiles_of_rows + [
        (name.replace("_", " "), _show(records.figure(name), "{:,.6g}".format), "") for name in names
    ]


def _words(value: object) -> str:
    """A text of a JSON field; empty where it is absent or something else."""
    return value if isinstance(value, str) else ""


def _filling(records: Records) -> str:
    """That the loss says little yet: rows become active at their first visit, and few negatives make a low loss."""
    taken, active_rows = finite(records.metrics[-1].get("active")) if records.metrics else None, records.active_rows()
    if not records.has_rows() or taken is None or active_rows is None or taken >= active_rows:
        return ""
    return f"{taken:,.0f} of {active_rows:,.0f} rows are active so far, so the loss says little: it is low because there are few negatives."


def _verdict(
    loss: float | None, chance_loss: float | None, knn: float | None, raw: float | None, has_rows: bool
) -> str:
    """Is it learning? From the two comparisons that answer it."""
    sentences = []
    if loss is not None and chance_loss is not None:
        against = "below" if loss < chance_loss else "not below"
        sentences.append(f"The loss is {against} chance: {loss:.2f} against {'ln K = ' * has_rows}{chance_loss:.2f}.")
    if knn is not None and raw is not None:
        points = 100 * (knn - raw)
        against = f"{points:.1f} points above" if points > 0 else f"{-points:.1f} points under"
        sentences.append(f"Nearest neighbours by the learned features are {against} nearest neighbours by raw pixels.")
    return " ".join(sentences)


def _loss(records: Records) -> list[str]:
    metrics, chance_loss = records.metrics, records.chance_loss()
    if not metrics:
        return [paragraph("No steps were logged.")]
    steps = [line["step"] for line in metrics]
    losses = [finite(line.get("loss")) for line in metrics]
    levels = []
    if chance_loss is not None:
        chance, part = ("chance ln K =", "0.7 ln K =") if records.has_rows() else ("chance", "0.7 of chance:")
        levels.append(Level(chance_loss, f"{chance} {chance_loss:.2f}", "warm"))
        levels.append(Level(0.7 * chance_loss, f"{part} {0.7 * chance_loss:.2f}"))
    caption = "Loss in nats at every logged step, and its running mean."
    if None in losses:
        caption += f" Logged steps without a finite loss, where the curve has gaps: {losses.count(None):,}."
    rates = [finite(line.get("lr")) for line in metrics]
    return [
        figure(curve_svg(steps, losses, name="Loss over steps", levels=levels, is_noisy=True), caption),
        "<h3>Learning rate</h3>",
        figure(curve_svg(steps, rates, name="Learning rate over steps", height=120)),
    ]


def _knn(records: Records) -> list[str]:
    evaluations = list({line["step"]: line for line in records.evaluations}.values())  # the last one of each step
    if not evaluations:
        return [paragraph("No evaluation was made in this run.")]
    last = evaluations[-1]
    steps = [evaluation["step"] for evaluation in evaluations]
    curves = [finite_items(evaluation.get("figures")) for evaluation in evaluations]
    raw, chance = finite_items(last.get("raw_pixels")), finite(last.get("chance"))
    logged = dict.fromkeys(name for curve in curves for name in curve)
    names = sorted(logged, key=lambda name: name != _HEADLINE)
    titles = {name: "kNN, top-1" if name == _HEADLINE else name for name in names}

    def chart(name: str, width: int, height: int) -> str:
        levels = [Level(raw[name], f"raw pixels {per_cent(raw[name])}", "warm")] if name in raw else []
        levels += [] if chance is None else [Level(chance, f"chance {per_cent(chance)}")]
        shares = [curve.get(name) for curve in curves]
        title = f"{titles[name]} over steps"
        return curve_svg(steps, shares, name=title, levels=levels, is_share=True, width=width, height=height)

    parts = [] if names else [paragraph("There are no labels, so there is no figure of nearest neighbours.")]
    if _HEADLINE in names:
        caption = (
            "Share of queries to which their nearest images of the gallery give the right label, at every evaluation."
        )
        parts.append(figure(chart(_HEADLINE, 1120, 270), caption))
    others = [name for name in names if name != _HEADLINE]
    panels = [f"<div><h3>{escaped(name)}</h3>{chart(name, 546, 160)}</div>" for name in others[:_MAX_PANELS]]
    parts += [f'<div class="panels">{"".join(panels)}</div>'] if panels else []
    rows = []
    for name in names:
        value, base = curves[-1].get(name), raw.get(name)
        gain = None if value is None or base is None else 100 * (value - base)
        first = [per_cent(curves[0].get(name))] if len(curves) > 1 else []
        rows.append([titles[name], *first, per_cent(value), per_cent(base), _show(gain, "{:+.1f} points".format)])
    first = [f"at step {steps[0]:,}"] if len(curves) > 1 else []
    headings = ["figure", *first, f"at step {steps[-1]:,}", "raw pixels", "against raw pixels"]
    parts += [table(headings, rows)] if names else []
    protocol = f"Protocol: {words}" if (words := _words(last.get("protocol"))) else ""
    return [*parts, *_rank(evaluations), paragraph(protocol, is_muted=True)]


def _rank(evaluations: list[dict]) -> list[str]:
    ranks = [finite(evaluation.get("rankme")) for evaluation in evaluations]
    if ranks[-1] is None:
        return []
    dimensions = finite(evaluations[-1].get("rankme_dim"))
    text = f"RankMe, the number of dimensions that the features really use: {ranks[-1]:.1f}"
    text += f" of {dimensions:,.0f}" if dimensions else ""
    text += f" (at step {evaluations[0]['step']:,}: {ranks[0]:.1f})" if len(ranks) > 1 and ranks[0] is not None else ""
    return [paragraph(text + ". A value near 1 would mean collapse.")]


def _time(records: Records) -> list[str]:
    rowless = () if records.has_rows() else _STAGES_OF_ROWS
    seconds: dict[str, float] = dict.fromkeys((stage for stage in _STAGES if stage not in rowless), 0.0)
    wall_seconds = wait_steps = wait_seconds = 0.0
    for line in records.metrics:
        wall_seconds += amount(line.get("interval_seconds")) or 0.0
        for stage, value in amounts(line.get("seconds")).items():
            seconds[stage] = seconds.get(stage, 0.0) + value
        waits = amounts(line.get("prefetch_waits"))
        wait_steps, wait_seconds = wait_steps + waits.get("steps", 0), wait_seconds + waits.get("seconds", 0.0)
    measured_seconds = sum(seconds.values())
    if not measured_seconds:
        return [paragraph("No times were logged.")]
    rest = ("everything else (evaluations, checkpoints, logs)", max(0.0, wall_seconds - measured_seconds))
    names = _STAGES if records.has_rows() else _STAGES | _WITHOUT_ROWS
    spent = [*((names.get(stage, stage), value) for stage, value in seconds.items()), rest]
    keys = [f"var(--s{index % 7})" for index in range(len(seconds))] + ["var(--s7)"]
    steps, total_seconds = records.metrics[-1]["step"], max(wall_seconds, measured_seconds)
    bars, rows = [], []
    for (name, value), key in zip(spent, keys, strict=True):
        share = value / total_seconds
        label = f"{100 * share:.0f} %" if share >= 0.05 else ""
        bars.append(f'<div style="width: {100 * share:.3f}%; background: {key}"><span>{label}</span></div>')
        in_all = f"{value:,.1f} s" if value < 60 else duration_text(value)
        rows.append([name, f"{100 * share:.1f} %", in_all, f"{1000 * value / max(1, steps):,.1f} ms"])
    waited = f"Steps that waited for the disk: {wait_steps:,.0f}, {duration_text(wait_seconds)} in all."
    return [
        f'<div class="stack" role="img" aria-label="Shares of the time by stage: see the table">{"".join(bars)}</div>',
        table(["stage", "share", "in all", "a step"], rows, keys=keys),
        paragraph(waited if wait_steps else "No step waited for the disk."),
    ]


def _memory(records: Records) -> list[str]:
    planned, measured = records.planned_bytes(), records.measured_bytes()
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
    details = f"<details><summary>The plan by item</summary>{table(['tier', 'item', 'planned'], items)}</details>"
    caption = "Upper bar: planned. Lower bar: measured, the largest count at any logged step."
    if not planned:
        caption = "The largest count at any logged step; the run left no plan to compare it with."
    if (ranks := records.figure("ranks") or 1) > 1:
        caption += f" Device and host: of the largest of {ranks:.0f} ranks; disk: of all."
    return [
        figure(memory_svg(tiers, planned, measured), caption),
        table(["tier", "planned", "measured", "measured / planned"], rows),
        details if items else "",
    ]


def _configuration(records: Records) -> list[str]:
    parts = []
    if records.config:
        text = escaped(json.dumps(records.config, indent=2, ensure_ascii=False))
        parts.append(f"<details><summary>The resolved config</summary><pre>{text}</pre></details>")
    else:
        parts.append(paragraph("The run left no config.json."))
    if records.summary:
        text = escaped(json.dumps(records.summary, indent=2, ensure_ascii=False))
        parts.append(f"<details><summary>The summary</summary><pre>{text}</pre></details>")
    return parts
