"""Comparisons: a cell is trained once and goes on after a kill, figures are read as they stand and kept in a file, choosing looks at
training images alone."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

import launch
from configs import schema
from datasets.clean import to_tensor
from datasets.digits import Digits
from engine.jobs import parts
from engine.jobs.chosen_sizes import sized
from engine.trunk.network import embed
from tests import compare_methods, compare_rows
from tests.compare_methods import KINDS, SETS, TRIAL, TRIALS, cells_of, search, trials
from tests.comparison import Cell, Figures, leave_one_out, read, run_all, table, written
from tests.conftest import REPOSITORY, TINY

# In the place of launch.py: counts its starts, fails at the first one where the seed is 1, and leaves what a training leaves.
FAKE = """
import json, pathlib, sys
words = dict(word.split("=", 1) for word in sys.argv[3:])
output = pathlib.Path(words["output"])
output.mkdir(parents=True, exist_ok=True)
starts = output / "starts"
count = len(starts.read_text()) if starts.exists() else 0
starts.write_text("x" * (count + 1))
if words["seed"] == "1" and not count:
    sys.exit("no room")
share = float(words["share"])
figures = {"knn_top1": share, "glyphs": share, "glyphs, jittered": share / 2, "others, jittered": share / 4}
lines = [{"figures": {"knn_top1": 0}}, {"figures": figures, "raw_pixels": {"knn_top1": 0.25}}]
(output / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
(output / "summary.json").write_text(json.dumps({"status": "finished", "loss": 2.0, "session_seconds": 90.0}))
"""


def fake(name: str, share: float, seed: int = 0) -> Cell:
    return Cell(name, "configs/given.json", (f"share={share}", f"seed={seed}"), program=("-c", FAKE))


def test_a_cell_that_is_finished_is_not_run_again_and_one_that_failed_is(tmp_path, capsys):
    cells = [fake("good", 0.5), fake("bad", 0.7, seed=1)]
    with pytest.raises(RuntimeError, match=r"bad .* ended with code 1:\nno room"):
        run_all(cells, tmp_path)
    figures = run_all(cells, tmp_path)
    assert list(figures) == ["good", "bad"] and figures["bad"].knn == 0.7
    run_all(cells, tmp_path)
    assert [(tmp_path / name / "starts").read_text() for name in ("good", "bad")] == ["x", "xx"]
    assert "good: kNN 50.0%, jittered 18.8%; 0.0 minutes now" in capsys.readouterr().out


def test_a_cell_that_has_its_line_in_the_file_of_figures_needs_no_directory(tmp_path):
    file, elsewhere = tmp_path / "figures.jsonl", tmp_path / "elsewhere"
    found = run_all([fake("one", 0.5), fake("two", 0.6)], tmp_path / "here", file)
    assert run_all([fake("one", 0.5), fake("two", 0.6)], elsewhere, file) == found
    assert not elsewhere.exists() and len(written(file)) == 2
    assert run_all([fake("one", 0.9)], elsewhere, file)["one"].knn == 0.9  # another training of that name
    assert (elsewhere / "one").exists() and not (elsewhere / "two").exists() and len(written(file)) == 3


def test_a_directory_of_another_training_is_not_taken_for_this_one(tmp_path):
    run_all([fake("one", 0.5)], tmp_path)
    with pytest.raises(RuntimeError, match="one holds another training of this name"):
        run_all([fake("one", 0.9)], tmp_path)
    assert len(written(tmp_path / "figures.jsonl")) == 1


def test_what_a_cell_asks_does_not_depend_on_the_place_of_the_images():
    here, there = (Cell("a", "configs/given.json", ("seed=1", f"data.root=/{place}")) for place in ("here", "there"))
    assert here.asked() == there.asked()
    others = [here, replace(here, config="configs/photos.json"), replace(here, words=("seed=2",))]
    others += [replace(here, probe=("linear.epochs=1",)), replace(here, asks_own=True)]
    assert len({cell.asked() for cell in others}) == len(others)


def test_figures_are_those_of_the_last_evaluation_and_of_the_head_that_was_chosen(tmp_path):
    run_all([fake("run", 0.8)], tmp_path)
    assert read(tmp_path / "run") == Figures(0.8, pytest.approx(0.3), None, None, 2.0, 1.5, 0.25, None)
    heads = [{"held_out_top1": 0.6, "top1": 0.7}, {"held_out_top1": 0.65, "top1": 0.68}]
    linear = {"features": {"heads": heads, "few_labels": [{"top1": 0.4}]}}
    (tmp_path / "run" / "linear.json").write_text(json.dumps(linear))
    assert read(tmp_path / "run")[2:4] == (0.68, 0.4)
    (tmp_path / "run" / "evaluations.jsonl").unlink()
    assert read(tmp_path / "run").knn is None


def test_a_line_has_the_mean_of_its_seeds_and_their_spread():
    runs = [Figures(share, share / 2, None, None, 1.0, 3.0, None, None) for share in (0.5, 0.6, 0.7)]
    lines = table({"PIC": runs, "raw": runs[:1]}).splitlines()
    assert lines[2] == "| PIC | 60.0 % (50.0 to 70.0) | 30.0 % (25.0 to 35.0) |  |  | 1.00 | 3 |"
    assert lines[3] == "| raw | 50.0 % | 25.0 % |  |  | 1.00 | 3 |"


def test_own_images_are_each_asked_of_all_others(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished.output, run)
    share = leave_one_out(run)
    config = schema.load(str(run / "config.json"), [])
    network, _ = parts.network_of_file(config, run / "backbone.safetensors")
    source = Digits("train")
    images = to_tensor([source.image(number) for number in range(len(source))], config.data.image_size)
    h_ND, labels_N = embed(network, images, "backbone").numpy(), source.labels()
    similarity = h_ND @ h_ND.T
    np.fill_diagonal(similarity, -2)
    nearest = np.argsort(-similarity, axis=1)[:, :5]
    votes = np.zeros((len(source), 10))
    weights = np.exp(np.take_along_axis(similarity, nearest, axis=1) / 0.07)
    np.add.at(votes, (np.arange(len(source))[:, None], labels_N[nearest]), weights)
    right = votes.argmax(axis=1) == labels_N
    assert share == pytest.approx(right.mean(), abs=0.002)
    assert leave_one_out(run, most=500) == pytest.approx(right[::3].mean(), abs=0.002)


def test_a_network_trained_with_labels_leaves_what_a_comparison_reads_and_can_be_probed(tmp_path):
    from tests import supervised

    config = tmp_path / "config.json"
    config.write_text(json.dumps(TINY))
    words = ["--config", str(config), f"output={tmp_path / 'run'}"]
    assert supervised.main([*words, "optimizer.lr=0.1", "epochs=12"]) == 0
    assert launch.main([*words, "job=linear", "linear.epochs=1", "linear.C=[]"]) == 0
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".kept"] == []
    figures = read(tmp_path / "run")
    assert figures.loss < 1 and figures.knn > figures.raw - 0.1 and figures.linear > 0.5
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "finished"


def test_a_training_with_labels_that_is_killed_goes_on_to_the_bit(tmp_path, monkeypatch):
    from engine.probing import kept
    from tests import supervised

    path = tmp_path / "config.json"
    path.write_text(json.dumps(TINY))
    config = schema.load(str(path), ["epochs=2"])
    monkeypatch.setattr(kept, "SAVE_SECONDS", 0.0)
    torch.manual_seed(7)  # of which the last layer is drawn
    whole, loss = supervised.train(config)
    real, steps = supervised.cross_entropy, []

    def killed(*arguments):
        steps.append(1)
        if len(steps) == 20:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(supervised, "cross_entropy", killed)
    torch.manual_seed(7)
    with pytest.raises(KeyboardInterrupt):
        supervised.train(config, tmp_path / "state.kept")
    again, found = supervised.train(config, tmp_path / "state.kept")
    assert found == loss and len(steps) == 1 + 2 * 23  # nothing is taken twice but the step that was killed
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[name]), name


@pytest.mark.parametrize(
    ("own", "chosen"), [((0.5, 0.7, 0.6, 0.7), 1), ((0.5, 0.5, 0.5, 0.5), 0)], ids=["best", "equal"]
)
def test_the_search_takes_the_trial_that_is_best_by_its_training_images(own, chosen, tmp_path, monkeypatch):
    asked = []

    def found(cells, directory, file):
        asked.extend(cells)
        shares = {cell.name: own[int(cell.name[-1])] for cell in cells}
        return {name: Figures(*[1 - share] * 8, own=share) for name, share in shares.items()}

    monkeypatch.setattr(compare_methods, "run_all", found)
    assert search(TRIAL, tmp_path, None) == dict.fromkeys(["pic", "instdisc", "moco", "simclr"], TRIALS[chosen])
    assert len(asked) == 16 and all(cell.asks_own for cell in asked)


VALUES = dict.fromkeys(KINDS.values(), TRIALS[0])
CELLS = [
    *((cell, 60_000, 8) for runs in cells_of("f", SETS["fashion_mnist"], VALUES).values() for cell in runs),
    *((cell, 43_523, 9) for runs in cells_of("g", SETS["glyphs"], VALUES).values() for cell in runs),
    *((cell, 4_782, 60) for runs in cells_of("e", SETS["emoji"], VALUES).values() for cell in runs),
    *((cell, 60_000, 3) for runs in trials(TRIAL).values() for cell in runs),
    *((cell, 6_000, 20) for lines in compare_rows.cells([0]).values() for runs in lines.values() for cell in runs),
]


@pytest.mark.parametrize(
    ("cell", "count", "views"), CELLS, ids=[f"{number}-{cell.name}" for number, (cell, *_) in enumerate(CELLS)]
)
def test_every_cell_is_a_config_whose_sizes_fit_and_sees_as_many_views(cell, count, views):
    config = sized(schema.load(str(REPOSITORY / cell.config), list(cell.words)), count)
    assert config.schedule.window
    assert config.epochs * len(config.data.sides) == views
