"""What `--help` shows are jobs that there are, and commands that work."""

import shlex
from typing import get_args

import pytest

import launch
from configs import schema
from engine.jobs import JOBS, help_text


def shown(capsys):
    with pytest.raises(SystemExit) as end:
        launch.main(["--help"])
    assert end.value.code == 0
    return capsys.readouterr().out


def test_help_names_every_job(capsys):
    assert set(JOBS) == set(get_args(schema.Config.model_fields["job"].annotation))
    text = shown(capsys)
    assert help_text() in text
    assert all(f"job={name} " in text for name in JOBS)


def test_the_examples_of_the_help_are_three_commands_that_are_read(capsys):
    examples = [line.strip() for line in shown(capsys).partition("examples:\n")[2].splitlines()]
    assert len(examples) == 3
    for example in examples:
        options = launch.parsed(shlex.split(example)[1:])
        assert schema.load(options.config, options.overrides).output
