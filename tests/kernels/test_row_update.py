"""row_update: the step of torch.optim.SGD, exact, the same bits however it is cut up, and nothing else touched."""

import functools
import math

import pytest
import torch
from torch import Tensor

from kernels.compiled import choose
from kernels.row_update import bench, row_update_
from kernels.row_update.reference import row_update_reference_
from tests.kernels.compiled_here import require_compiled

STEP = {"eta": 0.3, "momentum": 0.9, "weight_decay": 1e-3, "nesterov": False}
VARIANTS = {
    "plain": {},
    "nesterov": {"nesterov": True},
    "no momentum": {"momentum": 0.0},
    "no decay": {"weight_decay": 0.0},
    "no step": {"eta": 0.0},
}
SHAPES = [(1, 1), (1, 128), (5, 7), (301, 33), (2000, 128)]

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(params=["aten", "cpu", pytest.param("cuda", marks=needs_cuda)])
def backend(request) -> str:
    if request.param == "cpu":
        require_compiled("row_update")
    return request.param


def device_of(backend: str) -> torch.device:
    return torch.device("cuda" if backend == "cuda" else "cpu")


def draw(rows: int, features: int, seed: int = 0, dtype=torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """(w, u, gradient) as a long training has them: short rows, some numbers far out."""
    generator = torch.Generator().manual_seed(seed)
    arrays = [torch.randn(rows, features, generator=generator) * scale for scale in (0.1, 0.01, 0.02)]
    for array in arrays:
        array[torch.rand(array.shape, generator=generator) < 0.01] *= 50
    return tuple(array.to(dtype) for array in arrays)


def stepped(step, arrays: tuple[Tensor, Tensor, Tensor], device=None, **options) -> tuple[Tensor, Tensor]:
    """(w, u) after `step`, on the CPU again; the arrays given stay as they are."""
    w, u, gradient = (array.clone().to(device) for array in arrays)
    assert step(w, u, gradient, **options) is None
    assert torch.equal(gradient.cpu(), arrays[2])
    return w.cpu(), u.cpu()


def errors(got: tuple[Tensor, Tensor], exact: tuple[Tensor, Tensor]) -> list[float]:
    return [
        float((mine.double() - true).norm() / true.norm().clamp(min=1e-300))
        for mine, true in zip(got, exact, strict=True)
    ]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float32_error_is_at_most_twice_that_of_torch_sgd(backend, shape, variant):
    options = {**STEP, **VARIANTS[variant]}
    worst, allowed = [0.0, 0.0], [0.0, 0.0]
    for seed in range(5):
        arrays = draw(*shape, seed)
        # The reference has eta and the like in float32 too, where the exact one has them in float64.
        sgd = functools.partial(reference, **options)
        exact = stepped(sgd, tuple(array.double() for array in arrays))
        ours = stepped(row_update_, arrays, device_of(backend), **options, backend=backend)
        worst = [max(pair) for pair in zip(worst, errors(ours, exact), strict=True)]
        allowed = [max(pair) for pair in zip(allowed, errors(stepped(sgd, arrays), exact), strict=True)]
    for mine, slow_line in zip(worst, allowed, strict=True):
        assert mine <= 2 * slow_line + 1e-8  # float32 cannot tell less


def reference(*arrays: Tensor, **options) -> None:
    if options["nesterov"] and options["momentum"] == 0:
        options["nesterov"] = False
    row_update_reference_(*arrays, **options)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float64_equals_torch_sgd(backend, shape, variant):
    options = {**STEP, **VARIANTS[variant]}
    arrays = draw(*shape, dtype=torch.float64)
    got = stepped(row_update_, arrays, device_of(backend), **options, backend=backend)
    for mine, true in zip(got, stepped(reference, arrays, **options), strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-14, atol=1e-15)


def test_nesterov_without_momentum_is_a_step_along_the_gradient(backend):
    options = {**STEP, "momentum": 0.0}
    plain, nesterov = (
        stepped(row_update_, draw(40, 9), device_of(backend), **{**options, "nesterov": flag}, backend=backend)
        for flag in (False, True)
    )
    for one, other in zip(plain, nesterov, strict=True):
        assert torch.equal(one, other)


def test_many_steps_stay_with_torch_sgd(backend):
    arrays = draw(20, 16, dtype=torch.float64)
    mine, true = ([array.clone().to(device_of(backend)) for array in arrays] for _ in range(2))
    for step in range(50):
        options = {**STEP, "eta": 0.3 / (step + 1), "nesterov": True}
        row_update_(*mine, **options, backend=backend)
        reference(*true, **options)
    torch.testing.assert_close(mine[0], true[0], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(5, 7), (3000, 33), (4000, 128)], ids=str)
def test_bits_are_the_same_again_and_for_any_number_of_threads(backend, shape, dtype):
    arrays = draw(*shape, dtype=dtype)
    results = []
    for threads in (1, 1, 2, 3):
        torch.set_num_threads(threads)
        results.append(stepped(row_update_, arrays, device_of(backend), **STEP, backend=backend))
    for other in results[1:]:
        assert torch.equal(results[0][0], other[0]) and torch.equal(results[0][1], other[1])


def test_bits_of_a_row_do_not_depend_on_where_it_stands():
    require_compiled("row_update")
    arrays = draw(65, 7)
    whole = stepped(row_update_, arrays, **STEP, backend="cpu")
    for row in (0, 1, 64):
        alone = stepped(row_update_, tuple(array[row : row + 1] for array in arrays), **STEP, backend="cpu")
        assert torch.equal(alone[0][0], whole[0][row]) and torch.equal(alone[1][0], whole[1][row])


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("nesterov", [False, True])
def test_cuda_gives_the_bits_of_the_cpu(dtype, nesterov):
    arrays = draw(1001, 33, dtype=dtype)
    options = {**STEP, "nesterov": nesterov}
    on_cpu = stepped(row_update_, arrays, **options, backend="cpu")
    on_cuda = stepped(row_update_, arrays, torch.device("cuda"), **options, backend="cuda")
    assert torch.equal(on_cpu[0], on_cuda[0]) and torch.equal(on_cpu[1], on_cuda[1])


@pytest.mark.parametrize("shape", [(0, 128), (0, 0), (3, 0)], ids=str)
def test_no_rows_are_no_work(backend, shape):
    empty = [torch.empty(shape, device=device_of(backend)) for _ in range(3)]
    row_update_(*empty, **STEP, backend=backend)


def test_rows_beside_those_given_are_left_alone(backend):
    arrays = [array.clone().to(device_of(backend)) for array in draw(30, 7)]
    before = [array.clone() for array in arrays]
    row_update_(*(array[11:14] for array in arrays), **STEP, backend=backend)  # begins at no multiple of 16 bytes
    for array, old in zip(arrays[:2], before, strict=False):
        assert torch.equal(array[:11], old[:11]) and torch.equal(array[14:], old[14:])
        assert not torch.equal(array[11:14], old[11:14])


def test_a_gradient_that_is_not_finite_spoils_its_own_number_alone(backend):
    arrays = draw(6, 5)
    spoilt = arrays[2].clone()
    spoilt[2, 3] = math.nan
    w, u = stepped_nan((arrays[0], arrays[1], spoilt), backend)
    assert w.isnan().nonzero().tolist() == u.isnan().nonzero().tolist() == [[2, 3]]


def stepped_nan(arrays, backend):
    w, u, gradient = (array.clone().to(device_of(backend)) for array in arrays)
    row_update_(w, u, gradient, **STEP, backend=backend)
    return w.cpu(), u.cpu()


def test_rows_that_require_grad_are_updated_as_an_optimizer_would(backend):
    w, u, gradient = (array.to(device_of(backend)) for array in draw(4, 3))
    before = w.clone()
    row_update_(w.requires_grad_(), u, gradient, **STEP, backend=backend)
    assert not torch.equal(w, before) and w.is_leaf and w.grad_fn is None


def test_without_a_backend_the_chosen_one_runs():
    chosen = choose("row_update", torch.device("cpu")).name
    arrays = draw(50, 33)
    ours, named = stepped(row_update_, arrays, **STEP), stepped(row_update_, arrays, **STEP, backend=chosen)
    assert torch.equal(ours[0], named[0]) and torch.equal(ours[1], named[1])


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_op_is_one_that_torch_can_trace(backend, nesterov):
    arrays = tuple(array.to(device_of(backend)) for array in draw(6, 5))
    torch.library.opcheck(torch.ops.pic.row_update_.default, arrays, {**STEP, "nesterov": nesterov, "backend": backend})


def replaced(**changes):
    w, u, gradient = draw(4, 3)
    arguments = {"rows_KD": w, "momentum_KD": u, "drows_KD": gradient, **STEP}
    arguments.update(changes)
    return arguments


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rows_KD": torch.zeros(4)}, r"rows_KD has shape \(4,\), expected \[rows, features\]"),
        ({"momentum_KD": torch.zeros(3, 3)}, r"momentum_KD has shape \(3, 3\), rows_KD \(4, 3\)"),
        ({"drows_KD": torch.zeros(4, 2)}, r"drows_KD has shape \(4, 2\)"),
        ({"rows_KD": torch.zeros(4, 3, dtype=torch.float16)}, "rows_KD is torch.float16.*convert it"),
        ({"drows_KD": torch.zeros(4, 3, dtype=torch.float64)}, "drows_KD is torch.float64, rows_KD torch.float32"),
        ({"momentum_KD": torch.zeros(4, 3, device="meta")}, "momentum_KD is on meta, rows_KD on cpu"),
        ({"drows_KD": torch.zeros(3, 4).T}, "drows_KD has strides .* not contiguous: give drows_KD.contiguous()"),
        ({"rows_KD": torch.zeros(4, 6)[:, ::2]}, "rows_KD has strides"),
        ({"eta": math.nan}, "eta is nan: give a finite number"),
        ({"momentum": math.inf}, "momentum is inf"),
        ({"backend": "cuda"}, "backend is 'cuda', but the rows are on cpu"),
        ({"backend": "fast"}, "backend is 'fast'"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        row_update_(**replaced(**changes))


def test_the_bench_has_a_line_for_every_method(capsys):
    bench.main(["--quick", "--threads", "1", "--features", "16"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    names = [line.split("|")[1].strip() for line in lines][2:]
    assert names == [*bench.methods("row_update", torch.device("cpu")), "copy"]
