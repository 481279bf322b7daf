"""Which implementation of each op a run uses: compiled for this machine, or ATen; and saying so."""

import torch

from kernels.compiled import Choice, choose
from kernels.sampled_softmax import backend


def implementations(
    device: torch.device, dtype: torch.dtype, dim: int, wanted: str, trained: bool = True
) -> dict[str, Choice]:
    """op -> what runs it for rows of `dim` numbers of `dtype`. wanted: "auto", "compiled" or "aten".

    trained: by SGD; other rows need the softmax alone.

    Compiles what was never compiled here, which takes up to a minute. Raises ValueError where "compiled" cannot be had.
    """
    softmax = {"sampled_softmax": backend(device, dtype=dtype, features=dim, wanted=wanted)}
    return softmax | ({op: choose(op, device, wanted) for op in ("row_update", "catch_up")} if trained else {})


def names(choices: dict[str, Choice]) -> dict[str, str]:
    """op -> "cpu", "cuda" or "aten"."""
    return {op: choice.name for op, choice in choices.items()}


def kernel_lines(choices: dict[str, Choice], before: dict[str, str] | None) -> list[str]:
    """Lines for people: what runs and why, and what is another implementation than `before`, in the run so far."""
    lines = [f"{op} runs on {choice.name} ({choice.why})" for op, choice in choices.items()]
    for op, choice in choices.items():
        if before and before[op] != choice.name:
            lines.append(
                f"{op} ran on {before[op]} so far: from here on rows agree with that to rounding, not to the bit; "
                "method.kernels chooses"
            )
    return lines
