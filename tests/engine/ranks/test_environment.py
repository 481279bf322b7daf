"""What a launcher left in the environment is a number, or is told by its name; what is empty is not set."""

import os

import pytest

from engine.ranks import environment, ranks
from engine.ranks.environment import check_environment, environment_number, number_or_zero

NAMES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("text", ["", " ", "\t\n"])
def test_what_is_set_and_empty_is_not_set(monkeypatch, text):
    for name in NAMES:
        monkeypatch.setenv(name, text)
    assert [environment_number(name, 5) for name in NAMES] == [5] * len(NAMES)
    check_environment()


def test_a_number_is_read_with_blanks_around_it(monkeypatch):
    monkeypatch.setenv("RANK", " 3\n")
    assert environment_number("RANK", 0) == 3


@pytest.mark.parametrize("name", [name for name in NAMES if name != "MASTER_ADDR"])
@pytest.mark.parametrize(
    "text", ["two", "1.0", "1_0", "0x1", "--1", "-1", "٣", "9" * 5000, "99999999999", "\udce9", "1\0", "\x1b[2J"]
)
def test_what_is_no_such_number_is_a_line_that_names_the_variable(monkeypatch, name, text):
    monkeypatch.setattr(environment.os, "environ", {name: text})
    for ask in (lambda: environment_number(name, 0), check_environment):
        with pytest.raises(ValueError, match=f"the environment variable {name} is ") as caught:
            ask()
        message = str(caught.value)
        assert type(caught.value) is ValueError
        assert message.isprintable() and len(message) < 300
    assert number_or_zero(name) == 0


def test_zero_processes_are_none(monkeypatch):
    """8 lanes % 0 was a ZeroDivisionError, and 8 % -1 is 0."""
    monkeypatch.setenv("WORLD_SIZE", "0")
    with pytest.raises(ValueError, match="WORLD_SIZE is 0, and must be 1 to"):
        environment_number("WORLD_SIZE", 1)


def test_a_port_above_all_ports_is_refused(monkeypatch):
    monkeypatch.setenv("MASTER_PORT", "65536")
    with pytest.raises(ValueError, match="MASTER_PORT is 65536, and must be 0 to 65535"):
        check_environment()


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK"])
def test_a_rank_is_below_the_number_of_processes(monkeypatch, name):
    for size, said in (("2", "WORLD_SIZE is 2"), ("", "WORLD_SIZE is not set, which means 1")):
        monkeypatch.setenv("WORLD_SIZE", size)
        monkeypatch.setenv(name, "2")
        with pytest.raises(ValueError, match=f"{name} is 2, and {said}: ranks are numbered from 0"):
            check_environment()
    monkeypatch.setenv("WORLD_SIZE", "3")
    check_environment()


def test_the_process_group_begins_with_empty_variables_and_refuses_wrong_ones(monkeypatch):
    import torch

    cpu = torch.device("cpu")
    joined: list[dict] = []
    monkeypatch.setattr(ranks.dist, "is_initialized", lambda: False)
    monkeypatch.setattr(ranks.dist, "init_process_group", lambda *_, **how: joined.append(how))
    for name in NAMES:
        monkeypatch.setenv(name, "")
    made = ranks.start(cpu)
    assert (made.rank, made.size, made.node_rank, made.node_size) == (0, 1, 0, 1)
    assert len(joined) == 1
    assert [os.environ[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")] == ["0", "0", "1", "0"]
    for name in NAMES:
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set"):
        ranks.start(cpu)
    for name, text in {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "no"}.items():
        monkeypatch.setenv(name, text)
    with pytest.raises(ValueError, match="MASTER_PORT is"):
        ranks.start(cpu)
    with pytest.raises(ValueError, match="MASTER_PORT is"):
        ranks.connect_table()
