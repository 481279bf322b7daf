"""Peers beside slow twins: exact where they say so."""

from dataclasses import replace
from importlib.util import find_spec
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from configs.scale import Scale
from engine.jobs.peer import PEERS
from engine.scaling.peers.embedding import SparseAdamRows, SparseRows
from engine.scaling.peers.partial_fc import PartialFC
from engine.scaling.peers.peer import Peer, PeerTask, keyed_rows
from engine.scaling.peers.pic_dense import PicDense
from engine.scaling.peers.recent import Recent
from tests.engine.given_configs import TO_SCALE
from tests.oracle import DensePIC

TASK = PeerTask(
    size=60, active=60, dim=8, temperature=0.2, momentum=0.9, nesterov=False, weight_decay=1e-3, seed=3, init_norm=1.0
)


def batches(task: PeerTask, count: int, batch: int = 12) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(count):
        ids_B = torch.randperm(task.size, generator=generator)[:batch]
        found.append((ids_B, F.normalize(torch.randn(batch, task.dim, generator=generator))))
    return found


def losses(peer: Peer, count: int = 40) -> list[float]:
    return [peer.step(ids_B, z_BD, 0.3 + 0.01 * step) for step, (ids_B, z_BD) in enumerate(batches(TASK, count))]


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("kind", [PicDense, PartialFC])
def test_dense_pic_and_partial_fc_over_all_rows_are_the_oracle(kind, nesterov):
    task = replace(TASK, nesterov=nesterov)
    peer = kind(task)
    with torch.no_grad():
        peer.rows_ND.copy_(keyed_rows(task))
    settings = {name: getattr(task, name) for name in ("momentum", "weight_decay", "nesterov", "temperature")}
    oracle = DensePIC(keyed_rows(task), [0] * task.size, task.size, all_active=True, **settings)
    for step, (ids_B, z_BD) in enumerate(batches(task, 40)):
        loss, _ = oracle.step(ids_B.tolist(), z_BD[None], 0.3 + 0.01 * step)
        assert peer.step(ids_B, z_BD, 0.3 + 0.01 * step) == pytest.approx(loss, rel=2e-6)
    torch.testing.assert_close(peer.rows_ND.detach().double(), oracle.rows.detach(), rtol=1e-4, atol=1e-5)


def test_the_losses_of_dense_pic_are_those_of_this_engine_with_all_rows_active(run):
    words = ["steps=30", "method.active=null", "optimizer.weight_decay=0.001", "optimizer.rows_weight_decay=null"]
    assert run(*words, config=TO_SCALE) == 0
    expected = [line["loss"] for line in run.lines()]
    run.output = run.directory / "peer"
    assert run(*words, "job=peer", "scale.peer=pic_dense", config=TO_SCALE) == 0
    found = [line["loss"] for line in run.lines()]
    assert len(found) == 30 and found == pytest.approx(expected, rel=1e-5)
    assert run.summary()["status"] == "finished" and run.summary()["steps"] == 30
    assert {"data", "rows"} == set(run.lines()[-1]["seconds"])


def test_a_sample_has_the_batch_and_k_different_rows_in_all():
    peer = PartialFC(replace(TASK, active=20))
    (ids_B, _), *_ = batches(TASK, 1)
    counts = torch.zeros(TASK.size)
    for _ in range(2000):
        index_K = peer.sample(ids_B)
        assert len(index_K) == 20 and set(ids_B.tolist()) <= set(index_K.tolist()) and len(set(index_K.tolist())) == 20
        counts[index_K] += 1
    others = counts[[i for i in range(TASK.size) if i not in ids_B.tolist()]] / 2000
    assert (others - 8 / 48).abs().max() < 5 * (8 / 48 * 40 / 48 / 2000) ** 0.5


def test_a_row_that_is_not_sampled_stands_still():
    peer = PartialFC(replace(TASK, active=12))
    (ids_B, z_BD), *_ = batches(TASK, 1)
    before = peer.rows_ND.clone()
    peer.step(ids_B, z_BD, 0.5)
    moved = (peer.rows_ND != before).any(1).nonzero().flatten().tolist()
    assert moved == sorted(ids_B.tolist())


@given(st.integers(1, 12), st.lists(st.permutations(range(10)), max_size=8))
def test_recent_instances_are_those_of_a_list(active, orders):
    recent, seen = Recent(active), []
    for order in orders:
        batch = order[:4]
        seen = [*batch, *(one for one in seen if one not in batch)][: max(active, 4)]
        assert recent.visit(torch.tensor(batch)).tolist() == seen


@pytest.mark.parametrize("kind", [SparseRows, SparseAdamRows])
def test_an_embedding_trains_the_recent_rows_as_dense_gradients_would(kind):
    task = replace(TASK, active=20)
    peer = kind(task)
    rows_ND = peer.rows.weight.detach().clone().double().requires_grad_()
    recent = Recent(task.active)
    first, second = torch.zeros_like(rows_ND), torch.zeros_like(rows_ND)
    for step, (ids_B, z_BD) in enumerate(batches(task, 30)):
        ids_K = recent.visit(ids_B)
        logits = z_BD.double() @ F.normalize(rows_ND[ids_K]).T / task.temperature
        loss = F.cross_entropy(logits, torch.arange(len(ids_B)))
        (gradient,) = torch.autograd.grad(loss, rows_ND)
        with torch.no_grad():
            if kind is SparseRows:
                rows_ND -= 0.3 * gradient
            else:  # Adam of these rows alone, as if no step had passed for the others
                g = gradient[ids_K]
                first[ids_K] = 0.9 * first[ids_K] + 0.1 * g
                second[ids_K] = 0.999 * second[ids_K] + 0.001 * g.square()
                rate = 1e-3 * (1 - 0.999 ** (step + 1)) ** 0.5 / (1 - 0.9 ** (step + 1))
                rows_ND[ids_K] -= rate * first[ids_K] / (second[ids_K].sqrt() + 1e-8)
        assert peer.step(ids_B, z_BD, 0.3) == pytest.approx(loss.item(), rel=1e-5)
    torch.testing.assert_close(peer.rows.weight.detach().double(), rows_ND.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(find_spec("fbgemm_gpu") is None, reason="fbgemm-gpu-cpu is not installed")
def test_fbgemms_table_trains_as_the_embedding_with_sgd_does():
    from engine.scaling.peers.fbgemm import FbgemmRows

    task = replace(TASK, active=20)
    assert losses(FbgemmRows(task)) == pytest.approx(losses(SparseRows(task)), rel=1e-5)


@pytest.mark.parametrize("kind", [PicDense, PartialFC, SparseRows, SparseAdamRows])
def test_every_peer_learns_the_batches_that_it_sees_again_and_again(kind):
    peer = kind(replace(TASK, active=20))
    seen = batches(TASK, 5)
    passes = [[peer.step(ids_B, z_BD, 0.1) for ids_B, z_BD in seen] for _ in range(60)]
    assert sum(passes[-1]) < 0.8 * sum(passes[1])


def test_the_schema_names_the_peers_that_there_are():
    assert set(get_args(get_args(Scale.model_fields["peer"].annotation)[0])) == set(PEERS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "job=peer has no peer; set scale.peer to one of pic_dense"),
        (["scale.peer=other"], "scale.peer is"),
        (["scale.peer=pic_dense", "backbone.name=resnet18"], 'set it to "given"'),
        (["scale.peer=pic_dense", "data.augment.views=2"], "set views to 1"),
        (["scale.peer=pic_dense", "method.init=feature"], "set it to random"),
    ],
)
def test_what_no_peer_can_do_is_refused(run, capsys, words, message):
    config = {**TO_SCALE, "data": {**TO_SCALE["data"], "augment": {"kind": "grey"}}}
    assert run("job=peer", *words, config=config) == 2
    assert message in capsys.readouterr().err
    assert not run.output.exists()
