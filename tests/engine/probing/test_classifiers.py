"""Classifiers on given features beside slow twins: torch.optim.SGD, scikit-learn, loops over images."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from datasets.passes import orders
from engine.probing import kept as saving
from engine.probing import logistic
from engine.probing.chosen import best_rate, best_strength
from engine.probing.heads import Head, Heads, cosine
from engine.probing.kept import Kept
from engine.probing.logistic import fit_logistic
from engine.probing.rate_grid import train_grid
from engine.probing.rows import EPSILON, Rows, Standard, readable, standard_of
from engine.probing.saved import SavedProbe
from engine.probing.score import score
from engine.probing.tellers import nobody
from tests.engine.probing.given import CPU, clouds, standardised

NOTHING = Kept(None, "")


def grid(rows, labels, ids, rates, epochs=3, kept=NOTHING, tell=nobody):
    order = orders(1, len(ids))
    return train_grid(rows, labels, ids, rates, classes=4, epochs=epochs, batch=64, order=order, kept=kept, tell=tell)


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_each_head_takes_the_steps_of_torch_sgd_in_float64(weight_decay):
    features, labels = clouds()
    rows, rates, batches = standardised(features, np.arange(600)), [0.01, 0.1, 1.0], np.arange(600).reshape(20, 30)
    heads = Heads(3, 12, 4, CPU, deviation=0.1, seed=5)
    starts = heads.weight_LDC.clone()
    found = [
        heads.step(rows(ids), torch.from_numpy(labels[ids]), torch.tensor(rates), weight_decay).tolist()
        for ids in batches
    ]
    for number, rate in enumerate(rates):
        weight, bias = starts[number].double().requires_grad_(), torch.zeros(4, dtype=torch.float64, requires_grad=True)
        sgd = torch.optim.SGD([weight, bias], rate, momentum=0.9, weight_decay=weight_decay)
        for step, ids in enumerate(batches):
            loss = torch.nn.functional.cross_entropy(rows(ids).double() @ weight + bias, torch.from_numpy(labels[ids]))
            assert found[step][number] == pytest.approx(loss.item(), rel=1e-5, abs=1e-6)
            sgd.zero_grad()
            loss.backward()
            sgd.step()
        torch.testing.assert_close(heads.weight_LDC[number].double(), weight.detach(), rtol=1e-4, atol=1e-5)


def test_a_rate_that_diverges_leaves_the_others_as_they_are_and_is_never_right():
    features, labels = clouds()
    rows, ids = standardised(features, np.arange(600)), np.arange(600)
    alone, beside = grid(rows, labels, ids, [0.1]), grid(rows, labels, ids, [0.1, 1e38])
    assert torch.equal(alone.weight_LDC[0], beside.weight_LDC[0])
    assert not beside.head(1).is_finite and score(beside.head(1), rows, labels, ids).top1 == 0
    assert best_rate(beside, [0.1, 1e38], rows, labels, ids).about == {"rate": 0.1}


def test_a_grid_that_is_killed_goes_on_to_the_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "SAVE_SECONDS", 0.0)
    features, labels = clouds()
    rows, ids, told = standardised(features, np.arange(600)), np.arange(500), []
    whole = grid(rows, labels, ids, [0.01, 0.1], tell=lambda step, figures: told.append((step, figures)))

    class Killed(Exception):
        pass

    def kill(step, figures):
        raise Killed

    again = []
    with pytest.raises(Killed):
        grid(rows, labels, ids, [0.01, 0.1], kept=Kept(tmp_path / "kept", "one"), tell=kill)
    resumed = grid(
        rows, labels, ids, [0.01, 0.1], kept=Kept(tmp_path / "kept", "one"), tell=lambda *one: again.append(one)
    )
    assert torch.equal(resumed.weight_LDC, whole.weight_LDC) and torch.equal(resumed.bias_LC, whole.bias_LC)
    assert [step for step, _ in told] == [8, 16, 24] and again == told
    assert Kept(tmp_path / "kept", "one").load()[0] == 24
    assert Kept(tmp_path / "kept", "another").load() is None
    (tmp_path / "kept").write_bytes(b"cut")
    assert Kept(tmp_path / "kept", "one").load() is None


def test_rows_are_those_of_a_batch_norm_without_weights():
    features, _ = clouds()
    ids = np.arange(0, 600, 3)
    norm = torch.nn.BatchNorm1d(12, eps=EPSILON, affine=False)
    torch.testing.assert_close(
        standardised(features, ids)(ids), norm(torch.from_numpy(features[ids])), rtol=1e-4, atol=1e-5
    )
    assert torch.equal(Rows(features, Standard.none(12, CPU), CPU)(ids), torch.from_numpy(features[ids]))
    features[[5, 17], 3] = np.nan
    assert np.flatnonzero(~readable(features)).tolist() == [5, 17]


@pytest.mark.parametrize("held_bytes", [2**30, 0], ids=["held", "sliced"])
@pytest.mark.parametrize("C", [1e-3, 0.1, 10.0])
def test_logistic_regression_is_that_of_scikit_learn(monkeypatch, C, held_bytes):
    monkeypatch.setattr(logistic, "HELD_BYTES", held_bytes)
    features, labels = clouds()
    fitted, tested = np.arange(450), np.arange(450, 600)
    rows = standardised(features, fitted)
    fit = fit_logistic(rows, labels, fitted, C, 4)
    scaled = StandardScaler().fit(features[fitted].astype(np.float64))
    theirs = LogisticRegression(C=C, tol=1e-8, max_iter=2000).fit(scaled.transform(features[fitted]), labels[fitted])
    assert fit.is_converged
    shift = np.mean(theirs.intercept_) - float(fit.head.bias_C.mean())  # of all classes alike: no answer changes
    np.testing.assert_allclose(fit.head.weight_DC.T, theirs.coef_, atol=2e-3)
    np.testing.assert_allclose(fit.head.bias_C + shift, theirs.intercept_, atol=2e-3)
    expected = theirs.score(scaled.transform(features[tested]), labels[tested])
    assert score(fit.head, rows, labels, tested).top1 == pytest.approx(expected, abs=0.002)


def test_the_strengths_are_chosen_on_held_out_rows_and_a_killed_search_goes_on(tmp_path, monkeypatch):
    features, labels = clouds(300, 40)
    fitted, held = np.arange(100), np.arange(100, 300)
    rows, strengths = standardised(features, fitted), [1e-4, 1e-2, 100.0]

    def search(path):
        return best_strength(rows, labels, fitted, held, strengths, 4, Kept(path, "one"))

    whole = search(None)
    tops = [score(fit_logistic(rows, labels, fitted, C, 4).head, rows, labels, held).top1 for C in strengths]
    assert [one["held_out_top1"] for one in whole.grid] == pytest.approx(tops, abs=0.011)
    assert whole.about == {"C": strengths[int(np.argmax(tops))]} and len(set(tops)) > 1
    assert whole.record(score(whole.head, rows, labels, held))["held_out_top1"] == max(tops)

    fits = []

    def counted(*arguments):
        fits.append(arguments)
        if len(fits) == 2:
            raise KeyboardInterrupt
        return fit_logistic(*arguments)

    monkeypatch.setattr("engine.probing.chosen.fit_logistic", counted)
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "kept")
    resumed = search(tmp_path / "kept")
    assert len(fits) == 4  # one before, one that was killed, and the two that were left
    assert resumed.grid == whole.grid and torch.equal(resumed.head.weight_DC, whole.head.weight_DC)
    assert search(tmp_path / "kept").grid == whole.grid and len(fits) == 4


@pytest.mark.parametrize("classes", [3, 9])
def test_a_score_is_what_a_loop_over_the_images_counts(classes):
    features, labels = clouds(300, 7, classes)
    rows, ids = standardised(features, np.arange(300)), np.arange(40, 260)
    head = Head(torch.randn(7, classes, generator=torch.Generator().manual_seed(1)), torch.zeros(classes))
    found = score(head, rows, labels, ids)
    first, five, by_class, five_by_class = 0, 0, [[] for _ in range(classes)], [[] for _ in range(classes)]
    for number in ids:
        order = np.argsort(-(rows(np.array([number]))[0] @ head.weight_DC).numpy())
        first += order[0] == labels[number]
        five += labels[number] in order[:5]
        by_class[labels[number]].append(order[0] == labels[number])
        five_by_class[labels[number]].append(labels[number] in order[:5])
    assert found.top1 == pytest.approx(first / 220)
    assert found.top5 == (None if classes == 3 else pytest.approx(five / 220))
    assert found.count_C.tolist() == [len(one) for one in by_class]
    assert found.right_C == pytest.approx([np.mean(one) for one in by_class])
    if classes == 3:
        assert found.five_C is None
    else:
        assert found.five_C == pytest.approx([np.mean(one) for one in five_by_class])


def test_a_class_without_an_image_has_no_share():
    features, labels = clouds()
    rows, ids = standardised(features, np.arange(600)), np.flatnonzero(labels != 2)
    found = score(Head(torch.randn(12, 4), torch.zeros(4)), rows, labels, ids)
    assert np.isnan(found.right_C[2]) and np.isfinite(found.right_C[[0, 1, 3]]).all()


def test_rates_fall_from_one_to_nearly_zero():
    shares = [cosine(step, 50) for step in range(50)]
    assert shares[0] == 1 and 0 < shares[-1] < 0.002 and shares == sorted(shares, reverse=True)


def test_a_saved_probe_answers_as_before(tmp_path):
    features, labels = clouds()
    standard = standard_of(features, np.arange(600), CPU)
    rows, path = Rows(features, standard, CPU), tmp_path / "probe.safetensors"
    head = grid(rows, labels, np.arange(600), [0.1]).head(0)
    names, trained = ["cat", "dog", "horse", "\u00e9"], np.array([-7, 2**62])
    SavedProbe({"sgd": (head, standard)}, np.array([3, 5, 8, 9]), names, trained, "abc", "def", 16).write(path)
    again = SavedProbe.read(path, CPU)
    assert (again.names_C, again.trained_M.tolist(), again.network) == (names, trained.tolist(), "def")
    assert (again.labels_C.tolist(), again.digest, again.image_size) == ([3, 5, 8, 9], "abc", 16)
    assert torch.equal(again.heads["sgd"][0].logits(rows(np.arange(9))), head.logits(rows(np.arange(9))))
    assert torch.equal(again.heads["sgd"][1].scale_D, standard.scale_D)
    SavedProbe({"sgd": (head, standard)}, np.array([3, 5, 8, 9]), None, None, "abc", None, 16).write(path)
    earlier = SavedProbe.read(path, CPU)
    assert earlier.names_C is earlier.trained_M is earlier.network is None


@pytest.mark.parametrize("content", [None, b"", b"not safetensors", "another"])
def test_what_is_no_saved_probe_is_refused_by_its_name(tmp_path, content):
    path = tmp_path / "probe.safetensors"
    if content == "another":
        Kept(path, "one").save(1, lambda: {"weight": torch.zeros(2)}, is_last=True)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"linear\.probe: .*probe\.safetensors"):
        SavedProbe.read(path, CPU)
