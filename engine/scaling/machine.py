"""On what a sweep ran: hardware and versions, for scale.json and the page."""

import importlib.metadata
import os
import platform
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch

_PACKAGES = (
    "torch",
    "numpy",
    "zarr",
    "deepspeed",
    "faiss-cpu",
    "faiss-gpu",
    "fbgemm-gpu-cpu",
    "fbgemm-gpu",
    "torchvision",
)


def hardware(output: Path) -> dict[str, Any]:
    """output: where the cells write."""
    model = platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    disk = shutil.disk_usage(output)
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "disk_bytes": disk.total,
        "disk_free_bytes": disk.free,
        "file_system": _file_system(output),
        "devices": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        "kernel": f"{platform.system()} {platform.release()}",
    }


def versions() -> dict[str, str]:
    """Of Python and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _file_system(path: Path) -> str:
    """Its type: that of the longest mount point above the path."""
    real = str(path.resolve())
    above = [part for part in psutil.disk_partitions(all=True) if real.startswith(part.mountpoint.rstrip("/") + "/")]
    return max(above, key=lambda part: len(part.mountpoint)).fstype if above else "unknown"
