"""A page is whole, fetches nothing, and runs nothing but its own two scripts, whatever the names in it are."""

import base64
import hashlib
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jinja2.exceptions import UndefinedError
from markupsafe import Markup

from engine.results import page as pages
from engine.results.charts import Group, Level, Line, bars, curves
from engine.results.page import (
    details,
    figure,
    header,
    json_details,
    legend,
    page,
    panels,
    paragraph,
    pictures,
    section,
    table,
    tiles,
)
from tests.engine.results.page_parser import Tags, assert_only_ours

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "</style></title></textarea><img src=x onerror=alert(1)>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    '<a href="javascript:alert(1)">x</a>',
    "<svg/onload=alert(1)>",
    '<meta http-equiv="refresh" content="0;url=https://example.org">',
    "{{ 7 * 7 }}{% include 'page.css' %}{# #}",
    "%{text}<extra>",
    "var(--ink)",
    "\x00\x1b[31m\x07\x9b",
    "\u202egnp.\u2066\u200f",
    "\ud800\udce9",
    "\u2028\u2029\r\n",
]
ANY_TEXT = st.text(st.characters(exclude_categories=[])) | st.sampled_from(HOSTILE)


def page_full_of(text: str) -> str:
    """Every block with the text wherever it takes one."""
    lines = [Line(text, [1, 2], [1.0, None])]
    curve = curves(lines, name=text, x_title=text, y_title=text, levels=[Level(1.0, text)])
    return page(
        text,
        [
            header(text, text, text),
            tiles([(text, text, text)]),
            section(text, [paragraph(text), paragraph(text, is_muted=True), legend([(text, "#123456")])]),
            panels([(text, figure(curve, text))]),
            figure(bars([text], [Group(text, [1.0])], name=text, unit="bytes")),
            table([text, text], [[text, text]], keys=["var(--c0)"]),
            details(text, paragraph(text)),
            json_details(text, {text: [text]}),
            pictures([("query", "right", "data:image/png;base64,", text, text)]),
        ],
    )


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_nothing_of_a_hostile_name_is_obeyed(text):
    html = page_full_of(text)
    assert_only_ours(html)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", html)


@given(ANY_TEXT)
@example("<script>")
def test_a_page_full_of_any_text_has_the_tags_of_a_page_without_text(text):
    html = page_full_of(text)
    assert_only_ours(html)
    html.encode("utf-8")
    plain, own = Tags(page_full_of("a" * len(text))), Tags(html)
    if text:
        assert [(tag, name) for tag, name, _ in own.attributes] == [(tag, name) for tag, name, _ in plain.attributes]
        assert len(own.scripts) == len(plain.scripts)


def test_markup_that_no_template_made_would_be_found():
    for planted in (
        "<script>alert(1)</script>",
        "<img src=x onerror=a>",
        "<a href=b>c</a>",
        '<p style="color: red">d</p>',
    ):
        with pytest.raises(AssertionError):
            assert_only_ours(page("a", [Markup(planted)]))


def test_the_policy_lets_run_what_is_in_the_page_and_nothing_else():
    html = page_full_of("a")
    policy = next(
        value for tag, name, value in Tags(html).attributes if tag == "meta" and value.startswith("default-src")
    )
    allowed = re.findall(r"'sha256-([^']*)'", policy)
    scripts = [content for kind, content in Tags(html).scripts if kind is None]
    assert allowed == [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert len(scripts) == 2 and "unsafe-eval" not in policy and policy.startswith("default-src 'none';")
    assert "script-src 'none'" in page("a", [paragraph("no chart")])


def test_plotly_js_is_in_a_page_once_and_only_where_there_is_a_chart(monkeypatch):
    monkeypatch.undo()
    library = pages.plotly_js()
    assert len(library) > 10**6 and "plotly.js v" in library[:100]
    # What a browser would read differently from what was hashed, or would take for the end of the script.
    assert not re.search("</script|<!--|\r|\0", library, re.IGNORECASE)
    assert page_full_of("a").count(library[:100]) == 1
    assert library[:100] not in page("a", [paragraph("b")])


def test_without_javascript_words_tables_and_pictures_are_there():
    html = page_full_of("a")
    without = re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)
    assert "<noscript>" in without
    assert [block in without for block in ("<table>", "<img ", "<details>", "<figcaption>")] == [True] * 4


def test_a_template_that_names_what_is_not_there_is_an_error():
    with pytest.raises(UndefinedError):
        pages._environment().from_string("{{ nothing }}").render()


def test_light_and_dark_have_the_same_colours_by_name():
    light, dark = re.findall(r":root \{(.*?)\n *\}", pages._own("page.css"), re.DOTALL)
    names = [set(re.findall(r"--[a-z0-9]+(?=:)", colours)) for colours in (light, dark)]
    used = set(re.findall(r"var\((--[a-z0-9]+)\)", pages._own("page.css") + pages._own("charts.js")))
    assert names[0] == names[1] and used <= names[0]
    assert {f"--c{index}" for index in range(8)} <= names[0]
