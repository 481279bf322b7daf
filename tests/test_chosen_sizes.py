"""A config that leaves sizes to be chosen runs, says what was chosen, keeps it, and goes on with it."""

import json

from tests.conftest import TINY

NULL = {
    **TINY,
    "schedule": {"batch": 64},
    "method": {key: value for key, value in TINY["method"].items() if key != "active"},
}
WORDS = "schedule.window=1536 schedule.stride=1536 schedule.block=64 schedule.lanes=8 method.active=null (all rows)"


def sizes_of(config: dict) -> tuple:
    return *(config["schedule"][name] for name in ("window", "stride", "block", "lanes")), config["method"]["active"]


def test_the_sizes_that_were_chosen_are_said_and_kept_as_numbers(run, capsys):
    assert run("steps=4", config=NULL) == 0
    assert f"sizes that were chosen: {WORDS}\n" in capsys.readouterr().out
    kept = json.loads((run.output / "config.json").read_text())
    assert sizes_of(kept) == (1536, 1536, 64, 8, None)
    assert run("steps=4", config=TINY, flags=("--fresh",)) == 0
    assert "sizes that were chosen" not in capsys.readouterr().out


def test_a_message_tells_which_of_its_sizes_nobody_gave(run, capsys):
    assert run("schedule.window=1000", config=NULL) == 2
    error = capsys.readouterr().err
    assert "block x lanes (512) does not divide stride (1000) (chosen: stride 1000, block 64, lanes 8); set " in error
    assert run("schedule.window=1000", "schedule.stride=1000", config=NULL) == 2
    assert "(chosen: block 64, lanes 8); set " in capsys.readouterr().err


def test_a_run_goes_on_to_the_bit_whether_its_sizes_are_null_or_the_numbers_that_were_chosen(run, capsys):
    assert run("steps=8", config=NULL) == 0
    whole = run.summary()["digest"]
    numbers = json.loads((run.output / "config.json").read_text())
    for first, second in ((NULL, NULL), (NULL, numbers), (numbers, NULL)):
        assert run("steps=4", config=first, flags=("--fresh",)) == 0
        assert run("steps=8", config=second) == 0
        assert run.summary()["digest"] == whole


def test_a_run_with_sizes_of_its_own_goes_on_with_them_where_they_are_left_out(run):
    assert run("steps=8") == 0
    whole = run.summary()["digest"]
    assert run("steps=4", flags=("--fresh",)) == 0
    left_out = {**TINY, "schedule": {"batch": 64, "lanes": 4}, "method": NULL["method"]}
    assert run("steps=8", config=left_out) == 0
    assert run.summary()["digest"] == whole
    assert sizes_of(json.loads((run.output / "config.json").read_text())) == (640, 320, 16, 4, 128)


def test_lanes_that_a_run_has_are_not_chosen_again(run, capsys):
    assert run("steps=4") == 0
    assert run("steps=8", "schedule.lanes=null") == 2
    assert "holds a run with schedule.lanes = 4, now it is 8; set it back" in capsys.readouterr().err


def test_a_checkpoint_of_an_earlier_version_with_null_sizes_goes_on_with_a_whole_pass_and_all_rows(run, monkeypatch):
    """There a window was null, and was so in its checkpoints."""
    from engine.training.checkpoint import Checkpoints

    real = Checkpoints.save

    def save(self, step, method, trunk, losses, state, *beside):
        config = json.loads(json.dumps(state["config"]))
        config["schedule"] |= {"window": None, "stride": None}
        return real(self, step, method, trunk, losses, {**state, "config": config}, *beside)

    assert run("steps=8", config=NULL) == 0
    whole = run.summary()["digest"]
    monkeypatch.setattr(Checkpoints, "save", save)
    assert run("steps=4", config=NULL, flags=("--fresh",)) == 0
    monkeypatch.undo()
    (manifest,) = (run.output / "checkpoints" / "manifests").glob("*.json")
    assert json.loads(manifest.read_text())["body"]["config"]["schedule"]["window"] is None
    assert run("steps=8", config=NULL) == 0
    assert run.summary()["digest"] == whole
