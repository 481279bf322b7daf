"""Compiled kernels where a test needs them: what this machine cannot build is skipped, and what does not compile is a failure."""

import pytest

from kernels.compiled import NotCompiled, load, missing


def is_compiled(op: str) -> bool:
    """Whether the CPU's implementation of an op is there. Raises NotCompiled where this machine has all that a build needs."""
    try:
        load(op, "cpu")
    except NotCompiled:
        if missing("cpu") is None:
            raise
        return False
    return True


def require_compiled(op: str) -> None:
    """Skip the test where it is not."""
    if not is_compiled(op):
        pytest.skip(f"{op} cannot be compiled here: {missing('cpu')}")
