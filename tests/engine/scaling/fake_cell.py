"""A cell without an engine: python fake_cell.py DIRECTORY STEPS SECONDS [hang | crash | allocate MIB]

Writes the lines that a run writes, a step every SECONDS; then does what the last words say. It is quick to start: no torch.
"""

import json
import subprocess
import sys
import time
from pathlib import Path


def line(step: int, seconds: float) -> dict:
    return {
        "step": step,
        "loss": 1.0 / step,
        "images_per_second": 64 / seconds,
        "seconds": {"softmax": 0.75 * seconds, "data": 0.125 * seconds},
        "interval_seconds": seconds,
        "bytes": {"device": 1000, "host": 2000 + step, "disk": 10 * step, "process_peak": 5000},
        "prefetch_waits": {"steps": step % 2, "seconds": 0.25 * (step % 2)},
        "elapsed_seconds": seconds * step,
        "sent_bytes": {"z": 300, "loss": 20},
        "blocks_read": step,
    }


def main() -> None:
    directory, steps, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    directory.mkdir(parents=True, exist_ok=True)
    (directory / ".pic-engine").write_text(
        "This directory was made by pic-engine, which wrote what is named below and removes nothing else.\nmetrics.jsonl\n"
    )
    with open(directory / "metrics.jsonl", "w") as file:
        for step in range(1, steps + 1):
            print(json.dumps(line(step, seconds)), file=file, flush=True)
    print("said by the cell")
    todo = sys.argv[4:]
    if todo[:1] == ["hang"]:  # with a child in a session of its own, which no signal to this process reaches
        subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"], start_new_session=True)
        (directory / "metrics.jsonl").touch()
        print("hangs", flush=True)
        time.sleep(600)
    if todo[:1] == ["crash"]:
        raise RuntimeError("the last words")
    if todo[:1] == ["allocate"]:
        kept = []
        for _ in range(int(todo[1])):
            kept.append(b"x" * 2**20)
            time.sleep(0.0005)
        time.sleep(600)


if __name__ == "__main__":
    main()
