"""The section of a report about the linear probe, from linear.json; and a report that is there already, with a new one.

linear.json has an object for each protocol that was run. It is read as every record is: what is not what it should be is left out.
"""

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from engine.results.page import paragraph, section, table, tiles
from engine.results.records import finite

TITLE = "Linear probe"
_BEFORE = "Configuration"  # the section before which it stands in a report that has none yet
_NAMES = {"sgd": "SGD", "logistic": "logistic regression", "published": "published"}
_PROTOCOLS = {
    "features": "Cached features, standardised",
    "published": "The published protocol",
    "tested_again": "A probe that was trained before, tested again",
}
_CLASSES = 10  # of the best and of the worst


def linear_section(linear: dict[str, Any], steps: float | None = None) -> Markup:
    """linear: the content of linear.json; empty where no probe was made. steps: of the run by now; None: there is none."""
    found = [(name, linear[key]) for key, name in _PROTOCOLS.items() if isinstance(linear.get(key), dict)]
    parts = [part for name, result in found for part in _parts(name, result, steps)]
    none = paragraph("No linear probe was trained on this run's features; job=linear does it.")
    return section(TITLE, parts or [none])


def with_section(report: str, new: Markup) -> str | None:
    """A report's text with this section in the place of the one that it has; None where it has no place for it."""
    block = str(new).strip()  # a Markup would escape what it is put into
    start = report.find(_heading(TITLE))
    if start >= 0:
        end = report.find("</section>", start)
        return None if end < 0 else report[:start] + block + report[end + len("</section>") :]
    start = report.find(_heading(_BEFORE))
    return None if start < 0 else f"{report[:start]}{block}\n{report[start:]}"


def _heading(title: str) -> str:
    whole = str(section(title, []))
    return whole[: whole.index("</h2>") + len("</h2>")].strip()


def _parts(name: str, result: dict[str, Any], steps: float | None) -> list[Markup]:
    heads = _objects(result.get("heads"))
    shown = [
        (_NAMES.get(str(one.get("name")), "classifier"), _per_cent(one.get("top1")), _beside(one)) for one in heads
    ]
    chance = f"Chance: {_per_cent(result.get('chance'))}."
    about = result.get("protocol")
    return [
        paragraph(f"{name}: share of test images whose class a linear classifier tells. {chance}"),
        tiles(shown),
        paragraph(_network(result, steps)),
        *_grids(heads),
        *_few(_objects(result.get("few_labels"))),
        *_classes(_objects(result.get("per_class"))),
        paragraph(f"Protocol: {about}" if isinstance(about, str) else "", is_muted=True),
    ]


def _network(result: dict[str, Any], steps: float | None) -> str:
    """Whose features these are, and whether the run has another network by now; empty where it is not said."""
    named, of_step = result.get("backbone"), finite(result.get("steps"))
    text = f"Network: {named}." if isinstance(named, str) else ""
    if of_step is None or steps is None or of_step == steps:
        return text
    return f"{text} It is that of step {of_step:,.0f}; the run is at step {steps:,.0f} by now, so job=linear is to be asked again."


def _beside(head: dict[str, Any]) -> str:
    top5 = [] if finite(head.get("top5")) is None else [f"top-5 {_per_cent(head.get('top5'))}"]
    values = [f"{name} {value:g}" for name in ("rate", "C", "lr") if (value := finite(head.get(name))) is not None]
    wild = ["its weights grew without end"] if head.get("is_finite") is False else []
    return ", ".join([*top5, *values, *wild])


def _grids(heads: list[dict[str, Any]]) -> list[Markup]:
    """What each value of a grid gave on the held-out images."""
    rows = []
    for head in heads:
        for one in _objects(head.get("grid")):
            value = next((one[name] for name in ("rate", "C") if finite(one.get(name)) is not None), None)
            cut = " (ended before its optimum)" if one.get("is_converged") is False else ""
            share = _per_cent(one.get("held_out_top1"))
            rows.append([_NAMES.get(str(head.get("name")), ""), _number(value) + cut, share])
    return [table(["chosen on held-out training images", "rate or C", "held-out, top-1"], rows)] if rows else []


def _few(few: list[dict[str, Any]]) -> list[Markup]:
    rows = []
    for one in few:
        name = one["what"] if isinstance(one.get("what"), str) else "unknown"
        figures = [_per_cent(one.get("top1")), _per_cent(one.get("top5"))]
        rows.append([name, _number(one.get("images")), *figures, _number(one.get("C"))])
    return [table(["few labels", "images", "top-1", "top-5", "C"], rows)] if rows else []


def _classes(classes: list[dict[str, Any]]) -> list[Markup]:
    """The classes that are told worst and best, by the last classifier; all of them where there are few."""
    names = [name for name in _NAMES if any(finite(one.get(name)) is not None for one in classes)]
    if not names:
        return []
    classes = sorted(classes, key=lambda one: finite(one.get(names[-1])) or 0.0)
    if len(classes) > 2 * _CLASSES:
        classes = classes[:_CLASSES] + classes[-_CLASSES:]
    rows = [
        [str(one.get("example", "")), _number(one.get("images")), *(_per_cent(one.get(name)) for name in names)]
        for one in classes
    ]
    return [table(["class, worst first", "images", *(_NAMES[name] for name in names)], rows)]


def _objects(values: object) -> list[dict[str, Any]]:
    return [dict(one) for one in values if isinstance(one, Mapping)] if isinstance(values, list) else []


def _per_cent(value: object) -> str:
    share = finite(value)
    return "unknown" if share is None else f"{100 * share:.2g} %" if 0 < share < 0.01 else f"{100 * share:.1f} %"


def _number(value: object) -> str:
    number = finite(value)
    return "unknown" if number is None else f"{number:,.6g}"
