"""Two checkpoints of a harness case, made once for all tests of a process."""

import shutil

import pytest

from tests.engine.jobs.store.stores import CASE, saved


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    root = tmp_path_factory.mktemp("template") / "checkpoints"
    saved(CASE, root)
    return root


@pytest.fixture
def root(template, tmp_path):
    """Two checkpoints of a harness case, to be damaged."""
    return shutil.copytree(template, tmp_path / "checkpoints")
