"""The transition in ATen calls: gather where the source lies, compute in float64 on the device, scatter.

Every product and every sum is a call of its own. addcmul would be shorter, but may fuse the two, and then the bits are not
numpy's.

Memory: the gathered rows in the rows' dtype, six times their numbers in float64.
"""

from torch import Tensor


def catch_up_(
    rows_KD: Tensor,
    momentum_KD: Tensor,
    slots_M: Tensor,
    source_rows_PD: Tensor,
    source_momentum_PD: Tensor,
    indices_M: Tensor,
    products_M22: Tensor,
) -> None:
    """See `kernels.catch_up.catch_up_`; arguments are checked by the caller."""
    device = rows_KD.device
    w_MD = source_rows_PD.index_select(0, indices_M).to(device).double()
    u_MD = source_momentum_PD.index_select(0, indices_M).to(device).double()
    slots_M, products_M22 = slots_M.to(device), products_M22.to(device)
    for target_KD, (of_w_M, of_u_M) in (
        (rows_KD, products_M22[:, 0].unbind(1)),
        (momentum_KD, products_M22[:, 1].unbind(1)),
    ):
        caught_MD = (of_w_M[:, None] * w_MD).add_(of_u_M[:, None] * u_MD)
        target_KD.index_copy_(0, slots_M, caught_MD.to(target_KD.dtype))
