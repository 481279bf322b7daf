"""What a network makes on the way, counted without memory, is what it makes in memory."""

import pytest
import torch

from engine.planning.activations import Activations, StorageCount
from engine.trunk.network import Network, make_network


def network() -> Network:
    return make_network("vgg", (8, "M", 16), 2, 32, 16, 0)


def real(places: int, sides: list[int], dtype: torch.dtype | None = None) -> int:
    made = network()
    with StorageCount() as count:
        with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            z_XD = made([torch.randint(256, (places, 3, side, side), dtype=torch.uint8) for side in sides])
        z_XD.backward(torch.ones_like(z_XD))
        gradients = [count.number_of(one.grad) for one in made.parameters() if one.grad is not None]
    return count.peak(gradients)


@pytest.mark.parametrize(("places", "sides"), [(4, [32]), (6, [32, 16, 16])])
def test_a_micro_batch_is_counted_as_real_tensors_are(places: int, sides: list[int]) -> None:
    counted = Activations(network).training(places, 3, sides)
    assert counted.all == pytest.approx(real(places, sides), rel=0.02)
    assert counted.small == counted.all and counted.large == 0


def test_autocast_is_counted_in_its_type() -> None:
    counted = Activations(network, autocast=torch.bfloat16).training(8, 3, [32]).all
    assert counted == pytest.approx(real(8, [32], torch.bfloat16), rel=0.02)
    assert counted < 0.8 * Activations(network).training(8, 3, [32]).all


def test_several_ranks_keep_centred_elements_besides() -> None:
    assert Activations(network, ranks=2).training(8, 3, [32]).all > Activations(network).training(8, 3, [32]).all


def test_an_evaluation_keeps_nothing_for_gradients() -> None:
    counted = Activations(network)
    assert counted.evaluation(8, 3, 32).all < counted.training(8, 3, [32]).all


def test_what_was_there_before_is_not_counted() -> None:
    there = torch.zeros(1000)
    with StorageCount() as count:
        there.add_(1)
        view = there.view(10, 100)
        made = view + 1
    assert count.peak() == count.live == made.nbytes
    del made
    assert count.live == 0
