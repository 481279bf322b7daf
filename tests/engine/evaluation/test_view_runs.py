"""Figures without labels in runs: there for every method, the same on any number of ranks, and no bit of the run is another for them."""

import json

import numpy as np
import pytest
import torch

from datasets.digits import Digits
from datasets.drawn_views import drawn_views
from datasets.grey import GreyAugment
from engine.evaluation.views import ViewEvaluator
from engine.methods.method import ActiveVectors
from engine.ranks.ranks import Channel
from engine.trunk.network import embed, make_network
from tests.conftest import TINY
from tests.engine.harness import ALONE, Case, make_engine, method_of, run_both
from tests.engine.methods.two_view_configs import config_of
from tests.on_ranks import on_ranks

OF_VIEWS = {"alignment", "uniformity", "second_view_found"}
OF_HEAD = {f"head_{name}" for name in OF_VIEWS | {"rankme"}}
CONFIGS = {
    "pic": TINY,
    "pic, all rows active": {
        **TINY,
        "schedule": {**TINY["schedule"], "window": None, "stride": None},
        "method": {**TINY["method"], "active": 4096},
    },
    "instdisc": {**TINY, "method": {"kind": "instdisc", "dim": 16, "active": 128}, "optimizer": {"lr": 0.03}},
    "moco": config_of("moco"),
    "simclr": config_of("simclr"),
}
FOUND = {"moco": "own_key_found", "simclr": None}


@pytest.mark.parametrize("kind", CONFIGS)
def test_they_are_in_evaluations_summary_and_report_and_change_no_bit(run, kind):
    words = ["evaluate.limit=60", "evaluate.query_limit=20", "log_every=2"]
    assert run("steps=8", *words, "evaluate.views=0", config=CONFIGS[kind]) == 0
    without = run.summary()
    assert not OF_VIEWS & without.keys() and "label_free" not in run.lines()[-1]["seconds"]
    assert run("steps=8", *words, "evaluate.every_steps=3", config=CONFIGS[kind], flags=("--fresh",)) == 0
    summary, lines = run.summary(), run.lines("evaluations.jsonl")
    assert summary["digest"] == without["digest"] and summary["loss"] == without["loss"]

    own = FOUND.get(kind, "own_row_found")
    expected = OF_VIEWS | OF_HEAD | ({own} if own else set())
    for line in lines:
        assert expected <= line.keys() and "60 training images" in line["views"]
        assert 0 < line["alignment"] < 4 and -8 < line["uniformity"] < 0
        assert all(0 <= line[name] <= 1 for name in expected if name.endswith("_found"))
        assert line.get("own_row_found") is None or kind not in FOUND
    assert [line["step"] for line in lines] == [3, 6, 8]
    assert all(summary[name] == lines[-1][name] for name in expected)
    assert sum(line["seconds"].get("label_free", 0) for line in run.lines()) > 0
    html = (run.output / "report.html").read_text()
    assert "evaluate without labels" in html and "alignment of two views" in html and lines[-1]["views"] in html


def test_they_do_not_depend_on_labels(run, monkeypatch):
    words = ["steps=6", "evaluate.limit=60", "evaluate.query_limit=20"]
    assert run(*words) == 0
    labelled = run.lines("evaluations.jsonl")[-1]
    monkeypatch.setattr("engine.jobs.start.open_probe", lambda *_: None)
    assert run(*words, flags=("--fresh",)) == 0
    line = run.lines("evaluations.jsonl")[-1]
    assert line["figures"] == {} != labelled["figures"]
    for name in OF_VIEWS | OF_HEAD | {"own_row_found", "views"}:
        assert line[name] == labelled[name], name


def test_job_knn_has_those_of_the_backbone(run, capsys):
    words = ["steps=6", "evaluate.limit=60", "evaluate.query_limit=20", "evaluate.more_k=[1,20]"]
    assert run(*words) == 0
    line = run.lines("evaluations.jsonl")[-1]
    assert run("job=knn", *words) == 0
    again = json.loads((run.output / "knn.json").read_text())
    assert {name for name in again if name.startswith(("head_", "own_"))} == set()
    for name in OF_VIEWS:
        assert again[name] == pytest.approx(line[name], abs=1e-6)
    assert [one["k"] for one in again["grid"]] == [5, 1, 20] and "without labels: alignment" in capsys.readouterr().out


def look(ranks, features="backbone", active=True):
    """A network that was never trained, 70 digits of which two batches are needed, and vectors that belong to 100 others."""
    source, augmentation = Digits("train"), GreyAugment(size=16, view_count=1)
    network = make_network("vgg", (8, "M", 16), 2, 32, 16, seed=3)

    def vectors():
        ids = np.arange(200, 300)
        views = drawn_views(source, augmentation, ids, (0,)).load(0, 100)
        rows = 3 * embed(network, views.images, "head")
        mine = np.arange(100) % ranks.size == ranks.rank
        return ActiveVectors("row", ids[mine], rows[mine], None) if active else None

    def views(instances, draws):
        return drawn_views(source, augmentation, instances, draws)

    evaluator = ViewEvaluator(views, np.arange(140), features, ranks, active=vectors)
    return evaluator.evaluate(lambda: network), evaluator.headline()


def test_any_number_of_ranks_has_the_same_figures_to_the_bit():
    (alone, headline), *_ = [look(Channel())]
    (told, _), (nothing, empty) = on_ranks(2, look)
    assert told == alone and nothing is None and empty == {}
    assert 0.05 < headline["own_row_found"] < 1 and headline["second_view_found"] > 0.05
    assert "100 with an active row look for it among 100" in alone["views"]


def test_features_of_the_head_are_told_once():
    line, _ = look(Channel(), "head", active=False)
    assert line.keys() >= OF_VIEWS and not [name for name in line if name.startswith(("head_", "own_"))]
    both, _ = look(Channel(), "backbone", active=False)
    for name in OF_VIEWS:
        assert line[name] == both[f"head_{name}"] != both[name]


@pytest.mark.parametrize(
    "case", [Case(), Case(active=200, passes=1.3), Case(feature_init=True)], ids=["K", "N", "feature"]
)
def test_active_vectors_are_those_rows_of_dense_sgd_that_are_active(case):
    rows, oracle, _ = run_both(case)
    active = method_of(case, rows).active_vectors()
    there_K = torch.ones(len(active.ids_K), dtype=torch.bool) if active.there_K is None else active.there_K
    assert sorted(active.ids_K[there_K.numpy()]) == oracle.active()
    np.testing.assert_allclose(
        active.vectors_KD[there_K].numpy(), oracle.rows.detach()[active.ids_K[there_K.numpy()]].numpy(), rtol=1e-9
    )


def test_rows_that_no_step_has_visited_are_of_nobody():
    case = Case(active=200)
    active = method_of(case, make_engine(case), ALONE).active_vectors()
    assert (active.ids_K == -1).all() and active.there_K is None
