"""kNN of PIC with K/N = 1/16 and 1/4 against full PIC, same steps, three seeds each, as a Markdown table.

    python -m tests.compare_fashion_mnist [section.key=value ...]

Runs configs/fashion_mnist.json nine times, two at a time with one thread each; words are passed on to every run.
"""

import json
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ACTIVE = {"1/16": 372, "1/4": 1500, "1 (full PIC)": 6000}
SEEDS = (0, 1, 2)
OUTPUT = Path("runs/compare_fashion_mnist")


def train(share: str, seed: int, words: list[str]) -> dict:
    output = OUTPUT / f"active-{ACTIVE[share]}-seed-{seed}"
    command = [
        sys.executable,
        "launch.py",
        "--config",
        "configs/fashion_mnist.json",
        "--fresh",
        f"output={output}",
        "threads=1",
    ]
    command += [f"seed={seed}", f"method.active={ACTIVE[share]}", *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    summary = json.loads((output / "summary.json").read_text())
    evaluation = json.loads((output / "evaluations.jsonl").read_text().splitlines()[-1])
    return {**summary, "raw": evaluation["raw_pixels"]["knn_top1"], "protocol": evaluation["protocol"]}


def main(words: list[str]) -> None:
    jobs = [(share, seed) for seed in SEEDS for share in ACTIVE]
    with ThreadPoolExecutor(2) as pool:
        results = dict(zip(jobs, pool.map(lambda job: train(*job, words), jobs), strict=True))
    print("| K/N | K | kNN of seeds 0, 1, 2 | mean | loss | ln K | minutes of steps |")
    print("|---|---|---|---|---|---|---|")
    for share, active in ACTIVE.items():
        runs = [results[share, seed] for seed in SEEDS]
        shares = [run["knn_top1"] for run in runs]
        loss = statistics.mean(run["loss"] for run in runs)
        minutes = statistics.mean(run["step_seconds"] * run["steps"] for run in runs) / 60
        print(
            f"| {share} | {active} | {', '.join(f'{s:.1%}' for s in shares)} | {statistics.mean(shares):.1%} | {loss:.2f} "
            f"| {runs[0]['chance_loss']:.2f} | {minutes:.1f} |"
        )
    print(f"| raw pixels | | | {runs[0]['raw']:.1%} | | | |")
    print(f"\n{runs[0]['protocol']}")


if __name__ == "__main__":
    main(sys.argv[1:])
