"""Links between the documents lead somewhere, and the first of them stays short."""

import re
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

DOCUMENTS = sorted(
    path
    for room in ("", "configs", "datasets", "engine", "kernels", "tests")
    for path in (REPOSITORY / room).glob("*.md")
)


def anchors(text: str) -> set[str]:
    """The headings of a document, as GitHub names them in links."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(document: Path, text: str) -> list[str]:
    """Links of `text` to files that are not there, or to headings that their file lacks."""
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (document.parent / name) if name else document
        if not target.exists() or (anchor and anchor not in anchors(text if not name else target.read_text())):
            dead.append(link)
    return dead


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_link_leads_to_a_file_and_a_heading_that_are_there(document):
    assert dead_links(document, document.read_text()) == []


def test_planted_dead_links_are_found():
    text = "# One\n[a](#one) [b](#two) [c](README.md) [d](none.md) [e](engine/README.md#none) ![f](none.svg)"
    assert dead_links(REPOSITORY / "README.md", text) == ["#two", "none.md", "engine/README.md#none", "none.svg"]


def test_the_readme_has_at_most_150_lines():
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= 150
