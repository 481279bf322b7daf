"""Pages that any job can write: one HTML file that opens anywhere, made of a few building blocks.

Nothing is fetched: style, charts and pictures are in the file. What is text is escaped, by one rule for all templates: only what a
block of this module made (Markup) goes in as it is, everything else is shown by datasets/shown.py. Should that fail, the page's
Content-Security-Policy lets no script run but plotly.js and templates/charts.js, by their hashes, and fetches nothing. Light and
dark follow the reader's setting. Without JavaScript the charts are missing; words, tables and pictures are there.
"""

import base64
import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from datasets.shown import shown_lines
from engine.results.charts import Chart

_TEMPLATES = Path(__file__).with_name("templates")


def page(title: str, parts: Iterable[Markup]) -> str:
    """A whole HTML document of blocks; the library that draws is in it where one of them is a chart."""
    body = [*parts]
    has_charts = any('<div class="chart"' in part for part in body)  # text cannot have it: its quotes are escaped
    scripts = [Markup(text) for text in (plotly_js(), _own("charts.js"))] if has_charts else []
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{one}'" for one in hashes) or "'none'"
    policy = f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    whole = _environment().get_template("page.html")
    return whole.render(title=title, policy=Markup(policy), style=_own("page.css"), parts=body, scripts=scripts)


def header(title: str, about: str, status: str = "", *, is_good: bool = True) -> Markup:
    """The title of the page, what it is about in a few words, and a status in a frame, green where all is good."""
    return _block("header", title, about, status, is_good)


def section(title: str, parts: Iterable[Markup]) -> Markup:
    """One card with a heading."""
    return _block("section", title, [*parts])


def panels(parts: Iterable[tuple[str, Markup]]) -> Markup:
    """Small figures with their titles, two in a row where there is room."""
    return _block("panels", [*parts])


def paragraph(text: str, *, is_muted: bool = False) -> Markup:
    """One paragraph of text; empty text gives nothing."""
    return _block("paragraph", text, is_muted)


def tiles(contents: Sequence[tuple[str, str, str]]) -> Markup:
    """The headline: figures of (name, value, what to compare it with), four in a row where there is room."""
    return _block("tiles", contents)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, keys: Sequence[str] = ()) -> Markup:
    """A table of text whose first column names the row; `keys` are CSS colours shown before these names."""
    return _block("table", headings, rows, keys)


def legend(entries: Sequence[tuple[str, str]]) -> Markup:
    """Names with their CSS colours."""
    return _block("legend", entries)


def figure(drawn: Chart | Markup, caption: str = "") -> Markup:
    """A chart, or a picture that is a block already, with its caption."""
    if isinstance(drawn, Chart):
        drawn = _block("chart", drawn.name, {"data": drawn.data, "layout": drawn.layout})
    return _block("figure", drawn, caption)


def image(picture: Image.Image, alt: str) -> Markup:
    """A picture as wide as the page; alt: what it says to those who do not see it."""
    return _block("image", png_data_url(picture), alt)


def details(summary: str, content: Markup) -> Markup:
    """What is shown when the reader asks for it."""
    return _block("details", summary, content, False)


def json_details(summary: str, content: object) -> Markup:
    """The same for a JSON value, written as code."""
    return _block("details", summary, json.dumps(content, indent=2, ensure_ascii=False), True)


def pictures(cells: Sequence[tuple[str, str, str, str, str]]) -> Markup:
    """A row of small pictures: (role, "right", "wrong" or "" where nobody knows, URL, name, words below)."""
    return _block("pictures", cells)


def png_data_url(picture: Image.Image) -> str:
    """The picture as a `data:` URL that an <img> can hold."""
    data = io.BytesIO()
    picture.save(data, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode("ascii")


def plotly_js() -> str:
    """plotly.js as the package brings it, some 5 MB."""
    from plotly.offline import get_plotlyjs  # figures are plain JSON, so nothing else of the package is needed

    return str(get_plotlyjs())


def _own(name: str) -> Markup:
    return Markup((_TEMPLATES / name).read_text(encoding="utf-8"))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else shown_lines(str(value)),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    return environment


def _block(name: str, *given: Any) -> Markup:
    blocks: Any = _environment().get_template("blocks.html").module
    made = getattr(blocks, name)(*given)
    assert isinstance(made, Markup)
    return made
