"""SimCLR with the gradient of one end is what its name says."""

import torch

from engine.methods.simclr import Samples
from tests.engine.methods.one_sided_simclr import OneSided


def test_a_view_gets_twice_the_gradient_of_its_own_loss_from_views_that_stand_still():
    z_XD = torch.nn.functional.normalize(
        torch.randn(8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    )
    weight_X, temperature = torch.full((8,), 1 / 8, dtype=torch.float64), 0.3
    contrast = OneSided(Samples(z_XD, weight_X, torch.arange(8)), temperature=temperature, dcl=False)
    loss, dz_XD = contrast.loss_and_gradient(contrast.lse())

    query_XD = z_XD.clone().requires_grad_()
    logits_XX = (query_XD @ z_XD.T / temperature).fill_diagonal_(-torch.inf)
    slow = torch.nn.functional.cross_entropy(logits_XX, torch.arange(8).roll(4))
    slow.backward()
    assert query_XD.grad is not None
    torch.testing.assert_close(torch.tensor(loss, dtype=torch.float64), slow.detach())
    torch.testing.assert_close(dz_XD, 2 * query_XD.grad)
