"""catch_up: to the bit what engine/rows/transitions.py computes, in the slots asked for and nowhere else."""

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.rows import transitions
from kernels.catch_up import bench, catch_up_
from kernels.catch_up.reference import catch_up_reference_
from tests.kernels.compiled_here import require_compiled

DTYPES = [torch.float32, torch.float64]

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(params=["aten", "cpu", pytest.param("cuda", marks=needs_cuda)])
def backend(request) -> str:
    if request.param == "cpu":
        require_compiled("catch_up")
    return request.param


def device_of(backend: str) -> torch.device:
    return torch.device("cuda" if backend == "cuda" else "cpu")


class Inputs:
    """Rows full of marks, a pool, and M draws from it: numbers far out, products of real steps and of any."""

    def __init__(self, count: int, features: int, dtype: torch.dtype, rows: int = 50, pool: int = 90, seed: int = 0):
        rng = np.random.default_rng(seed)
        self.rows, self.momentum = (torch.full((rows, features), mark, dtype=dtype) for mark in (7.0, -3.0))
        sources = [rng.standard_normal((pool, features)) * 10.0 ** rng.integers(-6, 4, (pool, 1)) for _ in range(2)]
        self.source_rows, self.source_momentum = (torch.from_numpy(source).to(dtype) for source in sources)
        self.slots = torch.from_numpy(rng.permutation(rows)[:count])
        self.indices = torch.from_numpy(rng.integers(0, pool, count))
        log = transitions.TransitionLog(momentum=0.9, weight_decay=1e-3, nesterov=bool(seed % 2))
        for eta in rng.uniform(0.01, 0.5, 200):
            log.append(float(eta))
        products = log.products(rng.integers(0, 201, count), 200)
        products[::3] = rng.standard_normal((len(products[::3]), 2, 2))
        self.products = torch.from_numpy(products)

    def parts(self, device: torch.device | None = None) -> tuple[Tensor, ...]:
        """Arguments of the op; rows are copies, on the device."""
        on_device = (target.clone().to(device) for target in (self.rows, self.momentum))
        return (*on_device, self.slots, self.source_rows, self.source_momentum, self.indices, self.products)

    def placed(self, backend: str, parts: tuple[Tensor, ...] | None = None) -> tuple[Tensor, Tensor]:
        parts = self.parts(device_of(backend)) if parts is None else parts
        assert catch_up_(*parts, backend=backend) is None
        return parts[0].cpu(), parts[1].cpu()

    def expected(self) -> tuple[Tensor, Tensor]:
        """What the engine's numpy line makes of it."""
        rows, momentum = self.rows.clone(), self.momentum.clone()
        gathered = self.source_rows[self.indices].numpy(), self.source_momentum[self.indices].numpy()
        w, u = transitions.catch_up(*gathered, self.products.numpy())
        rows[self.slots], momentum[self.slots] = torch.from_numpy(w), torch.from_numpy(u)
        return rows, momentum


def assert_same_bits(got: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    integers = torch.int32 if expected[0].dtype == torch.float32 else torch.int64
    for mine, true in zip(got, expected, strict=True):
        assert mine.dtype == true.dtype
        assert torch.equal(mine.view(integers), true.view(integers))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("features", [1, 7, 33, 128])
@pytest.mark.parametrize("count", [0, 1, 2, 37, 50])
def test_bits_are_those_of_the_engines_numpy_line(backend, count, features, dtype):
    for seed in range(2):
        inputs = Inputs(count, features, dtype, seed=seed)
        assert_same_bits(inputs.placed(backend), inputs.expected())


def test_no_product_is_fused_with_the_sum(backend):
    """w = 1 + 2^-30, P00 = 1 + 2^-30, P01 u = -(1 + 2^-29): rounded products cancel to 0, a fused one leaves 2^-60."""
    inputs = Inputs(50, 128, torch.float64)
    inputs.source_rows[:], inputs.source_momentum[:] = 1 + 2.0**-30, -(1 + 2.0**-29)
    inputs.products[:] = torch.tensor([[1 + 2.0**-30, 1.0], [1 + 2.0**-30, 1.0]], dtype=torch.float64)
    for placed in inputs.placed(backend):
        assert (placed == 0).all()
    inputs.source_rows, inputs.source_momentum = inputs.source_momentum, inputs.source_rows
    inputs.products = inputs.products.flip(2).contiguous()
    for placed in inputs.placed(backend):
        assert (placed == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_infinities_subnormals_and_numbers_too_large_for_the_dtype_are_those_of_numpy(backend, dtype):
    inputs = Inputs(50, 8, dtype)
    inputs.products[:] = torch.tensor([[3.0, -0.0], [0.0, 1.0]], dtype=torch.float64)
    largest, smallest = torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal
    inputs.source_rows[:] = torch.tensor([0.0, -0.0, torch.inf, largest, -largest, smallest / 8, -smallest / 8, 1.0])
    inputs.source_momentum[:] = 0.5
    with np.errstate(all="ignore"):
        expected = inputs.expected()
    got = inputs.placed(backend)
    for mine, true in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, true, rtol=0, atol=0, equal_nan=True)  # a NaN's own bits are the hardware's
        assert torch.equal(mine.nan_to_num().signbit(), true.nan_to_num().signbit())


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_identity_copies_rows(backend, dtype):
    inputs = Inputs(20, 33, dtype)
    inputs.products[:] = torch.eye(2, dtype=torch.float64)
    rows, momentum = inputs.placed(backend)
    assert torch.equal(rows[inputs.slots], inputs.source_rows[inputs.indices])
    assert torch.equal(momentum[inputs.slots], inputs.source_momentum[inputs.indices])


def test_a_source_row_may_come_twice_and_sources_stay_as_they_are(backend):
    inputs = Inputs(30, 7, torch.float32)
    inputs.indices[:] = 5
    before = inputs.source_rows.clone(), inputs.source_momentum.clone()
    assert_same_bits(inputs.placed(backend), inputs.expected())
    assert_same_bits((inputs.source_rows, inputs.source_momentum), before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("features", [33, 128])
def test_bits_are_the_same_again_and_for_any_number_of_threads(backend, features, dtype):
    inputs = Inputs(1000, features, dtype, rows=1500, pool=3000)
    expected = inputs.expected()
    for threads in (1, 1, 2, 3):
        torch.set_num_threads(threads)
        assert_same_bits(inputs.placed(backend), expected)


def test_slices_that_begin_anywhere_are_served(backend):
    inputs = Inputs(20, 7, torch.float32)
    inputs.source_rows, inputs.source_momentum = inputs.source_rows[1:], inputs.source_momentum[3:-1]
    inputs.source_rows = inputs.source_rows[: len(inputs.source_momentum)]
    inputs.indices.clamp_(max=len(inputs.source_rows) - 1)
    assert_same_bits(inputs.placed(backend), inputs.expected())


@needs_cuda
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("features", [7, 128])
def test_a_gpu_reads_pinned_rows_where_they_are(features, dtype):
    inputs = Inputs(50, features, dtype)
    inputs.source_rows, inputs.source_momentum = inputs.source_rows.pin_memory(), inputs.source_momentum.pin_memory()
    parts = inputs.parts(torch.device("cuda"))
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    placed = inputs.placed("cuda", parts)
    assert torch.cuda.max_memory_allocated() - before <= 3 * 2048  # slots, indices, products: no rows
    assert_same_bits(placed, inputs.expected())


@needs_cuda
def test_the_cuda_binding_refuses_host_memory_that_is_not_pinned():
    inputs = Inputs(4, 8, torch.float32)
    inputs.placed("cuda")  # loads the library
    rows, momentum, slots, *sources, indices, products = inputs.parts(torch.device("cuda"))
    with pytest.raises(RuntimeError, match="pinned"):
        torch.ops.pic_catch_up_cuda.catch_up_(rows, momentum, slots.cuda(), *sources, indices.cuda(), products.cuda())


def test_the_reference_is_the_engines_line():
    for dtype in DTYPES:
        inputs = Inputs(40, 33, dtype)
        parts = inputs.parts()
        catch_up_reference_(*parts)
        assert_same_bits(parts[:2], inputs.expected())


def test_without_a_backend_the_chosen_one_runs():
    inputs = Inputs(10, 3, torch.float32)
    parts = inputs.parts()
    catch_up_(*parts)
    assert_same_bits(parts[:2], inputs.expected())


@pytest.mark.parametrize("count", [0, 5])
def test_the_op_is_one_that_torch_can_trace(backend, count):
    parts = Inputs(count, 4, torch.float32).parts(device_of(backend))
    torch.library.opcheck(torch.ops.pic.catch_up_.default, parts, {"backend": backend})


NAMES = (
    "rows_KD",
    "momentum_KD",
    "slots_M",
    "source_rows_PD",
    "source_momentum_PD",
    "indices_M",
    "products_M22",
)
SHORT = dict(
    zip(NAMES, ("rows", "momentum", "slots", "source_rows", "source_momentum", "indices", "products"), strict=True)
)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("rows_KD", lambda t: t[0], r"rows_KD has shape \(3,\)"),
        ("rows_KD", lambda t: t.half(), "rows_KD is torch.float16"),
        ("rows_KD", lambda t: t.repeat(1, 2)[:, ::2], "rows_KD has strides .* not contiguous"),
        ("momentum_KD", lambda t: t[:-1], r"momentum_KD has shape \(49, 3\), expected \(50, 3\)"),
        ("momentum_KD", lambda t: t.to("meta"), "momentum_KD is on meta, expected cpu"),
        ("source_rows_PD", lambda t: t[:, :2], r"source_rows_PD has shape \(90, 2\), expected 3 features"),
        ("source_rows_PD", lambda t: t.double(), "source_rows_PD is torch.float64, expected torch.float32"),
        ("source_momentum_PD", lambda t: t[1:], r"source_momentum_PD has shape \(89, 3\)"),
        ("source_momentum_PD", lambda t: t.T.contiguous().T, "source_momentum_PD has strides"),
        ("slots_M", lambda t: t[:, None], "slots_M has shape"),
        ("slots_M", lambda t: t.int(), "slots_M is torch.int32"),
        ("slots_M", lambda t: t.clone().fill_(50), "slots_M reaches from 50 to 50, expected rows from 0 to 49"),
        ("slots_M", lambda t: t - 60, "slots_M reaches from -"),
        ("indices_M", lambda t: t[1:], r"indices_M has shape \(3,\), expected \(4,\)"),
        ("indices_M", lambda t: t.clone().fill_(90), "indices_M reaches from 90 to 90, expected rows from 0 to 89"),
        ("indices_M", lambda t: -1 - t, "indices_M reaches from -"),
        ("products_M22", lambda t: t.float(), "products_M22 is torch.float32"),
        ("products_M22", lambda t: t[:, 0], r"products_M22 has shape \(4, 2\), expected \(4, 2, 2\)"),
        ("products_M22", lambda t: t.transpose(1, 2), "products_M22 has strides"),
    ],
    ids=lambda value: value if value in NAMES else "",
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(name, change, words):
    inputs = Inputs(4, 3, torch.float32)
    parts = dict(zip(NAMES, inputs.parts(), strict=True))
    parts[name] = change(parts[name])
    with pytest.raises(ValueError, match=words):
        catch_up_(*parts.values())
    for kept in ("rows_KD", "momentum_KD"):
        if kept != name:
            assert torch.equal(parts[kept], getattr(inputs, SHORT[kept]))


@pytest.mark.parametrize("wrong", ["cuda", "fast"])
def test_a_backend_that_does_not_fit_is_refused(wrong):
    with pytest.raises(ValueError, match=f"backend is '{wrong}', but the rows are on cpu"):
        catch_up_(*Inputs(4, 3, torch.float32).parts(), backend=wrong)


def test_a_slot_or_index_into_nothing_is_refused(backend):
    empty = Inputs(0, 3, torch.float32, rows=0)
    parts = empty.parts(device_of(backend))
    catch_up_(*parts, backend=backend)
    one = Inputs(1, 3, torch.float32)
    with pytest.raises(ValueError, match="slots_M reaches"):
        catch_up_(*parts[:2], *one.parts()[2:], backend=backend)


def test_the_bench_has_a_line_for_every_method(capsys):
    bench.main(["--quick", "--threads", "1", "--features", "16"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    names = [line.split("|")[1].strip() for line in lines][2:]
    assert names == [*bench.methods("catch_up", torch.device("cpu")), "copy"]
