"""The CUDA sources of sampled_softmax, compiled as C++ and run by emulated threads: no GPU, and no GPU's rounding.

What a GPU alone can show (speed, races between warps, how tensor cores add) is left to test_cuda_device.py, which makes
the same claims. The library is built once a session, in less than ten seconds.
"""

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import REPOSITORY
from tests.kernels.compile_once import made_once, shared_directory
from tests.kernels.cuda_own_claims import OwnTermClaims
from tests.kernels.cuda_problems import PRODUCTS, rounded

SOURCES = REPOSITORY / "tests" / "kernels" / "emulated_cuda"
FLAGS = ["-std=c++17", "-O2", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-Wno-unknown-pragmas"]
CANARY_BYTES = 4096

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


class _Problem(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("features_BD", "rows_KD", "targets_B", "row_mask_K")),
        *((name, ctypes.c_int64) for name in ("samples", "rows", "features", "products")),
        ("temperature", ctypes.c_double),
    ]


def at(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


class Emulated:
    """torch.ops.pic_sampled_softmax_cuda, out of the emulation. Workspaces start as NaN and end in canaries."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        library.forward_bytes.restype = library.rows_bytes.restype = ctypes.c_int64

    def forward(
        self, features_BD, rows_KD, targets_B, temperature, row_mask_K, with_negatives, leave_own_out, products
    ) -> tuple[Tensor, ...]:
        problem, kept = self._problem(features_BD, rows_KD, targets_B, temperature, row_mask_K, products)
        samples, features = features_BD.shape
        max_B, sumexp_B, positive_B = (torch.full((samples,), torch.nan, dtype=torch.float64) for _ in range(3))
        negatives_BD = torch.full((samples if with_negatives else 0, features), torch.nan)
        shortest = torch.full((), torch.nan, dtype=torch.float64)
        # An empty tensor has no address, and none means: not wanted.
        wanted = at(negatives_BD) if with_negatives and samples else None
        self._call(
            self.library.run_forward,
            self.library.forward_bytes(ctypes.byref(problem), int(wanted is not None)),
            ctypes.byref(problem),
            int(leave_own_out),
            at(max_B),
            at(sumexp_B),
            at(positive_B),
            wanted,
            at(shortest),
        )
        del kept
        return max_B, sumexp_B, positive_B, negatives_BD, shortest

    def rows_gradient(
        self, features_BD, rows_KD, targets_B, lse_B, weight_B, temperature, row_mask_K, need_B, own_B, products
    ) -> Tensor:
        problem, kept = self._problem(features_BD, rows_KD, targets_B, temperature, row_mask_K, products)
        drows_KD = torch.full_like(rows_KD, torch.nan)
        self._call(
            self.library.run_rows_gradient,
            self.library.rows_bytes(ctypes.byref(problem)),
            ctypes.byref(problem),
            at(lse_B),
            at(weight_B),
            at(need_B),
            at(own_B),
            at(drows_KD),
        )
        del kept
        return drows_KD

    def rows_update_(
        self,
        features_BD,
        rows_KD,
        momentum_KD,
        targets_B,
        lse_B,
        weight_B,
        temperature,
        row_mask_K,
        need_B,
        own_B,
        eta,
        momentum,
        weight_decay,
        nesterov,
        products,
    ) -> None:
        problem, kept = self._problem(features_BD, rows_KD, targets_B, temperature, row_mask_K, products)
        self._call(
            self.library.run_rows_update,
            self.library.rows_bytes(ctypes.byref(problem)),
            ctypes.byref(problem),
            at(lse_B),
            at(weight_B),
            at(need_B),
            at(own_B),
            at(rows_KD),
            at(momentum_KD),
            (ctypes.c_float * 3)(eta, momentum, weight_decay),
            int(nesterov),
        )
        del kept

    def _problem(self, features_BD, rows_KD, targets_B, temperature, row_mask_K, products) -> tuple[_Problem, Any]:
        tensors = (features_BD, rows_KD, targets_B, row_mask_K)
        assert all(x is None or x.is_contiguous() for x in tensors)
        sizes = (*features_BD.shape[:1], *rows_KD.shape, PRODUCTS.index(products))
        return _Problem(*map(at, tensors), *sizes, temperature), tensors

    def _call(self, function: Any, workspace_bytes: int, *arguments: Any) -> None:
        # All bits set is NaN in every type.
        space = torch.full((256 + workspace_bytes + CANARY_BYTES,), 0xFF, dtype=torch.uint8)
        start = -space.data_ptr() % 256
        assert function(*arguments, ctypes.c_void_p(space.data_ptr() + start)) == 0
        assert (space[:start] == 0xFF).all()
        assert (space[start + workspace_bytes :] == 0xFF).all()


def compiled(source: str, product: Path, *flags: str) -> Path:
    command = ["g++", *FLAGS, "-DPIC_EMULATED_CUDA", f"-I{SOURCES}", *flags, str(SOURCES / source), "-o", str(product)]
    subprocess.run(command, check=True)
    return product


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    def build(product: Path) -> None:
        compiled("sampled_softmax.cpp", product, "-shared", "-fPIC")

    return ctypes.CDLL(str(made_once(shared_directory(tmp_path_factory) / "emulated.so", build)))


class TestEmulated(OwnTermClaims):
    repeats = 1

    @pytest.fixture
    def op(self, library):
        return Emulated(library)

    @pytest.fixture
    def device(self):
        return torch.device("cpu")

    def again(self, op, call):
        """Once more with blocks, warps and lanes in the opposite order."""
        op.library.run_backwards(1)
        try:
            return call()
        finally:
            op.library.run_backwards(0)

    def stepped(self, op, gradient_KD, rows_KD, momentum_KD, step):
        rows_KD, momentum_KD = rows_KD.clone(), momentum_KD.clone()
        numbers = (ctypes.c_float * 3)(*step[:3])
        size = ctypes.c_int64(rows_KD.numel())
        op.library.run_step(size, at(gradient_KD), at(rows_KD), at(momentum_KD), numbers, int(step[3]))
        return rows_KD, momentum_KD

    def expect_stepped(self, got, expected):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize("products", PRODUCTS)
def test_the_emulation_rounds_as_torch_does(library, products):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, generator=g) * torch.exp2(torch.randint(-40, 18, (20_000,), generator=g))
    ties = torch.arange(-4096, 4096) / 4096 * 1.5
    x = torch.cat([x, ties, torch.tensor([0.0, -0.0, 65504, 65519.9, 65520, 2**-24, 2**-25, 3 * 2**-26, 1e-9])])
    got = torch.empty_like(x)
    library.round_numbers(ctypes.c_int64(len(x)), ctypes.c_int64(PRODUCTS.index(products)), at(x), at(got))
    torch.testing.assert_close(got, rounded(x, products), rtol=0, atol=0)


def test_the_emulation_sees_threads_that_part_and_shared_memory_that_is_overrun(tmp_path):
    program = compiled("faults.cpp", tmp_path / "faults")
    for fault, words in (
        ("none", ""),
        ("ends", "ended or waits at another kind of barrier"),
        ("lines", "wait at different lines"),
        ("alignment", "not aligned"),
        ("allowance", "not asked for"),
        ("overrun", ""),
    ):
        finished = subprocess.run([program, fault], capture_output=True, text=True, check=False)
        assert (finished.returncode == 0) == (fault == "none"), fault
        assert words in finished.stderr
