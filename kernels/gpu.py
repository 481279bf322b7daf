"""Everything that a GPU has to show, in one command of under eight minutes: `make gpu`, or `python -m kernels.gpu`.

    1. build the CUDA sources for this device
    2. the tests of the kernels that need a device
    3. a few of them again under compute-sanitizer (memcheck and racecheck), where the toolkit has it
    4. the benches of every op, and ten million active rows
    5. a training without a network through launch.py: rows, softmax, host tier, store; resumed; the same digest each time
    6. what came out goes into kernels/RESULTS.md, with device, driver and versions, in the place of the last time's

Needs torch, pytest, nvcc and ninja; the training, numpy, pydantic, safetensors, zarr and google-crc32c as well. Nothing else of this
project's dependencies. A part that fails is in the results as failed, and the exit code is 1; a part that there is no time for is named.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from kernels.compiled import NotCompiled, load, ops
from kernels.measure import machine

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "kernels" / "RESULTS.md"
BEGIN, END = "<!-- made by `make gpu`: begin -->", "<!-- made by `make gpu`: end -->"
BUDGET_SECONDS = 450.0

# Without the project's own settings: their plugins and parent conftest need packages that a GPU machine may lack.
PYTEST = [
    *(sys.executable, "-m", "pytest", "-q", "-c", os.devnull, f"--rootdir={ROOT}", "--confcutdir=tests/kernels"),
    *("-o", "pythonpath=.", "--import-mode=importlib", "-p", "no:cacheprovider"),
]
TESTS = ["tests/kernels/test_cuda_device.py", "tests/kernels/test_row_update.py", "tests/kernels/test_catch_up.py"]
BENCHES = {
    "sampled_softmax": ["--samples", "1024", "--rows", "65536", "262144", "--repeats", "7", "--device", "cuda"],
    "row_update": ["--rows", "65536", "1048576", "--device", "cuda"],
    "catch_up": ["--device", "cuda"],
}


def main() -> int:
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing was tested and nothing measured")
        return 1
    deadline = time.monotonic() + BUDGET_SECONDS
    lines, sound = [_heading()], True
    for title, command in _parts():
        remaining = deadline - time.monotonic()
        if remaining < 20:
            lines.append(f"**{title}**: left out, no time")
            continue
        began = time.monotonic()
        passed, printed = _run(command, remaining)
        sound &= passed
        took = f"{time.monotonic() - began:.0f} s"
        lines.append(f"**{title}**: {'done' if passed else 'FAILED'} in {took}\n\n{printed}")
        print(lines[-1], flush=True)
    write(RESULTS, "\n\n".join(lines))
    return 0 if sound else 1


def _parts() -> Iterator[tuple[str, list[str]]]:
    build = "import sys; from kernels.compiled import load; [load(op, 'cuda') for op in sys.argv[1:]]"
    yield "build", [sys.executable, "-c", build, *ops("cuda")]
    yield "tests", [*PYTEST, *TESTS, "-k", "cuda or device"]
    sanitizer = shutil.which("compute-sanitizer")
    for tool in ("memcheck", "racecheck") if sanitizer else ():
        few = [*PYTEST, TESTS[0], "-k", "fill_no_tile or same_bits or then_the_step"]
        yield f"compute-sanitizer {tool}", [str(sanitizer), "--tool", tool, "--error-exitcode", "9", *few]
    for op, words in BENCHES.items():
        yield f"bench of {op}", [sys.executable, "-m", f"kernels.{op}.bench", *words]
    yield "ten million active rows", [sys.executable, "-m", "kernels.gpu", "--ten-million"]
    yield "a training without a network", [sys.executable, "-m", "kernels.gpu", "--given"]


def ten_million() -> None:
    """One fused step of B = 1024 over K = 10,000,000 rows of 128 numbers, and the memory that it needed."""
    from kernels.sampled_softmax import combine, softmax_forward_negatives, softmax_rows_update_

    device = torch.device("cuda")
    rows_KD = torch.randn(10_000_000, 128, device=device) * 0.01
    momentum_KD = torch.zeros_like(rows_KD)
    z_BD = torch.randn(1024, 128, device=device)
    targets_B = torch.randint(len(rows_KD), (1024,), device=device)
    weight_B = torch.full((1024,), 1 / 1024, device=device)
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        torch.cuda.synchronize()
        began = time.perf_counter()
        forward = softmax_forward_negatives(z_BD, rows_KD, targets_B, temperature=0.2, products="bfloat16")
        lse_B = combine([(forward.max_B, forward.sumexp_B)])
        softmax_rows_update_(
            z_BD,
            rows_KD,
            momentum_KD,
            targets_B,
            lse_B,
            weight_B,
            temperature=0.2,
            eta=0.03,
            momentum=0.9,
            weight_decay=1e-4,
            nesterov=False,
            products="bfloat16",
        )
        torch.cuda.synchronize()
        seconds = time.perf_counter() - began
    assert torch.isfinite(lse_B).all()
    peak = torch.cuda.max_memory_allocated() / 2**30
    own = 2 * rows_KD.nbytes / 2**30
    print(f"{seconds * 1e3:.0f} ms a step; peak {peak:.2f} GiB, of which rows and momentum are {own:.2f} GiB")


def given() -> None:
    """configs/given.json with three slides and more: twice straight, once with a stop on the way; every digest must be the same."""
    sizes = [
        *(
            "data.limit=1000000",
            "schedule.block=128",
            "schedule.lanes=8",
            "schedule.window=16384",
            "schedule.stride=8192",
        ),
        *("method.active=8192", "checkpoint.every_steps=50"),
    ]
    digests = {}
    with tempfile.TemporaryDirectory() as directory:
        for name, ends in {"straight": [300], "again": [300], "resumed": [130, 300]}.items():
            line = [sys.executable, "launch.py", "--config", "configs/given.json", f"output={directory}/{name}", *sizes]
            began = time.perf_counter()
            for end in ends:
                subprocess.run([*line, f"steps={end}"], check=True, cwd=ROOT)
            seconds = time.perf_counter() - began
            # The same of the bytes on the disk, in which the command compares it with the run's own.
            subprocess.run([*line, "job=store", "store.verb=digest"], check=True, cwd=ROOT)
            summary = json.loads(Path(directory, name, "summary.json").read_text())
            digests[name] = summary["digest"]
            print(
                f"{name}: {seconds:.1f} s in all, {1e3 * summary['step_seconds']:.1f} ms a step, loss {summary['loss']:.3f} (chance "
                f"{summary['chance_loss']:.3f}), {summary['backends']}, digest {summary['digest']}"
            )
    assert len(set(digests.values())) == 1, digests


def _heading() -> str:
    device = torch.device("cuda")
    driver = "unknown"
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split("\n")[0]
    backends = []
    for op in ops("cuda"):
        try:
            backends.append(f"{op}: {load(op, 'cuda').name}")
        except NotCompiled as error:
            backends.append(f"{op}: not built, {error}")
    return f"{machine(device, 1)}, driver {driver}; {time.strftime('%Y-%m-%d')}. Built: {'; '.join(backends)}"


def _run(command: list[str], seconds: float) -> tuple[bool, str]:
    """(did it end well, the end of what it printed)."""
    try:
        finished = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            cwd=ROOT,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return False, f"stopped after {seconds:.0f} s"
    tables = "\n".join(finished.stdout.splitlines()[-60:])
    return finished.returncode == 0, tables


def write(path: Path, text: str) -> None:
    """Put `text` between the marks, in the place of what is there."""
    page = path.read_text()
    assert page.count(BEGIN) == page.count(END) == 1, path
    path.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n\n{text}\n\n{END}", page, flags=re.DOTALL))


if __name__ == "__main__":
    if sys.argv[1:] == ["--ten-million"]:
        ten_million()
    elif sys.argv[1:] == ["--given"]:
        given()
    else:
        sys.exit(main())
