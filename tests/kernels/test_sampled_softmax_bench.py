"""The bench measures what it says: its table is whole, big sizes are said to be left out, its memory figure sees the logits."""

import argparse
import math

import pytest
import torch

from kernels.sampled_softmax import bench
from tests.kernels.compiled_here import is_compiled, require_compiled


@pytest.fixture(autouse=True)
def _same_threads_afterwards():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def tiny(*words: str) -> None:
    bench.main(["--samples", "8", "--features", "4", "--repeats", "2", "--threads", "1", *words])


def lines_of(printed: str) -> dict[str, list[str]]:
    """The cells of every line of the printed tables, by the line's first cell; no headings."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines() if line[:2] == "| "]
    return {first: others for first, *others in cells if first != "method"}


def test_the_table_has_a_line_for_every_method_every_step_and_the_bounds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gradient_bytes = (8 + 64) * 4 * 4
    monkeypatch.setattr(bench, "_peak", lambda *_: 3 * 2**20 + gradient_bytes)
    tiny("--rows", "64")
    lines = lines_of(capsys.readouterr().out)

    backend = "cpu" if is_compiled("sampled_softmax") else "aten"
    chunked = [name for name in lines if name.startswith("linear_cross_entropy")]
    tiled = [name for name in lines if name.startswith("four products")]
    # One line each, of several settings: the fastest.
    assert len(chunked) == hasattr(torch.nn.functional, "linear_cross_entropy")
    assert len(tiled) == 1
    methods = [*(["cpu"] if backend == "cpu" else []), "aten", "eager", *chunked]
    steps = [f"step, {how} ({backend})" for how in ("fused", "fused, own row left out", "written and applied")]
    bounds = [*tiled, "three products", "copy"]
    assert list(lines) == [*methods, *steps, "step, eager and torch.optim.SGD", *bounds]
    # Peak memory is the last column: of the methods, without the gradients.
    assert {name: line[-1] for name, line in lines.items()} == {
        name: "3.0" if name in methods else "-" for name in lines
    }


def test_sizes_with_too_much_work_are_left_out_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = []
    monkeypatch.setattr(bench, "table", lambda samples, rows, _: measured.append((samples, rows)) or "a table")
    gflop = 8 * 8 * 64 * 4 / 1e9  # of the smaller size: exactly that much is still allowed
    tiny("--rows", "64", "65", "--gflop", repr(gflop))
    printed = capsys.readouterr().out
    assert measured == [(8, 64)]
    assert "left out: B = 8, K = 65," in printed
    assert printed.count("left out") == printed.count("a table") == 1


@pytest.mark.parametrize(("name", "least", "most"), [("eager", 2, math.inf), ("aten", 0, 1 / 4), ("cpu", None, 1 / 20)])
def test_peak_memory_of_the_op_is_far_under_the_logits_of_which_eager_holds_several(
    name: str, least: float | None, most: float
) -> None:
    if name == "cpu":
        require_compiled("sampled_softmax")
    samples, rows, features = 512, 32_768, 16
    arguments = argparse.Namespace(features=features, temperature=0.2, threads=1, device="cpu")
    logits_bytes, gradient_bytes = samples * rows * 4, (samples + rows) * features * 4
    peak = bench._peak(name, samples, rows, arguments)
    # At least most of the gradients must show, or nothing was measured. Not all: the small run frees pages that serve again, and
    # the compiled op needs so little besides that its peak can come out under the gradients.
    assert peak > gradient_bytes / 2
    beyond = (peak - gradient_bytes) / logits_bytes
    assert least is None or beyond > least
    assert beyond < most
