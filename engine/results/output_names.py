"""The names of all that the engine writes into an output directory, by the job that writes it. The files are output.py's business."""

import re

from engine.disk.files import CHECKPOINTS

LOCK, UNREADABLE, INDEX = "lock", "unreadable.jsonl", "images.index"
# What each job writes.
PRETRAIN = (
    *(LOCK, "config.json", "plan.json", CHECKPOINTS, "metrics.jsonl", "evaluations.jsonl", "summary.json"),
    *("report.html", "backbone.safetensors", UNREADABLE, INDEX),
)
KNN = ("knn.json",)
LINEAR = (LOCK, "linear.json", "report.html")
EXPORT = tuple(
    f"exports/{name}" for name in ("backbone.safetensors", "embeddings.npy", "names.txt", "rows.npy", "manifest.json")
)
PICTURE = ("store.png",)
EVENTS = ("tensorboard",)
CELLS, RECORDS = "cells", "cells.jsonl"
SCALE = (LOCK, "config.json", CELLS, RECORDS, "scale.json", "scale.csv", "scale.html")
PROFILE = (*PRETRAIN, "profile.json", "profile.html")
EVERY = {*PRETRAIN, *PROFILE, *KNN, *LINEAR, *EXPORT, *PICTURE, *EVENTS, *SCALE}
_OTHER_NAMES = re.compile(
    r"exports/rows-\d{1,12}\.(npy|json|zarr)|tensorboard/events\.out\.tfevents\.[^/]+|profile/facts\.json"
    r"|linear/((train|test)\.(npy|json)|(grid|logistic-\d{1,4}|published|heads-(features|published))\.safetensors)"
    r"|profile/((now|ended)-\d{1,6}|samples-\d{1,6}\.jsonl|components-\d{1,6}\.json|memory-\d{1,6}\.pickle)"
)
DIRECTORIES = re.compile(r"checkpoints|tensorboard|cells|exports/[^/]+\.zarr")
# What zarr writes, and what it has begun to write.
IN_ZARR = re.compile(r"zarr\.json|c/\d+/0|(zarr|c/\d+/0)\.[0-9a-f]{32}\.partial")
# What is written under this name first, by engine/results/whole_files.py.
WITH_PART = re.compile(r"exports/[^/]+|linear/[^/]+\.safetensors|backbone\.safetensors|store\.png")
PART_SHAPE = re.compile(rf"\.({'|'.join(re.escape(name) for name in EVERY)})\.[0-9a-f]{{8}}\.part")


def profile_names(rank: int) -> tuple[str, ...]:
    """What job profile writes of a rank, in the directory `profile`."""
    return f"now-{rank}", f"samples-{rank}.jsonl", f"components-{rank}.json", f"ended-{rank}", f"memory-{rank}.pickle"


def rows_of_step(step: int, format: str) -> tuple[str, ...]:
    """What job store writes for verb export."""
    return f"exports/rows-{step}.{format}", f"exports/rows-{step}.json"


def is_name(name: str) -> bool:
    """Whether it is one that we write. Nothing else in the list counts."""
    return name in EVERY or _OTHER_NAMES.fullmatch(name) is not None
