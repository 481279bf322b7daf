"""The claims of the CUDA kernels on a real GPU, where sums of tensor cores and warps that race are what they are."""

import pytest
import torch

from kernels import compiled
from tests.kernels.cuda_own_claims import OwnTermClaims

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class TestDevice(OwnTermClaims):
    @pytest.fixture(scope="class")
    def op(self):
        compiled.load("sampled_softmax", "cuda")
        return torch.ops.pic_sampled_softmax_cuda

    @pytest.fixture
    def device(self):
        return torch.device("cuda")

    def test_more_logits_than_32_bits_can_number(self, op, device):
        problem = self.make(device, 70_000, 31_000, 64)
        statistics = problem.forward(op, "bfloat16", with_negatives=False)
        few = self.make(device, 70_000, 31_000, 64)
        few.features_BD, few.targets_B = problem.features_BD[-100:].clone(), problem.targets_B[-100:].clone()
        for whole_B, part_B in zip(statistics[:3], few.forward(op, "bfloat16")[:3], strict=True):
            torch.testing.assert_close(whole_B[-100:], part_B, rtol=1e-6, atol=1e-6)

    def test_a_stream_of_ones_own_and_views_of_larger_tensors(self, op, device):
        problem = self.make(device)
        expected = problem.forward(op, "float32")
        problem.features_BD = torch.cat([problem.features_BD, problem.features_BD], 1)[:, :64]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            got = problem.forward(op, "float32")
        stream.synchronize()
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
