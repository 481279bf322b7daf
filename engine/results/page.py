"""The sheet of paper that the report is printed on: one self-contained HTML file and its few building blocks.

Nothing is fetched: the style is inline, charts are inline SVG, pictures are `data:` PNGs, and there is no script.
The typeface is the reader's own system font; light and dark follow the reader's setting through the CSS variables
below, which charts use too. What these functions are given as text is escaped; only arguments named `..._html` go in
as they are.
"""

import base64
import io
from collections.abc import Sequence
from html import escape

from PIL import Image

from datasets.shown import shown_lines

STYLE = """
:root {
  color-scheme: light dark;
  --ink: #1f2430; --muted: #667080; --line: #d9dde4; --surface: #ffffff; --paper: #f5f6f8;
  --accent: #2f6fb2; --accent-soft: #b5cfe9; --warm: #b8602a; --right: #2c8a57; --wrong: #c4453c;
  --s0: #b8602a; --s1: #2f6fb2; --s2: #7f8fa6; --s3: #2c8a7d; --s4: #7aa6d6; --s5: #8a6bb0;
  --s6: #c9a13b; --s7: #c3c9d2;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e4e7ec; --muted: #9aa4b2; --line: #343b47; --surface: #1b2029; --paper: #12161c;
    --accent: #6ea8e6; --accent-soft: #35577c; --warm: #e09256; --right: #55b884; --wrong: #e8776d; --s7: #4a5362;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1184px; margin: 0 auto; padding: 32px 32px 64px; font-variant-numeric: tabular-nums; }
h1 { font-size: 28px; line-height: 1.2; font-weight: 650; margin: 0; letter-spacing: -0.01em; }
h2 { font-size: 18px; font-weight: 650; margin: 0 0 4px; }
h3 { font-size: 14px; font-weight: 600; margin: 20px 0 4px; }
p { margin: 4px 0 12px; max-width: 100ch; }
section p:last-child { margin-bottom: 0; }
.muted { color: var(--muted); }
header { display: flex; align-items: baseline; gap: 14px; flex-wrap: wrap; margin-bottom: 8px; }
.status { font-size: 13px; font-weight: 600; padding: 2px 10px; border-radius: 99px; border: 1px solid currentColor; }
.status.good { color: var(--right); } .status.other { color: var(--warm); }
section { background: var(--surface); border: 1px solid var(--line); border-radius: 10px;
  padding: 20px 24px; margin-top: 20px; }
.tiles { display: flex; flex-wrap: wrap; gap: 1px; background: var(--line);
  border: 1px solid var(--line); border-radius: 10px; overflow: hidden; margin-top: 20px; }
.tile { flex: 1 1 22%; background: var(--surface); padding: 14px 18px 12px; }
.tile .name { font-size: 13px; color: var(--muted); }
.tile .value { font-size: 26px; line-height: 1.25; font-weight: 600; letter-spacing: -0.01em; }
.tile .beside { font-size: 13px; color: var(--muted); }
figure { margin: 8px 0 0; }
figcaption { font-size: 13px; color: var(--muted); margin-top: 4px; max-width: 100ch; }
svg { display: block; width: 100%; height: auto; stroke-linejoin: round; }
svg text { font-family: system-ui, sans-serif; }
.panels { display: grid; grid-template-columns: repeat(2, 1fr); gap: 8px 28px; }
.panels h3 { margin-top: 14px; }
table { border-collapse: collapse; font-size: 14px; margin: 12px 0 4px; }
th, td { padding: 5px 0 5px 28px; text-align: right; border-bottom: 1px solid var(--line); }
th { font-weight: 500; color: var(--muted); }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
.key { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 8px; }
.stack { display: flex; height: 34px; border-radius: 6px; overflow: hidden; margin: 12px 0; }
.stack div { overflow: hidden; white-space: nowrap; font-size: 13px; line-height: 34px; color: #fff; }
.stack span { margin-left: 8px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; font-size: 13px; margin: 4px 0; }
.row { display: grid; grid-template-columns: 124px repeat(8, 1fr); gap: 10px; padding: 10px 0;
  border-bottom: 1px solid var(--line); }
.row:last-child { border-bottom: 0; }
.picture { font-size: 12px; line-height: 1.3; text-align: center; min-width: 0; }
.picture img { display: block; width: 68px; height: 68px; object-fit: contain; margin: 0 auto 4px; border-radius: 5px;
  border: 3px solid var(--line); background: var(--line); }
.picture.right img { border-color: var(--right); } .picture.wrong img { border-color: var(--wrong); }
.picture .name { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 2; overflow: hidden;
  overflow-wrap: anywhere; }
.picture.query { border-right: 1px solid var(--line); padding-right: 10px; font-weight: 600; }
.picture .right { color: var(--right); } .picture .wrong { color: var(--wrong); }
.map { display: block; width: 100%; height: auto; }
details { margin-top: 8px; } summary { cursor: pointer; font-size: 14px; }
pre { font: 13px/1.5 ui-monospace, monospace; overflow-x: auto; margin: 10px 0 0; }
"""


def escaped(text: str) -> str:
    """Text as HTML shows it: what would be markup is escaped, what would be obeyed or cannot be encoded is written out."""
    return escape(shown_lines(text))


def page(title: str, body_html: str) -> str:
    """A whole HTML document."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body_html}\n</main>\n</body>\n</html>\n"
    )


def section(heading: str, *parts_html: str) -> str:
    """One card with a heading."""
    return f"<section>\n<h2>{escaped(heading)}</h2>\n" + "\n".join(parts_html) + "\n</section>"


def paragraph(text: str, *, is_muted: bool = False) -> str:
    """One paragraph of text; empty text gives nothing."""
    kind = ' class="muted"' if is_muted else ""
    return f"<p{kind}>{escaped(text)}</p>" if text else ""


def figure(picture_html: str, caption: str = "") -> str:
    """A chart or picture with its caption."""
    below = f"<figcaption>{escaped(caption)}</figcaption>" if caption else ""
    return f"<figure>{picture_html}{below}</figure>"


def tiles(contents: Sequence[tuple[str, str, str]]) -> str:
    """The headline: figures of (name, value, what to compare it with), four in a row; those of a last row that is not full are wider."""
    cells = [
        f'<div class="tile"><div class="name">{escaped(name)}</div><div class="value">{escaped(value)}</div>'
        f'<div class="beside">{escaped(beside)}</div></div>'
        for name, value, beside in contents
    ]
    return f'<div class="tiles">{"".join(cells)}</div>'


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, keys: Sequence[str] | None = None) -> str:
    """A table of text whose first column names the row; `keys` are CSS colours shown before these names."""
    head = "".join(f"<th>{escaped(heading)}</th>" for heading in headings)
    body = []
    for index, cells in enumerate(rows):
        key = "" if keys is None else f'<span class="key" style="background: {keys[index]}"></span>'
        body.append(f"<tr><td>{key}" + "</td><td>".join(escaped(cell) for cell in cells) + "</td></tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>" + "".join(body) + "</tbody></table>"


def png_data_url(image: Image.Image) -> str:
    """The image as a `data:` URL that an <img> can hold."""
    data = io.BytesIO()
    image.save(data, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode("ascii")
