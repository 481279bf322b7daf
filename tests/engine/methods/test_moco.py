"""MoCo beside a dense twin in the published order, on one rank and two, with micro-batches; its groups, its mask, its state."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from datasets.schedule import Schedule
from engine.methods.moco import MoCo
from engine.methods.momentum_network import MomentumNetwork, dealt_places
from engine.methods.queue import Queue
from engine.methods.queue_softmax import Negatives, queue_loss
from engine.methods.stages import Stages
from engine.ranks.lanes import Lanes
from engine.training.step import Dealing, train_step
from kernels.measure import peak_of
from tests.engine.harness import ALONE
from tests.engine.methods.dense_moco import DenseMoco
from tests.engine.methods.plain_runs import Case, PlainTrunk, given, part_of_rank, train, weights_of
from tests.on_ranks import on_ranks

QUEUE, TEMPERATURE, MOMENTUM = 16, 0.2, 0.9


def moco(case, ranks):
    trunk = PlainTrunk(case.network(), ranks)
    network = MomentumNetwork(trunk, case.network(), ranks, momentum=MOMENTUM)
    queue = Queue(QUEUE, case.dim, case.seed, ranks.device)
    queue.keys_KD = queue.keys_KD.double()
    return trunk, MoCo(given(case, ranks, trunk), queue, network, temperature=TEMPERATURE, kernel="aten")


def trained(ranks, case):
    trunk, method = moco(case, ranks)
    losses = train(case, ranks, trunk, method, views=(0,))
    state = {**method.queue.state(), "found": torch.tensor([method.found])}
    return losses, weights_of(trunk.network), weights_of(method.network.network), state


def dense(case):
    twin = DenseMoco(
        case.network,
        Queue(QUEUE, case.dim, case.seed, torch.device("cpu")).keys_KD,
        temperature=TEMPERATURE,
        momentum=MOMENTUM,
    )
    share = case.batch // case.lanes
    query_groups = [
        [lane * share + place for lane in range(case.lanes) for place in part]
        for part in np.arange(share).reshape(case.micro_batches, -1)
    ]
    losses = []
    for step in range(case.steps):
        views, ids = case.images(step)
        key_groups = dealt_places(case.seed, step, Lanes(case.lanes), case.batch, case.micro_batches)[0].tolist()
        losses.append(twin.step(views, ids.tolist(), query_groups, key_groups, case.lr))
    return losses, twin


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_losses_weights_keys_and_queue_equal_the_dense_twin_in_the_published_order(ranks, micro_batches):
    case = Case(micro_batches=micro_batches)
    wanted, twin = dense(case)
    assert twin.masked > 5 and any((case.images(step)[1] < 0).any() for step in range(case.steps))
    for losses, query, key, queue in [trained(ALONE, case)] if ranks == 1 else on_ranks(2, trained, case):
        np.testing.assert_allclose(losses, wanted, rtol=1e-10)
        for name, weight in twin.q.named_parameters():
            np.testing.assert_allclose(np.asarray(query[name]), weight.detach(), rtol=1e-10, atol=1e-10)
        # The twin moves the keys' weights before a step, and the engine after it.
        for name, weight in twin.k.named_parameters():
            moved = MOMENTUM * weight + (1 - MOMENTUM) * dict(twin.q.named_parameters())[name].detach()
            np.testing.assert_allclose(np.asarray(key[name]), moved, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(np.asarray(queue["keys"]), twin.keys_KD, rtol=1e-10, atol=1e-10)
        assert (
            np.asarray(queue["instances"]).tolist() == twin.ids and np.asarray(queue["pointer"]).item() == twin.pointer
        )
        assert np.asarray(queue["found"]).item() == twin.masked


def slow_loss(z_BD, keys_BD, queue_KD, own_B, weight_B, temperature):
    z_BD = normalize(z_BD)
    logits_BK = (z_BD @ normalize(queue_KD).T).scatter(1, own_B.clamp(0)[:, None], -torch.inf) / temperature
    logits_BK = torch.where(own_B[:, None] < 0, z_BD @ normalize(queue_KD).T / temperature, logits_BK)
    logits_BX = torch.cat([(z_BD * normalize(keys_BD)).sum(1, keepdim=True) / temperature, logits_BK], 1)
    return (cross_entropy(logits_BX, torch.zeros(len(z_BD), dtype=torch.int64), reduction="none") * weight_B).sum()


@pytest.mark.parametrize("near", [0.0, 0.95], ids=["any keys", "own keys near"])
@pytest.mark.parametrize("temperature", [0.07, 0.2])
def test_loss_and_gradient_are_as_exact_as_the_slow_line(near, temperature):
    generator = torch.Generator().manual_seed(1)
    z_BD, keys_BD, queue_KD = (torch.randn(n, 16, generator=generator, dtype=torch.float64) for n in (40, 40, 700))
    z_BD, queue_KD = normalize(z_BD), normalize(queue_KD)
    keys_BD = normalize(near * z_BD + (1 - near) * normalize(keys_BD))
    own_B = torch.arange(40) * 3 - 1
    queue_KD[own_B[1:]] = normalize(near * z_BD[1:] + 0.1 * queue_KD[own_B[1:]])
    weight_B = torch.linspace(0, 0.1, 40, dtype=torch.float64)

    def slow(dtype):
        leaf = z_BD.to(dtype, copy=True).requires_grad_()
        loss = slow_loss(leaf, keys_BD.to(dtype), queue_KD.to(dtype), own_B, weight_B.to(dtype), temperature)
        return float(loss.detach()), torch.autograd.grad(loss, leaf)[0].double()

    def fast(dtype):
        negatives = Negatives(queue_KD.to(dtype), own_B, None)
        loss, dz_BD = queue_loss(z_BD.to(dtype), keys_BD.to(dtype), negatives, weight_B, temperature=temperature)
        return loss, dz_BD.double()

    exact = slow(torch.float64)
    assert fast(torch.float64)[0] == pytest.approx(exact[0], rel=1e-12)
    torch.testing.assert_close(fast(torch.float64)[1], exact[1], rtol=1e-10, atol=1e-12)
    errors = [
        (abs(loss - exact[0]), (dz_BD - exact[1]).norm()) for loss, dz_BD in (fast(torch.float32), slow(torch.float32))
    ]
    assert errors[0][0] <= 2 * errors[1][0] + 1e-7 * abs(exact[0])
    assert errors[0][1] <= 2 * errors[1][1]


def peak_bytes(ranks, samples, rows, backend):
    """Of a loss and its gradient, beyond the queue; in a process of its own."""

    def run(count):
        generator = torch.Generator().manual_seed(0)
        z_BD, keys_BD, queue_KD = (torch.randn(n, 16, generator=generator) for n in (samples, samples, count))
        negatives = Negatives(queue_KD, torch.arange(samples) % 3 - 1, None)
        weight_B = torch.full((samples,), 1 / samples)
        return lambda: queue_loss(z_BD, keys_BD, negatives, weight_B, temperature=0.2, backend=backend)

    return peak_of(run(rows), run(64), ranks.device)


@pytest.mark.parametrize("backend", ["cpu", "aten"])
def test_no_logits_of_a_queue_of_65536_keys_are_held(backend):
    samples, rows = 256, 65_536
    (peak,) = on_ranks(1, peak_bytes, samples, rows, backend)
    assert peak < samples * rows * 4 / (20 if backend == "cpu" else 4)


def test_at_w_of_2k_an_eighth_of_the_revisits_would_have_met_their_own_key_and_none_does():
    window, queue_size = 1024, 512
    schedule = Schedule(0, 8192, window, 128, 64, 16, 8)
    queue = Queue(queue_size, 2, 0, torch.device("cpu"))
    before, after, revisits, seen = 0, 0, 0, set()
    steps = 400
    for step in range(steps):
        ids_G = schedule.instances(schedule.positions(step))
        own_G, further = queue.own(ids_G)
        assert not further
        for instance, own in zip(ids_G.tolist(), own_G.tolist(), strict=True):
            there = set(np.flatnonzero(queue.ids_K == instance).tolist())
            before, after = before + bool(there), after + bool(there - {own})
            revisits += instance in seen
        seen.update(ids_G.tolist())
        queue.push(torch.zeros(64, 2), ids_G)
    assert after == 0
    # A window has 16 steps, the queue the keys of 8: of the 256 pairs of steps in two windows 36 are that near, 1/8 for ever smaller steps.
    assert before / revisits == pytest.approx(36 / 256, rel=0.05)
    assert before / (64 * steps) == pytest.approx(36 / 256 * 7 / 8, rel=0.1)


def test_keys_that_empty_places_left_alone_are_told_apart_by_their_age():
    queue, nothing = Queue(4, 2, 0, torch.device("cpu")), torch.zeros(2, 2)
    queue.push(nothing, np.array([7, 8]))
    queue.push(nothing, np.array([1, 2]))
    queue.push(nothing, np.array([-1, 9]))  # 7 stays
    assert queue.ids_K.tolist() == [7, 9, 1, 2] and queue.pointer == 2
    queue.push(nothing, np.array([7, 3]))
    newest, further = queue.own(np.array([7, 9, 5, -1]))
    assert newest.tolist() == [2, 1, -1, -1] and further == [0]
    again = Queue(4, 2, 1, torch.device("cpu"))
    again.load(queue.state())
    assert again.own(np.array([7]))[1] == further and again.own(np.array([7]))[0].tolist() == [2]
    queue.push(nothing, np.array([4, -1]))
    assert queue.own(np.array([7]))[0].tolist() == [2] and queue.own(np.array([7]))[1] == []


def test_further_keys_of_the_batch_are_nobodys_negatives():
    generator = torch.Generator().manual_seed(0)
    z_BD, keys_BD, queue_KD = (normalize(torch.randn(n, 4, generator=generator)).double() for n in (3, 3, 9))
    mask_K = torch.arange(9) != 5
    weight_B, own_B = torch.full((3,), 1 / 3, dtype=torch.float64), torch.tensor([-1, 2, 0])
    some = queue_loss(z_BD, keys_BD, Negatives(queue_KD, own_B, mask_K), weight_B, temperature=0.2)
    left = queue_loss(z_BD, keys_BD, Negatives(queue_KD[mask_K], own_B, None), weight_B, temperature=0.2)
    assert some[0] == pytest.approx(left[0], rel=1e-12)
    torch.testing.assert_close(some[1], left[1], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_groups_of_keys_are_the_same_for_every_number_of_ranks_and_fair_to_lanes(ranks):
    whole_AQ = dealt_places(5, 9, Lanes(4), 32, 4)[0]
    order_G = Lanes(4, 0, ranks).in_batch_order(32)
    places_RAQ = dealt_places(5, 9, Lanes(4, 0, ranks), 32 // ranks, 4)
    for group in range(4):
        there = {rank * 32 // ranks + place for rank in range(ranks) for place in places_RAQ[rank, group].tolist()}
        assert {place for place in range(32) if order_G[place] in there} == set(whole_AQ[group].tolist())
    assert sorted(whole_AQ.reshape(-1).tolist()) == list(range(32))
    assert (np.bincount((whole_AQ // 8).reshape(-1)) == 8).all()
    assert all(np.bincount(group // 8, minlength=4).tolist() == [2, 2, 2, 2] for group in whole_AQ)


def test_groups_are_drawn_anew_by_seed_step_and_lane_and_not_for_a_single_one():
    drawn = [dealt_places(seed, step, Lanes(2), 64, 4)[0] for seed, step in ((0, 0), (0, 1), (1, 0))]
    assert not any(np.array_equal(drawn[0], other) for other in drawn[1:])
    assert not np.array_equal(drawn[0][:, :8] % 32, drawn[0][:, 8:] % 32)
    assert dealt_places(0, 0, Lanes(2), 64, 1).tolist() == [[list(range(64))]]


def test_a_query_and_its_key_share_a_group_no_more_often_than_chance():
    query_group = np.arange(64) % 32 // 8
    shared = [
        (query_group[group] == number).mean()
        for step in range(200)
        for number, group in enumerate(dealt_places(0, step, Lanes(2), 64, 4)[0])
    ]
    assert np.mean(shared) == pytest.approx(0.25, abs=0.02)


def test_a_step_that_is_discarded_leaves_statistics_queue_and_counts_as_they_were():
    case = Case(steps=3)
    trunk, method = moco(case, ALONE)
    train(case, ALONE, trunk, method, views=(0,))
    before = method.shared()
    batch = part_of_rank(case, ALONE, 3)
    batch.views[0] = batch.views[0] * float("nan")
    dealing = Dealing(case.lanes, 1, (0,))
    result = train_step(batch, trunk, method, ALONE, lr=case.lr, dealing=dealing, stages=Stages())
    assert not result.applied
    method.discard()  # and once more, as for a step of which nothing could be read
    for component, tensors in before.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, method.shared()[component][name]), (component, name)


def test_what_is_loaded_goes_on_to_the_bit():
    case = Case(steps=20, micro_batches=2)
    losses, *whole = trained(ALONE, case)
    first, second = moco(case, ALONE), moco(case, ALONE)
    part = dataclasses.replace(case, steps=11)
    train(part, ALONE, *first, views=(0,))
    second[0].network.load_state_dict(first[0].network.state_dict())
    second[1].load_shared(first[1].shared())
    dealing = Dealing(case.lanes, 2, (0,))
    rest = [
        train_step(
            part_of_rank(case, ALONE, step), second[0], second[1], ALONE, lr=case.lr, dealing=dealing, stages=Stages()
        ).loss
        for step in range(11, 20)
    ]
    assert rest == losses[11:]
    assert all(torch.equal(one, second[1].queue.state()[name]) for name, one in whole[2].items() if name != "found")
