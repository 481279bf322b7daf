"""The output directory: what this engine did not write stays as it is, whatever lies where, and whatever is asked for."""

import json
import math
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.batch import MARK
from engine.results.json_files import is_finished, json_text
from engine.results.output import _CONFIG_KEYS, Output
from engine.results.output_names import EXPORT, KNN, LOCK, PRETRAIN
from tests.foreign import Foreign

NAMES = [*PRETRAIN, *KNN, *EXPORT]


def made(path: Path, *names: str) -> Output:
    output = Output(path, names)
    output.make()
    for name in names:
        output.write_text(name, f"ours: {name}")
    return output


def refusal(path: Path, *names: str, images: Path | None = None) -> str:
    with pytest.raises(ValueError, match=r".") as told:
        Output(path, names, images)
    assert len(str(told.value).splitlines()) <= 3
    return str(told.value)


def test_a_directory_that_is_made_is_known_again(tmp_path):
    (tmp_path / "out").mkdir()
    made(tmp_path / "out", "config.json")
    made(tmp_path / "out", "config.json", "knn.json")
    made(tmp_path / "a" / "b" / "new", "config.json")
    assert (tmp_path / "out" / MARK).read_text().splitlines()[1:] == ["config.json", "knn.json"]


@pytest.mark.parametrize(
    "name", ["thesis.tex", "config.json", "checkpoints/rows/x", "exports/rows.npy", ".hidden", "lock"]
)
def test_a_directory_that_holds_something_and_has_no_mark_is_refused(tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    told = refusal(tmp_path, "config.json")
    assert "holds files that this engine did not write" in told and name.split("/")[0] in told


def test_a_mark_of_another_program_is_no_mark(tmp_path):
    (tmp_path / MARK).write_text("something else\n")
    assert "did not write" in refusal(tmp_path)
    (tmp_path / MARK).unlink()
    (tmp_path / "real").write_text("This directory was made by pic-engine\n")
    (tmp_path / MARK).symlink_to("real")
    assert "did not write" in refusal(tmp_path)


def test_a_process_killed_while_it_made_the_mark_is_no_obstacle(tmp_path):
    made(tmp_path / "a")
    whole = (tmp_path / "a" / MARK).read_text()
    for length in (0, 1, 40, len(whole) - 1):
        path = tmp_path / str(length)
        path.mkdir()
        (path / MARK).write_text(whole[:length])
        made(path, "config.json")


def test_a_line_of_the_mark_that_was_cut_short_costs_nothing(tmp_path):
    made(tmp_path, "config.json", "plan.json")
    text = (tmp_path / MARK).read_text()
    (tmp_path / MARK).write_text(text[:-4])  # the file was never written then, or is taken for somebody's
    (tmp_path / "plan.json").unlink()
    output = made(tmp_path, "knn.json", "plan.json")
    assert {"config.json", "knn.json", "plan.json"} <= Output(tmp_path)._own
    output.remove_run()
    assert os.listdir(tmp_path) == [MARK]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_ours_by_name_that_is_not_in_the_list_is_somebodys(tmp_path, name):
    if name == "checkpoints":
        name = "checkpoints/x"
    made(tmp_path, "config.json")
    if name == "config.json":
        return
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    told = refusal(tmp_path, name.removesuffix("/x"))
    assert "was not written by this engine" in told
    Output(tmp_path, ["config.json"]).remove_run()
    assert (tmp_path / name).read_text() == "mine"


def test_a_file_that_appears_after_the_look_is_found_before_it_is_replaced(tmp_path):
    output = made(tmp_path)
    (tmp_path / "knn.json").write_text("mine")
    with pytest.raises(ValueError, match="was not written by this engine"):
        output.write_json("knn.json", {})
    assert (tmp_path / "knn.json").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == [MARK, "knn.json"]


@pytest.mark.parametrize("name", ["config.json", "report.html", "metrics.jsonl", "lock", "exports/rows.npy"])
@pytest.mark.parametrize("is_listed", [True, False])
def test_nothing_is_written_or_removed_through_a_link(tmp_path, name, is_listed):
    output = made(tmp_path / "out", "plan.json")
    victim = tmp_path / "victim"
    victim.write_text("mine")
    path = tmp_path / "out" / name
    path.parent.mkdir(exist_ok=True)
    if is_listed:
        output.write_text(name, "ours")
        path.unlink()
    path.symlink_to(victim)
    assert "is a link" in refusal(tmp_path / "out", name)
    with pytest.raises(ValueError, match="is a link"):
        output.write_text(name, "ours")
    with pytest.raises(ValueError, match="is a link"), output.lines(name):
        pass
    if is_listed and name != "lock":
        with pytest.raises(ValueError, match="is a link"):
            Output(tmp_path / "out", ["plan.json"]).remove_run()
        assert (tmp_path / "out" / "plan.json").exists()
    assert victim.read_text() == "mine" and path.is_symlink()


def test_a_directory_of_ours_that_became_a_link_is_refused(tmp_path):
    made(tmp_path / "out", "exports/rows.npy")
    shutil.move(tmp_path / "out" / "exports", tmp_path / "elsewhere")
    (tmp_path / "out" / "exports").symlink_to(tmp_path / "elsewhere")
    assert "exports is a link" in refusal(tmp_path / "out", "exports/rows.npy")


def test_checkpoints_may_lie_on_another_disk(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "checkpoints").symlink_to(tmp_path / "disk")
    output = made(tmp_path / "out", "config.json")
    output.enter("checkpoints")
    assert Output(tmp_path / "out", ["checkpoints"]).remove_run() == []
    assert (tmp_path / "out" / "checkpoints").is_symlink()
    (tmp_path / "new").mkdir()
    (tmp_path / "disk" / "mine").write_text("mine")
    (tmp_path / "new" / "checkpoints").symlink_to(tmp_path / "disk")
    assert "did not write" in refusal(tmp_path / "new", "checkpoints")


def test_an_output_that_is_a_link_to_nothing_or_to_a_file_is_refused(tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    assert "a link to nothing" in refusal(tmp_path / "out")
    (tmp_path / "nowhere").write_text("mine")
    assert "not a directory" in refusal(tmp_path / "out")


def test_images_may_lie_around_the_output_and_not_in_it(tmp_path):
    images = tmp_path / "out" / "images"
    images.mkdir(parents=True)
    for output in (tmp_path / "out", images, tmp_path, tmp_path / "out" / "images" / ".." / ".." / "out"):
        assert "is above data.root" in refusal(output, images=images)
    (tmp_path / "link").symlink_to(tmp_path / "out")
    assert "is above data.root" in refusal(tmp_path / "link", images=images)
    (tmp_path / "to images").symlink_to(images)
    assert "is above data.root" in refusal(tmp_path / "out", images=tmp_path / "to images")
    Output(images / "runs" / "a", images=images)
    Output(tmp_path / "beside", images=images)


def test_fresh_removes_what_the_list_names_and_tells_what_stays(tmp_path):
    output = made(tmp_path, "config.json", "report.html", *EXPORT)
    events = output.enter("tensorboard")
    events.mkdir()
    (events / "events.out.tfevents.1.host").write_text("ours")
    output.take("tensorboard/events.out.tfevents.1.host")
    (events / "notes.txt").write_text("mine")
    (events / "deep").mkdir()
    (tmp_path / "exports" / "mine.npy").write_text("mine")
    (tmp_path / ".config.json.0123abcd.part").write_text("of a killed run")
    stayed = Output(tmp_path).remove_run()
    assert sorted(stayed) == ["exports/mine.npy", "tensorboard/deep", "tensorboard/notes.txt"]
    assert sorted(os.listdir(tmp_path)) == [MARK, "exports", "tensorboard"]
    assert Output(tmp_path)._own == {"tensorboard"}


def test_a_name_that_was_removed_is_not_ours_any_more(tmp_path):
    made(tmp_path, "config.json")
    Output(tmp_path).remove_run()
    (tmp_path / "config.json").write_text("mine")
    assert "was not written by this engine" in refusal(tmp_path, "config.json")


def test_two_jobs_that_enter_names_lose_none(tmp_path):
    first = made(tmp_path)
    second = Output(tmp_path)
    for number in range(20):
        (first if number % 2 else second).write_text(f"exports/rows-{number}.json", "")
    assert Output(tmp_path)._own == {f"exports/rows-{number}.json" for number in range(20)}


@pytest.mark.parametrize("text", ["[]", "null", '"x"', "1", "{", "\ufffd", "{}", "[" * 50_000])
def test_a_summary_that_is_no_summary_ends_nothing(tmp_path, text):
    (tmp_path / "summary.json").write_text(text)
    assert not is_finished(tmp_path, 3)
    (tmp_path / "summary.json").write_bytes(b'{"status": "finished\xff"}')
    assert not is_finished(tmp_path, 3)
    (tmp_path / "summary.json").unlink()
    (tmp_path / "summary.json").mkdir()
    assert not is_finished(tmp_path, 3)


def test_no_number_in_json_is_nan_or_infinite():
    content = {"a": math.nan, "b": [1.5, -math.inf, {"c": (math.inf, 2)}], "d": "NaN"}
    assert json.loads(json_text(content)) == {"a": None, "b": [1.5, None, {"c": [None, 2]}], "d": "NaN"}


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), rounds=st.integers(1, 5))
def test_whatever_is_asked_for_no_foreign_byte_changes(tmp_path_factory, seed, rounds):
    foreign = Foreign(tmp_path_factory.mktemp("foreign"), seed, NAMES)
    for _ in range(rounds):
        foreign.plant()
        path = foreign.some_output()
        names = foreign.draw.sample(NAMES, foreign.draw.randint(0, 4))
        try:
            output = Output(path, names, foreign.images if foreign.draw.random() < 0.5 else None)
            output.make()
            for name in names:
                if name == "checkpoints":
                    output.enter(name)
                elif foreign.draw.random() < 0.5:
                    output.write_text(name, "ours")
                else:
                    with output.lines(name) as file:
                        file.write("ours\n")
            if foreign.draw.random() < 0.4:
                output.remove_run()
        except ValueError:
            pass
        foreign.check()


def test_a_name_in_the_mark_that_is_none_of_ours_counts_for_nothing(tmp_path):
    victims = [tmp_path / "victim.txt", tmp_path / "out" / "notes.txt", tmp_path / "abs.txt"]
    made(tmp_path / "out", "config.json")
    for path in victims:
        path.write_text("mine")
    with open(tmp_path / "out" / MARK, "a", encoding="utf-8") as file:
        file.write(f"../victim.txt\nnotes.txt\n{victims[2]}\nexports/../../victim.txt\n\n.\n")
    assert Output(tmp_path / "out").remove_run() == []
    assert all(path.read_text() == "mine" for path in victims)


def test_files_that_only_look_like_ones_on_their_way_stay(tmp_path):
    output = made(tmp_path, "report.html", "backbone.safetensors")
    mine = [
        tmp_path / name
        for name in ("report.html.part", ".movie.deadbeef.part", "tensorboard/events.out.tfevents.9.other")
    ]
    output.enter("tensorboard").mkdir()
    for path in mine:
        path.write_text("mine")
    (tmp_path / "tensorboard" / "events.out.tfevents.1.host").write_text("ours")
    output.take("tensorboard/events.out.tfevents.1.host")
    (tmp_path / "backbone.safetensors.part").write_text("ours, of a killed run")
    Output(tmp_path).remove_run()
    left = [path.name for path in tmp_path.iterdir()]
    assert sorted(left) == [".movie.deadbeef.part", MARK, "report.html.part", "tensorboard"]
    assert all(path.read_text() == "mine" for path in mine)


@pytest.mark.parametrize("mark", ["", "This directory was", None])
@pytest.mark.parametrize("section", ["method", "classifier"])  # of this version, and of those before
def test_a_mark_that_a_full_disk_cut_short_does_not_lock_a_run_out(tmp_path, section, mark, monkeypatch):
    (tmp_path / "checkpoints" / "manifests").mkdir(parents=True)
    (tmp_path / "checkpoints" / "manifests" / "000000001.json").write_text("torn")
    (tmp_path / "config.json").write_text(json.dumps(dict.fromkeys([*_CONFIG_KEYS, section])))
    (tmp_path / "plan.json").write_text("{}")
    if mark is not None:
        (tmp_path / MARK).write_text(mark)
    output = Output(tmp_path, ["plan.json", "checkpoints"])
    with monkeypatch.context() as patch:
        real = os.write
        patch.setattr(os, "write", lambda handle, content: real(handle, content[:7]))
        with pytest.raises(OSError, match="No space left") as told:
            output.make()
    assert told.value.filename == str(tmp_path / MARK)
    Output(tmp_path, ["plan.json", "checkpoints"]).make()
    assert {"config.json", "plan.json", "checkpoints"} == Output(tmp_path)._own
    output = Output(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda handle, content: real(handle, content[:3]))
        with pytest.raises(OSError, match="No space left"):
            output.enter("knn.json")
    assert {"config.json", "plan.json", "checkpoints"} == Output(tmp_path)._own


def test_checkpoints_that_were_copied_among_somebodys_files_make_none_of_these_ours(tmp_path):
    (tmp_path / "checkpoints" / "manifests").mkdir(parents=True)
    (tmp_path / "checkpoints" / "manifests" / "000000001.json").write_text("whole or not")
    (tmp_path / "report.html").write_text("mine")
    (tmp_path / "config.json").write_text('{"mine": 1}')
    assert "was not written by this engine" in refusal(tmp_path, "report.html")
    output = Output(tmp_path)
    output.make()
    assert output._own == {"checkpoints"}


@pytest.mark.parametrize(
    "name", ["summary.json", "report.html", "backbone.safetensors", "metrics.jsonl", "exports/rows.npy"]
)
def test_a_directory_in_the_place_of_a_file_is_told_at_the_start(tmp_path, name):
    made(tmp_path, name)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    assert "is a directory" in refusal(tmp_path, name)


def test_a_look_changes_nothing(tmp_path):
    (tmp_path / MARK).write_text("")
    Output(tmp_path, NAMES)
    assert (tmp_path / MARK).read_text() == ""


def test_a_write_that_fails_leaves_the_old_report(tmp_path, monkeypatch):
    output = made(tmp_path, "report.html")
    before = sorted(os.listdir(tmp_path))

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        output.write_text("report.html", "new")
    assert (tmp_path / "report.html").read_text() == "ours: report.html"
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_modes_that_the_user_wants(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        made(tmp_path, "report.html", "summary.json")
    finally:
        os.umask(before)
    assert {os.stat(tmp_path / name).st_mode & 0o777 for name in ("report.html", "summary.json", MARK)} == {mode}


def test_jobs_that_looked_before_the_directory_was_made_lose_no_name_of_each_other(tmp_path):
    first, second = (Output(tmp_path / "run", [LOCK, "summary.json"]) for _ in range(2))
    first.make()
    first.enter(LOCK).write_text("{}")
    first.write_text("summary.json", "{}")
    second.make()
    assert second.enter(LOCK) == tmp_path / "run" / LOCK  # and Lock says who has it
    second.write_text("report.html", "")
    third = Output(tmp_path / "run")
    first.write_text("plan.json", "{}")
    third.write_text("plan.json", "{}")
    assert Output(tmp_path / "run")._own == {LOCK, "summary.json", "report.html", "plan.json"}
