"""The op in blocked ATen calls, the same code on CPU and CUDA: one tile of B x T logits at a time.

A tile is T rows. Forward, for each tile (u = unit rows, f = unit features, everything in powers of two):

    l_BT = f_BD u_TD^T log2(e) / temperature,    max <- max(old, l),    sum <- sum 2^(old - max) + sum_T 2^(l - max)
    negatives_BD <- negatives 2^(old - max) + 2^(l - max) u_TD, without each sample's own row

The gradient of rows computes the same tile again (to the bit: same call, same shapes), so no logit is ever stored:

    p_BT = weight_B (2^(l - lse) - [k is the target]) / temperature,    du_TD = p^T f_BD,    dw = (du - u (u . du)) / |w|

where own_B stands for what 2^(l - lse) - 1 is at the target, if it is given. That
makes four matrix products where a softmax that keeps its logits has three. The last step is the Jacobian of w -> w/|w|.

Powers of two are no matter of taste: on x86 torch's exp is MKL's, which takes 10 to 35 times as long where the result
underflows, as many do at temperature 0.01; exp2 takes a third of exp's usual time, everywhere.

Sums over rows within a tile and sums of negatives over tiles are in the rows' dtype; what is kept per sample (max, sumexp,
positive) is float64, because 1 - p of a sample that is already well classified is a difference of nearly equal numbers.

Left out: a low-precision copy of the rows for the products, and tiling over samples (a very large B makes thin tiles).
Memory beyond the result: the tile of logits, three tiles of rows, three copies of the features, one vector of K.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

_LOG2_E = math.log2(math.e)
_LN_2 = math.log(2.0)

# Numbers in one tile of logits plus one tile of rows. On a CPU they should stay in the last-level cache between product
# and exponential (RESULTS.md has the sweep); the figure for GPUs, not measured yet, is to make launches cheap.
_CPU_TILE_NUMBERS = 1 << 21
_CUDA_TILE_NUMBERS = 1 << 25


def tile_rows(samples: int, features: int, device: torch.device) -> int:
    """T, the number of rows in a tile, for B = `samples` and D = `features`."""
    numbers = _CPU_TILE_NUMBERS if device.type == "cpu" else _CUDA_TILE_NUMBERS
    return max(256, numbers // (samples + features) // 64 * 64)


def forward(
    features_BD: Tensor,
    rows_KD: Tensor,
    targets_B: Tensor,
    temperature: float,
    row_mask_K: Tensor | None,
    with_negatives: bool,
    leave_own_out: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(max_B, sumexp_B, positive_B, negatives_BD, shortest); see `softmax_forward_negatives`. Arguments are checked.

    Without negatives theirs is [0, D].
    """
    tiles = _Tiles(features_BD, rows_KD, temperature, row_mask_K)
    max_B = features_BD.new_full((features_BD.shape[0],), -math.inf)
    sumexp_B = torch.zeros_like(max_B, dtype=torch.float64)
    positive_B = torch.zeros_like(max_B, dtype=torch.float64)
    negatives_BD = torch.zeros_like(features_BD if with_negatives else features_BD[:0])
    shortest = torch.full((), math.inf, dtype=torch.float64, device=rows_KD.device)
    for start in tiles.starts():
        logits_BT = tiles.logits(start)
        inside_B, column_B1 = _own_column(targets_B, start, logits_BT.shape[1])
        positive_B = torch.where(inside_B, logits_BT.gather(1, column_B1)[:, 0].double(), positive_B)
        # Beside a well-classified sample's own term, about 1, a sum in the rows' dtype would round the others away.
        others_B1 = logits_BT.gather(1, column_B1).masked_fill_(inside_B[:, None], -math.inf)
        if leave_own_out:  # before the maximum: against an own logit far above all others their sum would underflow
            logits_BT.scatter_(1, column_B1, others_B1)
        new_max_B = torch.maximum(max_B, logits_BT.amax(1))
        # While every row so far is masked the maximum is -inf, and -inf - -inf would be NaN.
        shift_B = new_max_B.masked_fill(new_max_B == -math.inf, 0.0)
        logits_BT.scatter_(1, column_B1, others_B1).sub_(shift_B[:, None]).exp2_()
        rescale_B = torch.exp2(max_B - shift_B)
        sumexp_B = sumexp_B * rescale_B + logits_BT.sum(1)
        if with_negatives:
            negatives_BD.mul_(rescale_B[:, None]).addmm_(logits_BT, tiles.unit_TD)
        max_B = new_max_B
        shortest = torch.minimum(shortest, tiles.length_T1.min().double())
    if not leave_own_out:
        has_own_B = (targets_B >= 0) & (targets_B < len(rows_KD)) & (positive_B != -math.inf)
        sumexp_B += torch.where(has_own_B, torch.exp2(positive_B - max_B.double()), 0.0)
    return max_B.double() * _LN_2, sumexp_B, positive_B * _LN_2, negatives_BD, shortest


def rows_gradient(
    features_BD: Tensor,
    rows_KD: Tensor,
    targets_B: Tensor,
    lse_B: Tensor,
    weight_B: Tensor,
    temperature: float,
    row_mask_K: Tensor | None,
    rows_need_grad_B: Tensor | None,
    own_B: Tensor | None,
) -> Tensor:
    """drows_KD in the rows' dtype; see `softmax_rows_gradient`. Arguments are checked by the caller."""
    drows_KD = torch.empty_like(rows_KD, memory_format=torch.contiguous_format)
    tiles = _Tiles(features_BD, rows_KD, temperature, row_mask_K)
    for start, drows_TD in _gradients(tiles, targets_B, lse_B, weight_B, temperature, rows_need_grad_B, own_B):
        drows_KD[start : start + len(drows_TD)] = drows_TD
    return drows_KD


def rows_update_(
    features_BD: Tensor,
    rows_KD: Tensor,
    momentum_KD: Tensor,
    targets_B: Tensor,
    lse_B: Tensor,
    weight_B: Tensor,
    temperature: float,
    row_mask_K: Tensor | None,
    rows_need_grad_B: Tensor | None,
    own_B: Tensor | None,
    eta: float,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
) -> None:
    """One step of SGD, in place; see `softmax_rows_update_`. Arguments are checked by the caller."""
    tiles = _Tiles(features_BD, rows_KD, temperature, row_mask_K)
    for start, gradient_TD in _gradients(tiles, targets_B, lse_B, weight_B, temperature, rows_need_grad_B, own_B):
        w_TD = rows_KD[start : start + len(gradient_TD)]
        u_TD = momentum_KD[start : start + len(gradient_TD)]
        gradient_TD.add_(w_TD, alpha=weight_decay)
        u_TD.mul_(momentum).add_(gradient_TD)
        w_TD.add_(gradient_TD.add_(u_TD, alpha=momentum) if nesterov else u_TD, alpha=-eta)


def _gradients(
    tiles: "_Tiles",
    targets_B: Tensor,
    lse_B: Tensor,
    weight_B: Tensor,
    temperature: float,
    rows_need_grad_B: Tensor | None,
    own_B: Tensor | None,
) -> Iterator[tuple[int, Tensor]]:
    """(first row, the gradient of the rows of a tile [T, D], which the caller may overwrite), tile by tile."""
    unit_BD = tiles.unit_features_BD
    # lse = high + low with `high` in the rows' dtype: 2^(l - high) is computed per logit, 2^-low goes into the weight.
    # An empty place must not count whatever its lse is: 2^(l - inf) = 0. So it is for one whose own row alone may get something.
    none_B = weight_B == 0 if own_B is None else (weight_B == 0) | (lse_B == -math.inf)
    lse_B = torch.where(none_B, math.inf, lse_B.double() * _LOG2_E)
    high_B = lse_B.to(unit_BD.dtype)
    low_B = torch.where(none_B, 0.0, lse_B - high_B.double())
    if own_B is not None:
        own_B = torch.where(weight_B == 0, 0.0, own_B.double()) * torch.exp2(low_B)
    scale_B = (weight_B.double() * torch.exp2(-low_B) / temperature).to(unit_BD.dtype)
    if rows_need_grad_B is not None:
        scale_B = scale_B * rows_need_grad_B
    weighted_BD = unit_BD * scale_B[:, None]
    for start in tiles.starts():
        p_BT = tiles.logits(start)
        inside_B, column_B1 = _own_column(targets_B, start, p_BT.shape[1])
        if own_B is None:
            # p - 1 in one go: for a well-classified sample it is far smaller than what p is rounded by. Differences that the
            # log-sum-exp, itself rounded and converted, cannot tell from 0 are 0.
            difference_B = p_BT.gather(1, column_B1)[:, 0].double() - lse_B
            unknown_B = difference_B.abs() <= 4 * torch.finfo(torch.float64).eps * lse_B.abs()
            less_one_B = (torch.expm1(difference_B * _LN_2) * torch.exp2(low_B)).masked_fill(unknown_B, 0.0)
        else:
            less_one_B = own_B
        p_BT.sub_(high_B[:, None]).exp2_()
        # Each sample has one column, so scatter writes every place once: deterministic on a GPU too.
        own_B1 = torch.where(inside_B, less_one_B.to(p_BT.dtype), p_BT.gather(1, column_B1)[:, 0])[:, None]
        p_BT.scatter_(1, column_B1, own_B1)
        gradient_TD = torch.mm(p_BT.T, weighted_BD, out=tiles.gradient_TD)
        through_normalise_(gradient_TD, tiles.unit_TD, tiles.length_T1, tiles.scratch_TD)
        yield start, gradient_TD


class _Tiles:
    """Computes tiles of logits (in powers of two) into reused buffers; holds the unit rows of the last tile."""

    def __init__(
        self,
        features_BD: Tensor,
        rows_KD: Tensor,
        temperature: float,
        row_mask_K: Tensor | None,
    ) -> None:
        samples, features = features_BD.shape
        self.unit_features_BD = torch.empty_like(features_BD, memory_format=torch.contiguous_format)
        normalise(features_BD, None, self.unit_features_BD, torch.empty_like(self.unit_features_BD))
        self._rows_KD = rows_KD
        self._row_mask_K = row_mask_K
        self._alpha = _LOG2_E / temperature
        self._added_K: Tensor | None = None
        if row_mask_K is not None:
            self._added_K = rows_KD.new_zeros(len(row_mask_K)).masked_fill(~row_mask_K, -math.inf)
        self._tile = min(tile_rows(samples, features, rows_KD.device), rows_KD.shape[0])
        # Flat, so that the last, shorter tile is contiguous as well.
        self._logits = rows_KD.new_empty(samples * self._tile)
        self._unit = rows_KD.new_empty(self._tile * features)
        self._scratch = rows_KD.new_empty(self._tile * features)
        self._gradient = rows_KD.new_empty(self._tile * features)

    def starts(self) -> range:
        """The first row of each tile."""
        return range(0, self._rows_KD.shape[0], max(1, self._tile))

    def logits(self, start: int) -> Tensor:
        """The logits [B, T] of the rows from `start` on. The caller may overwrite them."""
        rows_TD = self._rows_KD[start : start + self._tile]
        mask_T = None if self._row_mask_K is None else self._row_mask_K[start : start + self._tile]
        self.unit_TD = self._unit[: rows_TD.numel()].view(rows_TD.shape)
        self.scratch_TD = self._scratch[: rows_TD.numel()].view(rows_TD.shape)
        self.gradient_TD = self._gradient[: rows_TD.numel()].view(rows_TD.shape)
        self.length_T1 = normalise(rows_TD, mask_T, self.unit_TD, self.scratch_TD)
        shape = (self.unit_features_BD.shape[0], rows_TD.shape[0])
        logits_BT = self._logits[: shape[0] * shape[1]].view(shape)
        if self._added_K is None:
            added, beta = logits_BT, 0
        else:
            added, beta = self._added_K[start : start + self._tile], 1
        return torch.addmm(added, self.unit_features_BD, self.unit_TD.T, beta=beta, alpha=self._alpha, out=logits_BT)


def _own_column(targets_B: Tensor, start: int, columns: int) -> tuple[Tensor, Tensor]:
    """(does the target lie in this tile? [B], its column in the tile or any other valid one [B, 1])."""
    column_B = targets_B - start
    inside_B = (column_B >= 0) & (column_B < columns)
    return inside_B, column_B.clamp(0, columns - 1)[:, None]


def normalise(w_TD: Tensor, mask_T: Tensor | None, unit_TD: Tensor, scratch_TD: Tensor) -> Tensor:
    """Writes w/|w| into unit_TD and returns |w| [T, 1]; right for any finite w, however small or large.

    Squares of numbers under 1e-23 underflow in float32, so a row is first divided by a power of two near its largest
    number, which is exact. A row of zeros, and one that the mask leaves out (whatever it holds), gets direction 0 and
    length inf: dividing its gradient by that length gives the 0 it should have, and a target there sends nothing.
    """
    source_TD = w_TD
    if mask_T is not None:
        source_TD = unit_TD.copy_(w_TD).masked_fill_(~mask_T[:, None], 0.0)
    largest_T1 = torch.abs(source_TD, out=scratch_TD).amax(1, keepdim=True)
    # frexp: largest = mantissa 2^e with mantissa in [1/2, 1). Half of 2^e, because 2^e itself can overflow.
    power_T1 = largest_T1 / (2 * torch.frexp(largest_T1).mantissa)
    power_T1 = power_T1.masked_fill(largest_T1 == 0, 1.0)
    torch.div(source_TD, power_T1, out=unit_TD)
    length_T1 = torch.linalg.vector_norm(unit_TD, dim=1, keepdim=True)
    length_T1 = length_T1.masked_fill(length_T1 == 0, math.inf)
    unit_TD.div_(length_T1)
    return length_T1 * power_T1


def through_normalise_(gradient_TD: Tensor, unit_TD: Tensor, length_T1: Tensor, scratch_TD: Tensor) -> None:
    """In place: the gradient with respect to w/|w| becomes the one with respect to w."""
    radial_T1 = torch.mul(gradient_TD, unit_TD, out=scratch_TD).sum(1, keepdim=True)
    gradient_TD.addcmul_(unit_TD, radial_T1, value=-1).div_(length_T1)
