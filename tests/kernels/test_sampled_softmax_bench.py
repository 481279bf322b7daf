"""The bench measures what it says: its methods agree, its table is whole, its memory figure sees the logits."""

import argparse

import pytest
import torch

from kernels.sampled_softmax import bench


def test_table_has_a_line_for_every_method_and_for_the_bare_products(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "_peak_in_fresh_process", lambda *_: 3 * 2**20)
    threads = str(torch.get_num_threads())
    bench.main(["--samples", "8", "--rows", "64", "--features", "4", "--repeats", "2", "--threads", threads])
    printed = capsys.readouterr().out
    assert "backend aten" in printed
    names = [line.split("|")[1].strip() for line in printed.splitlines() if line.startswith("|")][2:]
    assert names == [*bench.losses(), "four products", "three products"]
    assert printed.count("| 3.0 |") == len(bench.losses())


def test_peak_memory_of_the_op_is_far_under_the_logits_that_the_eager_line_holds() -> None:
    size = argparse.Namespace(samples=512, features=16, temperature=0.2, threads=1, device="cpu")
    rows = 32_768
    logits_bytes, gradient_bytes = 512 * rows * 4, (512 + rows) * 16 * 4
    ours, eager = (bench._peak_in_fresh_process(name, rows, size) for name in ("sampled_softmax", "eager"))
    assert eager > 2 * logits_bytes
    assert gradient_bytes < ours < logits_bytes / 4
