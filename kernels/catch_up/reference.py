"""The slow line, in numpy: what the compiled implementations equal to the bit."""

import numpy as np
import torch
from torch import Tensor


def catch_up_reference_(
    rows_KD: Tensor,
    momentum_KD: Tensor,
    slots_M: Tensor,
    source_rows_PD: Tensor,
    source_momentum_PD: Tensor,
    indices_M: Tensor,
    products_M22: Tensor,
) -> None:
    """What `catch_up_` does: gather, [w; u] <- product [w; u] in float64, rounding, scatter."""
    indices, p = indices_M.numpy(), products_M22.numpy()[:, :, :, None]
    w, u = (source.numpy()[indices].astype(np.float64) for source in (source_rows_PD, source_momentum_PD))
    slots = slots_M.to(rows_KD.device)
    rows_KD[slots] = torch.from_numpy(p[:, 0, 0] * w + p[:, 0, 1] * u).to(rows_KD.dtype).to(rows_KD.device)
    momentum_KD[slots] = torch.from_numpy(p[:, 1, 0] * w + p[:, 1, 1] * u).to(rows_KD.dtype).to(rows_KD.device)
