"""What tests share: one thread a process, a tiny run on digits, and the launch of it in this process."""

import gc
import json
import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

# Tests run side by side, and each starts processes. Libraries count their threads when they are loaded, so this comes before torch.
for _threads in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_threads] = "1"

# A shell that starts the tests in the background has them ignore Ctrl-C, and so would every process that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

import torch

import launch
from tests.slow_tests import is_slow, slow_tests

REPOSITORY = Path(__file__).resolve().parent.parent

TINY = {
    "output": "set by the test",
    "epochs": 6,
    "log_every": 5,
    "threads": 1,
    "data": {"source": "digits", "image_size": 16, "augment": {"kind": "grey"}, "workers": 0},
    "schedule": {"batch": 64, "window": 640, "stride": 320, "block": 16, "lanes": 4},
    "backbone": {"name": "vgg", "layers": [8, "M", 16], "hidden": 32},
    "method": {"active": 128, "dim": 16, "temperature": 0.2, "init": "random", "init_norm": 1.0},
    "optimizer": {"lr": 0.03, "warmup_epochs": 0.5, "rows_lr_scale": 10.0, "rows_weight_decay": 0.0},
    "checkpoint": {"every_steps": 30, "keep": 2},
    "evaluate": {"k": 5, "limit": 200, "query_limit": 100},
    "deepspeed": {"zero_optimization": {"stage": 0}},
}


# The same without a network: a step takes a tenth of the time.
GIVEN = {
    **{key: value for key, value in TINY.items() if key not in ("deepspeed", "evaluate")},
    "epochs": 3,
    "data": {"source": "synthetic", "limit": 2000},
    "backbone": {"name": "given"},
}


def folder_config(root, **data):
    """TINY for a folder of some twenty photographs."""
    augment = {"kind": "photos", "crops": [{"size": 16, "scale": [0.3, 1.0]}, {"size": 12, "rows_grad": False}]}
    return {
        **TINY,
        "data": {"source": "folder", "root": str(root), "image_size": 16, "augment": augment, **data},
        "schedule": {"batch": 8, "window": 16, "stride": 8, "block": 4, "lanes": 2, "reshuffle": False},
        "method": {**TINY["method"], "active": 8},
        "epochs": 4,
    }


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="leave out the tests that tests/slow_tests.txt names")


def pytest_configure() -> None:
    """On a busy machine an example, and what it is drawn from, may take any time. Where CI is set a test has the same examples each
    time, so that a change is judged by what it changes; elsewhere it has others in every run, which finds more."""
    from hypothesis import HealthCheck, settings  # which a machine that only tests kernels need not have

    is_ci = bool(os.environ.get("CI"))
    slow = [HealthCheck.too_slow]
    settings.register_profile("any machine", deadline=None, suppress_health_check=slow, derandomize=is_ci)
    settings.load_profile("any machine")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "set({" in item.nodeid:
            raise pytest.UsageError(
                f"{item.nodeid}: a set is not printed in the same order by every process; give a tuple"
            )
    slow = slow_tests()
    if hasattr(config, "workerinput"):  # of several workers none is to begin a long test when the others are done
        items.sort(key=lambda item: not is_slow(item.nodeid, slow))
    if config.getoption("--quick"):
        left_out = [item for item in items if is_slow(item.nodeid, slow)]
        items[:] = [item for item in items if not is_slow(item.nodeid, slow)]
        config.hook.pytest_deselected(items=left_out)


def pytest_collection_finish() -> None:
    """What was imported stays: the garbage collector need not look at a million objects of it again and again."""
    gc.freeze()


class Runner:
    """Writes a config into `directory` and runs launch.py's main on it, in this process."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.output = directory / "run"

    def __call__(self, *overrides: str, flags: tuple[str, ...] = (), config: dict | None = None) -> int:
        path = self.directory / "config.json"
        path.write_text(json.dumps(config or TINY))
        words = [f"output={self.output}", *overrides]
        return launch.main(["--config", str(path), *flags, *words])

    def summary(self) -> dict:
        return json.loads((self.output / "summary.json").read_text())

    def lines(self, name: str = "metrics.jsonl") -> list[dict]:
        return [json.loads(line) for line in (self.output / name).read_text().splitlines()]


def refused(run, capsys, *words, config=None, expect):
    """The run is refused with `expect` in a short message, and its output directory is not there afterwards."""
    existed = run.output.exists()
    assert run(*words, config=config) == 2
    error = capsys.readouterr().err
    message = error[error.index("error: ") :].strip()
    assert expect in message, message
    assert len(message.splitlines()) <= 3, message
    assert "Traceback" not in error
    assert run.output.exists() == existed


def leave_out_drawings(patch: pytest.MonkeyPatch) -> None:
    """Have reports made with all their words and tables, and without drawings, which take longer than a tiny run."""
    patch.setattr("engine.results.page.plotly_js", lambda: "")
    patch.setattr("engine.results.report.feature_map", lambda _: [])


_COUNTS: dict[tuple[object, ...], dict] = {}


def remember_counts(patch: pytest.MonkeyPatch) -> None:
    """Have the plan count what a network makes on the way once for all runs of this process: it takes a third of a short run."""
    from engine.jobs import planned

    real = planned.Activations

    def remembered(make: partial, *how: object) -> object:
        config = make.args[0]
        key = (config.backbone.model_dump_json(), config.method.dim, config.data.image_size, *how)
        return real(make, *how, _counts=_COUNTS.setdefault(key, {}))

    patch.setattr(planned, "Activations", remembered)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    """Tiny runs whose reports have no drawings; those of `finished` have them."""
    leave_out_drawings(monkeypatch)
    remember_counts(monkeypatch)
    return Runner(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """One tiny run to its end, shared by the tests of a module; nobody writes into it."""
    runner = Runner(tmp_path_factory.mktemp("finished"))
    assert runner() == 0
    return runner


@pytest.fixture(scope="session", autouse=True)
def _own_glyphs_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Fonts that tests make are no matter for the user's cache. All workers share one: to look at all fonts takes eight seconds."""
    base = tmp_path_factory.getbasetemp()
    cache = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "glyphs"
    cache.mkdir(mode=0o700, exist_ok=True)
    os.environ["PIC_GLYPHS_CACHE"] = str(cache)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def sync_nothing(handle: object) -> None:
    """os.fsync that refuses what the real one refuses, and does not wait for the disk."""
    os.fstat(handle if isinstance(handle, int) else handle.fileno())


@pytest.fixture(autouse=True)
def _no_wait_for_the_disk() -> Iterator[None]:
    """Nobody cuts the power here: what is synced, and when, is for tests/engine/faulty_files.py and for other processes."""
    # Not the fixture `monkeypatch`: it would be undone after the fixtures of a file, which look at what a test left.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", sync_nothing)
        yield


@pytest.fixture
def interrupt_at(monkeypatch):
    """Send SIGINT to this process during given steps, each once."""
    from engine.training import run as run_module  # here: most tests need none of it

    real = run_module.train_step
    steps: set[int] = set()

    def train_step(batch, *arguments, **options):
        if batch.step in steps:
            steps.remove(batch.step)
            os.kill(os.getpid(), signal.SIGINT)
        return real(batch, *arguments, **options)

    monkeypatch.setattr(run_module, "train_step", train_step)
    return steps


@pytest.fixture
def photos(tmp_path):
    """A folder of 24 JPEGs of noise in two class folders."""
    from PIL import Image  # here: most tests need none of it

    root = tmp_path / "photos"
    rng = np.random.default_rng(0)
    for number in range(24):
        directory = root / ("cats" if number % 2 else "dogs")
        directory.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(directory / f"{number:02}.jpg", quality=95)
    return root
