"""Batch normalisation over ranks: whatever the split of a batch, ranks together do what torch's layer does with the whole batch."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from engine.ranks.ranks import Ranks
from engine.trunk.batch_norm import Synchronised2d, SynchronisedOnGpu, synchronised
from tests.on_ranks import on_ranks

CPU = torch.device("cpu")
ALONE = Ranks(0, 1, CPU, 10.0)
TWO = SimpleNamespace(size=2, device=CPU)  # as far as a conversion needs them; a collective would fail
C = 6


def batch(shape=(7, C, 5, 4), dtype=torch.float64):
    """x and dy of two steps, [2, *shape] each: channels of very different scales, some of them far from zero."""
    generator = torch.Generator().manual_seed(1)
    x, dy = torch.randn(2, 2, *shape, generator=generator, dtype=torch.float64)
    scale, shift = torch.logspace(-2, 2, C, dtype=torch.float64), torch.linspace(-3, 30, C, dtype=torch.float64)
    to_channels = (-1, *[1] * (len(shape) - 2))
    return ((x + shift.view(to_channels)) * scale.view(to_channels)).to(dtype), dy.to(dtype)


def layer(kind=nn.BatchNorm2d, **options):
    module = kind(C, **options).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(2))
    return module


class Residual(nn.Module):
    """A small residual network with batch normalisation of images and of features."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, C, 3, padding=1, bias=False), nn.BatchNorm2d(C), nn.ReLU())
        self.one = nn.Sequential(nn.Conv2d(C, C, 3, padding=1, bias=False), nn.BatchNorm2d(C), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(C, C, 3, padding=1, bias=False), nn.BatchNorm2d(C))
        self.head = nn.Sequential(nn.Linear(C, 5, bias=False), nn.BatchNorm1d(5))

    def forward(self, x):
        x = nn.functional.max_pool2d(self.stem(x.contiguous(memory_format=torch.channels_last)), 2)
        x = nn.functional.relu(x + self.two(self.one(x)))
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


def residual():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = Residual().double()
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(2, 7, 3, 8, 8, generator=generator, dtype=torch.float64)
    return network, x, torch.randn(2, 7, 5, generator=generator, dtype=torch.float64)


def train(ranks, split, network, x, dy, lr=0.0, autocast=False):
    """Two steps on this rank's part of the batches; parameters step by lr times the gradients of all ranks.

    Returns what is to be put together over ranks, by how: "joined", "summed", "same".
    """
    network = synchronised(network, ranks)
    first = sum(split[: ranks.rank])
    joined, summed = {}, {}
    for step in range(2):
        part = x[step, first : first + split[ranks.rank]].clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = network(part)
        y.backward(dy[step, first : first + split[ranks.rank]].to(y.dtype))
        joined |= {f"y {step}": y.detach(), f"dx {step}": part.grad}
        summed |= {f"d{name} {step}": parameter.grad.clone() for name, parameter in network.named_parameters()}
        for parameter in network.parameters():
            parameter.data.sub_(ranks.sum(parameter.grad, "test"), alpha=lr)
            parameter.grad = None
    return {"joined": joined, "summed": summed, "same": {**network.state_dict()}}


def alone(network, x, dy, **options):
    """By name, float64: what torch's own layers do with the whole batches."""
    parts = train(ALONE, x.shape[1:2], copy.deepcopy(network), x, dy, **options)
    return {name: values.double().numpy() for part in parts.values() for name, values in part.items()}


def together(split, network, x, dy, **options):
    """The same from ranks, put together."""
    parts = on_ranks(len(split), train_as_said, split, network, x, dy, options)
    result = {}
    for name in parts[0]["joined"]:
        result[name] = np.concatenate([part["joined"][name] for part in parts]).astype(np.float64)
    for name in parts[0]["summed"]:
        result[name] = sum(part["summed"][name].astype(np.float64) for part in parts)
    for name, values in parts[0]["same"].items():
        for part in parts[1:]:
            np.testing.assert_array_equal(part["same"][name], values, err_msg=name)
        result[name] = values.astype(np.float64)
    return result


def train_as_said(ranks, split, network, x, dy, options):
    return train(ranks, split, network, x, dy, **options)


def errors(result, truth):
    """By name: the largest error, for images relative to the channel's largest value, else to the largest of all."""
    assert result.keys() == truth.keys()
    largest = {}
    for name, true in truth.items():
        across = tuple(axis for axis in range(true.ndim) if axis != 1) if true.ndim > 2 else None
        error, scale = (np.max(np.abs(values), axis=across, initial=0.0) for values in (result[name] - true, true))
        largest[name] = float(np.max(error / np.maximum(scale, 1e-300)))
    return largest


@pytest.mark.parametrize("split", [(4, 3), (5, 2, 0), (0, 7)], ids=str)
@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (layer(), (7, C, 5, 4)),
        (layer(eps=1e-3, momentum=None), (7, C, 5, 4)),
        (layer(affine=False, momentum=0.3), (7, C, 5, 4)),
        (layer(track_running_stats=False), (7, C, 5, 4)),
        (layer(nn.BatchNorm1d), (7, C)),
        (layer(nn.BatchNorm1d), (7, C, 9)),
        (layer(nn.BatchNorm3d), (7, C, 2, 3, 2)),
    ],
    ids=["2d", "cumulative", "not affine", "no running", "features", "1d", "3d"],
)
def test_ranks_together_do_what_the_layer_does_with_the_whole_batch(module, shape, split):
    x, dy = batch(shape)
    for name, error in errors(together(split, module, x, dy), alone(module, x, dy)).items():
        assert error < 1e-12, name


@pytest.mark.parametrize("split", [(4, 3), (5, 2, 0)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_errors_are_like_those_of_the_layer_itself(dtype, split):
    """Half precision as under autocast: weights and statistics stay float32."""
    x, dy = batch(dtype=dtype)
    truth = alone(layer(), x.double(), dy.double())
    usual = errors(alone(layer().float(), x, dy), truth)
    for name, error in errors(together(split, layer().float(), x, dy), truth).items():
        assert error <= 3 * usual[name] + 3e-7, (name, error, usual[name])


def test_a_channel_far_from_zero_keeps_its_variance():
    x = (1e4 + torch.randn(2, 64, C, 5, 4, generator=torch.Generator().manual_seed(5))).float()
    result = together((40, 24), layer(momentum=1.0).float(), x, torch.ones_like(x))
    values = x[1].double().transpose(0, 1).reshape(C, -1)
    np.testing.assert_allclose(result["running_mean"], values.mean(1), rtol=1e-7)
    np.testing.assert_allclose(result["running_var"], values.var(1), rtol=1e-6)


@pytest.mark.parametrize("split", [(4, 3), (4, 0, 3)], ids=str)
def test_a_residual_network_trains_as_on_one_rank(split):
    network, x, dy = residual()
    result = together(split, network, x, dy, lr=0.01)
    assert not np.array_equal(result["stem.0.weight"], network.stem[0].weight.detach())
    for name, error in errors(result, alone(network, x, dy, lr=0.01)).items():
        assert error < 1e-10, name


def test_errors_of_a_residual_network_under_autocast_are_those_of_one_rank():
    """Of gradients, not of steps: what bfloat16 leaves of them soon sends two runs different ways."""
    network, x, dy = residual()
    truth = alone(network, x, dy)
    network, x, dy = network.float(), x.float(), dy.float()
    usual = errors(alone(network, x, dy, autocast=True), truth)
    for name, error in errors(together((4, 0, 3), network, x, dy, autocast=True), truth).items():
        assert error <= 3 * usual[name] + 3e-7, (name, error, usual[name])


def collectives(ranks):
    network = synchronised(layer(), ranks)
    calls = []
    for requires_grad in (True, False):
        y = network(batch()[0][0].requires_grad_(requires_grad))
        calls.append(ranks.calls)
        y.sum().backward()
        calls.append(ranks.calls)
    return calls, dict(ranks.sent_bytes)


def test_a_layer_takes_two_small_collectives():
    """And one where nobody asks for the input's gradient."""
    for calls, sent in on_ranks(2, collectives):
        assert calls == [1, 2, 3, 3]
        assert sent == {"batch statistics": 2 * 8 * (2 * C + 1) + 16 * C}


def formats(ranks, dtype):
    network = synchronised(layer().float(), ranks)
    kept = []
    for layout in (torch.contiguous_format, torch.channels_last):
        x = batch()[0][0].to(dtype).contiguous(memory_format=layout).requires_grad_()
        y = network(x)
        y.mean((2, 3)).sum().backward()
        kept += [tensor.is_contiguous(memory_format=layout) and tensor.dtype is dtype for tensor in (y, x.grad)]
    return kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_results_have_the_layout_and_dtype_of_the_input(dtype):
    assert on_ranks(2, formats, dtype) == [[True] * 4] * 2


def refusal(ranks, counts):
    network = synchronised(layer(), ranks)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training") as caught:
        network(torch.ones(counts[ranks.rank], C, 1, 1, dtype=torch.float64))
    assert int(network.num_batches_tracked) == 0
    return str(caught.value)


@pytest.mark.parametrize("counts", [(0, 1), (0, 0)], ids=str)
def test_fewer_than_two_values_are_refused_on_every_rank(counts):
    for message in on_ranks(2, refusal, counts):
        assert f"got {sum(counts)} on all ranks together" in message


def twice(ranks):
    x = batch()[0][0].requires_grad_()
    (dx,) = torch.autograd.grad(synchronised(layer(), ranks)(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


def test_gradients_of_gradients_are_refused():
    on_ranks(2, twice)


@pytest.mark.parametrize("running", [True, False])
def test_evaluation_is_the_layers_own_and_asks_nobody(running):
    module = layer(track_running_stats=running)
    module(batch()[0][0])
    ours = synchronised(copy.deepcopy(module), TWO)
    x = batch()[0][1]
    assert torch.equal(ours.eval()(x), module.eval()(x))


def test_parameters_buffers_names_and_mode_stay():
    network = residual()[0]
    network.one.eval()
    before = network.state_dict(keep_vars=True)
    modes = [module.training for module in network.modules()]
    converted = synchronised(network, TWO)
    after = converted.state_dict(keep_vars=True)
    assert list(before) == list(after) and all(before[name] is after[name] for name in before)
    assert [module.training for module in converted.modules()] == modes
    assert sum(isinstance(module, Synchronised2d) for module in converted.modules()) == 3
    residual()[0].load_state_dict(converted.state_dict())


def test_a_copy_belongs_to_the_same_ranks():
    ours = synchronised(layer(), TWO)
    copied = copy.deepcopy(ours)
    assert copied.ranks is TWO and type(copied) is type(ours)
    assert torch.equal(copied.weight, ours.weight) and copied.weight is not ours.weight


def test_one_rank_keeps_the_network_as_it_is():
    network = synchronised(residual()[0], ALONE)
    assert {type(module) for module in network.modules() if "Norm" in type(module).__name__} == {
        nn.BatchNorm1d,
        nn.BatchNorm2d,
    }


def test_on_gpus_torchs_own_layer_takes_over():
    network = residual()[0]
    before = list(network.parameters())
    converted = synchronised(network, SimpleNamespace(size=2, device=torch.device("cuda")))
    norms = [module for module in converted.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 4 and all(type(module) is SynchronisedOnGpu for module in norms)
    assert all(one is other for one, other in zip(before, converted.parameters(), strict=True))


def test_a_rank_without_images_sends_float32_on_a_gpu_as_the_others_do(monkeypatch):
    # torch takes the type of what an empty rank sends from its input; images give float32 statistics whatever their type is.
    seen = []
    monkeypatch.setattr(nn.SyncBatchNorm, "forward", lambda layer, x: seen.append(x.dtype) or x)
    norm = synchronised(nn.Sequential(layer()), SimpleNamespace(size=2, device=torch.device("cuda")))[0]
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        assert norm(torch.ones(0, C, 2, 2, dtype=dtype)).dtype == dtype
        assert seen.pop() == torch.float32
    norm(torch.ones(2, C, 2, 2, dtype=torch.bfloat16))
    assert seen.pop() == torch.bfloat16  # copied by nobody


class AsTorchDoes(torch.autograd.Function):
    """What torch's layer does on a rank without images: an empty result, and no gradient for anything."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx, dy):
        return None, None, None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_parameter_of_a_rank_without_images_has_a_gradient_of_zero_on_a_gpu(monkeypatch, dtype):
    monkeypatch.setattr(nn.SyncBatchNorm, "forward", lambda norm, x: AsTorchDoes.apply(x, norm.weight, norm.bias))
    network = nn.Sequential(
        nn.Conv2d(3, C, 3), nn.BatchNorm2d(C), nn.ReLU(), nn.Conv2d(C, C, 3), nn.BatchNorm2d(C, affine=False)
    ).to(dtype)
    network = synchronised(network, SimpleNamespace(size=2, device=torch.device("cuda")))
    y = network(torch.zeros(0, 3, 8, 8, dtype=dtype))
    assert y.shape == (0, C, 4, 4)
    (y * torch.zeros_like(y)).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name


class Unusual(nn.BatchNorm2d):
    pass


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("kind", [Unusual, nn.LazyBatchNorm2d, nn.SyncBatchNorm])
def test_another_batch_normalisation_is_refused_by_name(kind, device):
    network = nn.Sequential(nn.BatchNorm2d(C), kind() if kind is nn.LazyBatchNorm2d else kind(C))
    with pytest.raises(ValueError, match=f"layer 1 is a {kind.__name__}"):
        synchronised(network, SimpleNamespace(size=2, device=torch.device(device)))
    assert type(network[0]) is nn.BatchNorm2d
