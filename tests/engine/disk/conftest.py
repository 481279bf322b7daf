"""Two checkpoints of a run of 21 steps, made once for the tests of a module."""

import shutil

import pytest

from tests.engine.disk.small_runs import SHORT, train
from tests.engine.disk_runs import UnsyncedFiles
from tests.engine.small_training import Training


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A directory with checkpoints of steps 7 and 14, each a delta of tables that an earlier one has."""
    root = tmp_path_factory.mktemp("template") / "checkpoints"
    train(UnsyncedFiles(root), 15)
    return root


@pytest.fixture(scope="module")
def end(tmp_path_factory):
    """The state at the end of that run."""
    return Training(SHORT, UnsyncedFiles(tmp_path_factory.mktemp("end") / "checkpoints")).finish()


@pytest.fixture
def root(template, tmp_path):
    """A copy of the template, to be changed."""
    return shutil.copytree(template, tmp_path / "checkpoints")
