"""The output directory of a run: what it may be, what a run leaves there, and whether an earlier run came to its end."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

# What a run writes into its output directory, and --fresh removes.
OUTPUTS = ["config.json", "plan.json", "metrics.jsonl", "evaluations.jsonl", "summary.json", "report.html"]
OUTPUTS += ["checkpoints", "images.index", "backbone.safetensors", "tensorboard", "exports", "knn.json", "store.png"]


def require_writable(output: Path) -> None:
    """ValueError where nothing can be written at `output`, which need not exist yet; touches nothing."""
    ancestor = next(path for path in (output, *output.absolute().parents) if path.exists())
    if not ancestor.is_dir() or not os.access(ancestor, os.W_OK | os.X_OK):
        what = "not a directory" if not ancestor.is_dir() else "read-only"
        raise ValueError(
            f"cannot write into output {output}: {ancestor} is {what}; set output to a directory of your own"
        )


def prepare_output(output: Path, fresh: bool) -> Path:
    """Make the output directory and, with `fresh`, rid it of an earlier run."""
    require_writable(output)
    made = [path for path in (output.absolute(), *output.absolute().parents) if not path.exists()]
    output.mkdir(parents=True, exist_ok=True)
    for path in made:  # a checkpoint is not safe in a directory whose name a power cut can take
        handle = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(handle)
        os.close(handle)
    for name in OUTPUTS if fresh else ():
        path = output / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return output


def is_finished(output: Path, end: int) -> bool:
    """Whether an earlier run came to its end, with its last evaluation and summary."""
    try:
        summary = json.loads((output / "summary.json").read_text())
    except (OSError, json.JSONDecodeError):
        return False
    return summary.get("status") == "finished" and summary.get("steps") == end


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
