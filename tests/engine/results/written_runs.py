"""What a run leaves for its report: lines, summary, plan, config, and pictures."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from engine.results.report import EmbeddingSample, NeighbourRow

MIB = 2**20
K = 2048


def metrics_line(step: int, **changes: Any) -> dict[str, Any]:
    stages = ("data", "trunk_forward", "admit", "softmax", "trunk_backward", "update", "slide")
    return {
        "step": step,
        "loss": math.log(K) - 0.003 * step,
        "lr": 0.3,
        "images_per_second": 1430.0,
        "seconds": dict.fromkeys(stages, 0.25),
        "interval_seconds": 2.0,
        "bytes": {"device": 11 * MIB, "host": 30 * MIB + step, "disk": step * 1024, "process_peak": 700 * MIB},
        "prefetch_waits": {"steps": 0, "seconds": 0.0},
        "backends": {"sampled_softmax": "aten"},
        "active": K,
        "visited": 10 * step,
        "readmitted": step,
        "skipped_steps": 0,
        "elapsed_seconds": 0.2 * step,
        **changes,
    }


def evaluation_line(step: int) -> dict[str, Any]:
    return {
        "step": step,
        "elapsed_seconds": 0.2 * step,
        "figures": {"knn_top1": 0.1 + 0.0004 * step, "Serif & <Mono>, clean": 0.52},
        "chance": 1 / 1514,
        "raw_pixels": {"knn_top1": 0.377, "Serif & <Mono>, clean": 0.462},
        "protocol": "k = 1, temperature 0.07, gallery DejaVu Sans",
        "rankme": 91.4,
        "rankme_dim": 128,
    }


SUMMARY = {
    "job": "pretrain",
    "method": "pic",
    "status": "finished",
    "instances": 57697,
    "visited": 57001,
    "readmitted": 211034,
    "passes": 7.99,
    "steps": 1000,
    "skipped_steps": 2,
    "loss": 4.0231,
    "knn_top1": 0.518,
    "images_per_second": 1431.2,
    "step_seconds": 0.179,
    "chance_loss": math.log(K),
}
PLAN = {"device": {"weights": 8 * MIB, "momentum": 2 * MIB}, "host": {"window": 40 * MIB}, "disk": {"blocks": 60 * MIB}}
CONFIG = {"job": "pretrain", "method": {"kind": "pic", "note": "<b>&"}}


def write_run(output: Path, metrics: list[dict], evaluations: list[dict], **objects: dict) -> None:
    for name, lines in (("metrics", metrics), ("evaluations", evaluations)):
        (output / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    for name, contents in objects.items():
        (output / f"{name}.json").write_text(json.dumps(contents), encoding="utf-8")


def neighbour_rows(name: str = "DejaVu Serif A") -> list[NeighbourRow]:
    image = np.random.default_rng(0).integers(0, 255, (32, 32), dtype=np.uint8)
    judgements = [True, False, None, True, True, False, True, True]
    return [
        NeighbourRow(image, name, [(image, f"{name} {i}", right, 0.9 - 0.1 * i) for i, right in enumerate(judgements)])
    ]


def embedding_sample(count: int = 60, *, labelled: bool = True, depth: int | None = None) -> EmbeddingSample:
    rng = np.random.default_rng(0)
    labels_M = np.arange(count) % 3
    features_MD = (np.eye(8)[labels_M] * 4 + rng.normal(size=(count, 8))).astype(np.float32)
    shape = (16, 16) if depth is None else (16, 16, depth)
    images = [rng.integers(0, 255, shape, dtype=np.uint8) for _ in range(count)]
    return EmbeddingSample(features_MD, labels_M if labelled else None, images, [f"kind {k}" for k in labels_M])
