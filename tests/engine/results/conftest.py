"""Pages of these tests are looked at as text: the 5 MB of plotly.js would only be in the way."""

import pytest


@pytest.fixture(autouse=True)
def _without_plotly_js(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.results.page.plotly_js", lambda: "/* plotly.js */")
