"""Random jobs among random files that are somebody's: `python -m tests.foreign_runs --seeds 200`. None of the files changes or goes.

Not a test; tests/test_foreign_files.py runs a few seeds.
"""

import argparse
import contextlib
import io
import json
import tempfile
from pathlib import Path

import launch
from engine.results.output_names import EVENTS, EXPORT, KNN, PICTURE, PRETRAIN
from tests.conftest import TINY
from tests.foreign import Foreign

NAMES = [
    *PRETRAIN,
    *KNN,
    *EXPORT,
    *PICTURE,
    *EVENTS,
    "exports/rows-2.npy",
    "exports/rows-2.json",
    "exports/rows-2.zarr",
    "images.index",
]
JOBS = [
    *[["job=pretrain"]] * 6,
    *([f"job={job}"] for job in ("knn", "export")),
    *(["job=store", f"store.verb={verb}"] for verb in ("inspect", "verify", "scrub", "repair", "export")),
    ["job=store", "store.verb=export", "store.format=zarr"],
]


def config_of(foreign: Foreign) -> dict:
    augment = {"kind": "photos", "crops": [{"size": 16, "scale": [0.3, 1.0]}]}
    return {
        **TINY,
        "data": {"source": "folder", "root": str(foreign.images), "image_size": 16, "augment": augment},
        "schedule": {"batch": 8, "window": 16, "stride": 8, "block": 4, "lanes": 2, "reshuffle": False},
        "method": {**TINY["method"], "active": 8},
        "checkpoint": {"every_steps": 1, "keep": 2},
        "store": {"kind": "zarr"},
        "epochs": 4,
    }


def run_seed(seed: int, base: Path) -> list[int]:
    """One sequence of jobs; returns their exit codes. AssertionError where a file changed or went."""
    foreign = Foreign(base, seed, NAMES)
    draw = foreign.draw
    path = base / "config.json"
    path.write_text(json.dumps(config_of(foreign)))
    codes = []
    for _ in range(draw.randint(3, 6)):
        words = draw.choice(JOBS)
        flags = []
        if words == ["job=pretrain"]:
            flags = [flag for flag, share in (("--fresh", 0.3), ("--dry-run", 0.1)) if draw.random() < share]
            words = [*words, f"steps={draw.randint(1, 4)}", f"evaluate.tensorboard={json.dumps(draw.random() < 0.1)}"]
        output = foreign.some_output()
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            codes.append(launch.main(["--config", str(path), *flags, f"output={output}", *words]))
        assert codes[-1] in (0, 1, 2), codes
        foreign.check()
        foreign.plant()
    return codes


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    totals = {0: 0, 1: 0, 2: 0}
    for seed in range(options.first, options.first + options.seeds):
        with tempfile.TemporaryDirectory() as base:
            for code in run_seed(seed, Path(base)):
                totals[code] += 1
    print(f"{options.seeds} seeds; jobs by exit code: {totals}; nothing foreign changed")


if __name__ == "__main__":
    main()
