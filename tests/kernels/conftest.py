"""Every test that asks for `implementation` runs once for each implementation of sampled_softmax that a CPU has."""

import pytest
import torch

import kernels.sampled_softmax
from kernels.compiled import Choice
from tests.kernels.compile_once import remembering_compiler, shared_directory
from tests.kernels.compiled_here import require_compiled


@pytest.fixture(scope="session")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> str:
    """For builds that say nothing about the compiler: each source is compiled once for all tests."""
    return remembering_compiler(shared_directory(tmp_path_factory))


@pytest.fixture(params=["aten", "cpu"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of the implementation that runs where a test names none."""
    name: str = request.param
    if name != "aten":
        require_compiled("sampled_softmax")

    def chosen(device: torch.device, **_: object) -> Choice:
        return Choice(name if device.type == "cpu" else "aten", "chosen by the test")

    monkeypatch.setattr(kernels.sampled_softmax, "backend", chosen)
    return name
