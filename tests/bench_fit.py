"""Does what plan.fit proposes run in that much memory, and what happens with a quarter more active rows?

    python -m tests.bench_fit [--gib 2] [--directory .]

Asks job=plan for the sizes that fit into host memory of so many GiB, and runs them through launch.py inside a control group of that size,
until all K slots hold a row and checkpoints were written. Then once more with K 25 % higher: refused at the start, and with
plan.refuse=false killed or not. To make control groups takes root, or a group that was handed down. Rows of 2,048 numbers, so that
they are most of the memory and K is reached after some hundred steps.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from engine.scaling.memory_limit import group_parent
from tests.bench_support import given_line, machine, metrics, scratch

SIZES = [
    "data.limit=1000000", "schedule.batch=64", "schedule.block=64", "schedule.lanes=4", "schedule.window=8192", "schedule.stride=1024",
    "method.dim=2048", "method.active=4096", "checkpoint.every_steps=100", "checkpoint.keep=1", "log_every=10", "epochs=1",
]  # fmt: skip
_VERSION_1 = Path("/sys/fs/cgroup/memory")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what was proposed and what became of it; 1 where it did not run, or where more of it did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=2.0)
    parser.add_argument("--directory", type=Path, default=Path())
    options = parser.parse_args(arguments)
    print(machine())
    with scratch(options.directory) as directory, control_group(int(options.gib * 2**30)) as group:
        sizes = proposed(directory, options.gib)
        active = int(next(word.partition("=")[2] for word in sizes if word.startswith("method.active")))
        steps = -(-active // 64) + 200
        more = f"method.active={active * 5 // 4 // 4 * 4}"
        print(f"proposed for {options.gib} GiB: {' '.join(sizes)}; {steps} steps")
        runs = [
            ("as proposed", [*sizes, f"steps={steps}"]),
            ("K 25 % higher", [*sizes, more, f"steps={steps}"]),
            ("the same, plan.refuse=false", [*sizes, more, "plan.refuse=false", f"steps={steps}"]),
        ]
        ends = [limited(group, directory / str(number), name, words) for number, (name, words) in enumerate(runs)]
    return 0 if ends[0] == 0 and ends[1] != 0 else 1


def proposed(directory: Path, gib: float) -> list[str]:
    """The words of job=plan's answer for all sizes together; N stays."""
    line = given_line(directory / "plan", *SIZES, "job=plan", f"plan.fit.host_gib={gib}")
    text = subprocess.run(line, check=True, capture_output=True, text=True).stdout
    return re.findall(r"((?:method|schedule)\.\w+=\d+)", text[text.index("together:") :])


def limited(group: Path, output: Path, name: str, words: list[str]) -> int:
    """Run it in the group, print how it ended, and return the exit code; negative: the signal that killed it."""
    enter = f'echo $$ > {group}/cgroup.procs; exec "$@"'
    process = subprocess.run(
        ["sh", "-c", enter, "sh", *given_line(output, *SIZES, *words)], capture_output=True, text=True
    )
    done = metrics(output)[-1]["step"] if (output / "metrics.jsonl").exists() and metrics(output) else 0
    print(
        f"{name}: exit code {process.returncode} after {done} steps; the group's peak was {peak(group) / 2**20:,.0f} MiB"
    )
    if process.returncode:
        print("\n".join(f"    {line}" for line in process.stderr.splitlines()[-6:]))
    return process.returncode


@contextmanager
def control_group(limit_bytes: int) -> Iterator[Path]:
    """A group of either version with this limit and no swap. Raises OSError where none can be made."""
    parent = group_parent()
    group = (parent or _VERSION_1) / "bench-fit"
    group.mkdir()
    try:
        (group / ("memory.max" if parent else "memory.limit_in_bytes")).write_text(str(limit_bytes))
        yield group
    finally:
        group.rmdir()


def peak(group: Path) -> int:
    """Of the group since the last call, page cache included; the next call begins anew where the kernel allows it."""
    for name in ("memory.peak", "memory.max_usage_in_bytes"):
        if (group / name).exists():
            found = int((group / name).read_text())
            if name.endswith("bytes"):
                (group / name).write_text("0")
            return found
    return 0


if __name__ == "__main__":
    sys.exit(main())
