"""The processes of a run; the only module that imports torch.distributed.

Launchers (deepspeed, torchrun) tell a process its rank through environment variables; under plain python there is one process,
which needs no port: its group lives in a store in memory, so that runs side by side cannot clash.
"""

import os

import torch
import torch.distributed as dist


def start(device: torch.device) -> None:
    """Join the process group of this one process."""
    assert os.environ.get("WORLD_SIZE", "1") == "1", "launch.py refuses more processes: rows are not sharded yet"
    # DeepSpeed asks for these whatever the backend.
    for name, value in (
        ("RANK", "0"),
        ("LOCAL_RANK", "0"),
        ("WORLD_SIZE", "1"),
        ("MASTER_ADDR", "127.0.0.1"),
        ("MASTER_PORT", "0"),
    ):
        os.environ.setdefault(name, value)
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)


def stop() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()
