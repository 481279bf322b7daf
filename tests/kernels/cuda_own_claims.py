"""What sampled_softmax's CUDA kernels claim of the own term: left out of the sum, and its coefficient given from outside."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from tests.kernels.cuda_claims import CudaClaims
from tests.kernels.cuda_problems import excess, lse, same


class OwnTermClaims(CudaClaims):
    """Claims about `op`; the fixtures are those of CudaClaims."""

    @pytest.mark.parametrize("kind", ["outliers", "well classified"])
    @pytest.mark.parametrize("products", ["float32", "bfloat16"])
    def test_with_the_own_row_left_out_the_error_is_at_most_twice_the_slow_lines(self, op, device, products, kind):
        problems = [self.make(device, seed=seed, kind=kind, options=seed > 0) for seed in range(2)]
        for problem in problems:
            problem.leave_own_out = True
            problem.own_B = torch.full((self.samples,), -1.0, dtype=torch.float64, device=device)
        assert not (found := excess(op, problems, products)), found

    @pytest.mark.parametrize("products", ["tf32", "float16"])
    def test_so_it_is_with_any_coefficient_and_the_own_row_counted(self, op, device, products):
        problems = [self.make(device, 70, 200, 64, seed=seed, options=seed > 0) for seed in range(2)]
        for problem in problems:
            problem.own_B = torch.linspace(-2, 2, 70, dtype=torch.float64, device=device)
        assert not (found := excess(op, problems, products)), found

    def test_a_sum_far_under_the_own_logit_does_not_vanish(self, op, device):
        problem = self.make(device, 9, 150, 64)
        common_D = normalize(problem.features_BD[0], dim=0)
        problem.features_BD = common_D + 1e-3 * problem.features_BD
        problem.rows_KD = problem.rows_KD - 1.01 * common_D
        problem.targets_B[:] = 77
        problem.rows_KD[77] = common_D
        problem.temperature, problem.leave_own_out = 5e-3, True
        max_B, sumexp_B, positive_B, *_ = problem.forward(op, "float32")
        unit_BD, unit_KD = normalize(problem.features_BD.double()), normalize(problem.rows_KD.double())
        logits_BK = unit_BD @ unit_KD.T / problem.temperature
        logits_BK[:, 77] = -math.inf
        assert (positive_B - max_B > 390).all()
        torch.testing.assert_close(max_B + sumexp_B.log(), logits_BK.logsumexp(1), rtol=0, atol=1e-3)

    @pytest.mark.parametrize("products", ["float32", "float16"])
    def test_where_no_other_row_takes_part_only_the_own_row_gets_something(self, op, device, products):
        for rows, alone in ((1, 0), (self.rows, 321)):
            problem = self.make(device, 7, rows, 64)
            problem.targets_B[:] = alone
            problem.row_mask_K = torch.arange(rows, device=device) == alone
            problem.leave_own_out = True
            problem.own_B = torch.full((7,), -1.0, dtype=torch.float64, device=device)
            max_B, sumexp_B, positive_B, negatives_BD, _ = statistics = problem.forward(op, products)
            assert (max_B == -math.inf).all()
            assert not sumexp_B.any()
            assert not negatives_BD.any()
            problem.leave_own_out = False
            same(positive_B, problem.forward(op, products)[2])
            drows_KD = problem.rows_gradient(op, products, lse(statistics))
            same(drows_KD, problem.rows_gradient(op, products, torch.full_like(max_B, math.inf)))
            assert drows_KD.isfinite().all()
            assert drows_KD.any(1).nonzero().flatten().tolist() == [alone]

    def test_the_update_spends_the_gradient_with_the_given_coefficient(self, op, device):
        problem = self.make(device, 40, 100, 64, options=True)
        problem.own_B = torch.linspace(-1, 0, 40, dtype=torch.float64, device=device)
        lse_B, step = lse(problem.forward(op, "float32")), (0.3, 0.9, 1e-2, False)
        momentum_KD = torch.randn_like(problem.rows_KD)
        drows_KD = problem.rows_gradient(op, "float32", lse_B)
        rows_KD, expected_KD = self.stepped(op, drows_KD, problem.rows_KD, momentum_KD, step)
        problem.rows_update_(op, "float32", lse_B, momentum_KD, step)
        self.expect_stepped(problem.rows_KD, rows_KD)
        self.expect_stepped(momentum_KD, expected_KD)

    def test_leaving_out_changes_nothing_for_samples_without_a_row(self, op, device):
        problem = self.make(device, 40, 300, 64)
        problem.targets_B[:] = -1
        expected = problem.forward(op, "bfloat16")
        problem.leave_own_out = True
        same(problem.forward(op, "bfloat16"), expected)
