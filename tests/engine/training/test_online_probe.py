"""The online probe beside a twin by autograd, on one rank and two; in runs it changes no bit and goes on to the bit."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import cross_entropy

from datasets.batch import Batch
from engine.training.online_probe import COMPONENT, OnlineProbe
from engine.training.step import Dealing
from tests.conftest import TINY
from tests.engine.harness import ALONE
from tests.engine.methods.two_view_configs import config_of
from tests.on_ranks import on_ranks

WIDTH, PLACES, LANES, VIEWS, STEPS = 5, 8, 2, 2, 12
LABELS = np.array([4, 9, -1, 4, 9, 7, 7, -1, 4, 9, 7, 4, 9, 7, 4, 4])  # of 16 images, two unknown


def visits(step):
    """ids of the batch's places in the order of lanes, one empty; features of each view [V, G, WIDTH], near those of the label."""
    ids = np.random.default_rng(step).permutation(len(LABELS))[:PLACES]
    ids[5] = -1
    random = np.random.default_rng([step, 1])
    centres = 3 * np.random.default_rng(0).normal(size=(10, WIDTH))
    features = centres[LABELS[ids]] + 2 * random.normal(size=(VIEWS, PLACES, WIDTH)) + 4
    return ids, torch.from_numpy(features.astype(np.float32))


def probed(ranks, micro_batches):
    """(weights, figures, figures of the first half) after all steps, of which one was not applied."""
    probe, head = OnlineProbe(LABELS, WIDTH, ranks), nn.Identity()
    probe.watch(head)
    mine = np.arange(PLACES).reshape(LANES, -1)[ranks.rank :: ranks.size].reshape(-1)
    dealing = Dealing(LANES // ranks.size, micro_batches, range(VIEWS))
    half = None
    for step in range(STEPS):
        ids, features = visits(step)
        by_rank = [np.arange(PLACES).reshape(LANES, -1)[rank :: ranks.size].reshape(-1) for rank in range(ranks.size)]
        filled_RP = np.stack([ids[places] >= 0 for places in by_rank])
        for places in dealing.places(len(mine)):
            places = places[filled_RP[ranks.rank, places]]
            head(features[:, mine[places]].reshape(-1, WIDTH))
        head.eval()
        head(features[0])  # what an evaluation sends through
        head.train()
        batch = Batch(step, [], mine, ids[mine], ids[mine] >= 0)
        probe.step(batch, filled_RP, dealing, applied=step != 3)
        if step == STEPS // 2:
            half = probe.take_figures()
    return probe.weight_CF, probe.take_figures(), half


def twin():
    """One softmax regression by torch's autograd and SGD, in float64, on the whole batch."""
    classes = sorted({int(label) for label in LABELS if label >= 0})
    linear = nn.Linear(WIDTH, len(classes)).double()
    nn.init.zeros_(linear.weight), nn.init.zeros_(linear.bias)
    sgd = torch.optim.SGD(linear.parameters(), lr=1 / WIDTH, momentum=0.9)
    mean = variance = None
    counts = []
    for step in range(STEPS):
        ids, features = visits(step)
        known = [place for place, i in enumerate(ids) if i >= 0 and LABELS[i] >= 0]
        if step == 3:
            continue
        h = features[:, known].double().reshape(-1, WIDTH)
        of_step = h.mean(0), h.var(0, unbiased=False)
        if mean is None:
            mean, variance = of_step
        else:
            mean, variance = 0.9 * mean + 0.1 * of_step[0], 0.9 * variance + 0.1 * of_step[1]
        target = torch.tensor([classes.index(int(LABELS[ids[place]])) for place in known] * VIEWS)
        logits = linear((h - mean) / (variance + 1e-6).sqrt())
        loss = cross_entropy(logits, target)
        right = int((logits.argmax(1) == target).sum()) if step else 0
        counts.append((step, len(target), right, float(loss.detach()) * len(target)))
        sgd.zero_grad()
        loss.backward()
        sgd.step()
    weight = torch.cat([linear.weight, linear.bias[:, None]], 1).detach()

    def figures(steps):
        count, right, loss = (sum(line[place] for line in counts if line[0] in steps) for place in (1, 2, 3))
        return {"probe_top1": right / count, "probe_loss": loss / count}

    return weight, figures(range(STEPS // 2 + 1, STEPS)), figures(range(STEPS // 2 + 1))


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("ranks", [1, 2])
def test_it_is_softmax_regression_on_standardised_features_of_labelled_images(ranks, micro_batches):
    weight, last, first = twin()
    assert 1 > last["probe_top1"] > first["probe_top1"] > 0.5
    for found in [probed(ALONE, micro_batches)] if ranks == 1 else on_ranks(2, probed, micro_batches):
        np.testing.assert_allclose(np.asarray(found[0]), weight, rtol=1e-4, atol=1e-5)
        for told, wanted in zip(found[1:], (last, first), strict=True):
            assert told == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("config", [TINY, config_of("moco"), config_of("simclr")], ids=["pic", "moco", "simclr"])
def test_no_bit_of_a_run_is_another_for_it_and_it_is_in_metrics_summary_and_report(run, config):
    words = ["steps=20", "evaluate.views=0", "evaluate.limit=20", "evaluate.query_limit=10"]
    assert run(*words, config=config) == 0
    without = run.summary()
    assert "probe_top1" not in without
    assert run(*words, "evaluate.online_probe=true", config=config, flags=("--fresh",)) == 0
    summary, lines = run.summary(), run.lines()
    assert summary["digest"] == without["digest"] and summary["loss"] == without["loss"]
    assert summary["probe_top1"] == lines[-1]["probe_top1"] > max(0.15, lines[0]["probe_top1"])
    assert lines[-1]["probe_loss"] < lines[0]["probe_loss"] and lines[-1]["seconds"]["online_probe"] > 0
    assert "online probe, top-1" in (run.output / "report.html").read_text()


def test_a_run_in_pieces_has_the_weights_of_the_whole_one_and_the_digest_of_one_without(run, capsys):
    words = ["evaluate.views=0", "evaluate.limit=20", "evaluate.query_limit=10", "log_every=1"]
    probe = "evaluate.online_probe=true"

    def state():
        (path,) = (run.output / "checkpoints").glob(f"step-*20/shared-{COMPONENT}.safetensors")
        return load_file(path)

    assert run("steps=20", *words, probe) == 0
    whole, last = state(), run.lines()[-1]
    assert run("steps=7", *words, probe, flags=("--fresh",)) == 0
    assert run("steps=20", *words, probe) == 0
    for name, tensor in state().items():
        assert torch.equal(tensor, whole[name]), name
    assert run.lines()[-1]["probe_loss"] == last["probe_loss"]
    capsys.readouterr()
    assert run("job=store", "store.verb=digest") == 0
    assert run.summary()["digest"] in capsys.readouterr().out
    assert run("steps=22", *words) == 0  # without it from here on
    assert "probe_top1" not in run.lines()[-1]


def test_with_other_labels_it_begins_anew_and_says_so(capsys):
    state = OnlineProbe(LABELS, WIDTH, ALONE).state() | {"steps": torch.tensor([5])}
    same, other = OnlineProbe(LABELS, WIDTH, ALONE), OnlineProbe(LABELS[:4], WIDTH, ALONE)
    same.load(state)
    assert same.steps == 5 and capsys.readouterr().out == ""
    other.load(state)
    assert other.steps == 0 and "begins anew" in capsys.readouterr().out
