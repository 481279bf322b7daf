"""The slow line that the op equals, written to be read; float64 inputs make it the yardstick of the tests.

    loss_b = logsumexp_k(logit_bk) - logit_b,target(b),    logit_bk = cos(feature_b, row_k) / temperature

(with leave_own_out: the logsumexp of all but the target's). It holds B x K logits several times over, which is what the op
avoids. `normalize` divides by max(|w|, 1e-12), so this line is wrong for rows shorter than that (and for far longer ones in
half precision): there the op is compared with itself on rescaled rows, because a cosine does not see lengths.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize


def sampled_softmax_reference(
    features_BD: Tensor,
    rows_KD: Tensor,
    targets_B: Tensor,
    *,
    temperature: float,
    row_mask_K: Tensor | None = None,
    rows_need_grad_B: Tensor | None = None,
    leave_own_out: bool = False,
) -> Tensor:
    """Same arguments and result as `sampled_softmax`; gradients come from autograd. Any floating dtype, K >= 1."""
    features_BD = normalize(features_BD)
    rows_KD = normalize(rows_KD)
    logits_BK = features_BD @ rows_KD.T / temperature
    if rows_need_grad_B is not None:
        logits_without_rows_BK = features_BD @ rows_KD.detach().T / temperature
        logits_BK = torch.where(rows_need_grad_B[:, None], logits_BK, logits_without_rows_BK)
    if row_mask_K is not None:
        logits_BK = logits_BK.masked_fill(~row_mask_K, -torch.inf)
    if leave_own_out:
        own_B1 = targets_B.clamp(0)[:, None]
        others_BK = logits_BK.scatter(1, own_B1, -torch.inf)
        return torch.where(targets_B == -1, 0.0, others_BK.logsumexp(1) - logits_BK.gather(1, own_B1)[:, 0])
    return cross_entropy(logits_BK, targets_B, reduction="none", ignore_index=-1)
