"""The step in ATen calls, in place, one tile of rows after another, the same code on CPU and CUDA.

    scratch = drows + weight_decay w;    u = momentum u + scratch;    w = w - eta (scratch + momentum u if nesterov else u)

are four or five calls, each a pass over memory. On a tile that stays in the cache all but the first are cheap. Tiles of a CPU
grow with the threads: ATen gives a thread no less than 32,768 numbers.

Memory: one tile.
"""

import torch
from torch import Tensor

_CPU_TILE_NUMBERS = 1 << 16  # for each thread; three arrays and the scratch of it are 1 MiB in float32
_CUDA_TILE_NUMBERS = 1 << 23  # launches have to be worth it; not measured


def row_update_(
    rows_KD: Tensor,
    momentum_KD: Tensor,
    drows_KD: Tensor,
    eta: float,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
) -> None:
    """See `kernels.row_update.row_update_`; arguments are checked by the caller."""
    numbers = _CPU_TILE_NUMBERS * torch.get_num_threads() if rows_KD.device.type == "cpu" else _CUDA_TILE_NUMBERS
    scratch = rows_KD.new_empty(min(numbers, rows_KD.numel()))
    # Flat, so that a tile is as large as it should be for any D.
    for w, u, gradient in zip(
        *(part.view(-1).split(numbers) for part in (rows_KD, momentum_KD, drows_KD)), strict=True
    ):
        direction = torch.add(gradient, w, alpha=weight_decay, out=scratch[: len(w)])
        u.mul_(momentum).add_(direction)
        w.add_(direction.add_(u, alpha=momentum) if nesterov else u, alpha=-eta)
