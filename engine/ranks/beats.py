"""What a rank tells of itself about once a second, in a table that all ranks reach (engine/ranks/watch.py)."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


class Table(Protocol):
    """A table of short texts that all ranks reach, as torch's TCPStore is one. RuntimeError and OSError mean that its keeper is gone."""

    def set(self, key: str, text: str, /) -> Any: ...

    def get(self, key: str, /) -> bytes: ...

    def check(self, keys: list[str], /) -> bool: ...


@dataclass(frozen=True)
class Line:
    """What a rank tells of itself, under one key, so that nobody reads half of it.

    who       its process and machine
    process, place   its number, and where that number means it: one kernel, one namespace
    beat      how often it wrote
    calls     exchanges that it has begun
    tensors   those of them that are in the middle of a step, where nobody may keep the others waiting
    has_read  whether it has read words of another rank
    raised    what a collective raised here
    words     what it says about the end of the run; it leaves, and so must the others
    ended     it has done all its work
    """

    who: str = ""
    process: int = 0
    place: str = ""
    beat: int = 0
    calls: int = 0
    tensors: int = 0
    has_read: bool = False
    raised: str | None = None
    words: str | None = None
    ended: bool = False


def place() -> str:
    """Where process numbers mean the same: this boot of this kernel, this namespace. Host names can be the same elsewhere."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        if os.readlink("/proc/self") == str(os.getpid()):  # else /proc is another namespace's
            return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return f"nowhere else {os.getpid()}"
