"""job=linear from its config to linear.json and the report's section, on digits."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from configs import schema
from datasets.digits import Digits
from engine.jobs import linear_protocols, parts
from engine.probing import kept
from engine.probing.frozen import FrozenTrunk
from engine.results.linear_part import linear_section, with_section
from engine.results.records import read_records
from engine.results.report import report_of
from tests.conftest import TINY
from tests.pooled_start import pooled_start

# What is short: 3 epochs, two rates and two values of C.
LINEAR = {"epochs": 3, "rates": [0.01, 0.1], "C": [0.01, 0.1], "few": [0.1, 10]}
CONFIG = {**TINY, "job": "linear", "linear": LINEAR}
PUBLISHED = ("linear.protocol=published", "linear.lr=1", "linear.epochs=2")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """Weights of the tiny network before any training."""
    directory = tmp_path_factory.mktemp("backbone")
    config = directory / "config.json"
    config.write_text(json.dumps({**TINY, "output": str(directory)}))
    save_file(parts.network_of(schema.load(str(config), [])).backbone.state_dict(), directory / "backbone.safetensors")
    return directory / "backbone.safetensors"


@pytest.fixture
def probed(run, backbone):
    """Runs the job with more words; gives what linear.json has then."""

    def go(*words):
        assert run(f"evaluate.backbone={backbone}", *words, config=CONFIG) == 0
        return json.loads((run.output / "linear.json").read_text())

    return go


def on_two_ranks(directory, *words):
    """A start on the config that a run has written: what it left as exit code and said."""
    return pooled_start(["--config", str(directory / "config.json"), *words], directory, count=2, drawings=False)


def test_the_figures_are_those_of_scikit_learn_on_the_cached_features(run, probed, capsys):
    result = probed("linear.C=[0.1]")["features"]
    out = capsys.readouterr().out
    train, test = (np.load(run.output / "linear" / f"{name}.npy") for name in ("train", "test"))
    labels, tested = Digits("train").labels(), Digits("test").labels()
    assert train.shape == (1437, 64) and test.shape == (360, 64)
    assert result["fitted_images"] + result["held_out_images"] == 1437
    assert result["held_out_images"] == sum(math.floor(0.1 * n + 0.5) for n in np.bincount(labels))
    sgd, logistic = result["heads"]
    scaled = StandardScaler().fit(train)
    theirs = LogisticRegression(C=0.1, max_iter=1000).fit(scaled.transform(train), labels)
    # One is fitted to nine tenths of the images: that is some points, not tens of them.
    assert logistic["top1"] == pytest.approx(theirs.score(scaled.transform(test), tested), abs=0.03)
    for head in (sgd, logistic):
        assert 0.5 < head["top1"] <= head["top5"] <= 1
        assert (
            f"{100 * head['top1']:.1f}%" in out
            and f"{100 * head['top1']:.1f} %" in (run.output / "report.html").read_text()
        )
    assert sgd["rate"] in LINEAR["rates"] and sgd["held_out_top1"] == max(one["held_out_top1"] for one in sgd["grid"])
    assert [one["images"] for one in result["few_labels"]] == [130, 100]
    assert all(0.3 < one["top1"] <= logistic["top1"] + 0.05 for one in result["few_labels"])
    assert "logistic regression on 100 images, C 0.1" in out
    by_class = result["per_class"]
    assert [one["label"] for one in by_class] == list(range(10)) and sum(one["images"] for one in by_class) == 360
    mean = sum(one["images"] * one["logistic"] for one in by_class) / 360
    assert mean == pytest.approx(logistic["top1"])
    of_five = sum(one["images"] * one["logistic_top5"] for one in by_class) / 360
    assert of_five == pytest.approx(logistic["top5"])
    assert result["chance"] == 0.1 and "training did not see" in result["protocol"]


def test_few_labels_have_values_of_their_own_and_the_search_on_all_images_can_be_left_out(probed, monkeypatch, capsys):
    monkeypatch.setattr("engine.jobs.linear_protocols.SAY_SECONDS", 0)
    result = probed("linear.C=[]", "linear.few=[10]", "linear.few_C=[0.01,0.001]")["features"]
    assert [one["name"] for one in result["heads"]] == ["sgd"]
    (few,) = result["few_labels"]
    assert [one["C"] for one in few["grid"]] == [0.001, 0.01] and few["images"] == 100
    out = capsys.readouterr().out
    assert out.count("logistic regression on") == 1 and "C 0.001: iteration 1, at most 500, loss " in out
    assert probed("linear.few_C=[]", "linear.C=[0.001]")["features"]["few_labels"] == []


def test_a_second_start_computes_nothing_again_and_a_probe_is_tested_again(run, probed, backbone, monkeypatch, capsys):
    first = probed()
    monkeypatch.setattr("engine.probing.chosen.fit_logistic", None)
    monkeypatch.setattr("engine.probing.heads.Heads.step", None)
    embed = FrozenTrunk.__call__
    monkeypatch.setattr(FrozenTrunk, "__call__", None)
    assert probed() == first
    heads = run.output / "linear" / "heads-features.safetensors"
    both = probed(f"linear.probe={heads}")
    assert both["features"] == first["features"]
    again = both["tested_again"]
    for one, other in zip(again["heads"], first["features"]["heads"], strict=True):
        assert (one["name"], one["top1"], one["top5"]) == (other["name"], other["top1"], other["top5"])
    assert again["per_class"] == first["features"]["per_class"]
    capsys.readouterr()
    monkeypatch.setattr(FrozenTrunk, "__call__", embed)
    run.output = run.output.parent / "alone"
    assert probed(f"linear.probe={heads}") == {"tested_again": again}
    out, page = capsys.readouterr().out, (run.output / "report.html").read_text()
    assert "A probe that was trained before, tested again" in page and "No linear probe was trained" not in page
    assert f"Network: {backbone}." in page and "()" not in out


def test_the_published_protocol_stands_beside_the_other_and_the_trunk_is_as_it_was(run, probed, backbone, capsys):
    before = backbone.read_bytes()
    first = probed()
    both = probed(*PUBLISHED)
    out = capsys.readouterr().out
    assert both["features"] == first["features"] and both["published"]["trunk"] == first["features"]["trunk"]
    (head,) = both["published"]["heads"]
    assert head["lr"] == 1 and 0.2 < head["top1"] <= head["top5"]
    assert "step 12/12" in out and "(chance 2.30)" in out
    assert backbone.read_bytes() == before
    page = (run.output / "report.html").read_text()
    assert page.count("<h2>Linear probe</h2>") == 1 and "The published protocol" in page
    tested = probed(*PUBLISHED, f"linear.probe={run.output / 'linear' / 'heads-published.safetensors'}")
    assert tested["tested_again"]["heads"][0]["top1"] == head["top1"]


def test_two_ranks_find_what_one_finds(run, probed, backbone, tmp_path):
    alone = {**probed(), **probed(*PUBLISHED)}
    words = [f"output={tmp_path / 'two'}", f"evaluate.backbone={backbone}"]
    for start in (on_two_ranks(run.directory, *words), on_two_ranks(run.directory, *words, *PUBLISHED)):
        assert start.code == 0, start.err
    both = json.loads((tmp_path / "two" / "linear.json").read_text())
    assert both["features"] == alone["features"]
    theirs, ours = both["published"]["heads"][0], alone["published"]["heads"][0]
    assert theirs["top1"] == pytest.approx(ours["top1"], abs=0.01)
    one, other = (load_file(path / "linear" / "heads-published.safetensors") for path in (run.output, tmp_path / "two"))
    torch.testing.assert_close(one["published.weight"], other["published.weight"], rtol=1e-3, atol=1e-5)


def test_a_finished_run_is_probed_in_its_own_directory_with_its_head_too(run, capsys):
    assert run("steps=20") == 0
    capsys.readouterr()
    assert run(config=CONFIG) == 0
    backbone = json.loads((run.output / "linear.json").read_text())["features"]
    assert run("evaluate.features=head", config=CONFIG) == 0
    head = json.loads((run.output / "linear.json").read_text())["features"]
    assert (backbone["features"], head["features"]) == ("backbone", "head") and backbone["trunk"] != head["trunk"]
    assert "at step 20" in head["backbone"]
    page = (run.output / "report.html").read_text()
    assert (
        page.count("<h2>Linear probe</h2>") == page.count("<h2>Configuration</h2>") == page.count("<h2>Loss</h2>") == 1
    )
    older = "It is that of step 20; the run is at step 30 by now"
    assert head["steps"] == backbone["steps"] == 20 and older not in page
    assert run("steps=30") == 0  # goes on, and its report has the probe, of a network that is another by now
    told = (run.output / "report.html").read_text().partition("<h2>Linear probe</h2>")[2]
    assert "SGD" in told and older in told
    assert run(config=CONFIG) == 0
    assert older not in (run.output / "report.html").read_text()
    assert run("steps=30", flags=("--fresh",)) == 0
    assert not (run.output / "linear").exists() and not (run.output / "linear.json").exists()


def test_a_dry_run_tells_images_and_steps_and_writes_nothing(run, capsys):
    assert run(flags=("--dry-run",), config=CONFIG) == 0
    out = capsys.readouterr().out
    assert "trained on 1437 images of digits, tested on 360" in out and "18 steps of 256" in out and '"linear"' in out
    assert not run.output.exists()
    assert run("steps=1") == 0 and run(config=CONFIG) == 0
    there = [np.load(run.output / "linear" / f"{part}.npy", mmap_mode="r") for part in ("train", "test")]
    planned = f"features of {there[0].shape[1]} numbers: {sum(one.nbytes for one in there) / 2**20:.1f} MiB on the disk"
    assert planned in out


def test_a_search_that_ran_out_of_iterations_is_told(run, probed, monkeypatch, capsys):
    monkeypatch.setattr("engine.probing.logistic.MOST_ITERATIONS", 12)
    result = probed("linear.rates=[]", "linear.C=[1e-8,10]", "linear.few=[10]")["features"]
    for one in (*result["heads"], *result["few_labels"]):
        assert [tried["is_converged"] for tried in one["grid"]] == [True, False]
    assert capsys.readouterr().out.count("the search ended before its optimum at C 10)") == 2
    page = (run.output / "report.html").read_text()
    assert page.count("10 (ended before its optimum)") == 1 and "1e-08 (ended" not in page


def test_a_classifier_that_grew_without_end_is_told(run, probed, backbone, tmp_path, capsys):
    tensors = load_file(backbone)
    last = [name for name in tensors if name.endswith("running_var")][-1].removesuffix("running_var")
    for part in ("weight", "bias"):
        tensors[last + part] *= 1e35  # features are numbers still, and what comes of their products is none
    save_file(tensors, tmp_path / "wild.safetensors")
    (head,) = probed(f"evaluate.backbone={tmp_path / 'wild.safetensors'}", *PUBLISHED)["published"]["heads"]
    assert head["top1"] == 0 and head["is_finite"] is False
    assert "its weights grew without end, so it is never right; lower the rate" in capsys.readouterr().out
    assert "its weights grew without end" in (run.output / "report.html").read_text()


def test_tensorboard_hears_losses_and_figures(run, probed):
    pytest.importorskip("tensorboard")
    probed("evaluate.tensorboard=true")
    probed("evaluate.tensorboard=true", *PUBLISHED)
    events = b"".join(path.read_bytes() for path in (run.output / "tensorboard").iterdir())
    names = [b"loss at 0.01", b"sgd top-1", b"loss", b"published top-1", b"sgd top-5", b"logistic held-out top-1"]
    for name in (b"linear/" + name for name in (*names, b"10 labels a class top-1", b"0.1 of the labels top-5")):
        assert name in events


@pytest.mark.parametrize(
    ("words", "expect"),
    [
        (["linear.rates=[]", "linear.C=[]"], "linear.rates and linear.C are both empty"),
        (["linear.few=[2.5]"], "linear.few has 2.5"),
        (["linear.crop=[0.5,0.1]"], "linear.crop is [0.5, 0.1]"),
        (["linear.held_out=1"], "linear.held_out is 1"),
        (["linear.held_out=0.001"], "sets aside none of 1437"),
        (["linear.least_images=200"], "0 labels of digits have 200 images"),
        (["linear.probe=/nowhere"], "there is no probe at /nowhere"),
        (["evaluate.backbone=/nowhere"], "there is no backbone at /nowhere"),
        (["evaluate.features=head"], "a saved backbone has no head"),
        (["backbone.layers=[8,8]"], "its network is not vgg"),
        (["data.source=synthetic", "data.limit=20000000"], "has no labels"),
    ],
)
def test_what_cannot_be_probed_is_refused(run, backbone, capsys, words, expect):
    assert run(f"evaluate.backbone={backbone}", *words, config=CONFIG) == 2
    error = capsys.readouterr().err
    assert expect in error and len(error.splitlines()) <= 3


def test_a_probe_of_another_network_or_size_is_refused(run, probed, backbone, tmp_path, capsys):
    probed("linear.epochs=1")
    heads = f"linear.probe={run.output / 'linear' / 'heads-features.safetensors'}"
    other = {name: tensor + 1 for name, tensor in load_file(backbone).items()}
    save_file(other, tmp_path / "other.safetensors")
    assert run(f"evaluate.backbone={tmp_path / 'other.safetensors'}", heads, config=CONFIG) == 2
    assert "was trained on another network" in capsys.readouterr().err
    assert run(f"evaluate.backbone={backbone}", heads, "data.image_size=20", config=CONFIG) == 2
    assert "at data.image_size 16" in capsys.readouterr().err


def test_features_of_another_grid_or_normalised_otherwise_are_computed_anew(run, probed, backbone, tmp_path, capsys):
    first = probed()
    heads = shutil.copy(run.output / "linear" / "heads-features.safetensors", tmp_path / "heads.safetensors")
    of_grid = probed("backbone.grid=1")["features"]
    assert np.load(run.output / "linear" / "train.npy").shape[1] == 16 != 64
    assert of_grid["trunk"] == first["features"]["trunk"] and of_grid["network"] != first["features"]["network"]
    statistics = "evaluate.statistics=[[0.5,0.5,0.5],[0.1,0.1,0.1]]"
    assert probed(statistics)["features"]["network"] not in (of_grid["network"], first["features"]["network"])
    for words in (["backbone.grid=1"], [statistics]):
        capsys.readouterr()
        assert run(f"evaluate.backbone={backbone}", f"linear.probe={heads}", *words, config=CONFIG) == 2
        assert "was trained on another network" in capsys.readouterr().err


def test_a_probe_of_an_earlier_version_is_tested_where_its_weights_are_the_same(run, probed, backbone, capsys):
    first = probed("linear.few=[]")
    path = run.output / "linear" / "heads-features.safetensors"
    metadata = {"heads": "sgd logistic", "trunk": first["features"]["trunk"], "image_size": "16"}
    save_file(load_file(path), run.output.parent / "earlier.safetensors", metadata)
    earlier = f"linear.probe={run.output.parent / 'earlier.safetensors'}"
    again = probed(earlier)["tested_again"]
    assert "of an earlier version: names of classes, normalisation" in again["protocol"]
    assert [one["top1"] for one in again["heads"]] == [one["top1"] for one in first["features"]["heads"]]
    statistics = "evaluate.statistics=[[0.5,0.5,0.5],[0.1,0.1,0.1]]"
    assert run(f"evaluate.backbone={backbone}", earlier, statistics, config=CONFIG) == 2
    assert "did not know evaluate.statistics" in capsys.readouterr().err


def test_a_batch_that_the_ranks_cannot_share_is_refused(backbone, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(CONFIG))
    start = on_two_ranks(tmp_path, f"output={tmp_path / 'run'}", f"evaluate.backbone={backbone}", "linear.batch=33")
    assert start.code == 2 and "linear.batch is 33, and 2 ranks were launched" in start.err


def test_a_killed_job_embeds_and_trains_only_what_is_left(run, probed, backbone, monkeypatch):
    steps = []
    real = linear_protocols.Heads.step

    def counted(self, *arguments):
        steps.append(len(arguments[0]))
        if len(steps) == 9:
            raise KeyboardInterrupt
        return real(self, *arguments)

    monkeypatch.setattr(linear_protocols.Heads, "step", counted)
    monkeypatch.setattr(kept, "SAVE_SECONDS", 0.0)
    assert run(f"evaluate.backbone={backbone}", config=CONFIG) == 130
    assert (run.output / "linear" / "test.json").exists() and not (run.output / "linear.json").exists()
    monkeypatch.setattr("engine.probing.frozen.FrozenTrunk.__call__", None)
    result = probed()
    total = 3 * math.ceil(result["features"]["fitted_images"] / 256)
    assert len(steps) == total + 1  # eight before, the one that was killed, and those that were left


def test_a_report_without_a_place_for_the_probe_stays_as_it_is(tmp_path):
    assert with_section("<html>somebody's</html>", linear_section({})) is None
    whole = report_of(tmp_path, [], None)
    head = {"name": "sgd", "top1": 0.5, "top5": None, "rate": 0.1, "grid": [{"rate": 0.1, "held_out_top1": 0.4}]}
    few = {"asked": 10, "what": "10 labels a class", "images": 100, "top1": 0.4, "top5": None, "C": 1}
    features = {"heads": [head], "few_labels": [few], "chance": 0.1, "protocol": "<b>words</b>"}
    section = linear_section({"features": features})
    once = with_section(whole, section)
    assert with_section(once, section) == once and once.count("<h2>Linear probe</h2>") == 1
    assert "50.0 %" in once and "10 labels a class" in once and "<b>words</b>" not in once
    start = whole.index("<section>\n<h2>Linear probe")
    older = whole[:start] + whole[whole.index("</section>", start) + len("</section>") :]
    assert with_section(older, section).count("<h2>Linear probe</h2>") == 1


@pytest.mark.parametrize(
    "strange",
    [
        {"features": {"heads": [1, None, {"name": [], "top1": "x", "grid": {"a": 1}}], "few_labels": [{"what": 5}]}},
        {
            "features": {
                "per_class": [{"example": 5, "images": None, "sgd": 0.5}, {"sgd": "x"}],
                "chance": [],
                "protocol": 3,
            }
        },
        {"features": [], "published": None},
        {"features": {"heads": "x", "per_class": 7}},
    ],
)
def test_a_strange_linear_json_makes_a_page_all_the_same(tmp_path, strange):
    (tmp_path / "linear.json").write_text(json.dumps(strange))
    assert "<h2>Linear probe</h2>" in report_of(tmp_path, [], None)
    assert read_records(tmp_path).linear == strange
