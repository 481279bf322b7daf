"""The report of a run: what a reader wants to judge it by, in one file that opens anywhere.

It is made from the run's own records and from two samples that only the engine can draw (nearest neighbours,
features for the map). Every figure stands beside what it has to beat: the loss beside ln K, the loss of a softmax
over K rows that knows nothing; kNN beside raw pixels and beside chance; measured memory beside the plan. A part whose
source is missing becomes one sentence that says so. Left out: comparisons with other runs, and whatever would have to
be fetched to be seen.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from engine.results.charts import Group, Level, Line, bars, curves
from engine.results.costs import memory_parts, over_steps, time_parts
from engine.results.linear_part import linear_section
from engine.results.page import figure, header, json_details, page, panels, paragraph, section, table, tiles
from engine.results.pictures import EmbeddingSample, NeighbourRow, feature_map, neighbour_pictures
from engine.results.progress import duration_text
from engine.results.records import (
    FIGURES_OF_PROBE,
    FIGURES_OF_ROWS,
    Records,
    amounts,
    evaluator_figures,
    finite,
    finite_items,
    read_records,
)

__all__ = ["EmbeddingSample", "NeighbourRow", "report_html", "report_of"]

_HEADLINE, _TOP_FIVE = "knn_top1", "knn_top5"
_MAX_PANELS, _MAX_WAYS = 12, 200
_ASKED = "Share of queries to which their nearest images of the gallery give the right label."


def report_of(
    output: Path,
    neighbours: list[NeighbourRow],
    embeddings: EmbeddingSample | None,
    summary: dict[str, Any] | None = None,
) -> str:
    """The text of report.html, from the run's files in `output`.

    neighbours may be empty and embeddings None; the report then says so.      summary: one that is not written yet
    """
    records = read_records(output)
    if summary is not None:
        records = replace(records, summary=summary)
    return report_html(output.resolve().name, records, neighbours, embeddings)


def report_html(name: str, records: Records, neighbours: list[NeighbourRow], embeddings: EmbeddingSample | None) -> str:
    """The whole document; `name` is what the run is called in its title."""
    no_neighbours = paragraph("No nearest neighbours were computed for this run.")
    no_map = paragraph("No sample of features was drawn for this run.")
    return page(
        f"{name}: report",
        [
            *_head(name, records),
            section("Loss", _loss(records)),
            section("Nearest neighbours by the learned features", _evaluations(records)),
            section("Where the time goes", time_parts(records)),
            section("Memory by tier", memory_parts(records)),
            section(
                "Pictures of nearest neighbours", neighbour_pictures(neighbours) if neighbours else [no_neighbours]
            ),
            section("Map of the features", feature_map(embeddings) if embeddings else [no_map]),
            linear_section(records.linear, finite(records.summary.get("steps"))),
            section("Configuration", _configuration(records)),
        ],
    )


def per_cent(share: float | None) -> str:
    """`52.1 %`, and two digits that count where a share is small: `0.066 %`."""
    if share is None:
        return "unknown"
    return f"{100 * share:.2g} %" if 0 < share < 0.01 else f"{100 * share:.1f} %"


def _show(value: float | None, how: Callable[[float], str]) -> str:
    return "unknown" if value is None else how(value)


def _head(name: str, records: Records) -> list[Markup]:
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
    filling = _filling(records)
    now = finite(records.metrics[-1].get("chance_loss")) if filling else None
    chance = f"chance: {'ln K = ' * records.has_rows()}{_show(chance_loss, '{:.2f}'.format)}"
    chance = chance if now is None else f"chance among the active rows: {now:.2f}"
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
    about = [words for field in ("job", "method") if (words := _words(records.summary.get(field)))]
    if (ranks := records.figure("ranks") or 1) > 1:
        about.append(f"{ranks:.0f} ranks")
    unreadable = records.unreadable_lines
    return [
        header(name, " · ".join(about), _status(records, steps), is_good=records.summary.get("status") == "finished"),
        paragraph(filling or _verdict(loss, chance_loss, knn, raw, records.has_rows())),
        paragraph(f"Lines of the logs that could not be read and are left out: {unreadable:,}." * bool(unreadable)),
        paragraph(f"Left out: {'; '.join(records.left_out)}." * bool(records.left_out)),
        tiles(headline),
    ]


def _status(records: Records, steps: float | None) -> str:
    """How the run ended; one that was asked to end early did not finish its schedule."""
    status = _words(records.summary.get("status")) or "no summary: still running, or killed"
    schedule, asked = finite(records.summary.get("steps_of_schedule")), records.config.get("steps")
    if status != "finished" or asked is None or (steps is not None and steps == schedule):
        return status
    return f"ended where steps={asked} asks{'' if schedule is None else f', of {schedule:,.0f}'}"


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
    return tiles_of_rows + [(name.replace("_", " "), _show(records.figure(name), _short), "") for name in names]


def _short(number: float) -> str:
    """Of whatever size: `0.121`, `12,346`."""
    return f"{number:,.0f}" if number == round(number) or abs(number) >= 100 else f"{number:.3g}"


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


def _loss(records: Records) -> list[Markup]:
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
    loss, chances = Line("loss", steps, losses, style="noisy"), [finite(line.get("chance_loss")) for line in metrics]
    lines = [loss]
    # Once all rows are active it is the level that is drawn anyway.
    if chance_loss is not None and any(one is not None and one < chance_loss - 0.005 for one in chances):
        lines.append(Line("chance among the active rows", steps, chances))
        caption += " While rows are still added, chance is ln of those that are there."
    if None in losses:
        caption += f" Logged steps without a finite loss, where the curve has gaps: {losses.count(None):,}."
    figures = [name for name in records.figure_names() if name not in FIGURES_OF_ROWS]
    figures += [name for name in FIGURES_OF_PROBE if any(name in line for line in metrics)]
    small = [
        over_steps(records, name, title)
        for name, title in [("lr", "Learning rate"), *((one, _title(one)) for one in figures)]
    ]
    return [
        figure(curves(lines, name="Loss over steps", x_title="step", y_title="nats", levels=levels), caption),
        panels(small),
    ]


_TITLES = {
    _HEADLINE: "kNN, top-1",
    _TOP_FIVE: "kNN, top-5",
    "rankme": "RankMe",
    "alignment": "alignment of two views (0: alike)",
    "uniformity": "uniformity (0: collapsed, -4: spread)",
    "second_view_found": "second views found",
    "own_row_found": "own rows found",
    "own_key_found": "own keys found",
    "head_rankme": "RankMe of the head",
    "probe_top1": "online probe, top-1",
    "probe_loss": "online probe, loss",
}


def _title(name: str) -> str:
    return _TITLES.get(name, name.replace("_", " "))


def _evaluations(records: Records) -> list[Markup]:
    """Every figure that an evaluator gave, over steps: shares beside raw pixels and chance, then RankMe and all others."""
    evaluations = records.evaluations
    if not evaluations:
        return [paragraph("No evaluation was made in this run.")]
    last, steps = evaluations[-1], [evaluation["step"] for evaluation in evaluations]
    shares = [finite_items(evaluation.get("figures")) for evaluation in evaluations]
    raw, chance = finite_items(last.get("raw_pixels")), finite(last.get("chance"))

    def chart(name: str, height: int = 200) -> tuple[str, Markup]:
        levels = [Level(raw[name], f"raw pixels {per_cent(raw[name])}", "warm")] if name in raw else []
        level = _chance_of(name, chance)
        levels += [] if level is None else [Level(level, f"chance {per_cent(level)}")]
        return _small(name, steps, shares, levels=levels, unit="share", height=height)

    names = sorted(_names(shares), key=lambda name: name != _HEADLINE)
    parts = [paragraph(_ASKED if names else "There are no labels, so there is no figure of nearest neighbours.")]
    if len(evaluations) == 1 and names:
        parts.append(_one_evaluation(names[:_MAX_PANELS], shares[0], raw, chance))
    elif names:
        parts += [chart(_HEADLINE, 300)[1]] if _HEADLINE in names else []
        parts.append(panels([chart(name) for name in names if name != _HEADLINE][:_MAX_PANELS]))
    parts += [_table_of_shares(names, steps, shares, raw)] if names else []
    parts += _grid(last)
    others = [_other_figures(evaluation) for evaluation in evaluations]
    if len(evaluations) > 1:
        parts.append(panels([_small(name, steps, others) for name in _names(others)[:_MAX_PANELS]]))
    told = [f"{_title(name)}: {value:,.4g}" for name, value in others[-1].items() if name != "rankme"]
    parts.append(paragraph(f"At step {steps[-1]:,}: {'; '.join(told)}." * bool(told)))
    protocols = [f"Protocol: {words}" for key in ("protocol", "views") if (words := _words(last.get(key)))]
    return [*parts, *_rank(evaluations), *(paragraph(one, is_muted=True) for one in protocols or [""])]


def _small(name: str, steps: list[int], figures: list[dict[str, float]], **how: Any) -> tuple[str, Markup]:
    """A figure over evaluations as a small chart, with its title; `how` as for curves."""
    line = Line(_title(name), steps, [one.get(name) for one in figures])
    return _title(name), figure(curves([line], name=f"{_title(name)} over steps", **{"height": 200, **how}))


def _one_evaluation(names: list[str], shares: dict[str, float], raw: dict[str, float], chance: float | None) -> Markup:
    groups = [Group("learned features", [shares.get(name) for name in names])]
    groups += [Group("raw pixels", [raw.get(name) for name in names])] if raw else []
    groups += [] if chance is None else [Group("chance", [_chance_of(name, chance) for name in names])]
    return figure(
        bars([_title(name) for name in names], groups, name="Nearest neighbours: see the table", unit="share")
    )


def _chance_of(name: str, chance: float | None) -> float | None:
    """Of a share, where `chance` is that of a single answer."""
    return None if chance is None else min(1.0, chance * (5 if name == _TOP_FIVE else 1))


def _names(figures: list[dict[str, float]]) -> list[str]:
    return [*dict.fromkeys(name for one in figures for name in one)]


def _other_figures(evaluation: dict[str, Any]) -> dict[str, float]:
    """What evaluators gave beside kNN, by name: numbers of the line itself and of the objects in it."""
    found = evaluator_figures(evaluation)
    for name, part in evaluation.items():
        if name not in ("figures", "raw_pixels"):
            found |= {f"{name}: {inner}": value for inner, value in finite_items(part).items()}
    return found


def _table_of_shares(
    names: list[str], steps: list[int], shares: list[dict[str, float]], raw: dict[str, float]
) -> Markup:
    rows, several = [], len(shares) > 1
    for name in names:
        value, base = shares[-1].get(name), raw.get(name)
        gain = None if value is None or base is None else 100 * (value - base)
        first = [per_cent(shares[0].get(name))] if several else []
        rows.append([_title(name), *first, per_cent(value), per_cent(base), _show(gain, "{:+.1f} points".format)])
    first = [f"at step {steps[0]:,}"] if several else []
    return table(["figure", *first, f"at step {steps[-1]:,}", "raw pixels", "against raw pixels"], rows)


def _grid(evaluation: dict[str, Any]) -> list[Markup]:
    """What other numbers of neighbours and temperatures give, where they were asked for."""
    lines = evaluation.get("grid")
    ways = [amounts(line) for line in lines] if isinstance(lines, list) else []
    rows = [
        [f"{way['k']:.0f}", f"{way['temperature']:g}", per_cent(way.get("top1")), per_cent(way.get("top5"))]
        for way in ways[:_MAX_WAYS]
        if "k" in way and "temperature" in way
    ]
    return [table(["k", "temperature", "top-1", "top-5"], rows)] if rows else []


def _rank(evaluations: list[dict[str, Any]]) -> list[Markup]:
    ranks = [finite(evaluation.get("rankme")) for evaluation in evaluations]
    if ranks[-1] is None:
        return []
    dimensions = finite(evaluations[-1].get("rankme_dim"))
    text = f"RankMe, the number of dimensions that the features really use: {ranks[-1]:.1f}"
    text += f" of {dimensions:,.0f}" if dimensions else ""
    text += f" (at step {evaluations[0]['step']:,}: {ranks[0]:.1f})" if len(ranks) > 1 and ranks[0] is not None else ""
    return [paragraph(text + ". A value near 1 would mean collapse.")]


def _configuration(records: Records) -> list[Markup]:
    parts = [
        json_details("The resolved config", records.config)
        if records.config
        else paragraph("The run left no config.json.")
    ]
    return [*parts, json_details("The summary", records.summary)] if records.summary else parts
