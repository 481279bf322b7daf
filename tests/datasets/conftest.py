"""What tests of files that cannot be read share."""

from pathlib import Path

import pytest

from datasets import regular_file
from datasets.folder import ImageFolder
from tests.datasets.faulty_reads import Pauses, save


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> Pauses:
    """The pauses that were asked for; none is made."""
    slept: Pauses = []
    monkeypatch.setattr(regular_file.time, "sleep", slept.append)
    return slept


@pytest.fixture
def folder(tmp_path: Path) -> ImageFolder:
    for name in ("a", "b", "c"):
        save(tmp_path / "root" / "cat" / f"{name}.png")
    return ImageFolder(tmp_path / "root")
