"""A page as a browser's parser takes it apart: tags that nest, attributes, scripts, charts."""

import json
from html.parser import HTMLParser
from typing import Any


class Tags(HTMLParser):
    """Checks that tags nest; collects attributes, texts, scripts and charts."""

    VOID = frozenset(["meta", "img"])

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.scripts: list[tuple[str | None, str]] = []  # type, content
        self.charts: dict[str, dict[str, Any]] = {}  # name -> what plotly.js is given
        self._script: list[str] = []
        self._of: dict[str, str | None] = {}
        self._label = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        of = dict(attrs)
        if of.get("class") == "chart":
            self._label = of.get("aria-label") or ""
        if tag == "script":
            self._script, self._of = [], of
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self._script.append(data)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another tag"
        if tag == "script":
            content = "".join(self._script)
            self.scripts.append((self._of.get("type"), content))
            if self._of.get("type") == "application/json":
                self.charts[self._label] = json.loads(content)


def charts_of(html: str) -> dict[str, dict[str, Any]]:
    return Tags(html).charts


def assert_only_ours(html: str) -> None:
    """No script but plotly.js, charts.js and JSON; no handler; no link; no picture that is not in the page; no tag that would fetch."""
    tags = Tags(html)
    assert tags.open == []
    assert {kind for kind, _ in tags.scripts} <= {None, "application/json"}
    assert [
        content
        for kind, content in tags.scripts
        if kind is None and not content.startswith(("/* plotly.js", "// Draws"))
    ] == []
    for tag, name, value in tags.attributes:
        assert not name.startswith("on") and name not in (
            "href",
            "srcset",
            "action",
            "formaction",
            "xlink:href",
            "data",
        ), (tag, name)
        assert name != "src" or (tag == "img" and value.startswith("data:image/png;base64,")), (tag, value[:60])
        assert name != "style" or value.startswith("background: "), (tag, value)
        assert name != "http-equiv" or value == "Content-Security-Policy"
    for chart in tags.charts.values():
        for text in texts_of(chart):
            assert "<" not in text and ">" not in text, text  # plotly.js would take it for markup


def texts_of(value: Any) -> list[str]:
    """All strings of a JSON value, but what plotly.js is told to put in: %{text}<extra></extra>."""
    if isinstance(value, dict):
        return [text for key, part in value.items() if key != "hovertemplate" for text in texts_of(part)]
    if isinstance(value, list):
        return [text for part in value for text in texts_of(part)]
    return [value] if isinstance(value, str) else []
