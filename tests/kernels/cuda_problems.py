"""Seeded inputs for the CUDA kernels of sampled_softmax, and how far an op's answers are from the formulas.

The yardstick is `slow`, the formulas in plain torch: in float64 it is exact; in float32, with operands and probabilities rounded to the
products' type, it says what error is allowed, which is twice its own.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

PRODUCTS = ["float32", "tf32", "bfloat16", "float16"]
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def rounded(x: Tensor, products: str) -> Tensor:
    """x to the nearest number of the products' type, in float32; float64 stays as it is."""
    if x.dtype == torch.float64 or products == "float32":
        return x
    if products == "tf32":
        return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)
    return x.to(DTYPES[products]).float()


class Problem:
    """Seeded inputs in float32. Rows have very different lengths, some samples share a target, some have none."""

    def __init__(
        self, samples: int, rows: int, features: int, seed: int = 0, kind: str = "plain", options: bool = False
    ):
        g = torch.Generator().manual_seed(seed)
        self.features_BD = torch.randn(samples, features, generator=g)
        self.rows_KD = torch.randn(rows, features, generator=g) * 0.01
        self.targets_B = torch.randint(max(rows, 1), (samples,), generator=g) if rows else torch.full((samples,), -1)
        if kind == "outliers":
            self.features_BD[torch.rand(self.features_BD.shape, generator=g) < 0.01] *= 20
            self.rows_KD[torch.rand(self.rows_KD.shape, generator=g) < 0.01] *= 20
        if kind == "well classified":
            noise_BD = torch.randn(self.features_BD.shape, generator=g)
            self.rows_KD[self.targets_B] = self.features_BD * 0.01 + 0.002 * noise_BD
        self.weight_B = torch.rand(samples, generator=g, dtype=torch.float64) + 0.5
        self.row_mask_K: Tensor | None = None
        self.need_B: Tensor | None = None
        self.leave_own_out = False
        self.own_B: Tensor | None = None  # what stands for p_own - 1
        if options:
            self.targets_B[1::5] = -1
            self.row_mask_K = torch.rand(rows, generator=g) < 0.6
            self.row_mask_K[self.targets_B[self.targets_B >= 0]] = True
            self.need_B = torch.rand(samples, generator=g) < 0.5
            self.weight_B[2::7] = 0
        self.temperature = 0.1

    def to(self, device: torch.device) -> "Problem":
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))
        return self

    def forward(self, op: Any, products: str, with_negatives: bool = True) -> tuple[Tensor, ...]:
        return op.forward(
            self.features_BD,
            self.rows_KD,
            self.targets_B,
            self.temperature,
            self.row_mask_K,
            with_negatives,
            self.leave_own_out,
            products,
        )

    def rows_gradient(self, op: Any, products: str, lse_B: Tensor) -> Tensor:
        return op.rows_gradient(
            self.features_BD,
            self.rows_KD,
            self.targets_B,
            lse_B,
            self.weight_B,
            self.temperature,
            self.row_mask_K,
            self.need_B,
            self.own_B,
            products,
        )

    def rows_update_(self, op: Any, products: str, lse_B: Tensor, momentum_KD: Tensor, step: tuple[Any, ...]) -> None:
        op.rows_update_(
            self.features_BD,
            self.rows_KD,
            momentum_KD,
            self.targets_B,
            lse_B,
            self.weight_B,
            self.temperature,
            self.row_mask_K,
            self.need_B,
            self.own_B,
            *step,
            products,
        )


def lse(statistics: tuple[Tensor, ...]) -> Tensor:
    return statistics[0] + statistics[1].log()


def ours(op: Any, problem: Problem, products: str) -> dict[str, Tensor]:
    statistics = problem.forward(op, products)
    lse_B = lse(statistics)
    return {
        "lse": lse_B,
        "max": statistics[0],
        "positive": statistics[2],
        "negatives": statistics[3].double() * (statistics[0] - lse_B).exp()[:, None],
        "drows": problem.rows_gradient(op, products, lse_B),
    }


def slow(problem: Problem, products: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The same quantities by the formulas, holding everything. Rows and features must not be zero or very short."""
    unit_BD, unit_KD = normalize(problem.features_BD.to(dtype)), normalize(problem.rows_KD.to(dtype))
    z_BD, u_KD = rounded(unit_BD, products), rounded(unit_KD, products)
    l_BK = z_BD @ u_KD.T / problem.temperature
    if problem.row_mask_K is not None:
        l_BK = l_BK.masked_fill(~problem.row_mask_K, -math.inf)
    has_B = problem.targets_B >= 0
    own_BK = torch.zeros_like(l_BK)
    own_BK[has_B, problem.targets_B[has_B]] = 1
    counted_BK = l_BK.masked_fill(own_BK > 0, -math.inf) if problem.leave_own_out else l_BK
    max_B, lse_B = counted_BK.amax(1), counted_BK.logsumexp(1)
    positive_B = torch.where(has_B, l_BK.gather(1, problem.targets_B.clamp(0)[:, None])[:, 0], 0)
    e_BK = rounded((l_BK.masked_fill(own_BK > 0, -math.inf) - max_B[:, None]).exp(), products)
    weight_B = problem.weight_B.to(dtype)
    if problem.need_B is not None:
        weight_B = weight_B * problem.need_B
    p_BK = (l_BK - lse_B[:, None]).exp() - own_BK
    if problem.own_B is not None:
        p_BK = torch.where(own_BK > 0, problem.own_B.to(dtype)[:, None], p_BK)
    p_BK = p_BK * weight_B[:, None] / problem.temperature
    du_KD = rounded(p_BK, products).T @ z_BD
    dw_KD = (du_KD - unit_KD * (unit_KD * du_KD).sum(1, keepdim=True)) / problem.rows_KD.to(dtype).norm(
        dim=1, keepdim=True
    )
    if problem.row_mask_K is not None:
        dw_KD = dw_KD * problem.row_mask_K[:, None]
    return {
        "lse": lse_B,
        "max": max_B,
        "positive": positive_B,
        "negatives": (e_BK @ u_KD) * (max_B - lse_B).exp()[:, None],
        "drows": dw_KD,
    }


def errors(got: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    measured = {}
    for name, value in got.items():
        difference = value.double() - exact[name]
        if value.ndim == 1:
            measured[name] = float(difference.abs().max())
        else:
            length = exact[name].norm(dim=1)
            measured[name] = float(difference.norm() / length.norm().clamp_min(1e-30))
            # Rows that nothing reaches have to get zero, which the claims of their own say.
            reached = length > 1e-6 * length.max()
            worst = (difference.norm(dim=1) / length)[reached]
            measured[f"worst row of {name}"] = float(worst.max()) if len(worst) else 0.0
    return measured


def excess(op: Any, problems: list[Problem], products: str, floor: float = 0.0) -> dict[str, tuple[float, float]]:
    """The quantities whose worst error is more than twice that of the slow line: (error, slow line's error)."""
    got: dict[str, float] = {}
    allowed: dict[str, float] = {}
    for problem in problems:
        exact = slow(problem, products, torch.float64)
        for worst, quantities in (
            (got, ours(op, problem, products)),
            (allowed, slow(problem, products, torch.float32)),
        ):
            for name, error in errors(quantities, exact).items():
                so_far = worst.get(name, 0.0)
                worst[name] = so_far if error <= so_far else error  # max() could lose a NaN
    return {name: (error, allowed[name]) for name, error in got.items() if not error <= 2 * allowed[name] + floor}


def same(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
