"""What sampled_softmax's CUDA kernels claim, for whoever runs them: the emulation on a CPU, and a GPU.

A subclass gives the fixtures `op` (forward, rows_gradient and rows_update_, as torch.ops.pic_sampled_softmax_cuda has
them) and `device`.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from tests.kernels.cuda_problems import PRODUCTS, Problem, excess, lse, same


class CudaClaims:
    """Claims about `op`; see the module."""

    samples, rows = 131, 700  # two tiles of samples and two stretches of rows, with a last tile that is not full

    def make(self, device: torch.device, *sizes: int, **keywords: Any) -> Problem:
        return Problem(*(sizes or (self.samples, self.rows, 64)), **keywords).to(device)

    @pytest.mark.parametrize("kind", ["plain", "outliers", "well classified"])
    @pytest.mark.parametrize("products", PRODUCTS)
    def test_error_is_at_most_twice_that_of_the_slow_line_in_the_same_type(self, op, device, products, kind):
        problems = [self.make(device, seed=seed, kind=kind, options=seed > 0) for seed in range(2)]
        assert not (found := excess(op, problems, products)), found

    @pytest.mark.parametrize("features", [128, 256])
    @pytest.mark.parametrize("products", PRODUCTS)
    def test_so_it_is_with_wider_features(self, op, device, products, features):
        problems = [self.make(device, 17, 150, features, seed=seed, options=seed > 0) for seed in range(2)]
        assert not (found := excess(op, problems, products)), found

    @pytest.mark.parametrize("products", ["float32", "bfloat16"])
    def test_so_it_is_with_sizes_that_fill_no_tile_or_exactly_one(self, op, device, products):
        floor = {"float32": 1e-6, "bfloat16": 1e-3}[products]  # so few numbers can all be lucky in the slow line
        for sizes in ((1, 2), (1, 65), (3, 64), (64, 63), (129, 5), (128, 128)):
            problems = [self.make(device, *sizes, 64, seed=seed) for seed in range(3)]
            assert not (found := excess(op, problems, products, floor)), (sizes, found)

    @pytest.mark.parametrize("products", PRODUCTS)
    def test_a_maximum_that_keeps_growing_or_starts_behind_masked_rows_loses_nothing(self, op, device, products):
        problems = [self.make(device, seed=seed) for seed in range(2)]
        for problem in problems:
            # Each row is nearer to all samples than the one before: logits rise by 150 over the rows.
            problem.temperature = 1 / 75
            common_D = normalize(problem.features_BD[0], dim=0)
            problem.features_BD = common_D * 8 + problem.features_BD * 0.1
            aside_KD = problem.rows_KD - (problem.rows_KD @ common_D)[:, None] * common_D
            cosine_K1 = torch.linspace(-1, 1, self.rows, device=device)[:, None]
            problem.rows_KD = cosine_K1 * common_D + (1 - cosine_K1.square()).sqrt() * normalize(aside_KD)
            problem.row_mask_K = torch.arange(self.rows, device=device) >= 130
            problem.targets_B = torch.full_like(problem.targets_B, -1)
        assert not (found := excess(op, problems, products)), found

    @pytest.mark.parametrize("products", PRODUCTS)
    def test_where_only_its_own_row_takes_part_loss_and_gradient_are_exactly_zero(self, op, device, products):
        for rows, alone in ((1, 0), (self.rows, 321)):
            problem = self.make(device, 7, rows, 64)
            problem.targets_B[:] = alone
            if rows > 1:
                problem.row_mask_K = torch.arange(rows, device=device) == alone
            statistics = problem.forward(op, products)
            same(statistics[1], torch.ones_like(statistics[1]))
            same(statistics[0], statistics[2])
            assert not statistics[3].any()
            assert not problem.rows_gradient(op, products, lse(statistics)).any()

    @pytest.mark.parametrize("products", PRODUCTS)
    def test_backward_computes_the_logits_of_forward_to_the_bit(self, op, device, products):
        # With lse = the target's own logit and no other row, p - 1 is zero if and only if the two logits are the same.
        problem = self.make(device)
        for row in (0, 77, 699):
            problem.row_mask_K = None
            problem.targets_B[:] = row
            positive_B = problem.forward(op, products)[2]
            problem.row_mask_K = torch.arange(self.rows, device=device) == row
            assert not problem.rows_gradient(op, products, positive_B).any()
            assert problem.rows_gradient(op, products, positive_B * (1 + 2**-23) + 1e-6).any()

    @pytest.mark.parametrize("products", PRODUCTS)
    def test_the_same_inputs_give_the_same_bits(self, op, device, products):
        problem = self.make(device, options=True)
        first = problem.forward(op, products)
        drows_KD = problem.rows_gradient(op, products, lse(first))
        for _ in range(self.repeats):
            same(self.again(op, lambda: problem.forward(op, products)), first)
            same(self.again(op, lambda: problem.rows_gradient(op, products, lse(first))), drows_KD)

    repeats = 20

    def again(self, op: Any, call: Any) -> Any:
        return call()

    @pytest.mark.parametrize("nesterov", [False, True])
    @pytest.mark.parametrize("products", PRODUCTS)
    def test_the_update_is_the_gradient_and_then_the_step(self, op, device, products, nesterov):
        problem = self.make(device, options=True)
        problem.rows_KD[5] = 0
        lse_B = lse(problem.forward(op, products))
        momentum_KD = torch.randn_like(problem.rows_KD)
        drows_KD, step = problem.rows_gradient(op, products, lse_B), (0.3, 0.9, 1e-2, nesterov)
        rows_KD, expected_KD = self.stepped(op, drows_KD, problem.rows_KD, momentum_KD, step)
        before_KD = problem.rows_KD.clone()
        problem.rows_update_(op, products, lse_B, momentum_KD, step)
        self.expect_stepped(problem.rows_KD, rows_KD)
        self.expect_stepped(momentum_KD, expected_KD)
        assert problem.row_mask_K is not None
        assert (problem.rows_KD != before_KD).any(1)[~problem.row_mask_K].all()  # masked rows decay and coast

    def stepped(
        self, op: Any, gradient_KD: Tensor, rows_KD: Tensor, momentum_KD: Tensor, step: tuple[Any, ...]
    ) -> tuple[Tensor, Tensor]:
        eta, momentum, weight_decay, nesterov = step
        gradient_KD = gradient_KD + weight_decay * rows_KD
        momentum_KD = momentum * momentum_KD + gradient_KD
        return rows_KD - eta * (gradient_KD + momentum * momentum_KD if nesterov else momentum_KD), momentum_KD

    def expect_stepped(self, got: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)  # fused multiply-adds round once less

    def test_statistics_do_not_depend_on_whether_negatives_are_wanted(self, op, device):
        problem = self.make(device, options=True)
        wanted, unwanted = problem.forward(op, "bfloat16"), problem.forward(op, "bfloat16", with_negatives=False)
        assert unwanted[3].shape == (0, 64)
        same((*unwanted[:3], unwanted[4]), (*wanted[:3], wanted[4]))

    @pytest.mark.parametrize("products", ["float32", "float16"])
    def test_what_a_masked_row_holds_does_not_matter(self, op, device, products):
        problem = self.make(device, options=True)
        first = problem.forward(op, products)
        drows_KD = problem.rows_gradient(op, products, lse(first))
        assert problem.row_mask_K is not None
        assert not drows_KD[~problem.row_mask_K].any()
        problem.rows_KD[~problem.row_mask_K] = math.nan
        same(problem.forward(op, products), first)
        same(problem.rows_gradient(op, products, lse(first)), drows_KD)

    @pytest.mark.parametrize("products", ["float32", "float16"])
    def test_barred_samples_and_those_of_weight_zero_send_rows_nothing(self, op, device, products):
        problem = self.make(device, 20, 100, 64)
        lse_B = lse(problem.forward(op, products))
        silent_B = torch.arange(20, device=device) % 3 == 0
        problem.need_B = ~silent_B
        expected_KD = problem.rows_gradient(op, products, lse_B)
        problem.need_B = None
        problem.weight_B[silent_B] = 0
        same(problem.rows_gradient(op, products, lse_B), expected_KD)
        problem.features_BD[silent_B] = math.nan
        for anything in (math.nan, math.inf, -math.inf):
            same(problem.rows_gradient(op, products, lse_B.masked_fill(silent_B, anything)), expected_KD)
        problem.weight_B[:] = 0
        assert not problem.rows_gradient(op, products, lse_B).any()

    def test_targets_that_are_none_or_outside(self, op, device):
        problem = self.make(device, 6, 100, 64)
        problem.targets_B = torch.tensor([-1, 0, 99, 100, -2, 2**40], device=device)
        max_B, sumexp_B, positive_B, negatives_BD, _ = problem.forward(op, "float32")
        assert positive_B.isnan().tolist() == [False, False, False, True, True, True]
        assert positive_B[0] == 0
        assert all(bool(x.isfinite().all()) for x in (max_B, sumexp_B, negatives_BD))
        drows_KD = problem.rows_gradient(op, "float32", max_B + sumexp_B.log())
        assert drows_KD.isfinite().all()

    def test_rows_of_zeros_have_cosine_zero_and_no_gradient_and_do_not_count_as_short(self, op, device):
        problem = self.make(device, 4, 10, 64)
        problem.rows_KD[3], problem.features_BD[2] = 0, 0
        problem.targets_B = torch.tensor([3, 1, 2, 0], device=device)
        statistics = problem.forward(op, "float32")
        drows_KD = problem.rows_gradient(op, "float32", lse(statistics))
        assert statistics[2][0] == 0
        assert lse(statistics)[2] == pytest.approx(math.log(10))
        assert not drows_KD[3].any()
        assert drows_KD.isfinite().all()
        length_K = problem.rows_KD.double().norm(dim=1)
        assert float(statistics[4]) == pytest.approx(float(length_K[length_K > 0].min()), rel=1e-6)

    def test_the_shortest_row_is_among_those_that_take_part(self, op, device):
        problem = self.make(device, options=True)
        assert problem.row_mask_K is not None
        problem.rows_KD[~problem.row_mask_K] *= 1e-9
        expected = problem.rows_KD[problem.row_mask_K].double().norm(dim=1).min()
        assert float(problem.forward(op, "bfloat16")[4]) == pytest.approx(float(expected), rel=1e-6)

    @pytest.mark.parametrize("products", PRODUCTS)
    def test_the_length_of_rows_and_features_does_not_matter_to_the_bit(self, op, device, products):
        problem = self.make(device, 9, 100, 64)
        first = problem.forward(op, products)
        drows_KD = problem.rows_gradient(op, products, lse(first))
        features_BD, rows_KD = problem.features_BD, problem.rows_KD
        # Squares of the first underflow in float32, those of the second overflow.
        for scale in (2.0**-95, 2.0**95):
            problem.features_BD, problem.rows_KD = features_BD / scale, rows_KD * scale
            got = problem.forward(op, products)
            same(got[:4], first[:4])
            assert float(got[4]) == float(first[4]) * scale
            same(problem.rows_gradient(op, products, lse(got)), drows_KD / scale)

    def test_the_shortest_and_longest_rows_that_float32_holds(self, op, device):
        problem = self.make(device, 9, 100, 64)
        problem.weight_B /= 512
        rows_KD = normalize(problem.rows_KD)
        problem.rows_KD = rows_KD
        expected = problem.forward(op, "float32")
        problem.rows_KD = rows_KD * 1e-37
        got = problem.forward(op, "float32")
        torch.testing.assert_close(lse(got), lse(expected), rtol=1e-5, atol=1e-5)
        drows_KD = problem.rows_gradient(op, "float32", lse(got))
        assert drows_KD.isfinite().all()
        assert drows_KD.any()
        problem.rows_KD = rows_KD / rows_KD.abs().amax(1, keepdim=True) * torch.finfo(torch.float32).max
        got = problem.forward(op, "float32")
        torch.testing.assert_close(lse(got), lse(expected), rtol=1e-5, atol=1e-5)
        assert problem.rows_gradient(op, "float32", lse(got)).isfinite().all()
        # 1/|w| is past float32's range here, the gradient is not.
        problem.rows_KD = rows_KD * 2.0**-130
        problem.weight_B *= 1e-6
        drows_KD = problem.rows_gradient(op, "float32", lse(problem.forward(op, "float32")))
        assert drows_KD.isfinite().all()
        assert drows_KD.any()
        problem.rows_KD = rows_KD * 1e-43
        got = problem.forward(op, "float32")
        assert not any(bool(x.isnan().any()) for x in (*got, problem.rows_gradient(op, "float32", lse(got))))

    def test_the_digits_of_the_log_sum_exp_that_float32_has_no_room_for_count(self, op, device):
        # All logits are near 60, where float32's steps are 4e-6 and more; those of lse_B below are smaller.
        problem = self.make(device, 40, 100, 64)
        problem.temperature = 1 / 60
        common_D = normalize(problem.features_BD[0], dim=0)
        problem.features_BD = common_D * 8 + problem.features_BD * 0.1
        problem.rows_KD = common_D * 8 + problem.rows_KD * 10
        lse_B = lse(problem.forward(op, "float32"))

        def length(more: float) -> float:
            return float(problem.rows_gradient(op, "float32", lse_B + more).double().norm())

        problem.targets_B = torch.full_like(problem.targets_B, -1)
        for more in (2e-7, 2e-6, 4e-6):
            assert length(more) / length(0.0) == pytest.approx(math.exp(-more), abs=1e-7)
        # Alone with its own row, and p nearly 0, a sample sends the same whatever the digits are.
        problem.targets_B[:] = 7
        problem.row_mask_K = torch.arange(100, device=device) == 7
        lse_B += 30
        for more in (2e-7, 2e-6, 4e-6):
            assert length(more) == pytest.approx(length(0.0), rel=1e-7)

    def test_small_weights_are_not_lost_in_float16(self, op, device):
        problem = self.make(device, 40, 100, 64)
        lse_B = lse(problem.forward(op, "float16"))
        drows_KD = problem.rows_gradient(op, "float16", lse_B)
        problem.weight_B *= 2.0**-40
        same(problem.rows_gradient(op, "float16", lse_B), drows_KD * 2.0**-40)

    def test_no_samples_or_no_rows(self, op, device):
        problem = self.make(device, 0, 10, 64)
        statistics = problem.forward(op, "bfloat16")
        assert [len(x) for x in statistics[:4]] == [0, 0, 0, 0]
        assert float(statistics[4]) == pytest.approx(float(problem.rows_KD.double().norm(dim=1).min()), rel=1e-6)
        assert not problem.rows_gradient(op, "bfloat16", statistics[0]).any()
        rows_KD, momentum_KD = problem.rows_KD.clone(), torch.zeros_like(problem.rows_KD)
        problem.rows_update_(op, "bfloat16", statistics[0], momentum_KD, (0.5, 0.9, 0.5, False))
        torch.testing.assert_close(problem.rows_KD, rows_KD * 0.75)

        problem = self.make(device, 3, 0, 64)
        problem.targets_B = torch.tensor([-1, 0, -1], device=device)
        max_B, sumexp_B, positive_B, negatives_BD, shortest = problem.forward(op, "bfloat16")
        assert max_B.tolist() == [-math.inf] * 3
        assert not sumexp_B.any()
        assert positive_B.isnan().tolist() == [False, True, False]
        assert not negatives_BD.any()
        assert float(shortest) == math.inf
        assert problem.rows_gradient(op, "bfloat16", max_B).shape == (0, 64)

    def test_where_every_row_is_masked_nothing_takes_part(self, op, device):
        problem = self.make(device, 3, 70, 64)
        problem.row_mask_K = torch.zeros(70, dtype=torch.bool, device=device)
        max_B, sumexp_B, _, negatives_BD, shortest = problem.forward(op, "float32")
        assert max_B.tolist() == [-math.inf] * 3
        assert not sumexp_B.any()
        assert not negatives_BD.any()
        assert float(shortest) == math.inf
        assert not problem.rows_gradient(op, "float32", torch.zeros_like(max_B)).any()
