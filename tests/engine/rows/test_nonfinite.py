"""Why a cosine classifier turns NaN late in training, and that this one cannot.

The softmax sees a row's direction only, so nothing holds its length: weight decay shrinks a row that is seldom wrong, without end, and
the gradient at a short row is long (it goes with 1/|w|). In half precision the row's squares underflow long before the row does:
with D = 128 and |w| = 1e-3 most entries' squares are below float16's smallest number and the length is 40 % off; at
|w| = 3e-4 it is 0 and w / |w| is 0 / 0.
Here rows are float32 whatever the trunk's precision, their length is taken without squaring small numbers, and a row that
would shrink to nothing over a gap is refused before training starts (engine/rows/shrink.py).
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from engine.rows.active_rows import catch_up
from engine.rows.transitions import TransitionLog
from kernels.sampled_softmax import sampled_softmax


@pytest.mark.parametrize("length", [3e-4, 1e-4])
def test_normalising_a_short_row_in_half_precision_is_nan(length):
    row = torch.randn(128, generator=torch.Generator().manual_seed(0))
    row = (row / row.norm() * length).half()
    assert torch.isnan(row / row.pow(2).sum().sqrt()).any()  # 0 / 0
    with_a_floor = row / row.pow(2).sum().sqrt().clamp_min(1e-12)  # 1e-12 is 0 in float16 too
    assert torch.isnan(with_a_floor).any()


def test_the_gradient_of_a_short_row_overflows_half_precision_even_where_the_length_is_right():
    row = torch.randn(128, generator=torch.Generator().manual_seed(0))
    row = (F.normalize(row, dim=0) * 1e-5).half().requires_grad_()
    F.normalize(row, dim=0)[0].backward()
    assert torch.isinf(row.grad).any()


def test_half_precision_already_mistakes_the_length_of_a_row_of_a_thousandth():
    row = torch.randn(128, generator=torch.Generator().manual_seed(0))
    row = (row / row.norm() * 1e-3).half()
    assert abs(row.pow(2).sum().sqrt().item() / row.float().norm().item() - 1) > 0.3


def test_weight_decay_alone_brings_a_row_there_in_a_long_run():
    # 1600 epochs of ImageNet, 5,004 steps each, cosine from 0.03: a row whose gradient has died.
    steps = 1600 * 5004
    mean_eta = 0.015
    shrink = np.exp(-steps * mean_eta * 1e-4 / (1 - 0.9))
    assert 0.113 * shrink < 1e-3
    log = TransitionLog(0.9, 1e-4, False)
    log.extend(np.full(4000, 0.03))
    w, _ = catch_up(np.array([[0.113]]), np.zeros((1, 1)), log.products(np.array([0]), 4000))
    assert w[0, 0] / 0.113 == pytest.approx(np.exp(-4000 * 0.03 * 1e-4 / 0.1), rel=0.01)


@pytest.mark.parametrize("length", [1e-2, 1e-6, 1e-15, 1e-25, 1e-35])
def test_loss_and_gradients_stay_finite_for_rows_of_any_length(length):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(64, 128, generator=generator)
    rows = F.normalize(rows) * length
    rows.requires_grad_()
    features = torch.randn(16, 128, generator=generator, requires_grad=True)
    loss = sampled_softmax(features, rows, torch.arange(16), temperature=0.2)
    loss.mean().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(features.grad).all()
    assert torch.isfinite(rows.grad).all()
    long = sampled_softmax(features, rows.detach() / length, torch.arange(16), temperature=0.2)
    torch.testing.assert_close(loss, long, rtol=1e-4, atol=1e-5)


def test_a_short_row_grows_at_its_next_gradient_instead_of_running_away():
    # The gradient is orthogonal to the row, so a step can only lengthen it: |w|^2 + (eta |g|)^2.
    generator = torch.Generator().manual_seed(1)
    rows = (torch.randn(64, 128, generator=generator) * 1e-12).requires_grad_()
    sgd = torch.optim.SGD([rows], lr=0.03, momentum=0.9)
    features = torch.randn(16, 128, generator=generator)
    for _ in range(50):
        sgd.zero_grad()
        sampled_softmax(features, rows, torch.arange(16), temperature=0.2).mean().backward()
        sgd.step()
        assert torch.isfinite(rows).all()
    assert rows.norm(dim=1).min() > 1e-3
