"""The softmax of MoCo: a query's own key against the keys of a queue, without ever holding B x K logits.

    loss_b = log( exp(q.k / tau) + sum_j exp(q.k_j / tau) ) - q.k / tau

with k the query's own key, and k_j those of the queue without its own older one.

The sum over the queue is that of kernels.sampled_softmax, which leaves the own older key out; the own key comes from outside of it.
Keys and queue get no gradient. Statistics and the gradient at q are float64, and returned in the queue's dtype.
"""

from typing import NamedTuple

import torch
from torch.nn.functional import normalize

from kernels.sampled_softmax import combine, features_gradient, softmax_forward_negatives


class Negatives(NamedTuple):
    """What a query is told from.

    queue_KD   the keys of the queue
    own_B      int64, where in it the query's own older key is, which is left out; -1: nowhere
    mask_K     bool, False: this key is left out for all; None: none is
    """

    queue_KD: torch.Tensor
    own_B: torch.Tensor
    mask_K: torch.Tensor | None


def queue_loss(
    z_BD: torch.Tensor,
    keys_BD: torch.Tensor,
    negatives: Negatives,
    weight_B: torch.Tensor,
    *,
    temperature: float,
    backend: str | None = None,
) -> tuple[float, torch.Tensor]:
    """(weighted sum of the losses, its gradient at z [B, D] in the queue's dtype).

    z_BD, keys_BD   queries and their own keys, in the queue's dtype; cosines do not see their lengths
    weight_B        floating, 0 where a place is empty, whose key may then be zeros
    """
    queue_KD, own_B, mask_K = negatives
    forward = softmax_forward_negatives(
        z_BD,
        queue_KD,
        own_B,
        temperature=temperature,
        row_mask_K=mask_K,
        leave_own_out=True,
        backend=backend,
    )
    positive_B = (normalize(z_BD.double()) * normalize(keys_BD.double())).sum(1) / temperature
    lse_B = torch.logaddexp(positive_B, combine([(forward.max_B, forward.sumexp_B)]))
    loss_B = torch.where(weight_B == 0, 0.0, (lse_B - positive_B) * weight_B)
    dz_BD = features_gradient(
        forward,
        z_BD,
        queue_KD,
        own_B,
        lse_B,
        weight_B,
        temperature=temperature,
        row_mask_K=mask_K,
        own_B=torch.expm1(positive_B - lse_B),
        own_vector_BD=keys_BD,
    )
    return float(loss_B.sum()), dz_BD
