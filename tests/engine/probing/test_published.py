"""The published linear probe beside a plain loop, on one rank and on two."""

import numpy as np
import pytest
import torch

from datasets.loader import StepDataset, batches
from datasets.passes import InColour, Passes
from datasets.photos import PhotoAugment
from datasets.views.crops import Crop
from engine.probing import kept as saving
from engine.probing.heads import Heads
from engine.probing.kept import Kept
from engine.probing.published import DEVIATION, Course, Published
from engine.probing.tellers import nobody
from tests.engine.harness import ALONE
from tests.engine.probing.given import CPU, UNREADABLE, Images, small_trunk
from tests.on_ranks import on_ranks

COUNT, BATCH, EPOCHS, CLASSES, SIDE = 30, 8, 3, 3, 9
STEPS = EPOCHS * 4
LABELS = np.arange(COUNT) % CLASSES
AUGMENT = PhotoAugment(
    crops=(Crop(SIDE, 1, (0.08, 1.0)),), flip=0.5, jitter_probability=0.0, grey=0.0, blur_probability=0.0
)


def stream(first, ranks=ALONE):
    passes = Passes(np.arange(COUNT), BATCH, ranks.size, seed=4)
    dataset = StepDataset(InColour(Images()), passes, AUGMENT, 4, ranks.rank, ranks.size)
    return batches(dataset, first, STEPS, 0, pin=False)


def probe(lr, weight_decay, kept=None, ranks=ALONE, tell_every=1):
    heads = Heads(1, 24, CLASSES, CPU, deviation=DEVIATION, seed=4)
    course = Course(STEPS, STEPS, lr, weight_decay, tell_every)
    return Published(small_trunk(), heads, LABELS, course, kept or Kept(None, ""), ranks)


def trained(made, ranks=ALONE):
    losses = []
    made.train(stream(made.first_step, ranks), lambda step, figures: losses.append(figures["loss"]))
    return losses


def plain_loop(lr, weight_decay, dtype=torch.float32):
    """The losses of the published protocol on the same batches, with torch's own layers, autograd and optimizer."""
    trunk = small_trunk().network.backbone.eval().to(dtype)
    classifier = torch.nn.Linear(24, CLASSES, dtype=dtype)
    torch.nn.init.zeros_(classifier.bias)
    with torch.no_grad():
        drawn = torch.randn(1, 24, CLASSES, generator=torch.Generator().manual_seed(4))
        classifier.weight.copy_(0.01 * drawn[0].T)
    optimizer = torch.optim.SGD(classifier.parameters(), lr, momentum=0.9, weight_decay=weight_decay)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    losses = []
    for batch in stream(0):
        filled = torch.from_numpy(batch.filled_G)
        images = batch.views[0][filled].to(dtype) / 255
        with torch.no_grad():
            features = trunk((images - mean[:, None, None]) / std[:, None, None])
        labels = torch.from_numpy(LABELS[batch.ids_G[batch.filled_G]])
        loss = torch.nn.functional.cross_entropy(classifier(features), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        falling.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(("lr", "weight_decay"), [(30.0, 0.0), (0.1, 1e-6), (0.5, 0.1)])
def test_the_published_protocol_is_a_plain_loop(lr, weight_decay):
    """To 1e-5, and twice what the plain loop is off in float32: at a rate of 30 losses reach 60, and steps multiply rounding."""
    found, plain, exact = (np.array(losses) for losses in (
        trained(probe(lr, weight_decay)), plain_loop(lr, weight_decay), plain_loop(lr, weight_decay, torch.float64)
    ))  # fmt: skip
    own_error = np.abs(plain - exact).max()
    assert len(found) == STEPS and (np.abs(found - exact) <= 1e-6 + 1e-5 * exact + 2 * own_error).all()


def on_a_rank(ranks):
    made = probe(0.5, 0.0, ranks=ranks)
    return trained(made, ranks), made.heads.weight_LDC


def test_two_ranks_take_the_steps_of_one():
    losses, weight = on_a_rank(ALONE)
    for theirs, their_weight in on_ranks(2, on_a_rank):
        assert theirs == pytest.approx(losses, rel=1e-5)
        np.testing.assert_allclose(their_weight, weight, rtol=1e-4, atol=1e-6)


def test_the_trunk_has_the_same_bytes_after_a_probe_and_a_change_is_noticed():
    made = probe(30.0, 0.0)
    trained(made)
    made._trunk.require_unchanged()
    assert made._trunk.digest_now() == small_trunk().digest
    with torch.no_grad():
        made._trunk.network.backbone[1].running_mean[0] += 1e-6
    with pytest.raises(AssertionError, match="changed the network"):
        made._trunk.require_unchanged()


def test_a_trunk_in_training_mode_would_be_noticed():
    trunk = small_trunk()
    trunk.network.train()
    trunk(torch.randint(0, 256, (4, 3, SIDE, SIDE), dtype=torch.uint8))
    with pytest.raises(AssertionError, match="changed the network"):
        trunk.require_unchanged()


def test_a_killed_probe_goes_on_to_the_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "SAVE_SECONDS", 0.0)
    whole = probe(0.5, 0.0)
    losses = trained(whole)

    def kill(step, figures):
        if step == 7:
            raise KeyboardInterrupt

    killed = probe(0.5, 0.0, Kept(tmp_path / "kept", "one"))
    with pytest.raises(KeyboardInterrupt):
        killed.train(stream(0), kill)
    resumed = probe(0.5, 0.0, Kept(tmp_path / "kept", "one"))
    assert resumed.first_step == 6
    assert trained(resumed) == losses[6:]
    assert torch.equal(resumed.heads.weight_LDC, whole.heads.weight_LDC)


def test_images_that_cannot_be_read_are_left_out_of_a_step_and_one_of_nothing_changes_nothing():
    made = probe(0.5, 0.0)
    (batch,) = [batch for batch in stream(0) if batch.step < 4 and batch.unreadable]
    assert [one.instance for one in batch.unreadable] == [UNREADABLE]
    assert made.step(batch, 0.1)[1] == batch.filled_G.sum()
    before = made.heads.weight_LDC.clone()
    batch.filled_G[:] = False
    loss, count = made.step(batch, 0.1)
    assert np.isnan(loss) and count == 0 and torch.equal(made.heads.weight_LDC, before)


def test_an_image_whose_features_are_no_numbers_is_left_out_and_counted(monkeypatch):
    made = probe(0.5, 0.0)
    (batch,) = [batch for batch in stream(0) if batch.step == 0]
    plain = type(made._trunk).__call__

    def wild(trunk, images):
        features = plain(trunk, images)
        features[1, 3] = np.inf
        return features

    monkeypatch.setattr(type(made._trunk), "__call__", wild)
    loss, count = made.step(batch, 0.1)
    assert np.isfinite(loss) and count == batch.filled_G.sum() - 1 and made.heads.head(0).is_finite
    assert int(batch.ids_G[batch.filled_G][1]) in made.unreadable


def test_what_is_told_counts_images_and_rates():
    told = []
    made = probe(2.0, 0.0, tell_every=5)
    made.train(stream(0), lambda step, figures: told.append((step, figures)))
    assert [step for step, _ in told] == [5, 10, 12]
    assert sum(figures["images"] for _, figures in told) == EPOCHS * (COUNT - 1)
    rates = [figures["lr"] for _, figures in told]
    assert rates == sorted(rates, reverse=True) and 0 < rates[-1] < 0.1
    assert nobody(1, {}) is None
